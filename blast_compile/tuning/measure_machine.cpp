// Measures what the machine can do at best: streaming reads, and multiply-adds on registers alone.
// Entry point as of every kernel: the address of int64 arguments {what, threads, address, size}.
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum What { NOTHING, READ, FMA_FLOAT, FMA_BF16 };

#if defined(__AVX512F__)
constexpr int SUMS = 24;  // more than latency times multiply-adds a cycle, fewer than registers
using Vector = __m512;
static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX2__)
constexpr int SUMS = 12;
using Vector = __m256;
static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
#else
constexpr int SUMS = 12;
typedef float Vector __attribute__((vector_size(16)));
static Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
#endif

static Vector splat(float value) { return Vector{} + value; }

static float first(Vector v) { return reinterpret_cast<float*>(&v)[0]; }

// Results go to memory, so that no loop is left out.
static float multiply_floats(int64_t steps, float seed) {
    Vector sums[SUMS], a = splat(seed), b = splat(1e-6f);
    for (int i = 0; i < SUMS; ++i) sums[i] = splat(float(i));
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; ++i) sums[i] = fma(sums[i], a, b);
    }
    Vector total = splat(0);
    for (int i = 0; i < SUMS; ++i) total += sums[i];
    return first(total);
}

#if defined(__AVX512BF16__)
static float multiply_bf16(int64_t steps, float seed) {
    __m512 sums[SUMS];
    __m512bh a = (__m512bh)_mm512_set1_ps(seed), b = (__m512bh)_mm512_set1_ps(1e-6f);
    for (int i = 0; i < SUMS; ++i) sums[i] = splat(float(i));
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
    }
    Vector total = splat(0);
    for (int i = 0; i < SUMS; ++i) total += sums[i];
    return first(total);
}
constexpr int BF16_PRODUCTS = 2;
#else
static float multiply_bf16(int64_t steps, float seed) { return multiply_floats(steps, seed); }
constexpr int BF16_PRODUCTS = 1;  // widened to float first
#endif

typedef uint64_t Words __attribute__((vector_size(64)));

static uint64_t read(const Words* words, int64_t count) {
    Words sums[4] = {};
    for (int64_t i = 0; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[j] += words[i + j];
    }
    Words total = sums[0] + sums[1] + sums[2] + sums[3];
    return total[0] + total[3] + total[5];
}

// READ: reads `size` bytes at `address`. FMA_*: `size` steps a thread. Writes to `address` the result and, behind it,
// the floating-point operations of a step.
extern "C" int blast_run(const int64_t* arguments) {
    const int64_t what = arguments[0], size = arguments[3];
    const int threads = int(arguments[1]);
    if (what == NOTHING) return 0;
    if (what == READ) {
        const Words* words = reinterpret_cast<const Words*>(arguments[2]);
        const int64_t part = size / int64_t(sizeof(Words)) / threads;
        uint64_t total = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : total)
        for (int thread = 0; thread < threads; ++thread) total += read(words + thread * part, part);
        volatile uint64_t sink = total;
        (void)sink;
        return 0;
    }
    double* out = reinterpret_cast<double*>(arguments[2]);
    double total = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : total)
    for (int thread = 0; thread < threads; ++thread)
        total += what == FMA_BF16 ? multiply_bf16(size, 0.5f) : multiply_floats(size, 0.5f);
    out[0] = total;
    out[1] = 2.0 * SUMS * int(sizeof(Vector) / sizeof(float)) * (what == FMA_BF16 ? BF16_PRODUCTS : 1);
    return 0;
}
