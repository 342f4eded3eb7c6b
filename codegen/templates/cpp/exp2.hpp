// 2^x for x <= 0: x = n + r, a polynomial in r by its Taylor coefficients. Below -150 lies 0.
inline Vec exp2(Vec x) {
  const Vec bounded = max(splat(-200), x);
  const Vec n = bounded + 12582912.f - 12582912.f;  // to the nearest whole number
  const Vec r = bounded - n;
{%- if exact %}
  Vec p = splat(1.5252734e-5f);
  p = p * r + 1.5403530e-4f;
  p = p * r + 1.3333558e-3f;
{%- else %}
  Vec p = splat(1.3333558e-3f);  // as many terms as 16 bits show
{%- endif %}
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.f;
  return times_exp2(p, n);
}
