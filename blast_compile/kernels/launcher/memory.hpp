// Where large results and gradients are written: on large pages, in memory that waits for the next of its kind.
//
// malloc returns what takes 32 MB and more to the system as soon as it is freed (mallopt(3), M_MMAP_THRESHOLD), and much of
// the rest once a step of training has freed its gradients. Such a tensor would be fresh memory each time, which the system
// clears: 2 of the 6.6 ms of a result of 32 MB at 95 %. While freed memory waits here, the system may take its pages, should
// it need them (MADV_FREE).
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

namespace blast {

inline std::atomic<bool> is_alone{false};  // in a forked child: it has lost OpenMP's threads, and whoever held a lock

#if defined(MADV_HUGEPAGE) && defined(MADV_FREE) && defined(MADV_DONTFORK)

constexpr size_t LARGE_PAGE = size_t(2) << 20;       // bytes, as all below
constexpr size_t LARGE_RESULT = 4 * LARGE_PAGE;      // from here on small pages cost more
constexpr size_t MOST_OF_MALLOC = size_t(32) << 20;  // smaller results malloc keeps itself
constexpr size_t LARGE_GRADIENT = 2 * LARGE_PAGE;    // from here on gradients wait
constexpr size_t MOST_WAITING = size_t(512) << 20;

constexpr c10::DispatchKeySet CPU(c10::DispatchKey::CPU);

// Asks for large pages where a whole one lies in this memory; as pages.py does without this file.
inline void ask_for_large_pages(const void* memory, size_t size) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t start = (address + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE, end = (address + size) / LARGE_PAGE * LARGE_PAGE;
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
}

struct Memory {
  void* address = nullptr;
  size_t size = 0;

  // At least `size` bytes from the system, or nothing where it has none.
  static Memory map(size_t size) {
    const size_t page = size_t(getpagesize());
    size = (size + page - 1) / page * page;
    void* mapped = mmap(nullptr, size + LARGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return {};
    const size_t before = -reinterpret_cast<uintptr_t>(mapped) % LARGE_PAGE;
    char* address = static_cast<char*>(mapped) + before;
    if (before) munmap(mapped, before);
    munmap(address + size, LARGE_PAGE - before);
    ask_for_large_pages(address, size);
    return {address, size};
  }
  void unmap() const { munmap(address, size); }
};

class Waiting {
 public:
  // The smallest memory that holds `size` bytes and not far more, or nothing.
  Memory take(size_t size) {
    std::lock_guard lock(mutex_);
    auto best = memories_.end();
    for (auto memory = memories_.begin(); memory != memories_.end(); ++memory)
      if (memory->size >= size && memory->size / 2 <= size && (best == memories_.end() || memory->size < best->size))
        best = memory;
    if (best == memories_.end()) return {};
    const Memory found = *best;
    memories_.erase(best);
    bytes_ -= found.size;
    madvise(found.address, found.size, MADV_DOFORK);
    return found;
  }
  // Those that wait longest go where there are too many.
  void give(Memory memory) {
    if (memory.size > MOST_WAITING) return memory.unmap();
    madvise(memory.address, memory.size, MADV_FREE);
    madvise(memory.address, memory.size, MADV_DONTFORK);  // else a write of ours would copy what a child never reads
    std::lock_guard lock(mutex_);
    memories_.push_back(memory);
    bytes_ += memory.size;
    drop_until(MOST_WAITING);
  }
  void drop_all() {
    std::lock_guard lock(mutex_);
    drop_until(0);
  }

 private:
  void drop_until(size_t bytes) {
    while (bytes_ > bytes) {
      bytes_ -= memories_.front().size;
      memories_.front().unmap();
      memories_.erase(memories_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Memory> memories_;  // the one that waits longest first
  size_t bytes_ = 0;
};

// Never destroyed, nor is what waits: a tensor may outlive the statics of this library.
class LargeTensors final : public c10::Allocator {
 public:
  static LargeTensors* get() {
    static LargeTensors* allocator = new LargeTensors;
    return allocator;
  }
  c10::DataPtr allocate(size_t size) override {
    Memory found = is_alone ? Memory{} : waiting_.take(size);
    if (!found.address) found = Memory::map(size);
    if (!found.address && !is_alone) {
      waiting_.drop_all();
      found = Memory::map(size);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, found.address, "expected ", size, " bytes for a result or a gradient, got no memory; ",
                     "free some, or pass fewer tokens");
    c10::profiledCPUMemoryReporter().New(found.address, size);
    return {found.address, new Memory(found), &free, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }

 private:
  static void free(void* context) {
    const std::unique_ptr<Memory> memory(static_cast<Memory*>(context));
    c10::profiledCPUMemoryReporter().Delete(memory->address);
    is_alone ? memory->unmap() : get()->waiting_.give(*memory);
  }

  Waiting waiting_;
};

inline at::Tensor empty_result(c10::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t size = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (size >= MOST_OF_MALLOC)
    return at::detail::empty_generic(sizes, LargeTensors::get(), CPU, c10::typeMetaToScalarType(options.dtype()), std::nullopt);
  at::Tensor y = at::empty(sizes, options);
  if (size >= LARGE_RESULT) ask_for_large_pages(y.const_data_ptr(), size);
  return y;
}

// Zeros in memory of whole lines; many go past the caches, which spares reading what is overwritten.
inline void clear(void* memory, size_t size) {
  constexpr int64_t LINE = 64, MANY = 16 << 20;
  auto lines = [&](int64_t first, int64_t last) {
    char* from = static_cast<char*>(memory) + first * LINE;
#ifdef __SSE2__
    if (size >= MANY) {
      for (char* to = from; to < from + (last - first) * LINE; to += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(to), __m128i{});
      return _mm_sfence();
    }
#endif
    std::memset(from, 0, (last - first) * LINE);
  };
  const int64_t count = int64_t(size) / LINE;
  is_alone ? lines(0, count) : at::parallel_for(0, count, 1 << 14, lines);
}

// A gradient before its kept blocks are written.
inline at::Tensor zeros_like(const at::Tensor& weight) {
  if (weight.nbytes() < LARGE_GRADIENT || !weight.is_non_overlapping_and_dense()) return at::zeros_like(weight);
  at::Tensor zeros = at::detail::empty_strided_generic(weight.sizes(), weight.strides(), LargeTensors::get(), CPU, weight.scalar_type());
  clear(zeros.mutable_data_ptr(), (zeros.nbytes() + 63) / 64 * 64);  // memory is of whole pages, so the last line is ours
  return zeros;
}

#else

inline at::Tensor empty_result(c10::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }
inline at::Tensor zeros_like(const at::Tensor& weight) { return at::zeros_like(weight); }

#endif

}  // namespace blast
