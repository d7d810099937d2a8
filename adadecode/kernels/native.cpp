// The layers and heads of a decode step on a CPU, for weights in float32 or bfloat16.
//
// Every output element is one sum, added up in an order that depends on nothing but its length. So a row has the same
// bits alone and beside any others, in any slot and with any number of threads: what the static-shape rule must arrange
// for library kernels (docs/parity.md) holds here by construction, and rows that take no part cost nothing.
// Weights, keys, values and the hidden state between layers are in the model's dtype; all arithmetic is float32. Where the
// processor has dot products of bfloat16, the inputs of a layer in bfloat16, and its queries, are rounded to bfloat16 for them.
//
// Shapes: M rows, d model width, F width of the MLP, H query heads, G key/value heads, D head width, S cache columns,
// N outputs and K inputs of a linear layer. Row-major. Weights are packed in tiles, [ceil(N / TILE), ceil(K / STEP), TILE,
// STEP], STEP inputs in 32 bits, so that a thread reads its share of a matrix from one end to the other, without a pause
// from one matrix to the next: it fetches ahead across all borders.
//
// Nothing here allocates: a call works in the scratch of its decode step, so memory cannot run out half-way. Nothing
// here checks an index either: native.py does before each call.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <sched.h>
#include <type_traits>
#include <utility>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int CHUNK = 2 * LANES;  // elements of a stored row that are taken at once
constexpr int TILE = CHUNK;       // outputs of a weight tile
constexpr int LINE = 64;          // bytes that are fetched into a cache at once
constexpr int QUERIES = 4;        // queries that share a pass over the keys

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

#define INLINE __attribute__((always_inline))

template <class F, int... I>
INLINE inline void each_of(F f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}
// f(0) to f(N - 1), unrolled, so that what is indexed by them can stay in registers.
template <int N, class F>
INLINE inline void each(F f) {
    each_of(f, std::make_integer_sequence<int, N>{});
}

struct bf16 {
    uint16_t bits;
};

// What a linear layer of weights T takes as its input.
template <class T>
struct Inputs {
    using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct Inputs<bf16> {
    using type = bf16;
};
#endif
template <class T>
using In = typename Inputs<T>::type;

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    uint32_t u = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, bf16& out) {  // to nearest, ties to even; NaN stays NaN
    uint32_t u;
    std::memcpy(&u, &x, 4);
    out.bits = std::isnan(x) ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline vf splat(float x) { return x - vf{}; }
inline vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// The same for LANES elements, or for `count` of them with zeros behind.
inline vf widened(const float* p) { return load(p); }
inline vf widened(const bf16* p) {
    vh half;
    std::memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}
template <class T>
inline vf widened(const T* p, int count) {
    if (count >= LANES) return widened(p);
    T some[LANES] = {};
    std::memcpy(some, p, count * sizeof(T));
    return widened(some);
}
inline void narrow(vf x, float* out) { store(out, x); }
inline void narrow(vf x, bf16* out) {
    const vu u = (vu)x, is_nan = (vu)(x != x);
    const vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const vh half = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), vh);
    std::memcpy(out, &half, sizeof half);
}
template <class T>
inline void narrow(vf x, T* out, int count) {
    if (count >= LANES) return narrow(x, out);
    T some[LANES];
    narrow(x, some);
    std::memcpy(out, some, count * sizeof(T));
}

inline vf multiply_add(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// The sums of four vectors, each in the same tree order.
inline void sum4(vf a, vf b, vf c, vf d, float* out) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    auto halves = [](vf v) {
        __m512 z = (__m512)v;
        return _mm256_add_ps(_mm512_castps512_ps256(z),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(z), 1)));
    };
    __m256 p = halves(a), q = halves(b), r = halves(c), s = halves(d);
#else
    __m256 p = (__m256)a, q = (__m256)b, r = (__m256)c, s = (__m256)d;
#endif
    __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(p, q), _mm256_hadd_ps(r, s));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
#else
    const vf v[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        float s[LANES];
        store(s, v[i]);
        for (int width = LANES / 2; width; width /= 2)
            for (int j = 0; j < width; j++) s[j] += s[j + width];
        out[i] = s[0];
    }
#endif
}

inline float sum(vf v) {
    float out[4];
    sum4(v, v, v, v, out);
    return out[0];
}

// A chunk of a stored row: for bfloat16 its even and its odd elements, for float32 its first and its second half.
struct Pair {
    vf a, b;
};
inline Pair load_pair(const float* p) { return {load(p), load(p + LANES)}; }
inline Pair load_pair(const bf16* p) {
    vu u;
    std::memcpy(&u, p, sizeof u);
    vu low = u << 16, high = u & 0xffff0000u;
    return {(vf)low, (vf)high};
}

// The last chunk of a stored row, zeros after its `count` elements.
template <class T>
inline Pair load_tail(const T* p, int count) {
    T tail[CHUNK] = {};
    std::memcpy(tail, p, count * sizeof(T));
    return load_pair(tail);
}

inline int padded(int n) { return (n + CHUNK - 1) / CHUNK * CHUNK; }

// Floats from one row of a linear layer's input to the next. With rows a power of two apart five and six of them were up to
// twice as slow in some places the allocator put them (the first-level cache's banks, it seems); spaced rows never were.
inline int spaced(int n) { return padded(n) + 2 * CHUNK; }

// The place of element i of a chunk in load_pair's two vectors.
template <class T>
inline int place(int i) {
    return sizeof(T) == 4 ? i : (i & 1) * LANES + i / 2;
}

// exp(x) for x <= 88, by 2^n * polynomial; 0 below -87.
inline vf vexp(vf x) {
    vf clamped = x > splat(-87.0f) ? x : splat(-87.0f);
    clamped = clamped < splat(88.0f) ? clamped : splat(88.0f);
    vf scaled = clamped * 1.44269504088896341f;
    vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    vf whole = (scaled + magic) - magic;
    vf r = multiply_add(whole, splat(-0.693359375f), clamped);
    r = multiply_add(whole, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = multiply_add(p, r, splat(1.3981999507e-3f));
    p = multiply_add(p, r, splat(8.3334519073e-3f));
    p = multiply_add(p, r, splat(4.1665795894e-2f));
    p = multiply_add(p, r, splat(1.6666665459e-1f));
    p = multiply_add(p, r, splat(5.0000001201e-1f));
    p = multiply_add(p, r * r, r + 1.0f);
    vi exponent = (__builtin_convertvector(whole, vi) + 127) << 23;
    vf out = p * (vf)exponent;
    out = x < splat(-87.0f) ? splat(0.0f) : out;
    return x == x ? out : x;
}

// factors[0] + factors[1] * x + ... by Horner's rule.
template <int N>
inline vf polynomial(const float (&factors)[N], vf x) {
    vf p = splat(factors[N - 1]);
    each<N - 1>([&](auto i) INLINE { p = multiply_add(p, x, splat(factors[N - 2 - i])); });
    return p;
}

// tanh(x), within 2e-7 of it, relatively: near 0, where 1 - exp would cancel, by an odd polynomial.
inline vf vtanh(vf x) {
    constexpr float FACTORS[] = {1.0f, -0.3333325982f, 0.1333112717f, -0.05372106656f, 0.02059098333f, -0.005659984891f};
    const vf size = x < splat(0.0f) ? -x : x, near = x * polynomial(FACTORS, x * x);
    const vf far = 1.0f - 2.0f / (vexp(size + size) + 1.0f);
    return size < splat(0.625f) ? near : x < splat(0.0f) ? -far : far;
}

// What an activation makes of x.
struct Silu {
    static inline vf of(vf x) { return x / (vexp(-x) + 1.0f); }
};
// x * P(a normal variable <= x), within 4e-6 of it, relatively, and 2e-5 below -6: erfc(z) = exp(-z^2) times a polynomial of
// 1 / (1 + 0.4 z), so that nothing cancels for negative x.
struct Gelu {
    static inline vf of(vf x) {
        constexpr float FACTORS[] = {3.168636977e-5f, 0.2249782979f,  0.2322361618f,  0.1732332706f,  0.2809507847f,
                                     -0.09190439433f, 0.3043203354f, -0.08542615175f, -0.06536250561f, 0.02694251202f};
        const vf z = (x < splat(0.0f) ? -x : x) * 0.70710678118654752f;
        const vf tail = 0.5f * polynomial(FACTORS, 1.0f / (z * 0.4f + 1.0f)) * vexp(-z * z);
        return x * (x > splat(0.0f) ? 1.0f - tail : tail);
    }
};
// x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + exp(-2u)); as near to it as GELU.
struct GeluTanh {
    static inline vf of(vf x) {
        const vf u = x * (x * x * 0.044715f + 1.0f) * 0.79788456080286536f;
        return x / (vexp(-u - u) + 1.0f);
    }
};

// x held within `cap` of 0.
inline vf capped(vf x, float cap) { return vtanh(x / cap) * cap; }

// Inputs that share 32 bits of a packed weight.
template <class T>
constexpr int STEP = 4 / sizeof(T);

template <class T>
inline size_t tile_len(int K) {  // in elements
    return size_t((K + STEP<T> - 1) / STEP<T>) * TILE * STEP<T>;
}

// Threads that do one call together, in phases that end where each has waited for all.
struct Meeting {
    alignas(LINE) std::atomic<int32_t> num_here{0};
    alignas(LINE) std::atomic<int32_t> phase{0};
};

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Where a thread reads on: the tiles that it will read at once, a stream each.
struct Ahead {
    const char* at[2];
};

struct Team {
    int thread, size;
    Meeting* meeting;

    // The first of `count` things that are this thread's; the next thread's first is the end.
    int first(int count, int later = 0) const { return int64_t(count) * (thread + later) / size; }
    int end(int count) const { return first(count, 1); }

    // Waits for all others, and fetches some of what is read next meanwhile.
    void wait(Ahead next = {}) const {
        constexpr int MOST = 1 << 16, SPINS = 1 << 14;
        if (size == 1) return;
        const int32_t phase = meeting->phase.load(std::memory_order_relaxed);
        if (meeting->num_here.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            meeting->num_here.store(0, std::memory_order_relaxed);
            meeting->phase.store(phase + 1, std::memory_order_release);
            return;
        }
        int fetched = next.at[0] ? 0 : MOST;
        for (int spins = 0; meeting->phase.load(std::memory_order_acquire) == phase; spins++) {
            if (fetched < MOST) {
                __builtin_prefetch(next.at[0] + fetched, 0, 2);
                __builtin_prefetch(next.at[1] + fetched, 0, 2);
                fetched += LINE;
            } else if (spins < SPINS) {
                relax();
            } else {
                sched_yield();  // another process may have the processor of who is missing
            }
        }
    }
};

// A vector of packed weights, ready to be multiplied by STEP inputs in NUM turns.
template <class T>
struct Factors;

template <>
struct Factors<float> {
    static constexpr int NUM = 1;
    vf weights;
    static inline Factors of(const char* at) { return {load((const float*)at)}; }
    static inline vf broadcast(const float* x, int) { return splat(*x); }
    inline vf add_product(vf x, int, vf sum) const { return multiply_add(weights, x, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Factors<bf16> {
    static constexpr int NUM = 1;
    __m512bh weights;
    static inline Factors of(const char* at) { return {(__m512bh)_mm512_loadu_si512(at)}; }
    static inline __m512bh broadcast(const bf16* x, int) {
        int32_t both;
        std::memcpy(&both, x, sizeof both);
        return (__m512bh)_mm512_set1_epi32(both);
    }
    inline vf add_product(__m512bh x, int, vf sum) const { return (vf)_mm512_dpbf16_ps((__m512)sum, weights, x); }
};
#else
template <>
struct Factors<bf16> {
    static constexpr int NUM = 2;
    vf weights[2];
    static inline Factors of(const char* at) {
        const Pair pair = load_pair((const bf16*)at);
        return {{pair.a, pair.b}};
    }
    static inline vf broadcast(const float* x, int j) { return splat(x[j]); }
    inline vf add_product(vf x, int j, vf sum) const { return multiply_add(weights[j], x, sum); }
};
#endif

// out [M, TILES * TILE] = x [M, spaced(K)] times TILES packed tiles of weights, each output one chain of additions over K.
// Fetches ahead, at the end from what is read `next`.
template <class T, int M, int TILES>
inline void tiles(const In<T>* x, int K, const T* w, Ahead next, float* out, int out_stride) {
    constexpr int ROW = TILE * 4;                      // bytes of a step in one tile
    constexpr int AHEAD = 8192 / ROW;                  // steps between the weights in use and those fetched
    const int stride = spaced(K), steps = (K + STEP<T> - 1) / STEP<T>;
    const char* from = (const char*)w;
    const size_t tile = size_t(steps) * ROW;
    const char* ahead[TILES];
    vf sums[M][TILES][2] = {};
    const int here = std::max(steps - AHEAD, 0);
    for (int i = 0, until = here; i < steps; until = steps) {
        for (int t = 0; t < TILES; t++)
            ahead[t] = until == here && here ? from + t * tile + AHEAD * ROW : next.at[t] - size_t(here) * ROW;
        for (; i < until; i++) {
            Factors<T> weights[TILES][2];
            each<TILES>([&](auto t) INLINE {
                for (int line = 0; line < ROW; line += LINE) __builtin_prefetch(ahead[t] + size_t(i) * ROW + line);
                each<2>([&](auto half) INLINE {
                    weights[t][half] = Factors<T>::of(from + t * tile + size_t(i) * ROW + half * LANES * 4);
                });
            });
            each<M>([&](auto m) INLINE {
                each<Factors<T>::NUM>([&](auto j) INLINE {
                    const auto broadcast = Factors<T>::broadcast(x + size_t(m) * stride + STEP<T> * i, j);
                    each<TILES>([&](auto t) INLINE {
                        each<2>([&](auto half) INLINE {
                            sums[m][t][half] = weights[t][half].add_product(broadcast, j, sums[m][t][half]);
                        });
                    });
                });
            });
        }
    }
    each<M>([&](auto m) INLINE {
        each<TILES>([&](auto t) INLINE {
            each<2>([&](auto half) INLINE {
                store(out + size_t(m) * out_stride + t * TILE + half * LANES, sums[m][t][half]);
            });
        });
    });
}

// TILES tiles for any number of rows.
template <class T, int TILES>
void tiles_of_rows(const In<T>* x, int M, int K, const T* w, Ahead next, float* out, int out_stride) {
    int m = 0;
    const size_t stride = spaced(K), to_stride = out_stride;
    for (; M - m > 6; m += 4) tiles<T, 4, TILES>(x + m * stride, K, w, next, out + m * to_stride, out_stride);
    const In<T>* rest = x + m * stride;
    float* to = out + m * to_stride;
    switch (M - m) {
        case 6: return tiles<T, 6, TILES>(rest, K, w, next, to, out_stride);
        case 5: return tiles<T, 5, TILES>(rest, K, w, next, to, out_stride);
        case 4: return tiles<T, 4, TILES>(rest, K, w, next, to, out_stride);
        case 3: return tiles<T, 3, TILES>(rest, K, w, next, to, out_stride);
        case 2: return tiles<T, 2, TILES>(rest, K, w, next, to, out_stride);
        case 1: return tiles<T, 1, TILES>(rest, K, w, next, to, out_stride);
    }
}

// The first tiles of a thread's share of the packed matrix w.
template <class T>
Ahead share(const Team& team, const T* w, int N, int K) {
    const char* at = (const char*)(w + team.first(padded(N) / TILE) * tile_len<T>(K));
    return {at, at + tile_len<T>(K) * sizeof(T)};
}

// A thread's share of out [M, padded(N)] = x [M, spaced(K)] w, and the beginning of what it reads `next` fetched.
template <class T>
void linear(const Team& team, const In<T>* x, int M, int K, const T* w, int N, float* out, Ahead next) {
    const int end = team.end(padded(N) / TILE), stride = padded(N);
    const size_t tile = tile_len<T>(K);
    const bool two = LANES == 16 || M <= 2;  // at once: sums enough to hide the latency of an addition, registers permitting
    for (int t = team.first(padded(N) / TILE); t < end;) {
        const int count = two && t + 2 <= end ? 2 : 1;
        const T* from = w + t * tile;
        Ahead then = next;
        if (t + count < end) then.at[0] = (const char*)(from + count * tile);
        if (t + count + 1 < end) then.at[1] = (const char*)(from + (count + 1) * tile);
        if (count == 2)
            tiles_of_rows<T, 2>(x, M, K, from, then, out + t * TILE, stride);
        else
            tiles_of_rows<T, 1>(x, M, K, from, then, out + t * TILE, stride);
        t += count;
    }
}

// How a model normalises; `offset` is added to the weights.
struct Norms {
    float eps, offset;
    int32_t is_layer_norm;
};

// RMSNorm of n elements.
template <class T, class X, class Out>
void rms_norm(const X* x, const T* weight, int n, float eps, float offset, Out* out) {
    vf squares = {};
    for (int i = 0; i < n; i += LANES) {
        const vf wide = widened(x + i, n - i);
        squares = multiply_add(wide, wide, squares);
    }
    const vf scale = splat(1.0f / std::sqrt(sum(squares) / n + eps));
    const bool has_offset = offset != 0.0f;
    for (int i = 0; i < n; i += LANES) {
        const vf scaled = widened(x + i, n - i) * scale, factor = widened(weight + i, n - i);
        narrow(scaled * (has_offset ? factor + offset : factor), out + i, n - i);
    }
}

// LayerNorm of n elements; `bias` may be null.
template <class T, class X, class Out>
void layer_norm(const X* x, const T* weight, const T* bias, int n, float eps, float offset, Out* out) {
    vf total = {}, squares = {};
    for (int i = 0; i < n; i += LANES) total += widened(x + i, n - i);
    const float mean = sum(total) / n;
    for (int i = 0; i < n; i += LANES) {
        vf apart = widened(x + i, n - i) - mean;
        for (int j = n - i; j < LANES; j++) apart[j] = 0.0f;
        squares = multiply_add(apart, apart, squares);
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / n + eps);
    for (int i = 0; i < n; i += LANES) {
        const vf scaled = (widened(x + i, n - i) - mean) * scale * (widened(weight + i, n - i) + offset);
        narrow(bias ? scaled + widened(bias + i, n - i) : scaled, out + i, n - i);
    }
}

// n elements normalised; as they are where `weight` is null.
template <class T, class X, class Out>
void norm(const Norms& by, const X* x, const void* weight, const void* bias, int n, Out* out) {
    if (!weight)
        for (int i = 0; i < n; i += LANES) narrow(widened(x + i, n - i), out + i, n - i);
    else if (by.is_layer_norm)
        layer_norm<T>(x, (const T*)weight, (const T*)bias, n, by.eps, by.offset, out);
    else
        rms_norm<T>(x, (const T*)weight, n, by.eps, by.offset, out);
}

// Zero behind a row of K inputs, where a step of several would take along what is there.
template <class T>
inline void end_row(In<T>* x, int K) {
    if (K % STEP<T>) narrow(0.0f, x[K]);
}

template <class T>
void normed_row(const Norms& by, const T* hidden, int d, const void* weight, const void* bias, In<T>* out) {
    norm<T>(by, hidden, weight, bias, d, out);
    end_row<T>(out, d);
}

template <class T>
void normed_rows(const Team& team, const Norms& by, const T* hidden, int M, int d, const void* weight, const void* bias,
                 In<T>* out) {
    for (int m = team.first(M); m < team.end(M); m++)
        normed_row<T>(by, hidden + size_t(m) * d, d, weight, bias, out + size_t(m) * spaced(d));
}

// Turns the first R elements of a head.
template <class T>
void rotate(float* x, int R, const float* cos, const float* sin) {
    const int half = R / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

// A chunk of a key, ready to be multiplied by the same chunk of a query.
template <class T>
struct KeyChunk {
    Pair pair;
    static inline KeyChunk of(const T* key) { return {load_pair(key)}; }
    inline vf add_product(const float* query, vf sum) const {
        return multiply_add(pair.b, load(query + LANES), multiply_add(pair.a, load(query), sum));
    }
};

#if defined(__AVX512BF16__)
template <>
struct KeyChunk<bf16> {
    __m512bh elements;
    static inline KeyChunk of(const bf16* key) { return {(__m512bh)_mm512_loadu_si512(key)}; }
    inline vf add_product(const bf16* query, vf sum) const {
        return (vf)_mm512_dpbf16_ps((__m512)sum, elements, (__m512bh)_mm512_loadu_si512(query));
    }
};
#endif

// `count` elements of a key from `key` on, zeros behind.
template <class T>
inline KeyChunk<T> key_chunk(const T* key, int count) {
    if (count >= CHUNK) return KeyChunk<T>::of(key);
    T tail[CHUNK] = {};
    std::memcpy(tail, key, count * sizeof(T));
    return KeyChunk<T>::of(tail);
}

// A query vector, its elements where a KeyChunk has those of a key: [padded(D)].
template <class T>
void split_query(const float* x, int D, In<T>* out) {
    constexpr bool in_order = sizeof(In<T>) == sizeof(T);
    for (int k = 0; k < padded(D); k++)
        narrow(k < D ? x[k] : 0.0f, out[k / CHUNK * CHUNK + (in_order ? k % CHUNK : place<T>(k % CHUNK))]);
}

// scores[q][c] for Q queries and NUM keys from `key` on; Q * NUM is a multiple of 4.
template <class T, int Q, int NUM>
inline void score(const In<T>* queries, const T* key, int D, float* scores, int stride) {
    vf sums[Q * NUM] = {};
    for (int k = 0; k < D; k += CHUNK) {
        KeyChunk<T> chunks[NUM];
        each<NUM>([&](auto c) INLINE { chunks[c] = key_chunk(key + size_t(c) * D + k, D - k); });
        each<Q>([&](auto q) INLINE {
            const In<T>* query = queries + size_t(q) * padded(D) + k;
            each<NUM>([&](auto c) INLINE { sums[q * NUM + c] = chunks[c].add_product(query, sums[q * NUM + c]); });
        });
    }
    each<Q * NUM / 4>([&](auto i) INLINE {
        float four[4];
        sum4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3], four);
        each<4>([&](auto j) INLINE { scores[size_t((4 * i + j) / NUM) * stride + (4 * i + j) % NUM] = four[j]; });
    });
}

// scores[q][0, num_columns) for Q queries. Fetches keys ahead, and the values that are mixed afterwards.
template <class T, int Q>
void score_all(const In<T>* queries, const T* keys, const T* values, int num_columns, int D, float* scores, int stride) {
    constexpr int NUM = Q == 4 ? 2 : 4, AHEAD = 2048;
    int c = 0;
    for (; c + NUM <= num_columns; c += NUM) {
        for (size_t at = size_t(c) * D * sizeof(T), end = at + size_t(NUM) * D * sizeof(T); at < end; at += LINE) {
            __builtin_prefetch((const char*)keys + at + AHEAD);
            __builtin_prefetch((const char*)values + at, 0, 2);
        }
        score<T, Q, NUM>(queries, keys + size_t(c) * D, D, scores + c, stride);
    }
    for (; c < num_columns; c++)
        for (int q = 0; q < Q; q++) {
            vf total = {};
            for (int k = 0; k < D; k += CHUNK)
                total = key_chunk(keys + size_t(c) * D + k, D - k).add_product(queries + size_t(q) * padded(D) + k, total);
            scores[size_t(q) * stride + c] = sum(total);
        }
}

// out[q][k..] = the values' chunks from element k on, weighted by scores[q] and divided by its total.
template <class T, int Q, int CHUNKS>
inline void mix(const T* values, const float* scores, int stride, int num_columns, int D, int rest,
                const float* inverse, In<T>* const* out, int k) {
    vf mixed[Q][CHUNKS][2] = {};
    for (int c = 0; c < num_columns; c++) {
        Pair pairs[CHUNKS];
        each<CHUNKS>([&](auto i) INLINE {
            const T* chunk = values + size_t(c) * D + i * CHUNK;
            pairs[i] = CHUNKS > 1 || rest >= CHUNK ? load_pair(chunk) : load_tail(chunk, rest);
        });
        each<Q>([&](auto q) INLINE {
            const vf p = splat(scores[size_t(q) * stride + c]);
            each<CHUNKS>([&](auto i) INLINE {
                mixed[q][i][0] = multiply_add(pairs[i].a, p, mixed[q][i][0]);
                mixed[q][i][1] = multiply_add(pairs[i].b, p, mixed[q][i][1]);
            });
        });
    }
    each<Q>([&](auto q) INLINE {
        each<CHUNKS>([&](auto i) INLINE {
            float both[CHUNK];
            store(both, mixed[q][i][0] * inverse[q]);
            store(both + LANES, mixed[q][i][1] * inverse[q]);
            for (int j = 0; j < std::min(CHUNK, rest - i * CHUNK); j++)
                narrow(both[place<T>(j)], out[q][k + i * CHUNK + j]);
        });
    });
}

// What scores go through before a softmax: scaled, then held within `cap`, unless that is 0.
struct Scores {
    float scale, cap;
};

// Attention of Q queries [Q, padded(D)] over columns of keys and values [S, D]: query q sees those in [first_seen[q],
// num_seen[q]) and writes to out[q] [D]. `scores` has room for Q rows of the most columns seen, padded. A column that a query
// does not see adds zero to its sums, and the first is a multiple of LANES: so its bits are the same without that column.
template <class T, int Q>
void attend(const In<T>* queries, const T* keys, const T* values, const int* first_seen, const int* num_seen, int D,
            Scores by, float* scores, In<T>* const* out) {
    const int num_columns = *std::max_element(num_seen, num_seen + Q), stride = padded(num_columns);
    score_all<T, Q>(queries, keys, values, num_columns, D, scores, stride);
    const float scale = by.cap == 0.0f ? by.scale : 1.0f;
    float inverse[Q];
    for (int q = 0; q < Q; q++) {
        float *row = scores + size_t(q) * stride, highest[LANES];
        if (by.cap != 0.0f)
            for (int c = 0; c < stride; c += LANES) store(row + c, capped(load(row + c) * by.scale, by.cap));
        for (int c = 0; c < first_seen[q]; c++) row[c] = -INFINITY;
        for (int c = num_seen[q]; c < stride; c++) row[c] = -INFINITY;
        vf top = splat(-INFINITY), total = {};
        for (int c = 0; c < stride; c += LANES) top = load(row + c) > top ? load(row + c) : top;
        store(highest, top);
        const vf highest_score = splat(*std::max_element(highest, highest + LANES));
        for (int c = 0; c < stride; c += LANES) {
            vf p = vexp((load(row + c) - highest_score) * scale);
            store(row + c, p);
            total += p;
        }
        inverse[q] = 1.0f / sum(total);
    }
    int k = 0;
    if (Q <= 2 || LANES == 16)  // two chunks at once, to hide the latency of an addition, registers permitting
        for (; k + 2 * CHUNK <= D; k += 2 * CHUNK)
            mix<T, Q, 2>(values + k, scores, stride, num_columns, D, D - k, inverse, out, k);
    for (; k < D; k += CHUNK) mix<T, Q, 1>(values + k, scores, stride, num_columns, D, D - k, inverse, out, k);
}

template <class T>
inline void add_bias(float* x, const void* bias, int lo, int hi) {
    for (int i = lo; i < hi; i++) x[i] += widen(((const T*)bias)[i]);
}

// hidden [n] and `scale` times norm(x + bias), where there are bias and norm; x is overwritten.
template <class T>
void add_to_hidden(const Norms& by, T* hidden, float* x, int n, const void* bias, const void* weight, float scale) {
    if (bias) add_bias<T>(x, bias, 0, n);
    if (weight) norm<T>(by, x, weight, nullptr, n, x);
    if (scale != 1.0f)
        for (int i = 0; i < n; i++) x[i] *= scale;
    for (int i = 0; i < n; i += LANES)
        narrow(widened(hidden + i, n - i) + widened(x + i, n - i), hidden + i, n - i);
}

// out = activation(x) * up, without a factor where `up` is null.
template <class Activation, class Out>
void activate(const float* x, const float* up, int n, Out* out) {
    if (up)
        for (int i = 0; i < n; i += LANES)
            narrow(Activation::of(widened(x + i, n - i)) * widened(up + i, n - i), out + i, n - i);
    else
        for (int i = 0; i < n; i += LANES) narrow(Activation::of(widened(x + i, n - i)), out + i, n - i);
}

}  // namespace

extern "C" {

// Null where a family has no such weight. qkv is packed from [(H + 2G) D, d], gate_up from [2F, d], or [F, d] where the MLP is
// not gated. A row sees the last `window` positions, all where that is 0; `rotary` is which table turns it, -1 where none does.
struct LayerWeights {
    const void *input_norm, *input_norm_bias, *qkv, *qkv_bias, *q_norm, *k_norm, *o, *o_bias, *attention_out_norm;
    const void *post_norm, *post_norm_bias, *gate_up, *gate_up_bias, *down, *down_bias, *mlp_out_norm;
    int32_t window, rotary;
};

enum Activation : int32_t { SILU, GELU, GELU_TANH };

// Norms of queries and keys are per head, or over all heads. A cap of 0 is none. `norm_bias` is that of the norm before heads;
// `rotaries` are cos and sin [positions, R] of each table. `scratch` is what the calls of one decode step work in, as many
// floats as adadecode_scratch_len says; what it holds between two calls does not matter.
struct Shape {
    int32_t d, F, H, G, D, R, S, is_bf16, num_threads;
    int32_t activation, is_gated, is_parallel, has_norms_over_heads;
    Norms norms;
    Scores scores;
    float residual_scale, embedding_scale, logit_divisor, logit_cap;
    const void* norm_bias;
    const float* const* rotaries;
    float* scratch;
};
}

namespace {

// Outputs of the first matrix of an MLP.
inline int num_entered(const Shape& s) { return s.is_gated ? 2 * s.F : s.F; }

// Where in the scratch the layers have what they work in for M rows, in floats from its start.
struct LayerRoom {
    size_t x, wide, out, queries, gated, scores, scores_len, end;

    LayerRoom(const Shape& s, int M) {
        x = 0;
        wide = x + size_t(M) * spaced(std::max(s.d, s.H * s.D));
        out = wide + size_t(M) * std::max(padded((s.H + 2 * s.G) * s.D), padded(num_entered(s)));
        queries = out + size_t(M) * padded(s.d);
        gated = queries + size_t(M) * s.H * padded(s.D);
        scores = gated + size_t(M) * spaced(s.F);
        scores_len = size_t(QUERIES) * padded(s.S);  // of each thread
        end = scores + s.num_threads * scores_len;
    }
};

// The most likely of some outputs of a row: the lowest id among equals.
struct Best {
    float top;
    int32_t any_nan;
    int64_t id;
};

// The same for a head on M rows, whose layers have at most `widest` inputs or outputs.
struct HeadRoom {
    size_t x, out, bests, end;

    HeadRoom(const Shape& s, int M, int widest) {
        x = 0;
        out = x + size_t(M) * spaced(widest);
        bests = out + size_t(M) * padded(widest);  // of each thread and row
        end = bests + size_t(s.num_threads) * M * sizeof(Best) / sizeof(float);
    }
};

template <class T>
void run(const Shape& s, const LayerWeights* layers, T* hidden, int M, int first_position, T* kv, int start,
         int stop) {
    const int d = s.d, F = s.F, E = num_entered(s), D = s.D, H = s.H, G = s.G, per_group = H / G, heads = H + 2 * G;
    const int qkv_stride = padded(heads * D), gate_up_stride = padded(E), out_stride = padded(d);
    const int num_queries = M * H;  // those that share keys one after the other, row by row
    const LayerRoom room(s, M);
    float *wide = s.scratch + room.wide, *out = s.scratch + room.out;
    In<T> *x = (In<T>*)(s.scratch + room.x), *gated = (In<T>*)(s.scratch + room.gated);
    In<T>* queries = (In<T>*)(s.scratch + room.queries);
Meeting meeting;
#pragma omp parallel num_threads(s.num_threads) if (s.num_threads > 1)
    {
        const Team team{omp_get_thread_num(), omp_get_num_threads(), &meeting};
        float* scores = s.scratch + room.scores + team.thread * room.scores_len;
        for (int l = start; l < stop; l++) {
            const LayerWeights& w = layers[l];
            T* keys = kv + size_t(2 * l) * G * s.S * D;
            T* values = keys + size_t(G) * s.S * D;
            const T *qkv = (const T*)w.qkv, *o = (const T*)w.o, *gate_up = (const T*)w.gate_up, *down = (const T*)w.down;
            const Ahead at_qkv = share(team, qkv, heads * D, d), at_o = share(team, o, d, H * D);
            const Ahead at_gate_up = share(team, gate_up, E, d), at_down = share(team, down, d, F);
            const Ahead after = l + 1 < stop ? share(team, (const T*)layers[l + 1].qkv, heads * D, d) : at_down;
            const float* cos = w.rotary < 0 ? nullptr : s.rotaries[2 * w.rotary];
            const float* sin = w.rotary < 0 ? nullptr : s.rotaries[2 * w.rotary + 1];
            normed_rows<T>(team, s.norms, hidden, M, d, w.input_norm, w.input_norm_bias, x);
            team.wait(at_qkv);
            linear<T>(team, x, M, d, qkv, heads * D, wide, at_o);
            team.wait(at_o);
            if (s.has_norms_over_heads) {
                for (int m = team.first(M); m < team.end(M); m++) {
                    float *of_queries = wide + size_t(m) * qkv_stride, *of_keys = of_queries + H * D;
                    if (w.qkv_bias) add_bias<T>(of_queries, w.qkv_bias, 0, heads * D);
                    norm<T>(s.norms, of_queries, w.q_norm, nullptr, H * D, of_queries);
                    norm<T>(s.norms, of_keys, w.k_norm, nullptr, G * D, of_keys);
                }
                team.wait(at_o);
            }
            for (int item = team.first(M * heads); item < team.end(M * heads); item++) {
                const int m = item / heads, head = item % heads, column = first_position + m;
                const bool is_query = head < H, is_value = head >= H + G;
                float* v = wide + size_t(m) * qkv_stride + head * D;
                if (!s.has_norms_over_heads) {
                    if (w.qkv_bias)
                        for (int i = 0; i < D; i++) v[i] += widen(((const T*)w.qkv_bias)[head * D + i]);
                    const void* weight = is_query ? w.q_norm : is_value ? nullptr : w.k_norm;
                    if (weight) norm<T>(s.norms, v, weight, nullptr, D, v);
                }
                if (!is_value && cos) rotate<T>(v, s.R, cos + size_t(column) * s.R, sin + size_t(column) * s.R);
                if (is_query) {
                    const int group = head / per_group, place = m * per_group + head % per_group;
                    split_query<T>(v, D, queries + (size_t(group) * M * per_group + place) * padded(D));
                } else {
                    T* to = is_value ? values + (size_t(head - H - G) * s.S + column) * D
                                     : keys + (size_t(head - H) * s.S + column) * D;
                    // a wrong draft may overflow, and a weight of zero would not keep infinity from other rows
                    for (int i = 0; i < D; i++) {
                        narrow(v[i], to[i]);
                        if (!std::isfinite(widen(to[i]))) narrow(0.0f, to[i]);
                    }
                }
            }
            team.wait(at_o);
            for (int item = team.first(num_queries); item < team.end(num_queries);) {
                const int group = item / (M * per_group), first = item % (M * per_group);
                const int count = std::min({QUERIES, M * per_group - first, team.end(num_queries) - item});
                int first_seen[QUERIES], num_seen[QUERIES], first_column = s.S;
                In<T>* to[QUERIES];
                for (int q = 0; q < count; q++) {
                    const int m = (first + q) / per_group, head = group * per_group + (first + q) % per_group;
                    num_seen[q] = first_position + m + 1;
                    first_seen[q] = w.window ? std::max(num_seen[q] - w.window, 0) : 0;
                    first_column = std::min(first_column, first_seen[q] / LANES * LANES);
                    to[q] = x + size_t(m) * spaced(H * D) + head * D;
                }
                for (int q = 0; q < count; q++) first_seen[q] -= first_column, num_seen[q] -= first_column;
                const In<T>* block = queries + size_t(item) * padded(D);
                const size_t seen = (size_t(group) * s.S + first_column) * D;
                const T *k = keys + seen, *v = values + seen;
                if (count == 4) attend<T, 4>(block, k, v, first_seen, num_seen, D, s.scores, scores, to);
                if (count == 3) attend<T, 3>(block, k, v, first_seen, num_seen, D, s.scores, scores, to);
                if (count == 2) attend<T, 2>(block, k, v, first_seen, num_seen, D, s.scores, scores, to);
                if (count == 1) attend<T, 1>(block, k, v, first_seen, num_seen, D, s.scores, scores, to);
                item += count;
            }
            for (int m = team.first(M); m < team.end(M); m++) end_row<T>(x + size_t(m) * spaced(H * D), H * D);
            team.wait(at_o);
            linear<T>(team, x, M, H * D, o, d, out, at_gate_up);
            team.wait(at_gate_up);
            for (int m = team.first(M); m < team.end(M); m++) {
                T* row = hidden + size_t(m) * d;
                In<T>* to = x + size_t(m) * spaced(d);
                if (s.is_parallel) normed_row<T>(s.norms, row, d, w.post_norm, w.post_norm_bias, to);
                add_to_hidden(s.norms, row, out + size_t(m) * out_stride, d, w.o_bias, w.attention_out_norm,
                              s.residual_scale);
                if (!s.is_parallel) normed_row<T>(s.norms, row, d, w.post_norm, w.post_norm_bias, to);
            }
            team.wait(at_gate_up);
            linear<T>(team, x, M, d, gate_up, E, wide, at_down);
            team.wait(at_down);
            const int first = team.first(padded(F) / CHUNK) * CHUNK, end = std::min(team.end(padded(F) / CHUNK) * CHUNK, F);
            for (int m = 0; m < M; m++) {
                float* row = wide + size_t(m) * gate_up_stride;
                if (w.gate_up_bias) {
                    add_bias<T>(row, w.gate_up_bias, first, end);
                    if (s.is_gated) add_bias<T>(row, w.gate_up_bias, F + first, F + end);
                }
                const float* up = s.is_gated ? row + F + first : nullptr;
                In<T>* to = gated + size_t(m) * spaced(F) + first;
                if (s.activation == SILU) activate<Silu>(row + first, up, end - first, to);
                if (s.activation == GELU) activate<Gelu>(row + first, up, end - first, to);
                if (s.activation == GELU_TANH) activate<GeluTanh>(row + first, up, end - first, to);
                if (team.thread == 0) end_row<T>(gated + size_t(m) * spaced(F), F);
            }
            team.wait(at_down);
            linear<T>(team, gated, M, F, down, d, out, after);
            team.wait(after);
            for (int m = team.first(M); m < team.end(M); m++)
                add_to_hidden(s.norms, hidden + size_t(m) * d, out + size_t(m) * out_stride, d, w.down_bias, w.mlp_out_norm,
                              s.residual_scale);
        }
    }
}

// The best of outputs [lo, hi) of a row, which are rounded to the model's dtype where `logits` [V] are wanted.
template <class T>
Best best_of(float* row, int lo, int hi, T* logits) {
    vf tops = splat(-INFINITY);
    vi nans = {}, ids = {}, here;
    for (int j = 0; j < LANES; j++) here[j] = lo + j;
    ids = here;
    for (int v = lo; v < hi; v += LANES, here += LANES) {
        vf some = load(row + v);
        if (logits) {  // the choice is made among the logits as the model's dtype has them
            narrow(some, logits + v, hi - v);
            some = widened(logits + v, hi - v);
            store(row + v, some);
        }
        if (hi - v < LANES)
            for (int j = hi - v; j < LANES; j++) some[j] = row[v + j] = -INFINITY;
        const vi is_higher = (vi)(some > tops);
        ids = (here & is_higher) | (ids & ~is_higher);
        tops = some > tops ? some : tops;
        nans |= (vi)(some != some);
    }
    Best best{tops[0], 0, ids[0]};
    for (int j = 0; j < LANES; j++) {
        if (tops[j] > best.top || (tops[j] == best.top && ids[j] < best.id)) best = {tops[j], best.any_nan, ids[j]};
        best.any_nan |= nans[j];
    }
    return best;
}

// What becomes of products [lo, hi) of a head's last matrix, where the model does anything to them.
inline void finish(const Shape& s, float* row, int lo, int hi) {
    if (s.logit_divisor != 1.0f)
        for (int i = lo; i < hi; i++) row[i] /= s.logit_divisor;
    if (s.logit_cap != 0.0f)
        for (int i = lo; i < hi; i += LANES) narrow(capped(widened(row + i, hi - i), s.logit_cap), row + i, hi - i);
}

// The best of a row among those of the threads.
inline Best best_of_team(const Team& team, const Best* bests, int m) {
    Best best = bests[size_t(m) * team.size];
    for (int thread = 1; thread < team.size; thread++) {
        const Best& other = bests[size_t(m) * team.size + thread];
        const int32_t any_nan = best.any_nan | other.any_nan;
        if (other.top > best.top) best = other;
        best.any_nan = any_nan;
    }
    return best;
}
}  // namespace

#include "draw.h"

namespace {

// Draws from rows [M, padded(V)], of whose outputs [lo, hi) are this thread's; `bests` has the largest logits of each thread.
void draw_all(const Team& team, const Draw& draw, int position, const float* logits, int M, int V, const int64_t* token_ids,
              int lo, int hi, Best* bests, int64_t* ids, float* tops, float* confidences) {
    const DrawRoom room(draw, M, V, team.thread);
    for (int m = team.first(M); m < team.end(M); m++) {
        const Best best = best_of_team(team, bests, m);
        const uint32_t place = uint32_t(position + m + 1 - draw.first_position);
        Row row{logits + size_t(m) * padded(V), V, best.top, int32_t(best.id), place, false, false, {}, false};
        row.is_sound = !best.any_nan && std::isfinite(best.top);
        const bool is_top_k = draw.top_k && draw.top_k < V;
        row.is_lazy = draw.top_p < 1.0 && !is_top_k && !confidences;
        row.is_filtered = is_top_k || draw.min_scaled > -INFINITY || (draw.top_p < 1.0 && !row.is_lazy);
        if (row.is_sound && row.is_filtered) row.last = last_kept(draw, row, room);
        room.rows[m] = row;
    }
    team.wait();
    for (int m = 0; m < M; m++) {
        const Row& row = room.rows[m];
        if (!row.is_sound) continue;
        const Winner winner = winner_of(draw, row, token_ids, lo, hi);
        bests[size_t(m) * team.size + team.thread] = {winner.score, 0, winner.idx};
    }
    team.wait();
    for (int m = team.first(M); m < team.end(M); m++) {
        const Row& row = room.rows[m];
        Best best = bests[size_t(m) * team.size];
        for (int thread = 1; thread < team.size; thread++) {
            const Best& other = bests[size_t(m) * team.size + thread];
            if (other.top > best.top || (other.top == best.top && other.id < best.id)) best = other;
        }
        if (row.is_sound && row.is_lazy) best.id = winner_under_top_p(draw, row, token_ids, int(best.id));
        ids[m] = row.is_sound ? best.id : row.top_idx;
        tops[m] = row.is_sound ? row.logits[best.id] : NAN;
        if (confidences) confidences[m] = row.is_sound ? chance_of(draw, row, int(best.id)) : NAN;
    }
}

// Softmax top-1 of each row of norm(hidden) through `num_matrices` packed layers of sizes[i + 1] outputs, sizes[i] inputs.
template <class T>
void head(const Shape& s, const T* hidden, int M, const void* norm, const void* const* matrices, const int32_t* sizes,
          int num_matrices, const int64_t* token_ids, T* logits, int64_t* ids, float* tops, float* confidences,
          const Draw* draw, int position) {
    const int V = sizes[num_matrices];
    const HeadRoom room(s, M, *std::max_element(sizes, sizes + num_matrices + 1));
    In<T>* x = (In<T>*)(s.scratch + room.x);
    float* out = s.scratch + room.out;
    Best* bests = (Best*)(s.scratch + room.bests);
    Meeting meeting;
#pragma omp parallel num_threads(s.num_threads) if (s.num_threads > 1)
    {
        const Team team{omp_get_thread_num(), omp_get_num_threads(), &meeting};
        Ahead next = share(team, (const T*)matrices[0], sizes[1], sizes[0]);
        normed_rows<T>(team, s.norms, hidden, M, s.d, norm, s.norm_bias, x);
        team.wait(next);
        for (int i = 0; i < num_matrices; i++) {
            const int N = sizes[i + 1];
            const bool is_last = i + 1 == num_matrices;
            if (!is_last) next = share(team, (const T*)matrices[i + 1], sizes[i + 2], N);
            linear<T>(team, x, M, sizes[i], (const T*)matrices[i], N, out, next);
            if (is_last) break;
            team.wait(next);
            for (int m = team.first(M); m < team.end(M); m++) {
                In<T>* to = x + size_t(m) * spaced(N);
                for (int n = 0; n < N; n += LANES) narrow(load(out + size_t(m) * padded(N) + n), to + n, N - n);
                end_row<T>(to, N);
            }
            team.wait(next);
        }
        const int lo = team.first(padded(V) / TILE) * TILE, hi = std::min(team.end(padded(V) / TILE) * TILE, V);
        for (int m = 0; m < M; m++) finish(s, out + size_t(m) * padded(V), lo, hi);
        for (int m = 0; m < M; m++)
            bests[size_t(m) * team.size + team.thread] =
                best_of<T>(out + size_t(m) * padded(V), lo, hi, logits ? logits + size_t(m) * V : nullptr);
        team.wait();
        if (draw) draw_all(team, *draw, position, out, M, V, token_ids, lo, hi, bests, ids, tops, confidences);
        for (int m = team.first(M); m < (draw ? 0 : team.end(M)); m++) {
            const Best best = best_of_team(team, bests, m);
            ids[m] = best.id;
            tops[m] = best.any_nan ? NAN : best.top;
            if (confidences) {
                vf total = {};
                for (int v = 0; v < V; v += LANES)
                    total += vexp(load(out + size_t(m) * padded(V) + v) - splat(best.top));
                confidences[m] = 1.0f / sum(total);
            }
        }
    }
}

template <class T>
float gate_chance(const Shape& s, const T* hidden, const void* weight, const float* weights, float bias) {
    float* x = s.scratch;
    norm<T>(s.norms, hidden, weight, s.norm_bias, s.d, x);
    float total = bias;
    for (int i = 0; i < s.d; i++) total += x[i] * weights[i];
    return 1.0f / (1.0f + std::exp(-total));
}
}  // namespace

extern "C" {

// What is tested at an exit, and where its outcome goes; `gate` [d] is null when there is none. The head reads what the
// exit's block made, or the hidden states.
struct ExitTest {
    const void *norm, *matrices, *sizes, *token_ids;
    void *ids, *tops, *probabilities;
    const float* gate;
    int32_t num_matrices, reads_block;
    float bias, least;
};

// The layer that heads at an exit have for themselves: the `rows` [W, d] that it made, and its keys and values [2, G, S, D].
struct Block {
    const LayerWeights* layer;
    void *rows, *kv;
};

int32_t adadecode_tile() { return TILE; }

// Scales rows of the embedding [M, d], in place, where a model's enter its layers scaled.
void adadecode_scale_embedding(const Shape* shape, void* rows, int32_t num_rows) {
    for (size_t i = 0; i < size_t(num_rows) * shape->d; i++)
        if (shape->is_bf16)
            narrow(widen(((bf16*)rows)[i]) * shape->embedding_scale, ((bf16*)rows)[i]);
        else
            ((float*)rows)[i] *= shape->embedding_scale;
}

// function [n] of x [n], one of SiLU, GELU, GELU by tanh and tanh, in that order: what a test measures.
void adadecode_function(int32_t which, const float* x, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i += LANES) {
        const int count = std::min<int64_t>(n - i, LANES);
        const vf v = widened(x + i, count), of_gelu = which == GELU ? Gelu::of(v) : GeluTanh::of(v);
        narrow(which == SILU ? Silu::of(v) : which <= GELU_TANH ? of_gelu : vtanh(v), out + i, count);
    }
}

// Reads `num_floats` floats once, a multiple of 1024, each thread its share in one stream, as the layers read weights. The
// sum is of no use but that it must be known.
float adadecode_read(const float* data, int64_t num_floats, int32_t num_threads) {
    constexpr int BLOCK = 1024, SUMS = 8;
    float total = 0.0f;
#pragma omp parallel for schedule(static) reduction(+ : total) num_threads(num_threads) if (num_threads > 1)
    for (int64_t block = 0; block < num_floats / BLOCK; block++) {
        const float* p = data + block * BLOCK;
        vf sums[SUMS] = {};
        for (int i = 0; i < BLOCK; i += SUMS * LANES)
            for (int j = 0; j < SUMS; j++) {
                __builtin_prefetch((const char*)(p + i + j * LANES) + 8192);
                sums[j] += load(p + i + j * LANES);
            }
        for (int j = 1; j < SUMS; j++) sums[0] += sums[j];
        total += sum(sums[0]);
    }
    return total;
}

// Floats of scratch with which a step runs up to `num_rows` rows at once, and tests up to `num_tested` of them by heads
// whose layers have at most `widest` inputs or outputs.
int64_t adadecode_scratch_len(const Shape* shape, int32_t num_rows, int32_t num_tested, int32_t widest) {
    return std::max(LayerRoom(*shape, num_rows).end, HeadRoom(*shape, num_tested, std::max(widest, shape->d)).end);
}

// Floats of scratch in which a step draws from up to `num_rows` rows of at most `widest` logits.
int64_t adadecode_draw_len(int32_t num_threads, int32_t num_rows, int32_t widest) {
    return DrawRoom::row_floats(num_rows) + num_threads * DrawRoom::thread_floats(widest);
}

// Rows at consecutive positions from `first_position` through layers [start, stop): `hidden` [M, d] in place; their keys
// and values go to columns first_position.. of `kv` [L, 2, G, S, D].
void adadecode_run_layers(const Shape* shape, const LayerWeights* layers, void* hidden, int32_t num_rows,
                          int32_t first_position, void* kv, int32_t start, int32_t stop) {
    if (shape->is_bf16)
        run<bf16>(*shape, layers, (bf16*)hidden, num_rows, first_position, (bf16*)kv, start, stop);
    else
        run<float>(*shape, layers, (float*)hidden, num_rows, first_position, (float*)kv, start, stop);
}

// Per row of `hidden` [M, d]: its top-1 id, logit (NaN when any logit is) and, unless null, probability; and the logits
// [M, V] unless null. Ties go to the lowest id. `token_ids`, unless null, names the outputs. With a `draw` the token that it
// draws for the position after the row's, the first of which stands at `position`.
void adadecode_head(const Shape* shape, const void* hidden, int32_t num_rows, const void* norm,
                    const void* const* matrices, const int32_t* sizes, int32_t num_matrices, const int64_t* token_ids,
                    void* logits, int64_t* ids, float* tops, float* confidences, const Draw* draw, int32_t position) {
    if (shape->is_bf16)
        head<bf16>(*shape, (const bf16*)hidden, num_rows, norm, matrices, sizes, num_matrices, token_ids,
                   (bf16*)logits, ids, tops, confidences, draw, position);
    else
        head<float>(*shape, (const float*)hidden, num_rows, norm, matrices, sizes, num_matrices, token_ids,
                    (float*)logits, ids, tops, confidences, draw, position);
    if (token_ids)
        for (int m = 0; m < num_rows; m++) ids[m] = token_ids[ids[m]];
}

// The logistic function of bias + weights [d] . norm(hidden [d]).
float adadecode_gate(const Shape* shape, const void* hidden, const void* norm, const float* weights, float bias) {
    return shape->is_bf16 ? gate_chance<bf16>(*shape, (const bf16*)hidden, norm, weights, bias)
                          : gate_chance<float>(*shape, (const float*)hidden, norm, weights, bias);
}

// Rows, the first of them in slot `first_slot`, through layers [start, stop) as above and a copy of them through `block`,
// then `test` on the last `num_tested`, unless that is one and the gate gives it less than `least`. Block and test may be
// null. Returns whether they were tested.
int32_t adadecode_run_to_exit(const Shape* shape, const LayerWeights* layers, void* hidden, int32_t num_rows,
                              int32_t first_position, void* kv, int32_t start, int32_t stop, int32_t first_slot,
                              const Block* block, const ExitTest* test, int32_t num_tested, const Draw* draw) {
    adadecode_run_layers(shape, layers, hidden, num_rows, first_position, kv, start, stop);
    const size_t row_len = size_t(shape->d) * (shape->is_bf16 ? sizeof(bf16) : sizeof(float));
    char *rows = (char*)hidden, *end = (char*)hidden + num_rows * row_len;
    if (block) {
        rows = (char*)block->rows + first_slot * row_len;
        std::memcpy(rows, hidden, num_rows * row_len);
        adadecode_run_layers(shape, block->layer, rows, num_rows, first_position, block->kv, 0, 1);
    }
    if (!test || (test->gate && num_tested == 1 &&
                  adadecode_gate(shape, end - row_len, test->norm, test->gate, test->bias) < test->least))
        return 0;
    if (test->reads_block) end = rows + num_rows * row_len;
    adadecode_head(shape, end - num_tested * row_len, num_tested, test->norm, (const void* const*)test->matrices,
                   (const int32_t*)test->sizes, test->num_matrices, (const int64_t*)test->token_ids, nullptr,
                   (int64_t*)test->ids, (float*)test->tops, (float*)test->probabilities, draw,
                   first_position + num_rows - num_tested);
    return 1;
}
}
