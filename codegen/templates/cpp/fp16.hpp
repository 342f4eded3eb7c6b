// float16 as it is stored; arithmetic is done in float.

struct fp16 {
  uint16_t bits;
};
{% if avx512 %}
inline Vec load(const fp16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline Vec load_part(const fp16* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }

inline __m256i to_fp16(Vec x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(fp16* p, Vec x) { _mm256_storeu_si256((__m256i*)p, to_fp16(x)); }
inline void store_part(fp16* p, Vec x, int n) { _mm256_mask_storeu_epi16(p, first(n), to_fp16(x)); }
inline void stream_line(fp16* p, const Vec* x) { stream_halves(p, to_fp16(x[0]), to_fp16(x[1])); }
{%- elif has_fp16_instructions %}
inline float to_float(fp16 x) { return _cvtsh_ss(x.bits); }

template <>
inline fp16 rounded(float x) { return {_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)}; }

inline Vec load(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void store(fp16* p, Vec x) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
{%- else %}
inline float to_float(fp16 x) {
  uint32_t sign = uint32_t(x.bits & 0x8000) << 16, u = x.bits & 0x7fff;
  if (u < 0x400)  // below 2^-14 a step is 2^-24, the last bit of 1/2
    u = bits<uint32_t>(bits<float>(0x3f000000 | u) - 0.5f);
  else
    u = (u << 13) + ((u < 0x7c00 ? 112u : 224u) << 23);  // from exponents up to 31 to those up to 255
  return bits<float>(sign | u);
}

template <>
inline fp16 rounded(float x) {
  uint32_t u = bits<uint32_t>(x), sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000)
    u = 0x7e00;
  else if (u >= 0x47800000)  // 2^16
    u = 0x7c00;
  else if (u < 0x38800000)  // 2^-14; the sum with 1/2 is rounded as it should be
    u = bits<uint32_t>(bits<float>(u) + 0.5f) - 0x3f000000;
  else
    u = (u + 0xfff + (u >> 13 & 1) - (112 << 23)) >> 13;
  return {uint16_t(sign | u)};
}

inline Vec load(const fp16* p) { return load_part(p, VL); }
inline void store(fp16* p, Vec x) { store_part(p, x, VL); }
{%- endif %}
