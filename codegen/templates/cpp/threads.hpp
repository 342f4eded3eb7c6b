// Memory that a thread keeps from call to call, and how much work is worth a second thread.

struct Buffer {
  void* data = nullptr;
  size_t capacity = 0;

  // Room for some T, at least one; null where there is none.
  template <class T>
  T* get(size_t count) {
    if (count * sizeof(T) > capacity) {
      std::free(data);
      capacity = (count * sizeof(T) + 63) / 64 * 64;
      data = std::aligned_alloc(64, capacity);
      if (!data) capacity = 0;
    }
    return static_cast<T*>(data);
  }
  ~Buffer() { std::free(data); }
};

// What `blast_run` returns.
enum Status { OK = 0, DAMAGED_INDEX = 1, NO_MEMORY = 2 };

// Waking a thread costs microseconds: one thread below about 10 us of work.
inline int useful_threads(int threads, double weights, double tokens) {
  constexpr double SMALL = 2e5;  // multiply-adds, or weights read
  return weights * std::max(1.0, tokens / 16) < SMALL ? 1 : threads;
}
