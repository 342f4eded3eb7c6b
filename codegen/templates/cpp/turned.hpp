// Blocks with one vector of outputs need a load for every multiply-add: of the activation that is spread over the vector. Large
// tiles of such blocks are turned round: vectors of tokens, and weights that are spread, each of them for several vectors.

template <int MT, int W>
constexpr bool is_turned() { return W == VL && MT > VL && MT % VL == 0; }

// The words [step][output] of a block: where they lie, or made in `room`.
inline const Word* words_of(const Word* block, Word*) { return block; }
{%- if pairs %}
inline const Word* words_of(const bf16* block, Word* room) {
  const __m512i in_turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
#pragma GCC unroll 16
  for (int64_t at = 0; at < STEPS * VL; at += VL)
    _mm512_storeu_si512(room + at, _mm512_permutexvar_epi16(in_turn, _mm512_loadu_si512(block + at * PER_WORD)));
  return room;
}
{%- else %}
inline const Word* words_of(const auto* block, Word* room) {
  for (int64_t at = 0; at < STEPS * VL; at += VL) store(room + at, load(block + at));
  return room;
}
{%- endif %}

// Outputs [first, first + COUNT) of a block row, as vectors of tokens. FETCHED: as in `accumulate`.
template <int MT, int COUNT, int64_t FETCHED>
inline void outputs_by_tokens(const Row& row, const Word* tile, int first, Vec (*outputs)[MT / VL]) {
  constexpr int VECTORS = MT / VL;
  Vec sums[COUNT][VECTORS] = {};
  for (int64_t i = 0; i < row.count; ++i) {
    Word room[STEPS * VL];
    const Stored* block = row.blocks + i * STORED_BLOCK;
    const Word *weights = words_of(block, room) + first, *x = tile + row.columns[i] * STEPS * MT;
    for (int64_t s = 0; s < STEPS; ++s) {
      if constexpr (FETCHED > 0) __builtin_prefetch(reinterpret_cast<const char*>(block) + PREFETCH_BYTES + s * LINE);
      Operand tokens[VECTORS];
      unrolled<VECTORS>([&](auto v) { tokens[v] = load_operand(x + s * MT + v * VL); });
      unrolled<COUNT>([&](auto n) {
        const Operand w = broadcast(weights[s * VL + n]);
        unrolled<VECTORS>([&](auto v) { sums[n][v] = multiply_add(sums[n][v], tokens[v], w); });
      });
    }
  }
  std::memcpy(outputs, sums, sizeof(sums));
}

// All VL outputs of a block row for the MT tokens of a tile; in two halves, since there are 32 registers.
template <int MT, int64_t FETCHED>
[[gnu::noinline]] void product_by_tokens(const Row& row, const Word* tile, Sums<MT, VL>& total) {
  constexpr int HALF = VL / 2;
  Vec outputs[VL][MT / VL];
  outputs_by_tokens<MT, HALF, FETCHED>(row, tile, 0, outputs);
  outputs_by_tokens<MT, HALF, 0>(row, tile, HALF, outputs + HALF);
  for (int v = 0; v < MT / VL; ++v) {
    __m512i sums[VL];
#pragma GCC unroll 16
    for (int n = 0; n < VL; ++n) sums[n] = bits<__m512i>(outputs[n][v]);
    transpose16(sums);
#pragma GCC unroll 16
    for (int m = 0; m < VL; ++m) total[v * VL + m][0] = bits<Vec>(sums[m]);
  }
}
