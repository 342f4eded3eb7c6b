{% if activations -%}
// The activations that epilogues name; each agrees with torch's at +-0, +-100 and NaN.
{%- endif -%}
{%- if "relu" in activations %}

inline Vec relu(Vec x) { return max(splat(0), x); }
{%- endif %}
{%- if "relu_squared" in activations %}

inline Vec relu_squared(Vec x) {
  Vec positive = max(splat(0), x);
  return positive * positive;
}
{%- endif %}
{%- if "silu" in activations %}

inline Vec silu(Vec x) { return x / (1.f + exp(-x)); }
{%- endif %}
{%- if "quick_gelu" in activations %}

inline Vec quick_gelu(Vec x) { return x / (1.f + exp(-1.702f * x)); }
{%- endif %}
{%- if "gelu_tanh" in activations %}

inline Vec gelu_tanh(Vec x) {  // 1 + tanh(u) = 2 / (1 + exp(-2u))
  Vec u = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.f + exp(-2.f * u));
}
{%- endif %}
{%- if "gelu" in activations %}

inline Vec gelu(Vec x) {  // erfc by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26
  Vec t = x * 0.7071067812f, size = t < 0.f ? -t : t;
  Vec s = 1.f / (1.f + 0.3275911f * size);
  Vec p = s * 1.061405429f - 1.453152027f;
  p = p * s + 1.421413741f;
  p = p * s - 0.284496736f;
  p = p * s + 0.254829592f;
  Vec erfc = p * s * exp(-size * size);
  return 0.5f * x * (t < 0.f ? erfc : 2.f - erfc);
}
{%- endif %}
