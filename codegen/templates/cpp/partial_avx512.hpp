// Parts of vectors by masks, and transposes of 16 x 16 words in registers.

inline __mmask16 first(int n) { return __mmask16((1u << n) - 1); }

inline Vec load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }

inline Vec load_part(const bf16* p, int n) {
  return Vec(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)), 16));
}

inline __m256i to_bf16(Vec x) {
{%- if native_bf16 %}
  return bits<__m256i>(_mm512_cvtneps_pbh(x));
{%- else %}
  __m512i u = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
{%- endif %}
}

inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline void store(bf16* p, Vec x) { _mm256_storeu_si256((__m256i*)p, to_bf16(x)); }
inline void store_part(float* p, Vec x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
inline void store_part(bf16* p, Vec x, int n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(x)); }

constexpr bool CAN_STREAM = true;
// A whole cache line past the caches, to its address. Before other threads read, `finish_streams`.
inline void stream_line(float* p, const Vec* x) { _mm512_stream_ps(p, x[0]); }
inline void stream_halves(void* p, __m256i low, __m256i high) {
  _mm512_stream_si512((__m512i*)p, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}
inline void stream_line(bf16* p, const Vec* x) { stream_halves(p, to_bf16(x[0]), to_bf16(x[1])); }
inline void finish_streams() { _mm_sfence(); }

inline void transpose16(__m512i (&a)[16]) {
  __m512i b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
    a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
  }
}

