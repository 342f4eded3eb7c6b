constexpr int LINE_VECTORS = LINE / (VL * sizeof(X));
constexpr bool HALF_LINES = CAN_STREAM && OUTPUT_EDGE == VL && LINE_VECTORS == 2;  // it takes two block rows to fill lines of y

// Where a product's results go: rows of y, or the panel of the product that follows.
template <class Y>
struct ResultIn {
  Y* y;
  const X* residual;
  Word* panel;
  int64_t panel_steps;
  Status* status;
  bool streams;  // past the caches
  Vec* halves = nullptr;  // of a line each: two vectors a token
};
using Result = ResultIn<X>;

// W outputs of a block row from `offset` on, for the MT tokens of a tile.
template <int MT, int W, int64_t FETCHED>
inline void product(const Row& row, const Word* tile, int64_t offset, Sums<MT, W>& total) {
{%- if turned %}
  if constexpr (is_turned<MT, W>()) return product_by_tokens<MT, FETCHED>(row, tile, total);
{%- endif %}
  // Few tokens ask for a small block at once; else weights are fetched along with the arithmetic.
  constexpr int64_t BLOCK_BYTES = CONTRACTION_EDGE * FETCHED;
  constexpr bool AT_ONCE = MT < 12 && BLOCK_BYTES <= 1024;
  Chains<MT, W> sums = {};
  for (int64_t i = 0; i < row.count; ++i) {
    const Stored* block = row.blocks + i * STORED_BLOCK;
    if constexpr (AT_ONCE)
      for (int64_t byte = 0; byte < BLOCK_BYTES; byte += LINE)
        __builtin_prefetch(reinterpret_cast<const char*>(block) + PREFETCH_BYTES / 2 + byte);
    accumulate<MT, W, AT_ONCE ? 0 : FETCHED>(sums, tile + row.columns[i] * STEPS * MT, MT, block + offset, STORED_STRIDE, STEPS);
  }
  add_chains<MT, W>(sums, total);
  sort_outputs<Stored, MT, W>(total);
}

inline Vec load_up_to(const auto* p, int n) { return n >= VL ? load(p) : load_part(p, std::max(n, 0)); }

// One strip of W outputs for the MT tokens of a tile.
template <class Stage, int MT, int W, int64_t FETCHED = 0>
inline void strip(const Layer& gate, const Layer& up, const auto& gate_row, const auto& up_row, const Word* tile,
                  int64_t first_token, int64_t row_start, int64_t offset, const auto& result) {
  const int64_t first_output = row_start + offset;
  const int outputs = int(std::min<int64_t>(W, up.outputs - first_output));
  if (!Stage::TO_PANEL && !result.streams)  // the lines of y arrive while the product is computed
    for (int m = 0; m < MT; ++m)
      for (int o = 0; o < W; o += int(LINE / sizeof(X)))
        __builtin_prefetch(result.y + (first_token + m) * up.outputs + first_output + o, 1);
  Sums<MT, W> acc, gates;
  if constexpr (Stage::GATED) product<MT, W, FETCHED>(gate_row, tile, offset, gates);
  product<MT, W, FETCHED>(up_row, tile, offset, acc);
#pragma GCC unroll 8
  for (int v = 0; v < vectors<W>(); ++v) {
    const int n = outputs - v * VL;
    const int64_t o = first_output + v * VL;
    Vec bias{}, gate_bias{};
    if constexpr (Stage::BIAS) bias = load_up_to(up.bias + o, n);
    if constexpr (Stage::GATE_BIAS) gate_bias = load_up_to(gate.bias + o, n);
#pragma GCC unroll 32
    for (int m = 0; m < MT; ++m) {
      const int64_t at = (first_token + m) * up.outputs + o;
      Vec residual{};
      if constexpr (Stage::RESIDUAL) residual = load_up_to(result.residual + at, n);
      acc[m][v] = Stage::epilogue(acc[m][v], Stage::GATED ? gates[m][v] : Vec{}, bias, gate_bias, residual);
      if (!Stage::TO_PANEL && !result.streams) {
        if (n >= VL)
          store(result.y + at, acc[m][v]);
        else if (n > 0)
          store_part(result.y + at, acc[m][v], n);
      }
    }
  }
  if constexpr (Stage::TO_PANEL)
    store_panel<MT, W>(acc, first_output, outputs, result.panel + first_token * result.panel_steps);
  else if (result.streams && HALF_LINES) {
    const int half = int(row_start / OUTPUT_EDGE % 2);
    for (int m = 0; m < MT; ++m) {
      result.halves[2 * m + half] = acc[m][0];
      if (half) stream_line(result.y + (first_token + m) * up.outputs + row_start - VL, result.halves + 2 * m);
    }
  } else if (result.streams)
    for (int m = 0; m < MT; ++m)
      for (int v = 0; v + LINE_VECTORS <= vectors<W>() && v * VL < outputs; v += LINE_VECTORS)
        stream_line(result.y + (first_token + m) * up.outputs + first_output + v * VL, &acc[m][v]);
}

template <class Stage, int MT>
inline void row_of_tile(const Layer& gate, const Layer& up, const auto& gate_row, const auto& up_row, const Word* tile,
                        int64_t first_token, int64_t row_start, const auto& result) {
{%- if direct %}
  constexpr int MOST = 3 * MT <= MAX_TILE ? 2 * STRIP : STRIP;  // few tokens leave registers, and read wide blocks in longer runs
{%- else %}
  constexpr int MOST = STRIP;
{%- endif %}
  constexpr int WIDTH = std::min(MOST, OUTPUT_EDGE), WHOLE = OUTPUT_EDGE / WIDTH * WIDTH, REST = OUTPUT_EDGE % WIDTH;
  constexpr int64_t FETCHED = {{ "OUTPUT_EDGE * sizeof(Stored)" if direct else "0" }};  // by the first strip, for all of a row
  const int64_t outputs = up.outputs - row_start;
  strip<Stage, MT, WIDTH, FETCHED>(gate, up, gate_row, up_row, tile, first_token, row_start, 0, result);
  if constexpr (WHOLE > WIDTH)
    for (int64_t offset = WIDTH; offset < std::min<int64_t>(WHOLE, outputs); offset += WIDTH)
      strip<Stage, MT, WIDTH>(gate, up, gate_row, up_row, tile, first_token, row_start, offset, result);
  if constexpr (REST > 0)
    if (WHOLE < outputs) strip<Stage, MT, REST>(gate, up, gate_row, up_row, tile, first_token, row_start, WHOLE, result);
}

// The outputs of block rows [start, end) for tiles [first_tile, end_tile). ROW_GROUP rows at a time go over each tile, so that
// their results lie side by side in y.
template <class Stage>
void run_rows(const auto& gate_rows, const auto& up_rows, int64_t start, int64_t end, const Word* panel, const Tiles& tiles,
              int64_t first_tile, int64_t end_tile, const auto& result) {
  static thread_local Buffer gate_scratch[ROW_GROUP], up_scratch[ROW_GROUP];
  const Layer &gate = gate_rows.layer, &up = up_rows.layer;
  const int64_t steps = panel_steps(up.contractions);
  Vec halves[HALF_LINES ? 2 * MAX_TILE : 1];
  auto to = result;
  to.halves = halves;
  if (HALF_LINES && (ROW_GROUP % 2 || start % 2 || end % 2)) to.streams = false;
  for (; start < end; start += ROW_GROUP) {
    const int count = int(std::min<int64_t>(ROW_GROUP, end - start));
    Row gates[ROW_GROUP], ups[ROW_GROUP];
    bool has_memory = true;
    for (int i = 0; i < count; ++i) {
      if constexpr (Stage::GATED) {
        gates[i] = gate_rows.row(start + i, gate_scratch[i]);
        has_memory &= gates[i].count >= 0;
      }
      ups[i] = up_rows.row(start + i, up_scratch[i]);
      has_memory &= ups[i].count >= 0;
    }
    if (!has_memory) {
      Status& status = *result.status;
#pragma omp atomic write
      status = NO_MEMORY;
      break;
    }
    for (int64_t t = first_tile; t < end_tile; ++t)
      with_tile(tiles.size(t), [&](auto mt) __attribute__((always_inline)) {
        for (int i = 0; i < count; ++i)
          row_of_tile<Stage, mt()>(gate, up, gates[i], ups[i], panel + tiles.start(t) * steps, tiles.start(t),
                                   (start + i) * OUTPUT_EDGE, to);
      });
  }
  if (to.streams) finish_streams();
}

// All outputs of a span of tokens, by all threads of a parallel region; a task is a chunk of tokens times some block rows.
template <class Stage>
void share_rows(const Rows& gate_rows, const Rows& up_rows, const Word* panel, const Tiles& tiles, const Result& result, int threads) {
  const int64_t num_rows = up_rows.layer.output_blocks();
  const int64_t tile_bytes = int64_t(sizeof(Word)) * panel_steps(up_rows.layer.contractions) * MAX_TILE;
  const int64_t most = std::max<int64_t>(1, PANEL_BYTES / tile_bytes), chunks = (tiles.count + most - 1) / most;
  const int64_t weight_bytes = int64_t(sizeof(Weight)) * OUTPUT_EDGE * CONTRACTION_EDGE * up_rows.layer.num_blocks;
  const int64_t tasks = std::clamp<int64_t>(weight_bytes / TASK_BYTES, 4 * threads, 16 * threads);
  const int64_t groups = std::clamp<int64_t>(tasks / chunks, 1, num_rows);
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < chunks * groups; ++task) {
    const int64_t chunk = task / groups, group = task % groups;
    run_rows<Stage>(gate_rows, up_rows, num_rows * group / groups, num_rows * (group + 1) / groups, panel, tiles,
                    tiles.count * chunk / chunks, tiles.count * (chunk + 1) / chunks, result);
  }
}
