// Which panels of keys a block of queries meets, and how tokens are cut into the blocks of tasks.

// Panels with a key in bounds that is there, ascending; returns how many.
inline int64_t list_panels(const Problem& problem, int64_t batch, [[maybe_unused]] int64_t head, [[maybe_unused]] int64_t query, const Bounds& bounds,
                           const uint32_t* present, int32_t* panels) {
  int64_t count = 0;
  auto add = [&](int64_t low, int64_t high) {  // keys
    low = std::max(low, bounds.low), high = std::min(high, bounds.high);
    for (int64_t panel = low / PANEL; panel * PANEL < high; ++panel)
      if (present[panel] && (!count || panels[count - 1] < panel)) panels[count++] = int32_t(panel);
  };
{%- if spec.is_listed %}
  const int32_t* list = problem.list(batch, head, query);
  for (int64_t i = 1; i <= list[0]; ++i) add(list[i] * problem.key_block, (list[i] + 1) * problem.key_block);
{%- else %}
  add(0, problem.keys);
{%- endif %}
  return count;
}

// Tokens cut into blocks of `step` or fewer, none of which reaches into another `whole` of them.
struct Cut {
  int64_t tokens, whole, step, in_whole, num;

  Cut(int64_t tokens, int64_t whole, int64_t step)
      : tokens(tokens), whole(whole), step(step), in_whole((whole + step - 1) / step),
        num(tokens / whole * in_whole + (tokens % whole + step - 1) / step) {}
  int64_t start(int64_t block) const { return std::min(tokens, block / in_whole * whole + std::min(whole, block % in_whole * step)); }
};
