// Parts of vectors and small transposes, for instruction sets without masks.

template <class T>
inline Vec load_part(const T* p, int n) {
  Vec x{};
  for (int i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return x;
}

template <class T>
inline void store_part(T* p, Vec x, int n) {
  for (int i = 0; i < n; ++i) p[i] = rounded<T>(x[i]);
}

inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof(x)); }
inline void store(bf16* p, Vec x) { store_part(p, x, VL); }

constexpr bool CAN_STREAM = false;  // only AVX-512 has vectors as wide as a cache line
template <class T>
inline void stream_line(T*, const Vec*) {}
inline void finish_streams() {}
