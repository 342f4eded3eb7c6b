// A strip of queries meets a tile of keys: scores, their softmax so far, and the sum of values that goes with it.

constexpr int STRIP = {{ config.strip }};     // queries of a register tile
constexpr int VECTORS = {{ config.vectors }};  // vectors of a register tile
constexpr int HEAD_STEPS = HEAD / PER_WORD, PANEL_STEPS = PANEL / PER_WORD;
constexpr int VALUE_STRIDE = (VALUE_HEAD + VL - 1) / VL * VL;

// sums[m][v] += row m of words times the words at columns[v], over all steps.
template <int MT, int NV>
[[gnu::always_inline, gnu::flatten]] inline void multiply(Vec (&sums)[MT][NV], const Word* rows, int64_t row_stride, const Word* const (&columns)[NV],
                                                          int64_t column_stride, int steps) {
{%- if config.unroll > 1 %}
#pragma GCC unroll {{ config.unroll }}
{%- endif %}
  for (int s = 0; s < steps; ++s) {
    Operand w[NV];
    unrolled<NV>([&](auto v) { w[v] = load_operand(columns[v] + s * column_stride); });
    unrolled<MT>([&](auto m) {
      const Operand row = broadcast(rows[m * row_stride + s]);
      unrolled<NV>([&](auto v) { sums[m][v] = multiply_add(sums[m][v], w[v], row); });
    });
  }
}

struct Tile {  // some panels of keys, ascending
  int num;
  bool is_whole;                   // all their keys are there and no padding
  int32_t first[TILE_PANELS];      // the first key of each
  uint32_t present[TILE_PANELS];   // a bit a key
  const Word *keys[TILE_PANELS], *values[TILE_PANELS];
};

// What a strip knows so far: of each query the largest score, the sum of the exponentials in lanes, and of values.
struct Sums {
  float* largest;  // in powers of two
  Vec* total;
  float* values;   // [queries][VALUE_STRIDE]
};

inline float largest_of(Vec x) {
  float found = x[0];
  for (int i = 1; i < VL; ++i) found = x[i] > found ? x[i] : found;
  return found;
}

inline float sum_of(Vec x) {
  float found = x[0];
  for (int i = 1; i < VL; ++i) found += x[i];
  return found;
}
{%- if avx512 %}
#define largest_of(x) _mm512_reduce_max_ps(x)
#define sum_of(x) _mm512_reduce_add_ps(x)
{%- endif %}

// products[m][16 panel + lane] = row m of words times the lanes of some panels, over STEPS words
template <int MT, int STEPS>
inline void score(const Word* rows, const Word* const* panels, int num_panels, float (&products)[STRIP][TILE]) {
{%- if avx512 %}
  auto with = [&](auto num) __attribute__((always_inline)) {
    Vec sums[MT][num()] = {};
    const Word* columns[num()];
    unrolled<num()>([&](auto p) { columns[p] = panels[p]; });
    multiply<MT, num()>(sums, rows, STEPS, columns, PANEL, STEPS);
    unrolled<MT>([&](auto m) { unrolled<num()>([&](auto p) { store(products[m] + p * PANEL, sums[m][p]); }); });
  };
  switch (num_panels) {
    case 1: return with(std::integral_constant<int, 1>{});
    case 2: return with(std::integral_constant<int, 2>{});
    case 3: return with(std::integral_constant<int, 3>{});
    default: return with(std::integral_constant<int, 4>{});
  }
{%- else %}
  constexpr int WIDTH = VECTORS * VL;
  static_assert(PANEL % WIDTH == 0);
  for (int lane = 0; lane < num_panels * PANEL; lane += WIDTH) {
    Vec sums[MT][VECTORS] = {};
    const Word* columns[VECTORS];
    unrolled<VECTORS>([&](auto v) { columns[v] = panels[lane / PANEL] + lane % PANEL + v * VL; });
    multiply<MT, VECTORS>(sums, rows, STEPS, columns, PANEL, STEPS);
    unrolled<MT>([&](auto m) { unrolled<VECTORS>([&](auto v) { store(products[m] + lane + v * VL, sums[m][v]); }); });
  }
{%- endif %}
}

// Scores in powers of two, those of keys out of bounds or padded `NEVER`. n: how many there are, whole vectors.
template <bool PARTIAL>
inline Vec scaled(const Problem& problem, const float* scores, int at, [[maybe_unused]] const Tile& tile,
                  [[maybe_unused]] const Bounds& bounds, [[maybe_unused]] const Bias* bias) {
  Vec x = load(scores + at);
{%- if spec.softcap %}
  const Vec u = x * (problem.scale / problem.softcap);
  x = (problem.softcap * LOG2_E) * (1.f - 2.f / (1.f + exp(u + u)));
{%- else %}
  x = x * (problem.scale * LOG2_E);
{%- endif %}
  const int panel = at / PANEL;
{%- if spec.bias %}
  const int64_t first = tile.first[panel] + at % PANEL;
  if (problem.bias_key_stride == 1 && first + VL <= problem.keys) {
    x += load(bias + first) * LOG2_E;
  } else {
    for (int i = 0; i < VL && first + i < problem.keys; ++i) x[i] += load_part(bias + (first + i) * problem.bias_key_stride, 1)[0] * LOG2_E;
  }
{%- endif %}
  if constexpr (PARTIAL) {
    IntVec lane;
    for (int i = 0; i < VL; ++i) lane[i] = i + at % PANEL;
    const int low = int(std::clamp<int64_t>(bounds.low - tile.first[panel], 0, PANEL));
    const int high = int(std::clamp<int64_t>(bounds.high - tile.first[panel], 0, PANEL));
    const IntVec is_there = (IntVec{} + int(tile.present[panel])) >> lane & 1;
    x = (lane >= low) & (lane < high) & (is_there != 0) ? x : splat(NEVER);
  }
  return x;
}

// Goes on with the softmax of one query: its scores become exponentials. Returns what the sums so far are to be multiplied by.
template <bool PARTIAL>
inline float go_on(const Problem& problem, float* scores, const Tile& tile, const Bounds& bounds, const Bias* bias, float& largest, Vec& total) {
  const int num = tile.num * PANEL;
  Vec most = splat(NEVER);
  for (int at = 0; at < num; at += VL) {
    const Vec x = scaled<PARTIAL>(problem, scores, at, tile, bounds, bias);
    store(scores + at, x);
    most = max(x, most);
  }
  const float before = largest, now = std::max(before, largest_of(most));
  largest = now;
  const float origin = now == NEVER ? 0 : now;  // else NEVER - NEVER
  const float fade = before == NEVER ? 0 : exp2(splat(before - origin))[0];
  Vec sum = total * fade;
  for (int at = 0; at < num; at += VL) {
    const Vec p = exp2(load(scores + at) - origin);
    sum += p;
    store(scores + at, p);
  }
  total = sum;
  return fade;
}

// Exponentials as the words that values are multiplied by.
inline const Word* as_words(const float* from, [[maybe_unused]] int num, [[maybe_unused]] Word* to) {
{%- if pairs %}
  for (int at = 0; at < num; at += 2 * VL) {
    const Vec low = load(from + at), high = at + VL < num ? load(from + at + VL) : Vec{};
    _mm512_storeu_si512(to + at / PER_WORD, bits<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
  return to;
{%- else %}
  return from;
{%- endif %}
}

// sums[m] = fades[m] sums[m] + weights of row m times some panels of rows of STRIDE; without fades, sums as they are
template <int MT, int STRIDE>
inline void add_rows(const Word* weights, const Word* const* panels, int num_panels, const float* fades, float* sums) {
  auto add = [&](auto num, int first) __attribute__((always_inline)) {
    Vec part[MT][num()];
    unrolled<MT>([&](auto m) {
      const float fade = fades ? fades[m] : 1;
      unrolled<num()>([&](auto v) { part[m][v] = load(sums + m * STRIDE + first + v * VL) * fade; });
    });
    for (int p = 0; p < num_panels; ++p) {
      const Word* columns[num()];
      unrolled<num()>([&](auto v) { columns[v] = panels[p] + first + v * VL; });
      multiply<MT, num()>(part, weights + p * PANEL_STEPS, TILE / PER_WORD, columns, STRIDE, PANEL_STEPS);
    }
    unrolled<MT>([&](auto m) { unrolled<num()>([&](auto v) { store(sums + m * STRIDE + first + v * VL, part[m][v]); }); });
  };
  constexpr int WHOLE = STRIDE / VL / VECTORS * VECTORS, REST = STRIDE / VL - WHOLE;
  for (int v = 0; v < WHOLE; v += VECTORS) add(std::integral_constant<int, VECTORS>{}, v * VL);
  if constexpr (REST > 0) add(std::integral_constant<int, REST>{}, WHOLE * VL);
}

template <int MT>
inline void meet(const Problem& problem, const Word* q, const Tile& tile, const Bounds* bounds, const Matrix<const Bias>& bias, bool is_partial,
                 const Sums& sums) {
  alignas(64) float scores[STRIP][TILE];
  [[maybe_unused]] alignas(64) Word words[STRIP][TILE / PER_WORD];
  float fades[MT];
  score<MT, HEAD_STEPS>(q, tile.keys, tile.num, scores);
  for (int m = 0; m < MT; ++m) {
    auto go = [&](auto partial) {
      fades[m] = go_on<partial()>(problem, scores[m], tile, bounds[m], bias.row(m), sums.largest[m], sums.total[m]);
    };
    is_partial ? go(std::true_type{}) : go(std::false_type{});
    as_words(scores[m], tile.num * PANEL, words[m]);
  }
  add_rows<MT, VALUE_STRIDE>(as_words(scores[0], 0, words[0]), tile.values, tile.num, fades, sums.values);
}

// Calls f with the strip's size as a constant.
template <class F>
inline void with_strip(int size, F&& f) {
  switch (size) {
{%- for size in range(1, config.strip + 1) %}
    case {{ size }}: return f(std::integral_constant<int, {{ size }}>{});
{%- endfor %}
  }
}
