// The hot path of launch.py without Python: a call whose plan is remembered goes straight to its kernel.
//
// Of each op it holds one boxed kernel for CPU tensors. What it does not know, it asks Python: the op `_plan_*` for the plan
// of a new kind of call, and `_plain_*`, which is launch.py, for calls that no kernel serves as they are (nothing to compute,
// strided activations, an unlike residual, a damaged index, a freed storage) and for their errors.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <pthread.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using Args = c10::ArrayRef<c10::IValue>;
using Numbers = std::vector<int64_t>;
using Kernel = int (*)(const int64_t*);

constexpr size_t CONSTANTS = 5;  // of a layer: row stride, column stride, outputs, contractions, number of blocks
constexpr size_t MOST_PLANS = 4096;  // as in plans.py

std::atomic<int64_t> generation{0};  // rises when plans are to be forgotten
std::atomic<bool> is_alone{false};   // in a forked child, which has lost OpenMP's threads
std::atomic<int64_t> num_plans{0};   // of all launchers

// Where the arguments of a call stand: x, then weight, index and bias of each layer, a residual, sizes, block, ..., abi, and
// behind it the probes, which concern gradients alone.
struct Layout {
  size_t num_tensors = 0, num_layers = 0, last_size = 0, num_planned = 0;
  bool has_bias = false, has_residual = false;

  explicit Layout(const Args& args) {
    while (args[1 + num_tensors].isTensor() || args[1 + num_tensors].isNone()) ++num_tensors;
    has_bias = num_tensors > 2;  // input_grad has weight and index alone
    num_layers = has_bias ? num_tensors / 3 : 1;
    has_residual = has_bias && num_tensors % 3 == 1;
    last_size = 1 + num_tensors;
    while (args[last_size + 1].isInt()) ++last_size;
    num_planned = args.size();
    while (!args[num_planned - 1].isInt()) --num_planned;
  }
  size_t layer(size_t number) const { return 1 + 3 * number; }
};

void add(Numbers& key, const at::Tensor& tensor) {
  key.push_back(int64_t(tensor.scalar_type()) | int64_t(tensor.device().type()) << 8 | tensor.dim() << 16);
  key.insert(key.end(), tensor.sizes().begin(), tensor.sizes().end());
  key.insert(key.end(), tensor.strides().begin(), tensor.strides().end());
}

void add(Numbers& key, const c10::IValue& value) {
  if (value.isTensor()) return add(key, value.toTensor());
  if (value.isInt()) return key.push_back(value.toInt());
  if (value.isNone()) return key.push_back(-1);
  if (value.isString()) {
    const std::string& text = value.toStringRef();
    key.push_back(int64_t(text.size()));
    key.insert(key.end(), text.begin(), text.end());
    return;
  }
  for (const c10::IValue& item : value.toListRef()) add(key, item);
}

// All that a plan depends on: dtypes, shapes and strides of the layers, but of x and residual no token counts.
void describe(const Args& args, const Layout& layout, Numbers& key) {
  const at::Tensor& x = args[0].toTensor();
  key = {generation, int64_t(x.scalar_type()), x.size(-1), layout.has_residual && !args[layout.num_tensors].isNone()};
  for (size_t i = 1; i < layout.num_planned; ++i)
    if (!layout.has_residual || i != layout.num_tensors) add(key, args[i]);
}

struct Hash {
  size_t operator()(const Numbers& key) const {
    uint64_t hash = 0;
    for (int64_t number : key) hash = (hash ^ uint64_t(number)) * 0x9e3779b97f4a7c15u ^ hash >> 29;
    return hash;
  }
};

// A kernel, and the most tokens that it serves.
struct Serving {
  int64_t most_tokens;
  Kernel run;
};

struct Plan {
  std::vector<Serving> kernels;  // by tokens, the last one for any number; none where the reference serves the call
  Numbers constants;

  Kernel run(int64_t tokens) const {
    for (const Serving& serving : kernels)
      if (tokens <= serving.most_tokens) return serving.run;
    return nullptr;
  }
};

// Packed weights differ in their number of blocks, so a process that loads one model after another meets new kinds of calls
// for ever. Once there are too many, those that were not asked for since the last time go.
class Plans {
 public:
  std::shared_ptr<const Plan> find(const Numbers& key) const {
    std::shared_lock lock(mutex_);
    auto found = plans_.find(key);
    return found == plans_.end() ? nullptr : found->second;
  }
  // A plan that `find` no longer knows, which it knows again from now on; or nothing.
  std::shared_ptr<const Plan> recall(const Numbers& key) {
    std::unique_lock lock(mutex_);
    auto node = older_.extract(key);
    if (node.empty()) return nullptr;
    --num_plans;
    keep(key, node.mapped());
    return node.mapped();
  }
  void remember(const Numbers& key, std::shared_ptr<const Plan> plan) {
    std::unique_lock lock(mutex_);
    keep(key, std::move(plan));
  }

 private:
  void keep(const Numbers& key, std::shared_ptr<const Plan> plan) {
    if (plans_.size() >= MOST_PLANS) {
      num_plans -= int64_t(older_.size());
      older_ = std::exchange(plans_, {});
    }
    num_plans += plans_.emplace(key, std::move(plan)).second;
  }

  mutable std::shared_mutex mutex_;
  std::unordered_map<Numbers, std::shared_ptr<const Plan>, Hash> plans_, older_;
};

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
  return std::all_of(args.begin(), args.begin() + 1 + layout.num_tensors, [](const c10::IValue& value) {
    return value.isNone() || value.toTensor().unsafeGetTensorImpl()->storage_initialized();
  });
}

// Asks the kernel for large pages behind a large result: its memory is fresh, and to touch it on pages of 4 KiB may cost more
// than its product (33 MB at 95 %: 5 ms in 12). As pages.py does for gradients.
void ask_for_large_pages(const at::Tensor& y) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 2 * 1024 * 1024;
  const uintptr_t address = reinterpret_cast<uintptr_t>(y.const_data_ptr());
  const uintptr_t start = (address + PAGE - 1) / PAGE * PAGE, end = (address + y.nbytes()) / PAGE * PAGE;
  if (y.nbytes() >= 4 * PAGE && start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

// The result of a planned call, or an undefined tensor where launch.py has to see it.
at::Tensor run(const Plan& plan, const Args& args, const Layout& layout) {
  const at::Tensor& x = args[0].toTensor();
  if (plan.kernels.empty() || x.numel() == 0 || !x.is_contiguous() || !have_memory(args, layout)) return {};
  const int64_t tokens = x.numel() / x.size(-1);
  c10::SmallVector<int64_t, 8> sizes(x.sizes());
  sizes.back() = args[layout.last_size].toInt();
  const at::Tensor* residual = nullptr;
  if (layout.has_residual && args[layout.num_tensors].isTensor()) {
    residual = &args[layout.num_tensors].toTensor();
    if (residual->sizes() != c10::IntArrayRef(sizes) || residual->scalar_type() != x.scalar_type() ||
        residual->device() != x.device() || !residual->is_contiguous())
      return {};
  }
  at::Tensor y = at::empty(sizes, x.options());
  if (y.numel() == 0) return {};
  ask_for_large_pages(y);
  auto address = [](const void* pointer) { return reinterpret_cast<int64_t>(pointer); };
  c10::SmallVector<int64_t, 32> numbers = {
      is_alone ? 1 : at::get_num_threads(), tokens,
      address(x.const_data_ptr()),          x.size(-1),
      address(y.mutable_data_ptr()),        residual ? address(residual->const_data_ptr()) : 0,
  };
  for (size_t number = 0; number < layout.num_layers; ++number) {
    const c10::IValue* layer = &args[layout.layer(number)];
    numbers.push_back(address(layer[0].toTensor().const_data_ptr()));
    numbers.push_back(address(layer[1].toTensor().const_data_ptr()));
    numbers.push_back(layout.has_bias && layer[2].isTensor() ? address(layer[2].toTensor().const_data_ptr()) : 0);
    numbers.append(&plan.constants[number * CONSTANTS], &plan.constants[number * CONSTANTS] + CONSTANTS);
  }
  return plan.run(tokens)(numbers.data()) == 0 ? y : at::Tensor();
}

c10::OperatorHandle python(const char* what, const std::string& op) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("blast::_") + what + "_" + op).c_str(), "");
}

class Launcher : public c10::OperatorKernel {
 public:
  explicit Launcher(const std::string& op) : plan_(python("plan", op)), plain_(python("plain", op)) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const Args args = torch::jit::last(*stack, op.schema().arguments().size());
    if (args[0].toTensor().dim() == 0) return plain_.callBoxed(*stack);
    const Layout layout(args);
    static thread_local Numbers key;
    describe(args, layout, key);
    std::shared_ptr<const Plan> plan = plans_.find(key);
    if (!plan) plan = plans_.recall(key);
    if (!plan) {
      const Numbers asked = key;  // Python may call other ops on this thread, or forget all plans
      plan = ask(plan_, args.slice(0, layout.num_planned));
      plans_.remember(asked, plan);
    }
    at::Tensor y = run(*plan, args, layout);
    if (!y.defined()) return plain_.callBoxed(*stack);
    torch::jit::drop(*stack, args.size());
    stack->emplace_back(std::move(y));
  }

 private:
  c10::OperatorHandle plan_, plain_;
  Plans plans_;
};

}  // namespace

// Puts a launcher under every op that has a plan; false where the ops are not what this file was written for.
extern "C" bool blast_attach() try {
  auto library = std::make_unique<torch::Library>(torch::Library::IMPL, "blast", c10::DispatchKey::CPU, __FILE__, __LINE__);
  for (const char* op : {"linear", "gated_linear", "mlp", "gated_mlp", "input_grad"})
    for (const char* overload : {"", ".nograd"}) {
      auto launcher = std::make_unique<Launcher>(op);
      library->impl((std::string(op) + overload).c_str(), torch::CppFunction::makeFromBoxedFunctor(std::move(launcher)));
    }
  pthread_atfork(nullptr, nullptr, [] { is_alone = true; });
  library.release();  // for the rest of the process
  return true;
} catch (const std::exception&) {
  return false;
}

extern "C" void blast_forget() { ++generation; }

extern "C" int blast_num_plans() { return int(num_plans); }
