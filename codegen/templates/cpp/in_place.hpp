// Very few tokens and a dense weight with contiguous rows: vectors along the contraction read kept blocks where they lie, for
// one token at a time. Gathering them would take longer.

inline bool can_run_in_place(const Layer& layer, int64_t tokens) {
  return tokens <= 4 && layer.column_stride == 1 && layer.contractions % CONTRACTION_EDGE == 0;
}

// Sums of up to VL outputs, whose rows begin at `rows`; x are the words of a token.
inline Vec sums_in_place(const Row& row, const Weight* rows, int64_t row_stride, int outputs, const Word* x) {
  constexpr int AHEAD = 4;  // blocks from the one in use to the one that is fetched
  Vec sums[VL] = {};
  for (int64_t i = 0; i < row.count; ++i) {
    const Weight* block = rows + row.columns[i] * CONTRACTION_EDGE;
    const Weight* later = rows + row.columns[std::min(i + AHEAD, row.count - 1)] * CONTRACTION_EDGE;
    for (int s = 0; s < STEPS; s += VL) {
      const int words = std::min<int>(VL, STEPS - s);
      const Operand b = bits<Operand>(_mm512_maskz_loadu_epi32(first(words), x + row.columns[i] * STEPS + s));
#pragma GCC unroll 16
      for (int o = 0; o < VL; ++o) {
        const int64_t at = std::min(o, outputs - 1) * row_stride + s * PER_WORD;
        __builtin_prefetch(later + at);
        sums[o] = multiply_add(sums[o], bits<Operand>(load_words(block + at, words)), b);
      }
    }
  }
  __m512i lanes[VL];
  std::memcpy(lanes, sums, sizeof(lanes));
  transpose16(lanes);
  Vec total{};
  for (const __m512i& lane : lanes) total += bits<Vec>(lane);
  return total;
}
