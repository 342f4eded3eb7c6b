// Operands are kept in words of 32 bits, each with the contraction values that one multiply-add takes:
{%- if pairs %}
// two neighbouring bf16 values, the lower half first.
using Word = uint32_t;
constexpr int PER_WORD = 2;
typedef __m512bh Operand;

inline Operand broadcast(Word x) { return bits<Operand>(_mm512_set1_epi32(int(x))); }
inline Operand load_operand(const Word* p) { return bits<Operand>(_mm512_loadu_si512(p)); }
inline Vec multiply_add(Vec sum, Operand a, Operand b) { return _mm512_dpbf16_ps(sum, a, b); }

inline __m512i load_words(const bf16* p, int n) { return _mm512_maskz_loadu_epi32(first(n), p); }
inline __m512i load_words(const float* p, int n) {
  __m512 low = load_part(p, std::min(2 * n, 16)), high = load_part(p + 16, std::max(2 * n - 16, 0));
  return bits<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

inline __m512i low_halves(const bf16* p, int n) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)); }
inline __m512i low_halves(const float* p, int n) { return _mm512_cvtepu16_epi32(to_bf16(load_part(p, n))); }

// n <= 16 words from two rows: word i pairs low[i] with high[i]; high may be null, for zeros.
template <class T>
inline void store_pairs(Word* to, const T* low, const T* high, int n) {
  __m512i words = low_halves(low, n);
  if (high) words = _mm512_or_si512(words, _mm512_slli_epi32(low_halves(high, n), 16));
  _mm512_storeu_si512(to, words);
}

inline Word last_word(const bf16* p) { return *p; }
inline Word last_word(const float* p) { return rounded<bf16>(*p); }
{%- else %}
// a single float.
using Word = float;
constexpr int PER_WORD = 1;
using Operand = Vec;

inline Operand broadcast(Word x) { return splat(x); }
inline Operand load_operand(const Word* p) { return load(p); }
inline Vec multiply_add(Vec sum, Operand a, Operand b) { return sum + a * b; }
{%- if avx512 %}

template <class T>
inline __m512i load_words(const T* p, int n) { return _mm512_castps_si512(load_part(p, n)); }
{%- endif %}
{%- endif %}
{% if avx512 %}
// to[c * to_stride + r] = word c of row r, rows being `from_stride` source elements apart.
template <class T>
inline void transpose(const T* from, int64_t from_stride, int rows, int64_t words, Word* to, int64_t to_stride) {
  for (int row = 0; row < rows; row += 16) {
    int num_rows = std::min(16, rows - row);
    for (int64_t word = 0; word < words; word += 16) {
      int num_words = int(std::min<int64_t>(16, words - word));
      __m512i a[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r)
        a[r] = r < num_rows ? load_words(from + (row + r) * from_stride + word * PER_WORD, num_words) : __m512i{};
      transpose16(a);
#pragma GCC unroll 16
      for (int w = 0; w < 16; ++w)
        if (w < num_words) _mm512_mask_storeu_epi32(to + (word + w) * to_stride + row, first(num_rows), a[w]);
    }
  }
}
{%- else %}
// to[c * to_stride + r] = from[r * from_stride + c].
template <class T>
inline void transpose(const T* from, int64_t from_stride, int rows, int64_t words, Word* to, int64_t to_stride) {
  for (int64_t c = 0; c < words; ++c)
    for (int r = 0; r < rows; ++r) to[c * to_stride + r] = to_float(from[r * from_stride + c]);
}
{%- endif %}

// The matrix [contraction, output] at `from` as words `to[step * to_stride + output]`, zeros up to `steps` and `to_stride`.
// One of the two strides, in elements, is 1.
template <class T>
inline void gather(const T* from, int64_t contraction_stride, int64_t output_stride, int64_t contractions, int64_t outputs,
                   Word* to, int64_t steps, int64_t to_stride) {
  int64_t words = contractions / PER_WORD;
  if (contraction_stride == 1) {
    if (contractions < steps * PER_WORD || outputs < to_stride) std::fill(to, to + steps * to_stride, Word(0));
    transpose(from, output_stride, int(outputs), words, to, to_stride);
{%- if pairs %}
    if (contractions % 2)
      for (int64_t o = 0; o < outputs; ++o) to[words * to_stride + o] = last_word(from + o * output_stride + contractions - 1);
{%- endif %}
    return;
  }
  for (int64_t step = 0; step < steps; ++step) {
    Word* row = to + step * to_stride;
    int64_t c = step * PER_WORD;
    for (int64_t o = 0; o < to_stride; o += VL) {
      int n = c < contractions ? int(std::max<int64_t>(0, std::min<int64_t>(VL, outputs - o))) : 0;
      const T* source = from + c * contraction_stride + o;
{%- if pairs %}
      store_pairs(row + o, source, c + 1 < contractions ? source + contraction_stride : nullptr, n);
{%- else %}
      store(row + o, n == VL ? load(source) : load_part(source, n));
{%- endif %}
    }
  }
}
