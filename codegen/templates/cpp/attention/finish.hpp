// The mean of a head's values, which a query without a key gets where all keys have the same score, the lowest there is.
inline void mean_of_values(const Problem& problem, int64_t batch, int64_t head, float* values) {
  const Matrix<const X> v = problem.v.of(batch, head / problem.group());
  std::fill(values, values + VALUE_STRIDE, 0.f);
  for (int64_t key = 0; key < problem.keys; ++key)
    for (int d = 0; d < VALUE_HEAD; d += VL) store(values + d, load(values + d) + load_up_to(v.row(key) + d, VALUE_HEAD - d) / float(problem.keys));
}

// The result of a query and its log-sum-exp, from sums of all its keys.
inline void finish(const Problem& problem, int64_t batch, int64_t head, int64_t query, float largest, float total, float* values) {
  if (problem.sinks) {
    const float sink = problem.sinks[head] * LOG2_E, now = std::max(largest, sink);
    const float fade = largest == NEVER ? 0 : exp2(splat(largest - now))[0];
    total = total * fade + exp2(splat(sink - now))[0];
    for (int d = 0; d < VALUE_HEAD; ++d) values[d] *= fade;
    largest = now;
  }
  float share = total > 0 ? 1 / total : 0;
  if (largest == NEVER && problem.is_mean_of_empty) {
    mean_of_values(problem, batch, head, values);
    share = 1;
  }
  X* out = problem.out.of(batch, head).row(query);
  for (int d = 0; d < VALUE_HEAD; d += VL) store_up_to(out + d, load(values + d) * share, VALUE_HEAD - d);
  if (problem.lse)
    problem.lse[(batch * problem.heads + head) * problem.queries + query] = largest == NEVER ? NEVER : (largest + __builtin_log2f(total)) * LN_2;
}
