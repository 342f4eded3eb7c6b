// Indices are data that anybody may edit: what they say is checked before anything is read through it.

// Whether an index of `rows` block rows names blocks of `columns` block columns and of the weight's storage only.
inline bool is_sound(const int32_t* index, int64_t rows, int64_t columns, [[maybe_unused]] int64_t num_blocks) {
  uint32_t bad = 0;
{%- if packed %}
  bad = index[0] < 0;
#pragma omp simd reduction(| : bad)
  for (int64_t r = 0; r < rows; ++r) bad |= uint32_t(index[r + 1]) - uint32_t(index[r]) > uint32_t(columns);
  if (bad || index[rows] > num_blocks) return false;
  const int32_t* mine = index + rows + 1;
#pragma omp simd reduction(| : bad)
  for (int64_t i = index[0]; i < index[rows]; ++i) bad |= uint32_t(mine[i]) >= uint32_t(columns);
{%- else %}
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* mine = index + r * (columns + 1);
    __builtin_prefetch(mine + 16 * (columns + 1));  // rows are far apart, and few of their numbers are read
    const uint32_t count = uint32_t(*mine++);
    if (count > uint32_t(columns)) return false;
    for (uint32_t i = 0; i < count; ++i) bad |= uint32_t(mine[i]) >= uint32_t(columns);
  }
{%- endif %}
  return !bad;
}
