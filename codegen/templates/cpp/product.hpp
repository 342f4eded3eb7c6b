// The register tile: MT tokens by W outputs, over the steps of a contraction.

constexpr int TILES[] = {{ "{" }}{{ config.tiles | join(", ") }}{{ "}" }};  // sizes that have a kernel
constexpr int MAX_TILE = TILES[0];
constexpr int STRIP = {{ config.vectors }} * VL;  // outputs of a register tile
constexpr int64_t LINE = 64;                    // bytes of a cache line
constexpr int64_t PREFETCH_BYTES = {{ config.prefetch_bytes }};  // from weights to what is fetched while they are used

// Tokens in as many of the largest tiles as fit, then the rest: two equal tiles where that comes out even, and no tile of two
// beside others. So all tokens but an odd last one are in tiles of a single chain (see below), whose sums have the same bits
// whatever their size, and how tokens are shared by threads changes no result.
struct Tiles {
  int64_t whole, count;
  int rest[8];

  explicit Tiles(int64_t tokens) : whole(tokens / MAX_TILE) {
    const int odd = int(tokens % MAX_TILE) % 2;
    int left = int(tokens % MAX_TILE) - odd, num_rest = 0;
    for (int size : TILES)
      if (whole && left && 2 * size == left + MAX_TILE) {
        --whole;
        rest[0] = rest[1] = size;
        num_rest = 2;
        left = 0;
      }
    if (whole && left == 2) {
      --whole;
      left += MAX_TILE;
    }
    for (int size : TILES)
      for (; left >= size && left - size != 2; left -= size) rest[num_rest++] = size;
    if (odd) rest[num_rest++] = 1;
    count = whole + num_rest;
  }
  int size(int64_t tile) const { return tile < whole ? MAX_TILE : rest[tile - whole]; }
  int64_t start(int64_t tile) const {
    int64_t start = std::min(tile, whole) * MAX_TILE;
    for (int64_t t = whole; t < tile; ++t) start += rest[t - whole];
    return start;
  }
};

template <int W>
constexpr int vectors() { return (W + VL - 1) / VL; }

// Few tokens leave few sums; more chains of them hide the latency of a multiply-add.
template <int MT>
constexpr int chains() { return MT <= 2 ? {{ config.chains }} : 1; }

template <int MT, int W>
using Sums = Vec[MT][vectors<W>()];

{% if pairs -%}
// Words that `gather` made; their rows are padded to whole vectors.
template <int W>
inline void load_weights(const Word* p, int64_t, Operand (&w)[vectors<W>()]) {
#pragma GCC unroll 8
  for (int v = 0; v < vectors<W>(); ++v) w[v] = load_operand(p + v * VL);
}

// Two rows of plain bf16 values, paired in registers.
template <int W>
inline void load_weights(const bf16* p, int64_t stride, Operand (&w)[vectors<W>()]) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
#pragma GCC unroll 8
  for (int v = 0; v < vectors<W>(); v += 2) {
    constexpr __mmask32 ALL = ~__mmask32(0);
    const int left = W - v * VL;
    const __mmask32 mask = left >= 32 ? ALL : ALL >> (32 - left);
    __m512i even = _mm512_maskz_loadu_epi16(mask, p + v * VL), odd = _mm512_maskz_loadu_epi16(mask, p + stride + v * VL);
    w[v] = bits<Operand>(_mm512_permutex2var_epi16(even, low, odd));
    if (v + 1 < vectors<W>())
      w[v + 1] = bits<Operand>(_mm512_permutex2var_epi16(even, _mm512_add_epi16(low, _mm512_set1_epi16(16)), odd));
  }
}
{%- else -%}
template <int W, class T>
inline void load_weights(const T* p, int64_t, Operand (&w)[vectors<W>()]) {
#pragma GCC unroll 8
  for (int v = 0; v < vectors<W>(); ++v) w[v] = W - v * VL >= VL ? load(p + v * VL) : load_part(p + v * VL, W - v * VL);
}
{%- endif %}

// sums[.][m] += x[step * x_stride + m] * the step's weights, over all steps; steps alternate between chains. For each row of
// weights, FETCHED bytes ahead are fetched.
template <int MT, int W, int64_t FETCHED = 0, class Stored>
inline void accumulate(Vec (&sums)[chains<MT>()][MT][vectors<W>()], const Word* x, int64_t x_stride, const Stored* weights,
                       int64_t weight_stride, int64_t steps) {
  constexpr int CHAINS = chains<MT>();
  constexpr int ROWS = std::is_same_v<Stored, Word> ? 1 : PER_WORD;
  auto step = [&](int64_t s, int chain) __attribute__((always_inline)) {
    Operand w[vectors<W>()];
    const Stored* from = weights + s * ROWS * weight_stride;
    load_weights<W>(from, weight_stride, w);
#pragma GCC unroll 16
    for (int64_t byte = 0; byte < ROWS * FETCHED; byte += LINE)
      __builtin_prefetch(reinterpret_cast<const char*>(from) + PREFETCH_BYTES + byte);
#pragma GCC unroll 32
    for (int m = 0; m < MT; ++m) {
      Operand b = broadcast(x[s * x_stride + m]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors<W>(); ++v) sums[chain][m][v] = multiply_add(sums[chain][m][v], w[v], b);
    }
  };
  int64_t s = 0;
{%- if config.unroll > 1 %}
#pragma GCC unroll {{ config.unroll }}
{%- endif %}
  for (; s + CHAINS <= steps; s += CHAINS) {
#pragma GCC unroll 8
    for (int chain = 0; chain < CHAINS; ++chain) step(s + chain, chain);
  }
  if (steps % CHAINS > 0)
    for (; s < steps; ++s) step(s, 0);
}

template <int MT, int W>
inline void add_chains(Vec (&sums)[chains<MT>()][MT][vectors<W>()], Sums<MT, W>& total) {
#pragma GCC unroll 32
  for (int m = 0; m < MT; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < vectors<W>(); ++v) {
      total[m][v] = sums[0][m][v];
#pragma GCC unroll 8
      for (int chain = 1; chain < chains<MT>(); ++chain) total[m][v] += sums[chain][m][v];
    }
}

// Calls f with the tile's size as a constant.
template <class F>
inline void with_tile(int size, F&& f) {
  switch (size) {
{%- for size in config.tiles %}
    case {{ size }}: return f(std::integral_constant<int, {{ size }}>{});
{%- endfor %}
  }
}
