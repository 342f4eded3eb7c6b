// Vectors of VL floats in the compiler's own vector extensions, and the arithmetic that kernels need on them.

using bf16 = uint16_t;  // the upper half of a float's bits
typedef float Vec __attribute__((vector_size(4 * VL)));
typedef int32_t IntVec __attribute__((vector_size(4 * VL)));
typedef uint32_t WordVec __attribute__((vector_size(4 * VL)));
typedef bf16 HalfVec __attribute__((vector_size(2 * VL)));

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vec splat(float x) { return x - Vec{}; }  // of no instruction: Vec{} + x would be one, for -0
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bits<float>(uint32_t(x) << 16); }

// Rounds to nearest even; a NaN stays one.
template <class T>
inline T rounded(float x);

template <>
inline float rounded(float x) { return x; }

template <>
inline bf16 rounded(float x) {
  uint32_t u = bits<uint32_t>(x);
  return x != x ? bf16(u >> 16 | 0x40) : bf16((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

inline Vec load(const bf16* p) {
{%- if avx512 %}
  return Vec(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
{%- elif vector_length == 8 %}
  return Vec(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
{%- else %}
  HalfVec x;
  std::memcpy(&x, p, sizeof(x));
  return bits<Vec>(__builtin_convertvector(x, IntVec) << 16);
{%- endif %}
}

{%- if avx512 %}
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where one is NaN
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }  // the same

// p 2^n for whole n.
inline Vec times_exp2(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }
{%- else %}
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where one is NaN
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }  // the same

// p 2^n for whole n; in two steps, since 2^n alone may have no room in a float.
inline Vec times_exp2(Vec p, Vec n) {
  IntVec half = __builtin_convertvector(n * 0.5f, IntVec), rest = __builtin_convertvector(n, IntVec) - half;
  return p * bits<Vec>((half + 127) << 23) * bits<Vec>((rest + 127) << 23);
}
{%- endif %}

// e^x to about 2 ulp: x = n ln 2 + r, a polynomial in r by its Taylor coefficients. Beyond +-104 lie 0 and infinity.
inline Vec exp(Vec x) {
  Vec bounded = max(splat(-104), min(splat(104), x));
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
{%- if avx512 %}
  return times_exp2(p, n);
{%- else %}
  return x == x ? times_exp2(p, n) : x;  // n is no number where x is none
{%- endif %}
}
