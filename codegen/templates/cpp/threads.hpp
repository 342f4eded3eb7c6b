// Memory that a thread keeps from call to call, and how much work is worth a second thread.

struct Buffer {
  void* data = nullptr;
  size_t capacity = 0;

  template <class T>
  T* get(size_t count) {
    if (count * sizeof(T) > capacity) {
      std::free(data);
      capacity = (count * sizeof(T) + 4095) / 4096 * 4096;
      data = std::aligned_alloc(64, capacity);
      if (!data) std::abort();
    }
    return static_cast<T*>(data);
  }
  ~Buffer() { std::free(data); }
};

// Waking a thread costs microseconds: one thread below about 10 us of work.
inline int useful_threads(int threads, double weights, double tokens) {
  constexpr double SMALL = 2e5;  // multiply-adds, or weights read
  return weights * std::max(1.0, tokens / 16) < SMALL ? 1 : threads;
}
