// The hot path of `ops/products/cpu.py` without Python: a call whose plan is remembered goes straight to its kernel.
//
// Of each op it holds one boxed kernel for CPU tensors. What it does not know, it asks Python: the op `_plan_*` for the plan
// of a new kind of call, and `_plain_*`, which is that file, for calls that no kernel serves as they are (nothing to compute,
// strided activations, an unlike residual, a damaged index, a freed storage) and for their errors. `_zeros_like` is its own.

#include <ATen/Parallel.h>
#include <pthread.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "memory.hpp"
#include "plans.hpp"

namespace blast {
namespace {

// What `_plan_*` says: how many kernels, their tokens and entry points, and the constants of the layers; or nothing.
std::shared_ptr<const Plan> ask(const c10::OperatorHandle& op, const Args& args) {
  torch::jit::Stack stack(args.begin(), args.end());
  op.callBoxed(stack);
  const Numbers numbers = stack.front().toIntVector();
  auto plan = std::make_shared<Plan>();
  if (numbers.empty()) return plan;
  const size_t end = 1 + 2 * size_t(numbers[0]);
  for (size_t i = 1; i < end; i += 2) plan->kernels.push_back({numbers[i], reinterpret_cast<Kernel>(numbers[i + 1])});
  plan->constants.assign(numbers.begin() + end, numbers.end());
  return plan;
}

// Whether every tensor has memory; FSDP frees that of weights between forward passes.
bool have_memory(const Args& args, const Layout& layout) {
  return std::all_of(args.begin(), args.begin() + layout.num_tensors(), [](const c10::IValue& value) {
    return value.isNone() || value.toTensor().unsafeGetTensorImpl()->storage_initialized();
  });
}

// The result of a planned call, or an undefined tensor where Python has to see it.
at::Tensor run(const Plan& plan, const Args& args, const Layout& layout) {
  const at::Tensor& x = args[0].toTensor();
  if (plan.kernels.empty() || x.numel() == 0 || !x.is_contiguous() || !have_memory(args, layout)) return {};
  const int64_t tokens = x.numel() / x.size(-1);
  c10::SmallVector<int64_t, 8> sizes(x.sizes());
  sizes.back() = args[layout.last_size()].toInt();
  const at::Tensor* residual = nullptr;
  if (layout.num_residuals && args[layout.residual()].isTensor()) {
    residual = &args[layout.residual()].toTensor();
    if (residual->sizes() != c10::IntArrayRef(sizes) || residual->scalar_type() != x.scalar_type() ||
        residual->device() != x.device() || !residual->is_contiguous())
      return {};
  }
  at::Tensor y = empty_result(sizes, x.options());
  if (y.numel() == 0) return {};
  auto address = [](const void* pointer) { return reinterpret_cast<int64_t>(pointer); };
  c10::SmallVector<int64_t, 32> numbers = {
      is_alone ? 1 : at::get_num_threads(), tokens,
      address(x.const_data_ptr()),          x.size(-1),
      address(y.mutable_data_ptr()),        residual ? address(residual->const_data_ptr()) : 0,
  };
  for (int64_t number = 0; number < layout.num_layers; ++number) {
    const c10::IValue* layer = &args[layout.layer(number)];
    for (int64_t operand = 0; operand < layout.num_addresses; ++operand) {
      const bool is_given = operand < layout.num_operands && layer[operand].isTensor();
      numbers.push_back(is_given ? address(layer[operand].toTensor().const_data_ptr()) : 0);
    }
    numbers.append(&plan.constants[number * CONSTANTS], &plan.constants[number * CONSTANTS] + CONSTANTS);
  }
  return plan.run(tokens)(numbers.data()) == 0 ? y : at::Tensor();
}

c10::OperatorHandle python(const char* what, const std::string& op) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("blast::_") + what + "_" + op).c_str(), "");
}

class Launcher : public c10::OperatorKernel {
 public:
  Launcher(const std::string& op, const Layout& layout)
      : layout_(layout), plan_(python("plan", op)), plain_(python("plain", op)) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const Args args = torch::jit::last(*stack, op.schema().arguments().size());
    if (args[0].toTensor().dim() == 0) return plain_.callBoxed(*stack);
    static thread_local Numbers key;
    describe(args, layout_, key);
    std::shared_ptr<const Plan> plan = plans_.find(key);
    if (!plan) plan = plans_.recall(key);
    if (!plan) {
      const Numbers asked = key;  // Python may call other ops on this thread, or forget all plans
      plan = ask(plan_, args.slice(0, layout_.num_planned));
      plans_.remember(asked, plan);
    }
    at::Tensor y = run(*plan, args, layout_);
    if (!y.defined()) return plain_.callBoxed(*stack);
    torch::jit::drop(*stack, args.size());
    stack->emplace_back(std::move(y));
  }

 private:
  const Layout layout_;
  c10::OperatorHandle plan_, plain_;
  Plans plans_;
};

}  // namespace
}  // namespace blast

// Puts a launcher under each of `count` ops; false where torch is not what this file was written for. is_alone: in a process
// that was forked already.
extern "C" bool blast_attach(const char* const* ops, const blast::Layout* layouts, int count, bool is_alone) try {
  auto library = std::make_unique<torch::Library>(torch::Library::IMPL, "blast", c10::DispatchKey::CPU, __FILE__, __LINE__);
  for (int number = 0; number < count; ++number)
    for (const char* overload : {"", ".nograd"}) {
      const std::string op = ops[number];
      auto launcher = std::make_unique<blast::Launcher>(op, layouts[number]);
      library->impl((op + overload).c_str(), torch::CppFunction::makeFromBoxedFunctor(std::move(launcher)));
    }
  library->impl("_zeros_like", torch::CppFunction::makeFromUnboxedFunction(&blast::zeros_like));
  pthread_atfork(nullptr, nullptr, [] { blast::is_alone = true; });
  blast::is_alone = is_alone;
  library.release();  // for the rest of the process
  return true;
} catch (const std::exception&) {
  return false;
}

extern "C" void blast_forget() { ++blast::generation; }

extern "C" int blast_num_plans() { return int(blast::num_plans); }
