// Calls f with 0 to N - 1 as constants. What it chooses by them stays in registers; g++ keeps arrays that loops go over, even
// unrolled ones, in memory as well, and stores to it at every step.
template <int N, class F>
inline void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}