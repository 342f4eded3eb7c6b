// Few queries, as in decoding: keys and values are read once where they lie, for all queries of the heads that share them.
// A task is a chunk of keys, whose sums are added up in order: chunks follow from sizes alone, so no bit depends on threads.

constexpr int64_t CHUNK = {{ config.chunk }};  // keys of a task
constexpr int MOST_ROWS = 4;                 // queries that meet a key at once
constexpr int MOST_FEW = {{ config.few }};       // queries of a head of keys, up to which they count as few
{%- if pairs %}
using Few = Word;                               // what queries are kept in
constexpr int FEW_HEAD = (HEAD / PER_WORD + VL - 1) / VL * VL;
constexpr int FEW_VALUES = (VALUE_HEAD + 2 * VL - 1) / (2 * VL) * (2 * VL);  // in the order in which they are unpacked
{%- else %}
using Few = float;
constexpr int FEW_HEAD = (HEAD + VL - 1) / VL * VL, FEW_VALUES = VALUE_STRIDE;
{%- endif %}

struct FewRow {
  int64_t head, query;
  Bounds bounds;
};

struct FewSums {  // of one row in one chunk
  Vec total;
  float values[FEW_VALUES];
  float largest;
};

// Lane i of the result is the sum of vector i.
inline Vec sums_of(const Vec* vectors) {
  Vec level[VL];
  for (int i = 0; i < VL; ++i) level[i] = vectors[i];
{%- set lanes = vector_length %}
#pragma GCC unroll 4
  for (int left = VL / 2; left; left /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < left; ++i) {
      const Vec a = level[2 * i], b = level[2 * i + 1];
      level[i] = __builtin_shufflevector(a, b, {{ range(0, 2 * lanes, 2) | join(", ") }}) + __builtin_shufflevector(a, b, {{ range(1, 2 * lanes, 2) | join(", ") }});
    }
  return level[0];
}

// scores[r][i] = rows r of q times key i, for `count` keys
template <int RT>
inline void score_few(const Few* q, const Matrix<const X>& k, int64_t key, int count, float (&scores)[MOST_ROWS][TILE]) {
  constexpr int KEYS = 16 / RT;  // as many sums as a processor with 32 vectors keeps beside its operands
  for (int i = 0; i < count; i += KEYS) {
    Vec sums[16] = {};
    const X* rows[KEYS];
    unrolled<KEYS>([&](auto j) { rows[j] = k.row(key + std::min(i + j(), count - 1)); });
    for (int d = 0; d < FEW_HEAD; d += VL) {
{%- if pairs %}
      Operand x[RT];
      unrolled<RT>([&](auto r) { x[r] = load_operand(q + r * FEW_HEAD + d); });
      unrolled<KEYS>([&](auto j) {
        const Operand y = bits<Operand>(load_words(rows[j] + PER_WORD * d, std::min(VL, HEAD / PER_WORD - d)));
        unrolled<RT>([&](auto r) { sums[r * KEYS + j] = multiply_add(sums[r * KEYS + j], x[r], y); });
      });
{%- else %}
      Vec x[RT];
      unrolled<RT>([&](auto r) { x[r] = load(q + r * FEW_HEAD + d); });
      unrolled<KEYS>([&](auto j) {
        const Vec y = load_up_to(rows[j] + d, HEAD - d);
        unrolled<RT>([&](auto r) { sums[r * KEYS + j] += x[r] * y; });
      });
{%- endif %}
    }
    alignas(64) float found[16];
    for (int v = 0; v < 16; v += VL) store(found + v, sums_of(sums + v));
    for (int r = 0; r < RT; ++r) std::memcpy(scores[r] + i, found + r * KEYS, sizeof(float) * KEYS);
  }
}

// values[r] = fades[r] values[r] + weights[r] times the values of `count` keys. Keys without a weight are not read.
template <int RT>
inline void add_few(const float (&weights)[MOST_ROWS][TILE], const Matrix<const X>& v, int64_t key, int count, uint64_t is_read, const float* fades,
                    FewSums* to) {
{%- if pairs %}
  // Two keys at once, whose values are paired by unpacking: two vectors hold them by fours in turn, until `sort_values`.
  alignas(64) Word words[RT][TILE / PER_WORD];
  for (int r = 0; r < RT; ++r) as_words(weights[r], (count + PANEL - 1) / PANEL * PANEL, words[r]);
  auto add = [&](auto width, int first) __attribute__((always_inline)) {  // in pairs of vectors
    Vec sums[RT][2 * width()];
    unrolled<RT>([&](auto r) { unrolled<2 * width()>([&](auto w) { sums[r][w] = load(to[r].values + first + w * VL) * fades[r]; }); });
    for (int i = 0; i < count; i += 2) {
      const bool reads[2] = {bool(is_read >> i & 1), i + 1 < count && (is_read >> (i + 1) & 1)};
      if (!reads[0] && !reads[1]) continue;
      const X* rows[2] = {v.row(key + i + !reads[0]), v.row(key + i + reads[1])};
      Operand y[2 * width()];
      unrolled<width()>([&](auto w) {
        const int left = VALUE_HEAD - first - w * 2 * VL;
        const __mmask32 mask = left >= 32 ? ~__mmask32(0) : ~__mmask32(0) >> (32 - left);
        const __m512i a = _mm512_maskz_loadu_epi16(reads[0] ? mask : 0, rows[0] + first + w * 2 * VL);
        const __m512i b = _mm512_maskz_loadu_epi16(reads[1] ? mask : 0, rows[1] + first + w * 2 * VL);
        y[2 * w] = bits<Operand>(_mm512_unpacklo_epi16(a, b));
        y[2 * w + 1] = bits<Operand>(_mm512_unpackhi_epi16(a, b));
      });
      unrolled<RT>([&](auto r) {
        const Operand weight = broadcast(words[r][i / 2]);
        unrolled<2 * width()>([&](auto w) { sums[r][w] = multiply_add(sums[r][w], y[w], weight); });
      });
    }
    unrolled<RT>([&](auto r) { unrolled<2 * width()>([&](auto w) { store(to[r].values + first + w * VL, sums[r][w]); }); });
  };
  constexpr int WHOLE = FEW_VALUES / (2 * VL) / 2 * 2, REST = FEW_VALUES / (2 * VL) - WHOLE;
  for (int w = 0; w < WHOLE; w += 2) add(std::integral_constant<int, 2>{}, w * 2 * VL);
  if constexpr (REST > 0) add(std::integral_constant<int, REST>{}, WHOLE * 2 * VL);
{%- else %}
  constexpr int WIDTH = VL >= 16 ? 4 : 2;
  auto add = [&](auto width, int d) __attribute__((always_inline)) {
    Vec sums[RT][width()];
    unrolled<RT>([&](auto r) { unrolled<width()>([&](auto w) { sums[r][w] = load(to[r].values + d + w * VL) * fades[r]; }); });
    for (int i = 0; i < count; ++i) {
      if (!(is_read >> i & 1)) continue;
      const X* row = v.row(key + i);
      Vec y[width()];
      unrolled<width()>([&](auto w) { y[w] = load_up_to(row + d + w * VL, VALUE_HEAD - d - w * VL); });
      unrolled<RT>([&](auto r) {
        const Vec weight = splat(weights[r][i]);
        unrolled<width()>([&](auto w) { sums[r][w] += weight * y[w]; });
      });
    }
    unrolled<RT>([&](auto r) { unrolled<width()>([&](auto w) { store(to[r].values + d + w * VL, sums[r][w]); }); });
  };
  constexpr int WHOLE = VALUE_STRIDE / VL / WIDTH * WIDTH, REST = VALUE_STRIDE / VL - WHOLE;
  for (int w = 0; w < WHOLE; w += WIDTH) add(std::integral_constant<int, WIDTH>{}, w * VL);
  if constexpr (REST > 0) add(std::integral_constant<int, REST>{}, WHOLE * VL);
{%- endif %}
}
{% if pairs %}
// Unpacking works on quarters of a vector, so the first of two vectors got values 0 to 3, 8 to 11 and so on.
inline void sort_values(float* values) {
  const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
  for (int at = 0; at < FEW_VALUES; at += 2 * VL) {
    const __m512i a = bits<__m512i>(load(values + at)), b = bits<__m512i>(load(values + at + VL));
    store(values + at, bits<Vec>(_mm512_permutex2var_epi64(a, low, b)));
    store(values + at + VL, bits<Vec>(_mm512_permutex2var_epi64(a, high, b)));
  }
}
{% endif %}
// RT rows meet the keys from `low` to before `high`.
template <int RT>
inline void meet_few(const Problem& problem, int64_t batch, int64_t of_keys, const FewRow* rows, const Few* q, int64_t low, int64_t high, FewSums* sums) {
  const Matrix<const X> k = problem.k.of(batch, of_keys), v = problem.v.of(batch, of_keys);
  for (int64_t key = low; key < high; key += TILE) {
    const int count = int(std::min<int64_t>(TILE, high - key));
    alignas(64) float scores[MOST_ROWS][TILE];
    Tile tile{};
    tile.num = (count + PANEL - 1) / PANEL;
    uint64_t is_read = 0;
    for (int p = 0; p < tile.num; ++p) {
      tile.first[p] = int32_t(key + p * PANEL);
      tile.present[p] = problem.present(batch, key + p * PANEL);
      is_read |= uint64_t(tile.present[p]) << (p * PANEL);
    }
    if (!is_read) continue;
    score_few<RT>(q, k, key, count, scores);
    float fades[RT];
    for (int r = 0; r < RT; ++r) {
      const Bounds bounds{std::max(low, rows[r].bounds.low), std::min(high, rows[r].bounds.high)};
      fades[r] = go_on<true>(problem, scores[r], tile, bounds, problem.bias.of(batch, rows[r].head).row(rows[r].query), sums[r].largest, sums[r].total);
    }
    add_few<RT>(scores, v, key, count, is_read, fades, sums);
  }
}

// Of a head of keys, or of queries where each has a list of its own: rows that meet the same keys.
struct Unit {
  const Problem& problem;
  int64_t batch, of_keys, first_head, num_rows;

  FewRow row(int64_t i) const {
    const int64_t head = first_head + i / problem.queries, query = i % problem.queries;
    return {head, query, problem.bounds(batch, query)};
  }
  // Calls f with each run of keys of a chunk, as far as they are in bounds.
  template <class F>
  void runs(int64_t chunk, const Bounds& bounds, F&& f) const {
{%- if spec.is_listed %}
    const int32_t* list = problem.list(batch, first_head, 0);
    const int64_t in_chunk = std::max<int64_t>(1, CHUNK / problem.key_block), end = std::min<int64_t>(list[0], (chunk + 1) * in_chunk);
    for (int64_t i = chunk * in_chunk; i < end;) {
      int64_t next = i + 1;
      while (next < end && list[1 + next] == list[next] + 1) ++next;
      const int64_t low = list[1 + i] * problem.key_block, high = (list[next] + 1) * problem.key_block;
      f(std::max(low, bounds.low), std::min(high, bounds.high));
      i = next;
    }
{%- else %}
    f(std::max(chunk * CHUNK, bounds.low), std::min((chunk + 1) * CHUNK, bounds.high));
{%- endif %}
  }
};

inline void attend_few_chunk(const Unit& unit, int64_t chunk, FewSums* sums) {
  for (int64_t first = 0; first < unit.num_rows;) {
    const int64_t left = unit.num_rows - first;
    auto with = [&](auto rt) {
      FewRow rows[rt()];
      alignas(64) Few q[rt() * FEW_HEAD] = {};
      Bounds all{unit.problem.keys, 0};
      for (int r = 0; r < rt(); ++r) {
        rows[r] = unit.row(first + r);
        if (rows[r].bounds.low < rows[r].bounds.high) all = {std::min(all.low, rows[r].bounds.low), std::max(all.high, rows[r].bounds.high)};
        const X* from = unit.problem.q.of(unit.batch, rows[r].head).row(rows[r].query);
{%- if pairs %}
        std::memcpy(q + r * FEW_HEAD, from, sizeof(X) * HEAD);
{%- else %}
        for (int d = 0; d < HEAD; d += VL) store(q + r * FEW_HEAD + d, load_up_to(from + d, HEAD - d));
{%- endif %}
        sums[first + r].largest = NEVER;
        sums[first + r].total = Vec{};
        std::fill(sums[first + r].values, sums[first + r].values + FEW_VALUES, 0.f);
      }
      unit.runs(chunk, all, [&](int64_t low, int64_t high) { meet_few<rt()>(unit.problem, unit.batch, unit.of_keys, rows, q, low, high, sums + first); });
      first += rt();
    };
    left >= 4 ? with(std::integral_constant<int, 4>{}) : left >= 2 ? with(std::integral_constant<int, 2>{}) : with(std::integral_constant<int, 1>{});
  }
}

// Adds up the chunks of a row in order.
inline void add_chunks(const Unit& unit, int64_t row, const FewSums* sums, int64_t num_chunks, int64_t stride) {
  float largest = NEVER, total = 0;
  for (int64_t c = 0; c < num_chunks; ++c) largest = std::max(largest, sums[c * stride].largest);
  alignas(64) float values[FEW_VALUES] = {};
  for (int64_t c = 0; c < num_chunks; ++c) {
    const FewSums& part = sums[c * stride];
    if (part.largest == NEVER) continue;
    const float fade = exp2(splat(part.largest - largest))[0];
    total += fade * sum_of(part.total);
    for (int d = 0; d < FEW_VALUES; d += VL) store(values + d, load(values + d) + fade * load(part.values + d));
  }
{%- if pairs %}
  sort_values(values);
{%- endif %}
  const FewRow of_row = unit.row(row);
  finish(unit.problem, unit.batch, of_row.head, of_row.query, largest, total, values);
}

inline bool are_few(const Problem& problem) {
  return problem.group() * problem.queries <= MOST_FEW{{ " && problem.queries <= problem.query_block" if spec.is_listed }};
}

inline Status attend_few(const Problem& problem) {
  static thread_local Buffer memory;
{%- if spec.is_listed %}
  const int64_t units = problem.index_heads > problem.key_heads ? problem.heads : problem.key_heads;
  const int64_t in_chunk = std::max<int64_t>(1, CHUNK / problem.key_block), num_chunks = std::max<int64_t>(1, (problem.index_width + in_chunk - 1) / in_chunk);
{%- else %}
  const int64_t units = problem.key_heads, num_chunks = std::max<int64_t>(1, (problem.keys + CHUNK - 1) / CHUNK);
{%- endif %}
  const int64_t in_unit = problem.heads / units, rows = in_unit * problem.queries, all = problem.batch * units;
  FewSums* sums = memory.get<FewSums>(size_t(all * num_chunks * rows));
  if (!sums) return NO_MEMORY;
{%- if spec.is_listed %}
  for (int64_t i = 0; i < all; ++i)
    if (!problem.is_sound(problem.list(i / units, i % units * in_unit, 0))) return DAMAGED_INDEX;
{%- endif %}
  auto unit_of = [&](int64_t i) -> Unit { return {problem, i / units, i % units * problem.key_heads / units, i % units * in_unit, rows}; };
  const double products = double(problem.heads * problem.batch) * double(problem.queries) * double(problem.keys) * (HEAD + VALUE_HEAD);
  const int threads = useful_threads(int(problem.threads), products, 1);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < all * num_chunks; ++task) attend_few_chunk(unit_of(task / num_chunks), task % num_chunks, sums + task * rows);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < all * rows; ++i) add_chunks(unit_of(i / rows), i % rows, sums + i / rows * num_chunks * rows + i % rows, num_chunks, rows);
  }
  return OK;
}
