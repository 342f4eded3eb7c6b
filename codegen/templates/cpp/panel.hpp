// Activations of a span of tokens, cut into tiles; a tile of T tokens is words [contraction step][T], so that the tile's
// kernel reads them in order.

inline int64_t panel_steps(int64_t contractions) { return (contractions + CONTRACTION_EDGE - 1) / CONTRACTION_EDGE * STEPS; }

// Rows x[tokens, contractions] as a tile.
inline void pack_tile(const X* x, int64_t x_stride, int tokens, int64_t contractions, Word* tile) {
  gather(x, 1, x_stride, contractions, tokens, tile, panel_steps(contractions), tokens);
}

// Results [tokens][W] of a strip of outputs, to be the contraction from `first_output` on of the product that follows.
template <int MT, int W>
inline void store_panel(const Sums<MT, W>& results, int64_t first_output, int outputs, Word* tile) {
  X rows[MT][vectors<W>() * VL];
  for (int m = 0; m < MT; ++m)
    for (int v = 0; v < vectors<W>(); ++v) store(rows[m] + v * VL, results[m][v]);
  for (int m = 0; m < MT; ++m)
    for (int o = outputs; o < (outputs + PER_WORD - 1) / PER_WORD * PER_WORD; ++o) rows[m][o] = X{};
  transpose(rows[0], vectors<W>() * VL, MT, (outputs + PER_WORD - 1) / PER_WORD, tile + first_output / PER_WORD * MT, MT);
}
