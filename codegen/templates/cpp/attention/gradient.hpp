// Gradients, in two passes that add up in a fixed order: queries meet keys for theirs, then keys meet queries for theirs and
// for those of values. Scores are computed anew in both, which costs two products more than sharing sums between threads would.

constexpr int64_t BLOCK = {{ config.queries }};               // queries, or keys, of a task
constexpr int64_t ROUND_BYTES = {{ config.round_bytes }};     // of panels that are packed at once
constexpr int HEAD_STRIDE = (HEAD + VL - 1) / VL * VL;
constexpr int VALUE_STEPS = VALUE_HEAD / PER_WORD;

// A panel of tokens of one head: x is of HEAD numbers, y of VALUE_HEAD. Queries: q and the gradient of the result; keys: k and v.
struct Packed {
  Word *x_lanes, *y_lanes, *x_rows, *y_rows;
  static constexpr int64_t X_LANES = int64_t(HEAD_STEPS) * PANEL, Y_LANES = int64_t(VALUE_STEPS) * PANEL;
  static constexpr int64_t X_ROWS = int64_t(PANEL_STEPS) * HEAD_STRIDE, Y_ROWS = int64_t(PANEL_STEPS) * VALUE_STRIDE;
  static constexpr int64_t WORDS = X_LANES + Y_LANES + X_ROWS + Y_ROWS;

  explicit Packed(Word* at) : x_lanes(at), y_lanes(at + X_LANES), x_rows(at + X_LANES + Y_LANES), y_rows(at + X_LANES + Y_LANES + X_ROWS) {}

  void fill(const Matrix<const X>& x, const Matrix<const X>& y, int64_t first, uint32_t present) {
    const int count = 32 - (present ? __builtin_clz(present) : 32);
    X some_x[PANEL][HEAD] = {}, some_y[PANEL][VALUE_HEAD] = {};
    for (int i = 0; i < count; ++i)
      if (present >> i & 1) {
        std::memcpy(some_x[i], x.row(first + i), sizeof(some_x[i]));
        std::memcpy(some_y[i], y.row(first + i), sizeof(some_y[i]));
      }
    gather<X>(some_x[0], 1, HEAD, HEAD, PANEL, x_lanes, HEAD_STEPS, PANEL);
    gather<X>(some_y[0], 1, VALUE_HEAD, VALUE_HEAD, PANEL, y_lanes, VALUE_STEPS, PANEL);
    gather<X>(some_x[0], HEAD, 1, PANEL, HEAD, x_rows, PANEL_STEPS, HEAD_STRIDE);
    gather<X>(some_y[0], VALUE_HEAD, 1, PANEL, VALUE_HEAD, y_rows, PANEL_STEPS, VALUE_STRIDE);
  }
};

struct Gradients {
  Heads<const X> grad;           // of the result
  const float *lse, *delta;      // [batch, heads, queries]: the log-sum-exp, and what each score's gradient is less than its weight's
  Heads<X> q, k, v;
};

// Some panels that a strip meets. first: of each, its first token. present: a bit for each token that counts.
struct Columns {
  int num;
  int64_t first[TILE_PANELS];
  uint32_t present[TILE_PANELS];
  const Word *x_lanes[TILE_PANELS], *y_lanes[TILE_PANELS], *x_rows[TILE_PANELS], *y_rows[TILE_PANELS];

  void add(const Packed& panel, int64_t at, uint32_t bits) {
    first[num] = at, present[num] = bits;
    x_lanes[num] = panel.x_lanes, y_lanes[num] = panel.y_lanes, x_rows[num] = panel.x_rows, y_rows[num] = panel.y_rows;
    ++num;
  }
};

inline IntVec lanes_from(int at) {
  IntVec lane;
  for (int i = 0; i < VL; ++i) lane[i] = i + at;
  return lane;
}

inline void words_of(const X* from, int size, Word* to) {
{%- if pairs %}
  std::memcpy(to, from, sizeof(X) * size);
{%- else %}
  for (int d = 0; d < size; d += VL) store_up_to(to + d, load_up_to(from + d, size - d), size - d);
{%- endif %}
}

// The sums of a task's rows, and what its rows are made of.
struct Rows {
  Buffer x, y, x_sums, y_sums;
};

// weights: exponentials; products: with the gradient of the result, which become gradients of scores. Both become words.
// seen: which of the lanes count. lse, delta: of each lane, in powers of two, or of all.
inline void differentiate(float scale, float* weights, float* products, int at, IntVec seen, Vec lse, Vec delta) {
  const Vec score = load(weights + at) * (scale * LOG2_E) - lse;
  const Vec weight = seen != 0 ? exp2(min(score, splat(64))) : Vec{};
  store(weights + at, weight);
  store(products + at, seen != 0 ? weight * (load(products + at) - delta) * scale : Vec{});
}

// A block of queries of one head meets all its keys: the gradient of the queries.
inline Status of_queries(const Problem& problem, const Gradients& of, int64_t batch, int64_t head, int64_t first, int64_t last, Word* keys,
                         const uint32_t* present, Rows& rows) {
  const int64_t count = last - first, num_panels = (problem.keys + PANEL - 1) / PANEL, at_row = (batch * problem.heads + head) * problem.queries;
{%- if spec.is_listed %}
  if (!problem.is_sound(problem.list(batch, head, first))) return DAMAGED_INDEX;
{%- endif %}
  Word *x = rows.x.get<Word>(size_t(count * HEAD_STEPS)), *y = rows.y.get<Word>(size_t(count * VALUE_STEPS));
  float* sums = rows.x_sums.get<float>(size_t(count * HEAD_STRIDE));
  static thread_local Buffer memory;
  int32_t* panels = memory.get<int32_t>(size_t(num_panels + 1));
  if (!x || !y || !sums || !panels) return NO_MEMORY;
  std::fill(sums, sums + count * HEAD_STRIDE, 0.f);
  Bounds bounds[BLOCK], all{problem.keys, 0};
  for (int64_t i = 0; i < count; ++i) {
    bounds[i] = problem.bounds(batch, first + i);
    if (bounds[i].low < bounds[i].high) all = {std::min(all.low, bounds[i].low), std::max(all.high, bounds[i].high)};
    words_of(problem.q.of(batch, head).row(first + i), HEAD, x + i * HEAD_STEPS);
    words_of(of.grad.of(batch, head).row(first + i), VALUE_HEAD, y + i * VALUE_STEPS);
  }
  const int64_t listed = list_panels(problem, batch, head, first, all, present, panels);
  for (int64_t at = 0; at < listed; at += TILE_PANELS) {
    Columns tile{};
    for (int64_t p = at; p < std::min(listed, at + TILE_PANELS); ++p)
      tile.add(Packed(keys + panels[p] * Packed::WORDS), panels[p] * PANEL, present[panels[p]]);
    for (int64_t m = 0; m < count; m += STRIP) {
      const int size = int(std::min<int64_t>(STRIP, count - m));
      int64_t low = problem.keys, high = 0;
      for (int i = 0; i < size; ++i) low = std::min(low, bounds[m + i].low), high = std::max(high, bounds[m + i].high);
      int num = tile.num;
      while (num && tile.first[num - 1] >= high) --num;
      if (!num || tile.first[num - 1] + PANEL <= low) continue;
      with_strip(size, [&](auto mt) {
        alignas(64) float weights[STRIP][TILE], products[STRIP][TILE];
        [[maybe_unused]] alignas(64) Word words[STRIP][TILE / PER_WORD];
        score<mt(), HEAD_STEPS>(x + m * HEAD_STEPS, tile.x_lanes, num, weights);
        score<mt(), VALUE_STEPS>(y + m * VALUE_STEPS, tile.y_lanes, num, products);
        for (int i = 0; i < mt(); ++i) {
          const float lse = of.lse[at_row + first + m + i], delta = of.delta[at_row + first + m + i];
          const Vec of_row = splat(lse == NEVER ? 0 : lse * LOG2_E);
          for (int lane = 0; lane < num * PANEL; lane += VL) {
            const int p = lane / PANEL, in_panel = lane % PANEL;
            const IntVec lanes = lanes_from(in_panel);
            const int from = int(std::clamp<int64_t>(bounds[m + i].low - tile.first[p], 0, PANEL));
            const int to = int(std::clamp<int64_t>(bounds[m + i].high - tile.first[p], 0, PANEL));
            const IntVec is_there = (IntVec{} + int(tile.present[p])) >> lanes & 1;
            differentiate(problem.scale, weights[i], products[i], lane, (lanes >= from) & (lanes < to) & (is_there != 0), of_row, splat(delta));
          }
          as_words(products[i], num * PANEL, words[i]);
        }
        add_rows<mt(), HEAD_STRIDE>(as_words(products[0], 0, words[0]), tile.x_rows, num, nullptr, sums + m * HEAD_STRIDE);
      });
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int d = 0; d < HEAD; d += VL) store_up_to(of.q.of(batch, head).row(first + i) + d, load(sums + i * HEAD_STRIDE + d), HEAD - d);
  return OK;
}

// Which queries from `query` on have the block of a key in their lists, a bit each.
inline uint32_t listing([[maybe_unused]] const Problem& problem, [[maybe_unused]] int64_t batch, [[maybe_unused]] int64_t head,
                        [[maybe_unused]] int64_t query, [[maybe_unused]] int64_t key) {
{%- if spec.is_listed %}
  uint32_t bits = 0;
  const int32_t wanted = int32_t(key / problem.key_block);
  for (int i = 0; i < PANEL && query + i < problem.queries;) {
    const int32_t* list = problem.list(batch, head, query + i);
    const bool is_listed = std::binary_search(list + 1, list + 1 + list[0], wanted);
    const int64_t next = ((query + i) / problem.query_block + 1) * problem.query_block - query;
    for (; i < std::min<int64_t>(PANEL, next); ++i) bits |= uint32_t(is_listed) << i;
  }
  return bits;
{%- else %}
  return 0xffff;
{%- endif %}
}

// A block of keys of one head meets all queries of its group: the gradients of the keys and of the values.
inline Status of_keys(const Problem& problem, const Gradients& of, int64_t batch, int64_t of_heads, int64_t first, int64_t last, Word* queries,
                      const uint32_t* present, const int32_t* low, const int32_t* high, Rows& rows) {
  const int64_t count = last - first, num_panels = (problem.queries + PANEL - 1) / PANEL, group = problem.group();
  Word *x = rows.x.get<Word>(size_t(count * HEAD_STEPS)), *y = rows.y.get<Word>(size_t(count * VALUE_STEPS));
  float *x_sums = rows.x_sums.get<float>(size_t(count * HEAD_STRIDE)), *y_sums = rows.y_sums.get<float>(size_t(count * VALUE_STRIDE));
  if (!x || !y || !x_sums || !y_sums) return NO_MEMORY;
  std::fill(x_sums, x_sums + count * HEAD_STRIDE, 0.f);
  std::fill(y_sums, y_sums + count * VALUE_STRIDE, 0.f);
  bool is_there[BLOCK];
  for (int64_t i = 0; i < count; ++i) {
    is_there[i] = present[(first + i) / PANEL] >> ((first + i) % PANEL) & 1;
    if (!is_there[i]) {
      std::fill(x + i * HEAD_STEPS, x + (i + 1) * HEAD_STEPS, Word(0));
      std::fill(y + i * VALUE_STEPS, y + (i + 1) * VALUE_STEPS, Word(0));
      continue;
    }
    words_of(problem.k.of(batch, of_heads).row(first + i), HEAD, x + i * HEAD_STEPS);
    words_of(problem.v.of(batch, of_heads).row(first + i), VALUE_HEAD, y + i * VALUE_STEPS);
  }
  for (int64_t in_group = 0; in_group < group; ++in_group) {
    const int64_t head = of_heads * group + in_group, at_row = (batch * problem.heads + head) * problem.queries;
    for (int64_t panel = 0; panel < num_panels;) {
      Columns tile{};
      for (; panel < num_panels && tile.num < TILE_PANELS; ++panel) {
        const int64_t query = panel * PANEL, end = std::min(problem.queries, query + PANEL);
        const bool meets = *std::min_element(low + query, low + end) < last && *std::max_element(high + query, high + end) > first;
        if (const uint32_t bits = meets ? listing(problem, batch, head, query, first) : 0)
          tile.add(Packed(queries + (in_group * num_panels + panel) * Packed::WORDS), query, bits);
      }
      if (!tile.num) break;
      for (int64_t m = 0; m < count; m += STRIP) {
        const int size = int(std::min<int64_t>(STRIP, count - m));
        with_strip(size, [&](auto mt) {
          alignas(64) float weights[STRIP][TILE], products[STRIP][TILE];
          [[maybe_unused]] alignas(64) Word words[STRIP][TILE / PER_WORD], more_words[STRIP][TILE / PER_WORD];
          score<mt(), HEAD_STEPS>(x + m * HEAD_STEPS, tile.x_lanes, tile.num, weights);
          score<mt(), VALUE_STEPS>(y + m * VALUE_STEPS, tile.y_lanes, tile.num, products);
          for (int lane = 0; lane < tile.num * PANEL; lane += VL) {
            const int p = lane / PANEL, in_panel = lane % PANEL;
            const int64_t query = tile.first[p] + in_panel;
            const int left = int(std::clamp<int64_t>(problem.queries - query, 0, VL));
            IntVec from{}, to{};
            std::memcpy(&from, low + query, sizeof(int32_t) * left);
            std::memcpy(&to, high + query, sizeof(int32_t) * left);
            const IntVec listed = (IntVec{} + int(tile.present[p])) >> lanes_from(in_panel) & 1;
            Vec lse = load_part(of.lse + at_row + query, left) * LOG2_E;
            lse = lse == NEVER ? Vec{} : lse;
            const Vec delta = load_part(of.delta + at_row + query, left);
            for (int i = 0; i < mt(); ++i) {
              const int key = int(first + m + i);
              const IntVec seen = (from <= key) & (to > key) & (listed != 0) & (is_there[m + i] ? -1 : 0);
              differentiate(problem.scale, weights[i], products[i], lane, seen, lse, delta);
            }
          }
          for (int i = 0; i < mt(); ++i) {
            as_words(weights[i], tile.num * PANEL, words[i]);
            as_words(products[i], tile.num * PANEL, more_words[i]);
          }
          add_rows<mt(), VALUE_STRIDE>(as_words(weights[0], 0, words[0]), tile.y_rows, tile.num, nullptr, y_sums + m * VALUE_STRIDE);
          add_rows<mt(), HEAD_STRIDE>(as_words(products[0], 0, more_words[0]), tile.x_rows, tile.num, nullptr, x_sums + m * HEAD_STRIDE);
        });
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int d = 0; d < HEAD; d += VL) store_up_to(of.k.of(batch, of_heads).row(first + i) + d, load(x_sums + i * HEAD_STRIDE + d), HEAD - d);
    for (int d = 0; d < VALUE_HEAD; d += VL) store_up_to(of.v.of(batch, of_heads).row(first + i) + d, load(y_sums + i * VALUE_STRIDE + d), VALUE_HEAD - d);
  }
  return OK;
}

inline Status differentiate_all(const Problem& problem, const Gradients& of) {
  static thread_local Buffer packed_memory, present_memory, bounds_memory;
  const int64_t key_panels = (problem.keys + PANEL - 1) / PANEL, query_panels = (problem.queries + PANEL - 1) / PANEL;
  const int64_t group = problem.group(), heads = problem.batch * problem.key_heads;
  const int64_t words = (key_panels + group * query_panels) * Packed::WORDS;
  const int64_t in_round = std::clamp<int64_t>(ROUND_BYTES / (words * int64_t(sizeof(Word)) + 1), 1, heads);
  Word* memory = packed_memory.get<Word>(size_t(in_round * words));
  uint32_t* present = present_memory.get<uint32_t>(size_t(problem.batch * key_panels));
  int32_t* low = bounds_memory.get<int32_t>(size_t(2 * problem.batch * problem.queries));
  if (!memory || !present || !low) return NO_MEMORY;
  int32_t* high = low + problem.batch * problem.queries;
  const int64_t query_step = {{ "std::min(BLOCK, problem.query_block)" if spec.is_listed else "BLOCK" }}, key_step = {{ "std::min(BLOCK, problem.key_block)" if spec.is_listed else "BLOCK" }};
  const Cut query_cut(problem.queries, {{ "problem.query_block" if spec.is_listed else "problem.queries" }}, query_step);
  const Cut key_cut(problem.keys, {{ "problem.key_block" if spec.is_listed else "problem.keys" }}, key_step);
  Status status = OK;
  const double products = double(problem.heads * problem.batch) * double(problem.queries) * double(problem.keys) * (HEAD + VALUE_HEAD);
  const int threads = useful_threads(int(problem.threads), products, 1);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Rows rows;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < problem.batch * key_panels; ++i) present[i] = problem.present(i / key_panels, i % key_panels * PANEL);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < problem.batch * problem.queries; ++i) {
      const Bounds bounds = problem.bounds(i / problem.queries, i % problem.queries);
      low[i] = int32_t(bounds.low), high[i] = int32_t(std::max(bounds.low, bounds.high));
    }
    for (int64_t round = 0; round < heads; round += in_round) {
      const int64_t in_this = std::min(in_round, heads - round), in_head = key_panels + group * query_panels;
      auto keys_of = [&](int64_t head) { return memory + head * words; };
      auto queries_of = [&](int64_t head) { return memory + head * words + key_panels * Packed::WORDS; };
#pragma omp for schedule(static)
      for (int64_t i = 0; i < in_this * in_head; ++i) {
        const int64_t head = round + i / in_head, batch = head / problem.key_heads, of_keys = head % problem.key_heads, panel = i % in_head;
        if (panel < key_panels) {
          Packed(keys_of(i / in_head) + panel * Packed::WORDS)
              .fill(problem.k.of(batch, of_keys), problem.v.of(batch, of_keys), panel * PANEL, present[batch * key_panels + panel]);
        } else {
          const int64_t of_group = panel - key_panels, of_queries = of_keys * group + of_group / query_panels, first = of_group % query_panels * PANEL;
          const int64_t left = std::min<int64_t>(PANEL, problem.queries - first);
          Packed(queries_of(i / in_head) + of_group * Packed::WORDS)
              .fill(problem.q.of(batch, of_queries), of.grad.of(batch, of_queries), first, uint32_t((1u << left) - 1));
        }
      }
      const int64_t query_tasks = group * query_cut.num, tasks = query_tasks + key_cut.num;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < in_this * tasks; ++task) {
        const int64_t head = round + task / tasks, batch = head / problem.key_heads, of_head = head % problem.key_heads, part = task % tasks;
        const uint32_t* there = present + batch * key_panels;
        Status one;
        if (part < key_cut.num) {
          one = of_keys(problem, of, batch, of_head, key_cut.start(part), key_cut.start(part + 1), queries_of(task / tasks), there,
                        low + batch * problem.queries, high + batch * problem.queries, rows);
        } else {
          const int64_t of_group = part - key_cut.num, block = query_cut.num - 1 - of_group % query_cut.num;
          one = of_queries(problem, of, batch, of_head * group + of_group / query_cut.num, query_cut.start(block), query_cut.start(block + 1),
                           keys_of(task / tasks), there, rows);
        }
        if (one != OK) {
#pragma omp atomic write
          status = one;
        }
      }
    }
  }
  return status;
}
