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
inline void store(bf16* p, Vec x) {
  const WordVec u = bits<WordVec>(x), nearest = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  const HalfVec halves = __builtin_convertvector(x == x ? nearest : u >> 16 | 0x40, HalfVec);
  std::memcpy(p, &halves, sizeof(halves));
}

constexpr bool CAN_STREAM = false;  // only AVX-512 has vectors as wide as a cache line
template <class T>
inline void stream_line(T*, const Vec*) {}
inline void finish_streams() {}
