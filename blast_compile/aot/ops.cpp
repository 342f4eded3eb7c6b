// The operators for processes without Python: torch.ops.blast.* of inference, on torch's stable ABI.
//
// Linked with the kernels of a model into one shared object, which a C++ program opens before it loads the model's package,
// or Python by torch.ops.load_library, in place of blast_compile. It uses nothing of torch but what TORCH_TARGET_VERSION
// promises to keep, so it outlives the torch that it was built beside. Generated are `kernel_table`, which says which kernel
// serves which calls (for any other call an op fails and names it), and `operators`, a function for each op.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernel_table.hpp"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// Weight, mask or index, and bias of a layer, by its outputs and inputs.
struct Layer {
  const Tensor& weight;
  const Tensor& index;
  const MaybeTensor& bias;
  int64_t N, K;
};

// As `Isa` of blast_compile: each one holds those before it.
int machine_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
  if (avx2) return 1;
#endif
  return 0;
}

const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    default: return "another dtype";
  }
}

// What a plan depends on, as `stable_ops.key_of` writes it.
std::string key_of(const char* op, const Tensor& x, const std::vector<Layer>& layers, bool residual, const Sizes& block,
                   const std::string& activation) {
  const Tensor& weight = layers[0].weight;
  std::string key = std::string(op) + " " + name_of(x.scalar_type()) + " " + name_of(weight.scalar_type()) + " " +
                    std::to_string(block[0]) + "x" + std::to_string(block[1]) + " " + activation + " ";
  for (const Layer& layer : layers) key += layer.bias ? '1' : '0';
  return key + (residual ? " residual" : " alone") + (weight.dim() == 3 ? " packed" : " masked");
}

blast::Kernel kernel_for(const std::string& key) {
  static const int isa = machine_isa();
  for (const blast::Entry& entry : blast::ENTRIES)  // the best instruction set first
    if (entry.isa <= isa && key == entry.key) return entry.run;
  STD_TORCH_CHECK(false, "expected a kernel for blast::", key, " on this processor, got none in this library; build it for ",
                  "a model that calls this, and for a target that runs here");
  return nullptr;
}

bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  if (tensor.dim() != int64_t(shape.size())) return false;
  int64_t dim = 0;
  for (int64_t size : shape)
    if (tensor.size(dim++) != size) return false;
  return true;
}

// A kernel trusts shapes: what it would read must be there.
void check(const Tensor& x, const Layer& layer, const Layer& first, const Sizes& block) {
  const Tensor &weight = layer.weight, &index = layer.index;
  const int64_t bn = block[0], bk = block[1], R = (layer.N + bn - 1) / bn, C = (layer.K + bk - 1) / bk;
  const bool is_packed = weight.dim() == 3;
  const bool fits = is_packed ? has_shape(weight, {weight.size(0), bk, bn}) && has_shape(index, {2 * R + 1 + weight.size(0)})
                              : has_shape(weight, {layer.N, layer.K}) && has_shape(index, {R, C});
  const bool is_alike = weight.scalar_type() == first.weight.scalar_type() && weight.dim() == first.weight.dim();
  const bool is_readable = is_packed ? weight.is_contiguous() : weight.stride(0) == 1 || weight.stride(1) == 1;
  STD_TORCH_CHECK(fits && is_alike && is_readable && index.is_contiguous() && index.scalar_type() == (is_packed ? ScalarType::Int : ScalarType::Float),
                  "expected a weight of [", layer.N, ", ", layer.K, "] in blocks of ", bn, " x ", bk,
                  " with its float32 mask or, packed, its int32 index, got other shapes, dtypes or strides");
  STD_TORCH_CHECK(!layer.bias || (has_shape(*layer.bias, {layer.N}) && layer.bias->is_contiguous() &&
                                  layer.bias->scalar_type() == weight.scalar_type()),
                  "expected a contiguous bias of ", layer.N, " in the dtype of the weight, got another");
  STD_TORCH_CHECK(x.is_cpu() && weight.is_cpu() && index.is_cpu() && (!layer.bias || layer.bias->is_cpu()),
                  "expected tensors on the CPU, got others");
}

int64_t address(const void* pointer) { return reinterpret_cast<int64_t>(pointer); }

Tensor product(const char* op, const Tensor& given, const std::vector<Layer>& layers, const MaybeTensor& residual,
               const Sizes& block, const std::string& activation) {
  STD_TORCH_CHECK(given.dim() > 0 && block.size() == 2 && block[0] > 0 && block[1] > 0, "expected rows and a block of two edges");
  for (const Layer& layer : layers) check(given, layer, layers[0], block);
  const Tensor x = torch::stable::contiguous(given);
  Sizes shape(x.sizes().begin(), x.sizes().end());
  shape.back() = layers.back().N;
  Tensor y = torch::stable::new_empty(x, shape);
  if (y.numel() == 0) return y;
  MaybeTensor added;
  if (residual) {
    STD_TORCH_CHECK(residual->sizes() == y.sizes() && residual->scalar_type() == y.scalar_type() && residual->is_cpu(),
                    "expected a residual like the result, got another shape, dtype or device");
    added = torch::stable::contiguous(*residual);
  }
  const blast::Kernel run = kernel_for(key_of(op, x, layers, residual.has_value(), block, activation));
  Sizes numbers = {int64_t(torch::stable::get_num_threads()), x.numel() / x.size(-1),
                   address(x.const_data_ptr()),               x.size(-1),
                   address(y.mutable_data_ptr()),             added ? address(added->const_data_ptr()) : 0};
  for (const Layer& layer : layers) {
    const bool is_packed = layer.weight.dim() == 3;
    const int64_t num_blocks = is_packed ? layer.weight.size(0) : layer.index.numel();
    for (int64_t number : {address(layer.weight.const_data_ptr()), address(layer.index.const_data_ptr()),
                           layer.bias ? address(layer.bias->const_data_ptr()) : 0, layer.weight.stride(0),
                           layer.weight.stride(1), layer.N, layer.K, num_blocks})
      numbers.push_back(number);
  }
  const int status = run(numbers.data());
  STD_TORCH_CHECK(status != 2, "expected memory for the scratch of blast::", op, ", got none");
  STD_TORCH_CHECK(status == 0, "expected an undamaged mask index for blast::", op, ", got one that was averaged, cast or edited");
  return y;
}

#include "operators.hpp"

}  // namespace

STABLE_TORCH_LIBRARY(blast, library) {
  for (const char* schema : blast::SCHEMAS) library.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(blast, CPU, library) {
  implement(library);
}
