// A block row of the result: which blocks of the contraction meet in it, and their words one after another.
{%- if direct %}
using Stored = Weight;  // read where they lie: packed blocks are [contraction][output]
constexpr int64_t STORED_STRIDE = OUTPUT_EDGE;
constexpr int64_t STORED_BLOCK = int64_t(CONTRACTION_EDGE) * OUTPUT_EDGE;
{%- else %}
using Stored = Word;  // gathered into scratch: a row of blocks serves a whole chunk of tokens
constexpr int64_t STORED_STRIDE = (OUTPUT_EDGE + VL - 1) / VL * VL;
constexpr int64_t STORED_BLOCK = STEPS * STORED_STRIDE;
{%- endif %}

struct Row {
  int64_t count;  // below 0 where there was no memory to gather
  const int32_t* columns;
  const Stored* blocks;
};

// One linear layer, seen from its product: outputs and contractions are N and K, or K and N for the input gradient.
struct Layer {
  const Weight* weight;
  const {{ "int32_t* index" if packed else "float* mask" }};
  const Weight* bias;
  int64_t row_stride, column_stride;  // of a dense weight [N, K], in elements
  int64_t outputs, contractions, num_blocks;

  int64_t output_blocks() const { return (outputs + OUTPUT_EDGE - 1) / OUTPUT_EDGE; }
  int64_t contraction_blocks() const { return (contractions + CONTRACTION_EDGE - 1) / CONTRACTION_EDGE; }
{%- if packed %}
  bool is_sound(int threads) const { return ::is_sound(index, {{ "contraction_blocks(), output_blocks()" if transposed else "output_blocks(), contraction_blocks()" }}, num_blocks, threads); }
{%- endif %}
};

{%- if not direct %}
{%- if packed %}
{%- set contraction_stride, output_stride = ("1", "CONTRACTION_EDGE") if transposed else ("OUTPUT_EDGE", "1") %}
{%- else %}
{%- set contraction_stride, output_stride = ("layer.row_stride", "layer.column_stride") if transposed else ("layer.column_stride", "layer.row_stride") %}
{%- endif %}
{%- endif %}
struct Rows {
  const Layer& layer;
{%- if transposed %}
  const int32_t *offsets, *columns, *positions;  // by output block: where its blocks start, their rows, their places in storage

  // Turns the index, which goes by block rows, over: a counting sort, cheap beside the product. Without memory, it is not ready.
  Rows(const Layer& l, Buffer& memory) : layer(l) {
    const int64_t R = l.contraction_blocks(), C = l.output_blocks();
    int32_t* starts = memory.get<int32_t>(size_t(C + 2 + 2 * l.num_blocks));
    offsets = starts;
    if (!starts) return;
    int32_t *rows = starts + C + 2, *places = rows + l.num_blocks;
    std::fill(starts, starts + C + 2, 0);
    each(R, C, [&](int64_t, int64_t column, int64_t) { ++starts[column + 2]; });
    for (int64_t c = 0; c < C; ++c) starts[c + 2] += starts[c + 1];
    each(R, C, [&](int64_t row, int64_t column, int64_t place) {
      int32_t at = starts[column + 1]++;
      rows[at] = int32_t(row);
      places[at] = int32_t(place);
    });
    columns = rows;
    positions = places;
  }

  bool is_ready() const { return offsets; }

  template <class F>
  void each(int64_t R, [[maybe_unused]] int64_t C, F&& f) const {
    for (int64_t r = 0; r < R; ++r) {
{%- if packed %}
      for (int64_t i = layer.index[r]; i < layer.index[r + 1]; ++i) f(r, columns_of(layer.index, R)[i], i);
{%- else %}
      each_kept(layer.mask + r * C, C, [&](int64_t c) { f(r, c, r * C + c); });
{%- endif %}
    }
  }
{%- elif packed %}
  Rows(const Layer& l, Buffer&) : layer(l) {}
  bool is_ready() const { return true; }
{%- else %}
  const int32_t *offsets, *columns;  // of each block row among all kept blocks; theirs

  // Lists what the mask keeps. Without memory, it is not ready.
  Rows(const Layer& l, Buffer& memory) : layer(l) {
    const int64_t R = l.output_blocks(), C = l.contraction_blocks();
    int32_t* starts = memory.get<int32_t>(size_t(R + 1 + R * C));
    offsets = starts;
    if (!starts) return;
    int32_t *listed = starts + R + 1, *next = listed;
    columns = listed;
    starts[0] = 0;
    for (int64_t r = 0; r < R; ++r) {
      each_kept(l.mask + r * C, C, [&](int64_t c) { *next++ = int32_t(c); });
      starts[r + 1] = int32_t(next - listed);
    }
  }

  bool is_ready() const { return offsets; }
{%- endif %}
{%- if not direct %}
  const Word* gathered = nullptr;  // all kept blocks, where they serve many tokens

  // Of the kept blocks of the rows before r: how many.
  int64_t start(int64_t r) const { return {{ "layer.index[r] - layer.index[0]" if packed and not transposed else "offsets[r]" }}; }

  // Gathers every row, by all threads, unless that takes more than GATHER_BYTES.
  bool gather_all(Buffer& memory, int threads) {
    const int64_t R = layer.output_blocks(), words = start(R) * STORED_BLOCK;
    if (words * int64_t(sizeof(Word)) > GATHER_BYTES) return false;
    Word* all = memory.get<Word>(size_t(words));
    if (!all) return false;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < R; ++r) gather_row(r, all + start(r) * STORED_BLOCK);
    gathered = all;
    return true;
  }
{%- endif %}

  // Its blocks are nowhere yet, unless they are read where they lie.
  Row row(int64_t r) const {
{%- if packed and not transposed %}
    const int64_t count = layer.index[r + 1] - layer.index[r];
    const int32_t* mine = columns_of(layer.index, layer.output_blocks()) + layer.index[r];
{%- else %}
    const int64_t count = offsets[r + 1] - offsets[r];
    const int32_t* mine = columns + offsets[r];
{%- endif %}
    return {count, mine, {{ "layer.weight + layer.index[r] * STORED_BLOCK" if direct else "nullptr" }}};
  }

  // With its blocks.
  Row row(int64_t r, [[maybe_unused]] Buffer& scratch) const {
    Row row = this->row(r);
{%- if not direct %}
    if (gathered) {
      row.blocks = gathered + start(r) * STORED_BLOCK;
    } else {
      Word* words = scratch.get<Word>(size_t(std::max<int64_t>(row.count, 1) * STORED_BLOCK));
      if (!words) return {-1, nullptr, nullptr};
      gather_row(r, words);
      row.blocks = words;
    }
{%- endif %}
    return row;
  }
{%- if not direct %}

  int64_t contraction_stride() const { return {{ contraction_stride }}; }
  int64_t output_stride() const { return {{ output_stride }}; }

  const Weight* block(int64_t r, [[maybe_unused]] const Row& row, int64_t i) const {
{%- if packed %}
    return layer.weight + {{ "positions[offsets[r] + i]" if transposed else "(layer.index[r] + i)" }} * int64_t(CONTRACTION_EDGE * OUTPUT_EDGE);
{%- else %}
    return layer.weight + row.columns[i] * CONTRACTION_EDGE * contraction_stride() + r * OUTPUT_EDGE * output_stride();
{%- endif %}
  }

  // Asks for block i of a row, or of those behind it: its lines are far apart, so no processor guesses them. Inline, for g++
  // drops calls of functions that only fetch.
  [[gnu::always_inline]] void fetch(int64_t r, int64_t i) const {
    Row row = this->row(r);
    for (; i >= row.count; row = this->row(r)) {
      i -= row.count;
      if (++r >= layer.output_blocks()) return;
    }
    const bool by_output = contraction_stride() == 1;
    const int64_t contractions = std::min<int64_t>(CONTRACTION_EDGE, layer.contractions - row.columns[i] * CONTRACTION_EDGE);
    const int64_t outputs = std::min<int64_t>(OUTPUT_EDGE, layer.outputs - r * OUTPUT_EDGE);
    const int64_t lines = by_output ? outputs : contractions, width = by_output ? contractions : outputs;
    const Weight* line = block(r, row, i);
    for (int64_t l = 0; l < lines; ++l, line += by_output ? output_stride() : contraction_stride())
      for (int64_t e = 0; e < width; e += LINE / int64_t(sizeof(Weight))) __builtin_prefetch(line + e, 0, 2);
  }

  void gather_row(int64_t r, Word* words) const {
    const Row row = this->row(r);
    const int64_t outputs = std::min<int64_t>(OUTPUT_EDGE, layer.outputs - r * OUTPUT_EDGE);
    for (int64_t i = 0; i < row.count; ++i) {
      fetch(r, i + FETCH_AHEAD);
      const int64_t contractions = std::min<int64_t>(CONTRACTION_EDGE, layer.contractions - row.columns[i] * CONTRACTION_EDGE);
      gather(block(r, row, i), contraction_stride(), output_stride(), contractions, outputs, words + i * STORED_BLOCK, STEPS, STORED_STRIDE);
    }
  }
{%- endif %}
};
