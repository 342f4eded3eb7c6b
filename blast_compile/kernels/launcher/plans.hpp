// What a kind of call is planned to do, and how long that is remembered.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace blast {

using Args = c10::ArrayRef<c10::IValue>;
using Numbers = std::vector<int64_t>;
using Kernel = int (*)(const int64_t*);

constexpr size_t CONSTANTS = 5;  // of a layer: row stride, column stride, outputs, contractions, number of blocks
constexpr size_t MOST_PLANS = 4096;  // as in plans.py

inline std::atomic<int64_t> generation{0};  // rises when plans are to be forgotten
inline std::atomic<int64_t> num_plans{0};   // of all launchers

// Where the arguments of an op stand: x, the operands of each layer, a residual, sizes, block, ..., abi, and behind it the
// probes, which concern gradients alone. From the table of products (`codegen/family.py`).
struct Layout {
  int64_t num_layers, num_operands, num_residuals, num_sizes, num_planned;
  int64_t num_addresses;  // that a kernel takes of each layer, 0 for operands that the op has not

  size_t residual() const { return 1 + num_layers * num_operands; }
  size_t num_tensors() const { return residual() + num_residuals; }
  size_t last_size() const { return num_tensors() + num_sizes - 1; }
  size_t layer(size_t number) const { return 1 + number * num_operands; }
};

inline void add(Numbers& key, const at::Tensor& tensor) {
  key.push_back(int64_t(tensor.scalar_type()) | int64_t(tensor.device().type()) << 8 | tensor.dim() << 16);
  key.insert(key.end(), tensor.sizes().begin(), tensor.sizes().end());
  key.insert(key.end(), tensor.strides().begin(), tensor.strides().end());
}

inline void add(Numbers& key, const c10::IValue& value) {
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
inline void describe(const Args& args, const Layout& layout, Numbers& key) {
  const at::Tensor& x = args[0].toTensor();
  key = {generation, int64_t(x.scalar_type()), x.size(-1), layout.num_residuals && !args[layout.residual()].isNone()};
  for (size_t i = 1; i < size_t(layout.num_planned); ++i)
    if (!layout.num_residuals || i != layout.residual()) add(key, args[i]);
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

}  // namespace blast
