{%- if packed -%}
// Indices are data that anybody may edit, average or cast: what they say is checked before anything is read through it.
// [rows + 1] offsets, [rows] check words, and columns, which ascend in each row; as in layout.py.

inline uint32_t check_word(const int32_t* columns, int64_t count) {
  uint32_t word = 0x27D4EB2F;
#pragma omp simd reduction(+ : word)
  for (int64_t i = 0; i < count; ++i) {
    uint32_t hash = uint32_t(columns[i]) + 1 + uint32_t(i) * 0x9E3779B1u;  // never 0 of a first column
    hash = (hash ^ hash >> 15) * 0x85EBCA6Bu;
    word += hash ^ hash >> 13;
  }
  return word;
}

inline const int32_t* columns_of(const int32_t* index, int64_t rows) { return index + 2 * rows + 1; }

// Whether an index of `rows` block rows names blocks of `columns` block columns and of the weight's storage only, each once,
// and is the one that was made.
inline bool is_sound(const int32_t* index, int64_t rows, int64_t columns, int64_t num_blocks) {
  uint32_t bad = index[0] < 0;
#pragma omp simd reduction(| : bad)
  for (int64_t r = 0; r < rows; ++r) bad |= uint32_t(index[r + 1]) - uint32_t(index[r]) > uint32_t(columns);
  if (bad || index[rows] > num_blocks) return false;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* mine = columns_of(index, rows) + index[r];
    const int64_t count = index[r + 1] - index[r];
    if (count) bad |= uint32_t(mine[0] < 0) | uint32_t(mine[count - 1] >= columns);
#pragma omp simd reduction(| : bad)
    for (int64_t i = 1; i < count; ++i) bad |= mine[i] <= mine[i - 1];
    bad |= check_word(mine, count) ^ uint32_t(index[rows + 1 + r]);
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
