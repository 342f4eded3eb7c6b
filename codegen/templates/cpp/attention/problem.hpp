// What a call gives, and the keys that a query may attend to by its position.

constexpr int PANEL = 16;        // keys that are packed together
constexpr int TILE_PANELS = 4;   // panels that a strip of queries meets at once
constexpr int TILE = PANEL * TILE_PANELS;
constexpr float NEVER = -__builtin_inff();  // the score of a key that is not attended to
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

template <class T>
inline Vec load_up_to(const T* p, int n) { return n >= VL ? load(p) : load_part(p, n); }
template <class T>
inline void store_up_to(T* p, Vec x, int n) { n >= VL ? store(p, x) : store_part(p, x, n); }

template <class T>
struct Matrix {  // of one head: rows of contiguous numbers
  T* data;
  int64_t row_stride;
  T* row(int64_t i) const { return data + i * row_stride; }
};

template <class T>
struct Heads {
  T* data;
  int64_t batch_stride, head_stride, row_stride;
  Matrix<T> of(int64_t batch, int64_t head) const { return {data + batch * batch_stride + head * head_stride, row_stride}; }
};

struct Bounds {  // of keys: from `low` to before `high`
  int64_t low, high;
};

struct Problem {
  int64_t threads, batch, heads, key_heads, queries, keys;
  Heads<const X> q, k, v;
  Heads<X> out;
  float* lse;  // [batch, heads, queries]
  float scale, softcap;
  bool is_causal;
  int64_t window;           // -1 for none
  const int64_t* q_start;   // the position of the first query among the keys; null for the last queries
  const int64_t* kv_len;    // [batch], or null
  const int32_t* spans;     // [batch or 1, queries, 2], or null
  int64_t spans_stride;
  const uint8_t* padding;   // [batch, keys], 0 where a key is padding
  int64_t padding_batch_stride, padding_key_stride;
  const int32_t* index;     // [batch or 1, heads or fewer, rows, 1 + width]
  int64_t index_batch_stride, index_head_stride, index_row_stride, index_heads, index_width, query_block, key_block;
  Heads<const Bias> bias;
  int64_t bias_key_stride;
  const float* sinks;       // [heads], or null
  bool is_mean_of_empty;

  int64_t group() const { return heads / key_heads; }
  int64_t start() const { return q_start ? *q_start : keys - queries; }
  int64_t length(int64_t batch) const { return kv_len ? std::clamp<int64_t>(kv_len[batch], 0, keys) : keys; }

  Bounds bounds(int64_t batch, int64_t query) const {
    const int64_t position = start() + query;
    Bounds found{0, length(batch)};
    if (is_causal) found.high = std::min(found.high, position + 1);
    if (window >= 0) {
      found.low = std::max<int64_t>(0, position - window + 1);
      found.high = std::min(found.high, position + window);
    }
    if (spans) {
      const int32_t* span = spans + batch * spans_stride + 2 * query;
      found.low = std::max<int64_t>(found.low, span[0]);
      found.high = std::min<int64_t>(found.high, span[1]);
    }
    return found;
  }
  // Which of the 16 keys from `key` on are there and no padding, a bit each.
  uint32_t present(int64_t batch, int64_t key) const {
    const int64_t left = length(batch) - key;
    uint32_t bits = left >= PANEL ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
{%- if spec.has_padding %}
    const uint8_t* is_real = padding + batch * padding_batch_stride + key * padding_key_stride;
    for (int i = 0; i < std::min<int64_t>(PANEL, left); ++i)
      if (!is_real[i * padding_key_stride]) bits &= ~(1u << i);
{%- endif %}
    return bits;
  }
  const int32_t* list(int64_t batch, int64_t head, int64_t query) const {
    return index + batch * index_batch_stride + head * index_heads / heads * index_head_stride + query / query_block * index_row_stride;
  }
  // Whether blocks of a list ascend, among those that there are.
  bool is_sound(const int32_t* list) const {
    if (list[0] < 0 || list[0] > index_width) return false;
    for (int64_t i = 1; i <= list[0]; ++i)
      if (list[i] < (i > 1 ? list[i - 1] + 1 : 0) || list[i] * key_block >= keys) return false;
    return true;
  }
};
