{%- if packed -%}
// Indices are data that anybody may edit, average or cast: what they say is checked before anything is read through it.
// [rows + 1] offsets, [rows] check words, and columns, which ascend in each row; as in layout.py.

inline uint32_t hashed(int32_t column, int64_t place) {
  uint32_t hash = uint32_t(column) + 1 + uint32_t(place) * 0x9E3779B1u;  // never 0 of a first column
  hash = (hash ^ hash >> 15) * 0x85EBCA6Bu;
  return hash ^ hash >> 13;
}

// What is wrong with a row whose check word is `word`, 0 where nothing is. A short one takes longer by vectors.
[[gnu::optimize("no-tree-vectorize")]] static uint32_t fault_of_short(const int32_t* columns, int64_t count, uint32_t word) {
  uint32_t sum = 0x27D4EB2F, bad = 0;
  int32_t last = -1;
  for (int64_t i = 0; i < count; last = columns[i++]) {
    bad |= columns[i] <= last;
    sum += hashed(columns[i], i);
  }
  return bad | (sum ^ word);
}

static uint32_t fault_of_long(const int32_t* columns, int64_t count, uint32_t word) {
  uint32_t sum = 0x27D4EB2F, bad = columns[0] < 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += hashed(columns[i], i);
#pragma omp simd reduction(| : bad)
  for (int64_t i = 1; i < count; ++i) bad |= columns[i] <= columns[i - 1];
  return bad | (sum ^ word);
}

inline const int32_t* columns_of(const int32_t* index, int64_t rows) { return index + 2 * rows + 1; }

// Whether an index of `rows` block rows names blocks of `columns` block columns and of the weight's storage only, each once,
// and is the one that was made.
inline bool is_sound(const int32_t* index, int64_t rows, int64_t columns, int64_t num_blocks, int threads) {
  uint32_t bad = index[0] < 0;
#pragma omp simd reduction(| : bad)
  for (int64_t r = 0; r < rows; ++r) bad |= uint32_t(index[r + 1]) - uint32_t(index[r]) > uint32_t(columns);
  if (bad || index[rows] > num_blocks) return false;
  constexpr int64_t LONG = 64, MANY = 4096;  // blocks of a row, and of all
#pragma omp parallel for schedule(static) reduction(| : bad) num_threads(threads) if (threads > 1 && index[rows] - index[0] >= MANY)
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* mine = columns_of(index, rows) + index[r];
    const int64_t count = index[r + 1] - index[r];
    const uint32_t word = uint32_t(index[rows + 1 + r]);
    if (count) bad |= mine[count - 1] >= columns;
    bad |= count < LONG ? fault_of_short(mine, count, word) : fault_of_long(mine, count, word);
  }
  return !bad;
}
{%- else -%}
// A mask is a number for each block, kept where it is not 0: nothing that stands in it leads out of the weight.

// f(column) for each kept block of a row, in ascending order.
template <class F>
inline void each_kept(const float* row, int64_t columns, F&& f) {
  constexpr int64_t SOME = 16;
  int64_t c = 0;
  for (; c + SOME <= columns; c += SOME) {
    uint32_t kept = 0;
    for (int64_t i = 0; i < SOME; ++i) kept |= uint32_t(row[c + i] != 0) << i;
    for (; kept; kept &= kept - 1) f(c + __builtin_ctz(kept));
  }
  for (; c < columns; ++c)
    if (row[c] != 0) f(c);
}
{%- endif %}
