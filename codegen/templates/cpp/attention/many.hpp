// Many queries: keys and values of a head are packed into panels once, and tasks of a block of queries read those they need.

constexpr int64_t BLOCK_QUERIES = {{ config.queries }};   // of a task
constexpr int64_t ROUND_BYTES = {{ config.round_bytes }};  // of panels that are packed at once
constexpr int64_t KEY_WORDS = int64_t(HEAD_STEPS) * PANEL, VALUE_WORDS = int64_t(PANEL_STEPS) * VALUE_STRIDE;

struct Panels {  // of one head of keys
  Word *keys, *values;
  const uint32_t* present;
};

// Keys that are padding or beyond the end become zeros, so that nothing of what lies there reaches a sum.
inline void pack_panel(const Problem& problem, int64_t batch, int64_t head, int64_t panel, const Panels& to) {
  const int64_t key = panel * PANEL;
  const uint32_t present = to.present[panel];
  const int count = 32 - (present ? __builtin_clz(present) : 32);
  Word *keys = to.keys + panel * KEY_WORDS, *values = to.values + panel * VALUE_WORDS;
  const Matrix<const X> k = problem.k.of(batch, head), v = problem.v.of(batch, head);
  if (present == (1u << count) - 1) {
    gather(k.row(key), 1, k.row_stride, HEAD, count, keys, HEAD_STEPS, PANEL);
    gather(v.row(key), v.row_stride, 1, count, VALUE_HEAD, values, PANEL_STEPS, VALUE_STRIDE);
    return;
  }
  X some_k[PANEL][HEAD] = {}, some_v[PANEL][VALUE_HEAD] = {};
  for (int i = 0; i < count; ++i)
    if (present >> i & 1) {
      std::memcpy(some_k[i], k.row(key + i), sizeof(some_k[i]));
      std::memcpy(some_v[i], v.row(key + i), sizeof(some_v[i]));
    }
  gather<X>(some_k[0], 1, HEAD, HEAD, PANEL, keys, HEAD_STEPS, PANEL);
  gather<X>(some_v[0], VALUE_HEAD, 1, PANEL, VALUE_HEAD, values, PANEL_STEPS, VALUE_STRIDE);
}

struct Scratch {  // of a thread
  Buffer queries, panels, largest, totals, values;
};

// Queries from `first` to before `last` of a head.
inline Status attend(const Problem& problem, int64_t batch, int64_t head, int64_t first, int64_t last, const Panels& from, Scratch& scratch) {
  const int64_t count = last - first;
{%- if spec.is_listed %}
  if (!problem.is_sound(problem.list(batch, head, first))) return DAMAGED_INDEX;
{%- endif %}
  Word* queries = scratch.queries.get<Word>(size_t(count * HEAD_STEPS));
  int32_t* panels = scratch.panels.get<int32_t>(size_t(problem.keys / PANEL + 1));
  float* largest = scratch.largest.get<float>(size_t(count));
  Vec* totals = scratch.totals.get<Vec>(size_t(count));
  float* values = scratch.values.get<float>(size_t(count * VALUE_STRIDE));
  if (!queries || !panels || !largest || !totals || !values) return NO_MEMORY;
  Bounds bounds[BLOCK_QUERIES], all{problem.keys, 0};
  const Matrix<const X> q = problem.q.of(batch, head);
  for (int64_t i = 0; i < count; ++i) {
    bounds[i] = problem.bounds(batch, first + i);
    if (bounds[i].low < bounds[i].high) all = {std::min(all.low, bounds[i].low), std::max(all.high, bounds[i].high)};
{%- if pairs %}
    std::memcpy(queries + i * HEAD_STEPS, q.row(first + i), sizeof(X) * HEAD);
{%- else %}
    for (int d = 0; d < HEAD; d += VL) store_up_to(queries + i * HEAD_STEPS + d, load_up_to(q.row(first + i) + d, HEAD - d), HEAD - d);
{%- endif %}
    largest[i] = NEVER;
    totals[i] = Vec{};
  }
  std::fill(values, values + count * VALUE_STRIDE, 0.f);
  const int64_t num_panels = list_panels(problem, batch, head, first, all, from.present, panels);
  const Matrix<const Bias> bias = problem.bias.of(batch, head);
  for (int64_t at = 0; at < num_panels; at += TILE_PANELS) {
    Tile tile;
    uint32_t together = 0xffff;
    const int in_tile = int(std::min<int64_t>(TILE_PANELS, num_panels - at));
    for (int p = 0; p < in_tile; ++p) {
      const int64_t panel = panels[at + p];
      tile.first[p] = int32_t(panel * PANEL);
      together &= tile.present[p] = from.present[panel];
      tile.keys[p] = from.keys + panel * KEY_WORDS;
      tile.values[p] = from.values + panel * VALUE_WORDS;
    }
    tile.is_whole = together == 0xffff;
    for (int64_t m = 0; m < count; m += STRIP) {
      const int size = int(std::min<int64_t>(STRIP, count - m));
      Bounds any = bounds[m], every = bounds[m];
      for (int i = 1; i < size; ++i) {
        const Bounds& one = bounds[m + i];
        any = {std::min(any.low, one.low), std::max(any.high, one.high)};
        every = {std::max(every.low, one.low), std::min(every.high, one.high)};
      }
      tile.num = in_tile;
      while (tile.num && tile.first[tile.num - 1] >= any.high) --tile.num;
      if (!tile.num || tile.first[tile.num - 1] + PANEL <= any.low) continue;
      const bool is_partial = !tile.is_whole || tile.first[0] < every.low || tile.first[tile.num - 1] + PANEL > every.high;
      const Sums sums{largest + m, totals + m, values + m * VALUE_STRIDE};
      with_strip(size, [&](auto mt) {
        meet<mt()>(problem, queries + m * HEAD_STEPS, tile, bounds + m, {bias.row(first + m), bias.row_stride}, is_partial, sums);
      });
    }
  }
  for (int64_t i = 0; i < count; ++i) finish(problem, batch, head, first + i, largest[i], sum_of(totals[i]), values + i * VALUE_STRIDE);
  return OK;
}

// As few blocks as hold all queries, of like size, in whole strips.
inline int64_t even_step(int64_t queries) {
  const int64_t least = (queries + BLOCK_QUERIES - 1) / BLOCK_QUERIES;
  return ((queries + least - 1) / least + STRIP - 1) / STRIP * STRIP;
}

inline Status attend_many(const Problem& problem) {
  static thread_local Buffer panel_memory, present_memory;
  const int64_t num_panels = (problem.keys + PANEL - 1) / PANEL, heads = problem.batch * problem.key_heads;
  const int64_t words = num_panels * (KEY_WORDS + VALUE_WORDS);
  const int64_t in_round = std::clamp<int64_t>(ROUND_BYTES / (words * int64_t(sizeof(Word)) + 1), 1, heads);
  Word* memory = panel_memory.get<Word>(size_t(in_round * words));
  uint32_t* present = present_memory.get<uint32_t>(size_t(problem.batch * num_panels));
  if (!memory || !present) return NO_MEMORY;
{%- if spec.is_listed %}
  const Cut cut(problem.queries, problem.query_block, std::min(BLOCK_QUERIES, problem.query_block));
{%- else %}
  const Cut cut(problem.queries, problem.queries, even_step(problem.queries));
{%- endif %}
  Status status = OK;
  const double products = double(problem.heads * problem.batch) * double(problem.queries) * double(problem.keys) * (HEAD + VALUE_HEAD);
  const int threads = useful_threads(int(problem.threads), products, 1);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < problem.batch * num_panels; ++i) present[i] = problem.present(i / num_panels, i % num_panels * PANEL);
    for (int64_t round = 0; round < heads; round += in_round) {
      const int64_t in_this = std::min(in_round, heads - round);
      auto panels_of = [&](int64_t head) -> Panels {  // of this round
        Word* keys = memory + head * words;
        return {keys, keys + num_panels * KEY_WORDS, present + (round + head) / problem.key_heads * num_panels};
      };
#pragma omp for schedule(static)
      for (int64_t i = 0; i < in_this * num_panels; ++i) {
        const int64_t head = round + i / num_panels;
        pack_panel(problem, head / problem.key_heads, head % problem.key_heads, i % num_panels, panels_of(i / num_panels));
      }
      const int64_t group = problem.group(), blocks = cut.num, tasks = in_this * group * blocks;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; ++task) {  // the last queries first: of causal ones they see most keys
        const int64_t block = blocks - 1 - task % blocks, head = task / blocks, of_keys = round + head / group;
        const int64_t batch = of_keys / problem.key_heads, of_queries = of_keys % problem.key_heads * group + head % group;
        const Status one = attend(problem, batch, of_queries, cut.start(block), cut.start(block + 1), panels_of(head / group), scratch);
        if (one != OK) {
#pragma omp atomic write
          status = one;
        }
      }
    }
  }
  return status;
}
