// The register tile: MT tokens by W outputs, over the steps of a contraction.

constexpr int TILES[] = {{ "{" }}{{ config.tiles | join(", ") }}{{ "}" }};  // sizes that have a kernel
constexpr int MAX_TILE = TILES[0];
constexpr int STRIP = {{ config.vectors }} * VL;  // outputs of the largest tile
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

// Few tokens leave few sums; more chains of them hide the latency of a multiply-add. As many sums, whatever the tile.
template <int MT, int W>
constexpr int num_chains() { return MT <= 2 ? std::max(1, {{ config.chains }} * STRIP / (MT * std::max(W, STRIP))) : 1; }

{% include "unrolled.hpp" %}

template <int MT, int W>
using Sums = Vec[MT][vectors<W>()];
template <int MT, int W>
using Chains = Sums<MT, W>[num_chains<MT, W>()];

{% if pairs -%}
// Words that `gather` made; their rows are padded to whole vectors.
template <int W>
inline void load_weights(const Word* p, int64_t, Operand (&w)[vectors<W>()]) {
#pragma GCC unroll 8
  for (int v = 0; v < vectors<W>(); ++v) w[v] = load_operand(p + v * VL);
}

// Two rows of plain bf16 values, paired in registers. Two vectors hold the outputs by fours in turn, until `sort_outputs`.
template <int W>
inline void load_weights(const bf16* p, int64_t stride, Operand (&w)[vectors<W>()]) {
#pragma GCC unroll 8
  for (int v = 0; v < vectors<W>(); v += 2) {
    constexpr __mmask32 ALL = ~__mmask32(0);
    const int left = W - v * VL;
    const __mmask32 mask = left >= 32 ? ALL : ALL >> (32 - left);
    __m512i even = _mm512_maskz_loadu_epi16(mask, p + v * VL), odd = _mm512_maskz_loadu_epi16(mask, p + stride + v * VL);
    if (v + 1 < vectors<W>()) {
      w[v] = bits<Operand>(_mm512_unpacklo_epi16(even, odd));
      w[v + 1] = bits<Operand>(_mm512_unpackhi_epi16(even, odd));
    } else {
      const __m512i in_turn = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                               39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
      w[v] = bits<Operand>(_mm512_permutex2var_epi16(even, in_turn, odd));
    }
  }
}

// Unpacking works on quarters of a vector, so the first of two vectors got outputs 0 to 3, 8 to 11 and so on.
template <class Stored, int MT, int W>
inline void sort_outputs(Sums<MT, W>& sums) {
  if constexpr (std::is_same_v<Stored, bf16>)
#pragma GCC unroll 32
    for (int m = 0; m < MT; ++m)
#pragma GCC unroll 8
      for (int v = 0; v + 1 < vectors<W>(); v += 2) {
        const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
        __m512i a = bits<__m512i>(sums[m][v]), b = bits<__m512i>(sums[m][v + 1]);
        sums[m][v] = bits<Vec>(_mm512_permutex2var_epi64(a, low, b));
        sums[m][v + 1] = bits<Vec>(_mm512_permutex2var_epi64(a, high, b));
      }
}
{%- else -%}
template <int W, class T>
inline void load_weights(const T* p, int64_t, Operand (&w)[vectors<W>()]) {
#pragma GCC unroll 8
  for (int v = 0; v < vectors<W>(); ++v) w[v] = W - v * VL >= VL ? load(p + v * VL) : load_part(p + v * VL, W - v * VL);
}

template <class Stored, int MT, int W>
inline void sort_outputs(Sums<MT, W>&) {}
{%- endif %}

// sums[.][m] += x[step * x_stride + m] * the step's weights, over all steps; steps alternate between chains. For each row of
// weights, FETCHED bytes ahead are fetched.
template <int MT, int W, int64_t FETCHED = 0, class Stored>
[[gnu::always_inline, gnu::flatten]] inline void accumulate(Chains<MT, W>& sums, const Word* x, int64_t x_stride,
                                                            const Stored* weights, int64_t weight_stride, int64_t steps) {
  constexpr int CHAINS = num_chains<MT, W>();
  constexpr int ROWS = std::is_same_v<Stored, Word> ? 1 : PER_WORD;
  auto step = [&](int64_t s, auto chain) {
    Operand w[vectors<W>()];
    const Stored* from = weights + s * ROWS * weight_stride;
    load_weights<W>(from, weight_stride, w);
#pragma GCC unroll 16
    for (int64_t byte = 0; byte < ROWS * FETCHED; byte += LINE)
      __builtin_prefetch(reinterpret_cast<const char*>(from) + PREFETCH_BYTES + byte);
    unrolled<MT>([&](auto m) {
      Operand b = broadcast(x[s * x_stride + m]);
      unrolled<vectors<W>()>([&](auto v) { sums[chain][m][v] = multiply_add(sums[chain][m][v], w[v], b); });
    });
  };
  int64_t s = 0;
{%- if config.unroll > 1 %}
#pragma GCC unroll {{ config.unroll }}
{%- endif %}
  for (; s + CHAINS <= steps; s += CHAINS) unrolled<CHAINS>([&](auto chain) { step(s + chain, chain); });
  if (steps % CHAINS > 0)
    for (; s < steps; ++s) step(s, std::integral_constant<int, 0>{});
}

template <int MT, int W>
[[gnu::always_inline, gnu::flatten]] inline void add_chains(const Chains<MT, W>& sums, Sums<MT, W>& total) {
  unrolled<MT>([&](auto m) {
    unrolled<vectors<W>()>([&](auto v) {
      total[m][v] = sums[0][m][v];
      unrolled<num_chains<MT, W>() - 1>([&](auto chain) { total[m][v] += sums[chain + 1][m][v]; });
    });
  });
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
