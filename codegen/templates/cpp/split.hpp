// Block rows of the last product, where they are fewer than threads need: threads share parts of a row's blocks, leave the sums
// of each part in scratch, and add the parts up in order. What a part is, the mask alone decides, so no bit of a result depends
// on threads.

constexpr int PARTS = {{ split }};  // of a block row's blocks

// Block rows with one part of their blocks each.
struct PartOfRows {
  const Rows& rows;
  int64_t part;
  const Layer& layer = rows.layer;

  Row row(int64_t r, Buffer&) const {
    const Row whole = rows.row(r);
    const int64_t first = whole.count * part / PARTS, end = whole.count * (part + 1) / PARTS;
    return {end - first, whole.columns + first, whole.blocks + first * STORED_BLOCK};
  }
};

// sums = acc
struct Part {
  static constexpr bool GATED = false, BIAS = false, GATE_BIAS = false, RESIDUAL = false, TO_PANEL = false;
  static Vec epilogue(Vec acc, Vec, Vec, Vec, Vec) { return acc; }
};

// A block row of a tile as the sums of its parts, of which the first ones lie at `sums`, a row a token.
struct SummedRow {
  const float* sums;
  int64_t row_stride, part_stride, outputs;
};

template <int MT, int W, int64_t FETCHED>
inline void product(const SummedRow& row, const Word*, int64_t offset, Sums<MT, W>& total) {
  for (int v = 0; v < vectors<W>(); ++v) {
    const int n = int(row.outputs - offset) - v * VL;
    for (int m = 0; m < MT; ++m) {
      const float* sums = row.sums + m * row.row_stride + offset + v * VL;
      total[m][v] = load_up_to(sums, n);
      for (int part = 1; part < PARTS; ++part) total[m][v] += load_up_to(sums + part * row.part_stride, n);
    }
  }
}

template <class Stage>
constexpr int64_t num_sums(int64_t tokens, int64_t outputs) { return (Stage::GATED ? 2 : 1) * PARTS * tokens * outputs; }

// As `share_rows`; a task is a part of some block rows of a layer times a chunk of tokens. sums: room for `num_sums`.
template <class Stage>
void share_parts(const Rows& gate_rows, const Rows& up_rows, const Word* panel, const Tiles& tiles, int64_t tokens, float* sums,
                 const Result& result, int threads) {
  constexpr int64_t LAYERS = Stage::GATED ? 2 : 1;
  const Layer &gate = gate_rows.layer, &up = up_rows.layer;
  const int64_t num_rows = up.output_blocks(), part_size = tokens * up.outputs;
  const int64_t tile_bytes = int64_t(sizeof(Word)) * panel_steps(up.contractions) * MAX_TILE;
  const int64_t most = std::max<int64_t>(1, PANEL_BYTES / tile_bytes), chunks = (tiles.count + most - 1) / most;
  const int64_t groups = std::clamp<int64_t>(4 * threads / (chunks * LAYERS * PARTS), 1, num_rows);
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < chunks * groups * LAYERS * PARTS; ++task) {
    const int64_t piece = task % (LAYERS * PARTS), group = task / (LAYERS * PARTS) % groups, chunk = task / (LAYERS * PARTS * groups);
    const PartOfRows rows{piece < PARTS ? up_rows : gate_rows, piece % PARTS};
    const ResultIn<float> to{sums + piece * part_size, nullptr, nullptr, 0, result.status, false};
    run_rows<Part>(rows, rows, num_rows * group / groups, num_rows * (group + 1) / groups, panel, tiles,
                   tiles.count * chunk / chunks, tiles.count * (chunk + 1) / chunks, to);
  }
  Result sum = result;
  sum.streams = false;  // block rows so few have small results
#pragma omp for schedule(static)
  for (int64_t i = 0; i < tiles.count * num_rows; ++i) {
    const int64_t tile = i / num_rows, row_start = i % num_rows * OUTPUT_EDGE, first = tiles.start(tile);
    const float* from = sums + first * up.outputs + row_start;
    const SummedRow ups{from, up.outputs, part_size, up.outputs - row_start};
    const SummedRow gates{from + PARTS * part_size, up.outputs, part_size, up.outputs - row_start};
    with_tile(tiles.size(tile), [&](auto mt) __attribute__((always_inline)) {
      row_of_tile<Stage, mt()>(gate, up, gates, ups, nullptr, first, row_start, sum);
    });
  }
}
