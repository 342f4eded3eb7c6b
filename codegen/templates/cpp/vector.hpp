// Vectors of VL floats in the compiler's own vector extensions, and the arithmetic that kernels need on them.

using bf16 = uint16_t;  // the upper half of a float's bits
typedef float Vec __attribute__((vector_size(4 * VL)));
typedef int32_t IntVec __attribute__((vector_size(4 * VL)));
typedef bf16 HalfVec __attribute__((vector_size(2 * VL)));

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vec splat(float x) { return Vec{} + x; }
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bits<float>(uint32_t(x) << 16); }

// Rounds to nearest even; a NaN stays one.
inline bf16 to_bf16(float x) {
  uint32_t u = bits<uint32_t>(x);
  return x != x ? bf16(u >> 16 | 0x40) : bf16((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

inline Vec load(const bf16* p) {
  HalfVec x;
  std::memcpy(&x, p, sizeof(x));
  return bits<Vec>(__builtin_convertvector(x, IntVec) << 16);
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where one is NaN

// 2^n for whole n; 0 and infinity where a float has no room.
inline Vec exp2_whole(Vec n) {
  n = max(splat(-254), n < splat(254) ? n : splat(254));
  IntVec half = __builtin_convertvector(n * 0.5f, IntVec), rest = __builtin_convertvector(n, IntVec) - half;
  return bits<Vec>((half + 127) << 23) * bits<Vec>((rest + 127) << 23);
}

// e^x to about 2 ulp: x = n ln 2 + r, a polynomial in r by its Taylor coefficients.
inline Vec exp(Vec x) {
  Vec bounded = max(splat(-104), x < splat(104) ? x : splat(104));
  Vec n = bounded * 1.44269504f + 12582912.f - 12582912.f;  // to the nearest whole number
  Vec r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.f / 5040);
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  Vec y = p * exp2_whole(n);
  return x == x ? y : x;
}
