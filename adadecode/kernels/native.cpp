// The layers and heads of a decode step on a CPU, for weights in float32 or bfloat16.
//
// Every output element is one sum, added up in an order that depends on nothing but its length. So a row has the same
// bits alone and beside any others, in any slot and with any number of threads: what the static-shape rule must arrange
// for library kernels (docs/parity.md) holds here by construction, and rows that take no part cost nothing.
// Weights, keys, values and the hidden state between layers are in the model's dtype; all arithmetic is float32.
//
// Shapes: M rows, d model width, F width of the MLP, H query heads, G key/value heads, D head width, S cache columns,
// N outputs of a linear layer. Row-major. Weights are packed in tiles, [ceil(N / TILE), inputs, TILE], so that a step
// reads them in one stream.
//
// Nothing here allocates: a call works in the scratch of its decode step, so memory cannot run out half-way. Nothing
// here checks an index either: native.py does before each call.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
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
constexpr int QUERIES = 4;        // queries that share a pass over the keys

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));

struct bf16 {
    uint16_t bits;
};

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

// out [M, TILES * TILE] = x [M, spaced(K)] times TILES packed tiles of weights, each output one chain of additions over K.
template <class T, int M, int TILES>
inline void tiles(const float* x, int K, const T* w, float* out, int out_stride) {
    constexpr int AHEAD = M <= 2 ? 8192 : 4096;  // bytes between the weight in use and the one fetched into the cache
    const int stride = spaced(K);
    vf sums[M][TILES][2] = {};
    for (int k = 0; k < K; k++) {
#pragma GCC unroll 4
        for (int t = 0; t < TILES; t++) {
            const T* chunk = w + (size_t(t) * K + k) * TILE;
            Pair row = load_pair(chunk);
            __builtin_prefetch((const char*)chunk + AHEAD);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                vf broadcast = splat(x[size_t(m) * stride + k]);
                sums[m][t][0] = multiply_add(row.a, broadcast, sums[m][t][0]);
                sums[m][t][1] = multiply_add(row.b, broadcast, sums[m][t][1]);
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int t = 0; t < TILES; t++)
            for (int half = 0; half < 2; half++)
                store(out + size_t(m) * out_stride + t * TILE + half * LANES, sums[m][t][half]);
}

// One tile for any number of rows.
template <class T>
void tiles_of_rows(const float* x, int M, int K, const T* w, float* out, int out_stride) {
    int m = 0;
    for (; M - m > 6; m += 4) tiles<T, 4, 1>(x + size_t(m) * spaced(K), K, w, out + size_t(m) * out_stride, out_stride);
    const float* rest = x + size_t(m) * spaced(K);
    float* to = out + size_t(m) * out_stride;
    switch (M - m) {
        case 6: return tiles<T, 6, 1>(rest, K, w, to, out_stride);
        case 5: return tiles<T, 5, 1>(rest, K, w, to, out_stride);
        case 4: return tiles<T, 4, 1>(rest, K, w, to, out_stride);
        case 3: return tiles<T, 3, 1>(rest, K, w, to, out_stride);
        case 2: return tiles<T, 2, 1>(rest, K, w, to, out_stride);
        case 1: return tiles<T, 1, 1>(rest, K, w, to, out_stride);
    }
}

// out [M, padded(N)] = x [M, spaced(K)] w. Called by every thread of a team; ends with a barrier.
template <class T>
void linear(const float* x, int M, int K, const T* w, int N, float* out) {
    const int num_tiles = padded(N) / TILE, stride = padded(N);
    const int together = M <= 2 ? 2 : 1;  // sums enough to hide the latency of an addition, registers permitting
#pragma omp for schedule(static)
    for (int group = 0; group < (num_tiles + together - 1) / together; group++) {
        const int first = group * together;
        const T* from = w + size_t(first) * K * TILE;
        if (together == 1 || first + 2 > num_tiles)
            tiles_of_rows<T>(x, M, K, from, out + first * TILE, stride);
        else if (M == 1)
            tiles<T, 1, 2>(x, K, from, out + first * TILE, stride);
        else
            tiles<T, 2, 2>(x, K, from, out + first * TILE, stride);
    }
}

// RMSNorm of n elements; `weight` may be null.
template <class T, class X>
void rms_norm(const X* x, const T* weight, int n, float eps, float* out) {
    vf squares = {};
    for (int i = 0; i < n; i += LANES) {
        float wide[LANES] = {};
        if (i + LANES <= n)
            for (int j = 0; j < LANES; j++) wide[j] = widen(x[i + j]);
        else
            for (int j = 0; j < n - i; j++) wide[j] = widen(x[i + j]);
        squares = multiply_add(load(wide), load(wide), squares);
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / n + eps);
    if (weight)
        for (int i = 0; i < n; i++) out[i] = widen(x[i]) * scale * widen(weight[i]);
    else
        for (int i = 0; i < n; i++) out[i] = widen(x[i]) * scale;
}

template <class T>
void normed_rows(const T* hidden, int M, int d, const T* weight, float eps, float* out) {
#pragma omp for schedule(static)
    for (int m = 0; m < M; m++) rms_norm<T>(hidden + size_t(m) * d, weight, d, eps, out + size_t(m) * spaced(d));
}

template <class T>
void rotate(float* x, int D, const float* cos, const float* sin) {
    const int half = D / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

// A query vector, its elements where load_pair puts those of a key: [padded(D)].
template <class T>
void split_query(const float* x, int D, float* out) {
    for (int k = 0; k < padded(D); k++) out[k / CHUNK * CHUNK + place<T>(k % CHUNK)] = k < D ? x[k] : 0.0f;
}

// A packed query times one key, added up as `score` does.
template <class T>
inline float dot(const float* query, const T* key, int D) {
    vf total = {};
    for (int k = 0; k < D; k += CHUNK) {
        const Pair pair = k + CHUNK <= D ? load_pair(key + k) : load_tail(key + k, D - k);
        total = multiply_add(pair.a, load(query + k), total);
        total = multiply_add(pair.b, load(query + k + LANES), total);
    }
    return sum(total);
}

// scores[q][c] for Q queries and NUM keys from `key` on; Q * NUM is a multiple of 4.
template <class T, int Q, int NUM>
inline void score(const float* queries, const T* key, int D, float* scores, int stride) {
    vf sums[Q * NUM] = {};
    for (int k = 0; k < D; k += CHUNK) {
        Pair pairs[NUM];
#pragma GCC unroll 4
        for (int c = 0; c < NUM; c++) {
            const T* chunk = key + size_t(c) * D + k;
            pairs[c] = k + CHUNK <= D ? load_pair(chunk) : load_tail(chunk, D - k);
        }
#pragma GCC unroll 4
        for (int q = 0; q < Q; q++) {
            const vf a = load(queries + size_t(q) * padded(D) + k), b = load(queries + size_t(q) * padded(D) + k + LANES);
#pragma GCC unroll 4
            for (int c = 0; c < NUM; c++) {
                sums[q * NUM + c] = multiply_add(pairs[c].a, a, sums[q * NUM + c]);
                sums[q * NUM + c] = multiply_add(pairs[c].b, b, sums[q * NUM + c]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q * NUM; i += 4) {
        float four[4];
        sum4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3], four);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) scores[size_t((i + j) / NUM) * stride + (i + j) % NUM] = four[j];
    }
}

// scores[q][0, num_columns) for Q queries.
template <class T, int Q>
void score_all(const float* queries, const T* keys, int num_columns, int D, float* scores, int stride) {
    constexpr int NUM = Q == 4 ? 2 : 4;
    int c = 0;
    for (; c + NUM <= num_columns; c += NUM) score<T, Q, NUM>(queries, keys + size_t(c) * D, D, scores + c, stride);
    for (; c < num_columns; c++)
        for (int q = 0; q < Q; q++)
            scores[size_t(q) * stride + c] = dot<T>(queries + size_t(q) * padded(D), keys + size_t(c) * D, D);
}

// out[q][k..] = the values' chunks from element k on, weighted by scores[q] and divided by its total.
template <class T, int Q, int CHUNKS>
inline void mix(const T* values, const float* scores, int stride, int num_columns, int D, int rest,
                const float* inverse, float* const* out, int k) {
    vf mixed[Q][CHUNKS][2] = {};
    for (int c = 0; c < num_columns; c++) {
#pragma GCC unroll 2
        for (int i = 0; i < CHUNKS; i++) {
            const T* chunk = values + size_t(c) * D + i * CHUNK;
            const Pair pair = CHUNKS > 1 || rest >= CHUNK ? load_pair(chunk) : load_tail(chunk, rest);
#pragma GCC unroll 4
            for (int q = 0; q < Q; q++) {
                const vf p = splat(scores[size_t(q) * stride + c]);
                mixed[q][i][0] = multiply_add(pair.a, p, mixed[q][i][0]);
                mixed[q][i][1] = multiply_add(pair.b, p, mixed[q][i][1]);
            }
        }
    }
    for (int q = 0; q < Q; q++)
        for (int i = 0; i < CHUNKS; i++) {
            float both[CHUNK];
            store(both, mixed[q][i][0] * inverse[q]);
            store(both + LANES, mixed[q][i][1] * inverse[q]);
            for (int j = 0; j < std::min(CHUNK, rest - i * CHUNK); j++) out[q][k + i * CHUNK + j] = both[place<T>(j)];
        }
}

// Attention of Q queries [Q, padded(D)] over columns of keys and values [S, D]: query q sees `num_seen[q]` of them and
// writes to out[q] [D]. `scores` has room for Q rows of the most columns seen, padded.
template <class T, int Q>
void attend(const float* queries, const T* keys, const T* values, const int* num_seen, int D, float scale,
            float* scores, float* const* out) {
    const int num_columns = *std::max_element(num_seen, num_seen + Q), stride = padded(num_columns);
    score_all<T, Q>(queries, keys, num_columns, D, scores, stride);
    float inverse[Q];
    for (int q = 0; q < Q; q++) {
        float *row = scores + size_t(q) * stride, highest[LANES];
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
    if (Q <= 2)  // two chunks at once, to hide the latency of an addition
        for (; k + 2 * CHUNK <= D; k += 2 * CHUNK)
            mix<T, Q, 2>(values + k, scores, stride, num_columns, D, D - k, inverse, out, k);
    for (; k < D; k += CHUNK) mix<T, Q, 1>(values + k, scores, stride, num_columns, D, D - k, inverse, out, k);
}

template <class T>
void add_to_hidden(T* hidden, const float* x, int n) {
    for (int i = 0; i < n; i++) narrow(widen(hidden[i]) + x[i], hidden[i]);
}

// out = silu(x) * up
inline void gate(const float* x, const float* up, int n, float* out) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        const vf g = load(x + i);
        store(out + i, g / (vexp(-g) + 1.0f) * load(up + i));
    }
    if (i < n) {
        float rest[2][LANES] = {};
        std::memcpy(rest[0], x + i, (n - i) * sizeof(float));
        std::memcpy(rest[1], up + i, (n - i) * sizeof(float));
        const vf g = load(rest[0]);
        store(rest[0], g / (vexp(-g) + 1.0f) * load(rest[1]));
        std::memcpy(out + i, rest[0], (n - i) * sizeof(float));
    }
}

}  // namespace

extern "C" {

// Null where a family has no such weight. qkv is packed from [(H + 2G) D, d], gate_up from [2F, d].
struct LayerWeights {
    const void *input_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *o, *post_norm, *gate_up, *down;
};

// `scratch` is what the calls of one decode step work in, as many floats as adadecode_scratch_len says; what it holds
// between two calls does not matter.
struct Shape {
    int32_t d, F, H, G, D, S, is_bf16, num_threads;
    float eps, scale;
    float* scratch;
};
}

namespace {

// Where in the scratch the layers have what they work in for M rows, in floats from its start.
struct LayerRoom {
    size_t x, wide, out, queries, gated, scores, scores_len, end;

    LayerRoom(const Shape& s, int M) {
        x = 0;
        wide = x + size_t(M) * spaced(std::max(s.d, s.H * s.D));
        out = wide + size_t(M) * std::max(padded((s.H + 2 * s.G) * s.D), padded(2 * s.F));
        queries = out + size_t(M) * padded(s.d);
        gated = queries + size_t(M) * s.H * padded(s.D);
        scores = gated + size_t(M) * spaced(s.F);
        scores_len = size_t(QUERIES) * padded(s.S);  // of each thread
        end = scores + s.num_threads * scores_len;
    }
};

// The same for a head on M rows, whose layers have at most `widest` inputs or outputs.
struct HeadRoom {
    size_t x, out, end;

    HeadRoom(int M, int widest) {
        x = 0;
        out = x + size_t(M) * spaced(widest);
        end = out + size_t(M) * padded(widest);
    }
};

template <class T>
void run(const Shape& s, const LayerWeights* layers, T* hidden, int M, int first_position, T* kv, const float* cos,
         const float* sin, int start, int stop) {
    const int d = s.d, F = s.F, D = s.D, H = s.H, G = s.G, per_group = H / G, heads = H + 2 * G;
    const int qkv_stride = padded(heads * D), gate_up_stride = padded(2 * F), out_stride = padded(d);
    const int num_blocks = (M * per_group + QUERIES - 1) / QUERIES;  // of queries that share keys, row by row
    const LayerRoom room(s, M);
    float *x = s.scratch + room.x, *wide = s.scratch + room.wide, *out = s.scratch + room.out;
    float *queries = s.scratch + room.queries, *gated = s.scratch + room.gated;
#pragma omp parallel num_threads(s.num_threads) if (s.num_threads > 1)
    {
        float* scores = s.scratch + room.scores + omp_get_thread_num() * room.scores_len;
        for (int l = start; l < stop; l++) {
            const LayerWeights& w = layers[l];
            T* keys = kv + size_t(2 * l) * G * s.S * D;
            T* values = keys + size_t(G) * s.S * D;
            normed_rows<T>(hidden, M, d, (const T*)w.input_norm, s.eps, x);
            linear<T>(x, M, d, (const T*)w.qkv, heads * D, wide);
#pragma omp for schedule(static)
            for (int item = 0; item < M * heads; item++) {
                const int m = item / heads, head = item % heads, column = first_position + m;
                const bool is_query = head < H, is_value = head >= H + G;
                float* v = wide + size_t(m) * qkv_stride + head * D;
                if (w.qkv_bias)
                    for (int i = 0; i < D; i++) v[i] += widen(((const T*)w.qkv_bias)[head * D + i]);
                const T* norm = (const T*)(is_query ? w.q_norm : is_value ? nullptr : w.k_norm);
                if (norm) rms_norm<T>(v, norm, D, s.eps, v);
                if (!is_value) rotate<T>(v, D, cos + size_t(column) * D, sin + size_t(column) * D);
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
#pragma omp for schedule(static)
            for (int item = 0; item < G * num_blocks; item++) {
                const int group = item / num_blocks, first = item % num_blocks * QUERIES;
                const int count = std::min(QUERIES, M * per_group - first);
                int num_seen[QUERIES];
                float* to[QUERIES];
                for (int q = 0; q < count; q++) {
                    const int m = (first + q) / per_group, head = group * per_group + (first + q) % per_group;
                    num_seen[q] = first_position + m + 1;
                    to[q] = x + size_t(m) * spaced(H * D) + head * D;
                }
                const float* block = queries + (size_t(group) * M * per_group + first) * padded(D);
                const T *k = keys + size_t(group) * s.S * D, *v = values + size_t(group) * s.S * D;
                if (count == 4) attend<T, 4>(block, k, v, num_seen, D, s.scale, scores, to);
                if (count == 3) attend<T, 3>(block, k, v, num_seen, D, s.scale, scores, to);
                if (count == 2) attend<T, 2>(block, k, v, num_seen, D, s.scale, scores, to);
                if (count == 1) attend<T, 1>(block, k, v, num_seen, D, s.scale, scores, to);
            }
            linear<T>(x, M, H * D, (const T*)w.o, d, out);
#pragma omp for schedule(static)
            for (int m = 0; m < M; m++) {
                T* row = hidden + size_t(m) * d;
                add_to_hidden(row, out + size_t(m) * out_stride, d);
                rms_norm<T>(row, (const T*)w.post_norm, d, s.eps, x + size_t(m) * spaced(d));
            }
            linear<T>(x, M, d, (const T*)w.gate_up, 2 * F, wide);
#pragma omp for schedule(static)
            for (int m = 0; m < M; m++) {
                const float* row = wide + size_t(m) * gate_up_stride;
                gate(row, row + F, F, gated + size_t(m) * spaced(F));
            }
            linear<T>(gated, M, F, (const T*)w.down, d, out);
#pragma omp for schedule(static)
            for (int m = 0; m < M; m++)
                add_to_hidden(hidden + size_t(m) * d, out + size_t(m) * out_stride, d);
        }
    }
}

// Softmax top-1 of each row of norm(hidden) through `num_matrices` packed layers of sizes[i + 1] outputs, sizes[i] inputs.
template <class T>
void head(const Shape& s, const T* hidden, int M, const T* norm, const void* const* matrices, const int32_t* sizes,
          int num_matrices, T* logits, int64_t* ids, float* tops, float* confidences) {
    const int V = sizes[num_matrices];
    const HeadRoom room(M, *std::max_element(sizes, sizes + num_matrices + 1));
    float *x = s.scratch + room.x, *out = s.scratch + room.out;
#pragma omp parallel num_threads(s.num_threads) if (s.num_threads > 1)
    {
        normed_rows<T>(hidden, M, s.d, norm, s.eps, x);
        for (int i = 0; i < num_matrices; i++) {
            const int N = sizes[i + 1];
            linear<T>(x, M, sizes[i], (const T*)matrices[i], N, out);
            if (i + 1 < num_matrices)
#pragma omp for schedule(static)
                for (int m = 0; m < M; m++)
                    std::memcpy(x + size_t(m) * spaced(N), out + size_t(m) * padded(N), N * sizeof(float));
        }
#pragma omp for schedule(static)
        for (int m = 0; m < M; m++) {
            float* row = out + size_t(m) * padded(V);
            if (logits)  // the choice is made among the logits as the model's dtype has them
                for (int v = 0; v < V; v++) {
                    T& rounded = logits[size_t(m) * V + v];
                    narrow(row[v], rounded);
                    row[v] = widen(rounded);
                }
            for (int v = V; v < padded(V); v++) row[v] = -INFINITY;
            float highest[LANES];
            vf tops_of_lanes = splat(-INFINITY), nans = {};
            for (int v = 0; v < V; v += LANES) {
                const vf some = load(row + v);
                tops_of_lanes = some > tops_of_lanes ? some : tops_of_lanes;
                nans = some == some ? nans : splat(1.0f);
            }
            store(highest, tops_of_lanes);
            const float top = *std::max_element(highest, highest + LANES);
            int best = 0;
            while (best + 1 < V && row[best] != top) best++;
            ids[m] = best;
            tops[m] = sum(nans) > 0.0f ? NAN : top;
            if (confidences) {
                vf total = {};
                for (int v = 0; v < V; v += LANES) total += vexp(load(row + v) - splat(top));
                confidences[m] = 1.0f / sum(total);
            }
        }
    }
}

template <class T>
float gate_chance(const Shape& s, const T* hidden, const T* norm, const float* weights, float bias) {
    float* x = s.scratch;
    rms_norm<T>(hidden, norm, s.d, s.eps, x);
    float total = bias;
    for (int i = 0; i < s.d; i++) total += x[i] * weights[i];
    return 1.0f / (1.0f + std::exp(-total));
}
}  // namespace

extern "C" {

// What is tested at an exit, and where its outcome goes; `gate` [d] is null when there is none.
struct ExitTest {
    const void *norm, *matrices, *sizes, *token_ids;
    void *ids, *tops, *probabilities;
    const float* gate;
    int32_t num_matrices;
    float bias, least;
};

int32_t adadecode_tile() { return TILE; }

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
    return std::max(LayerRoom(*shape, num_rows).end, HeadRoom(num_tested, std::max(widest, shape->d)).end);
}

// Rows at consecutive positions from `first_position` through layers [start, stop): `hidden` [M, d] in place; their keys
// and values go to columns first_position.. of `kv` [L, 2, G, S, D]. `cos`, `sin` [positions, D].
void adadecode_run_layers(const Shape* shape, const LayerWeights* layers, void* hidden, int32_t num_rows,
                          int32_t first_position, void* kv, const float* cos, const float* sin, int32_t start,
                          int32_t stop) {
    if (shape->is_bf16)
        run<bf16>(*shape, layers, (bf16*)hidden, num_rows, first_position, (bf16*)kv, cos, sin, start, stop);
    else
        run<float>(*shape, layers, (float*)hidden, num_rows, first_position, (float*)kv, cos, sin, start, stop);
}

// Per row of `hidden` [M, d]: its top-1 id, logit (NaN when any logit is) and, unless null, probability; and the logits
// [M, V] unless null. Ties go to the lowest id. `token_ids`, unless null, names the outputs.
void adadecode_head(const Shape* shape, const void* hidden, int32_t num_rows, const void* norm,
                    const void* const* matrices, const int32_t* sizes, int32_t num_matrices, const int64_t* token_ids,
                    void* logits, int64_t* ids, float* tops, float* confidences) {
    if (shape->is_bf16)
        head<bf16>(*shape, (const bf16*)hidden, num_rows, (const bf16*)norm, matrices, sizes, num_matrices,
                   (bf16*)logits, ids, tops, confidences);
    else
        head<float>(*shape, (const float*)hidden, num_rows, (const float*)norm, matrices, sizes, num_matrices,
                    (float*)logits, ids, tops, confidences);
    if (token_ids)
        for (int m = 0; m < num_rows; m++) ids[m] = token_ids[ids[m]];
}

// The logistic function of bias + weights [d] . norm(hidden [d]).
float adadecode_gate(const Shape* shape, const void* hidden, const void* norm, const float* weights, float bias) {
    return shape->is_bf16 ? gate_chance<bf16>(*shape, (const bf16*)hidden, (const bf16*)norm, weights, bias)
                          : gate_chance<float>(*shape, (const float*)hidden, (const float*)norm, weights, bias);
}

// Rows through layers [start, stop) as above, then `test` on the last `num_tested`, unless that is one and the gate gives
// it less than `least`. Returns whether they were tested.
int32_t adadecode_run_to_exit(const Shape* shape, const LayerWeights* layers, void* hidden, int32_t num_rows,
                              int32_t first_position, void* kv, const float* cos, const float* sin, int32_t start,
                              int32_t stop, const ExitTest* test, int32_t num_tested) {
    adadecode_run_layers(shape, layers, hidden, num_rows, first_position, kv, cos, sin, start, stop);
    const size_t row_len = size_t(shape->d) * (shape->is_bf16 ? sizeof(bf16) : sizeof(float));
    char* end = (char*)hidden + num_rows * row_len;
    if (test->gate && num_tested == 1 &&
        adadecode_gate(shape, end - row_len, test->norm, test->gate, test->bias) < test->least)
        return 0;
    adadecode_head(shape, end - num_tested * row_len, num_tested, test->norm, (const void* const*)test->matrices,
                   (const int32_t*)test->sizes, test->num_matrices, (const int64_t*)test->token_ids, nullptr,
                   (int64_t*)test->ids, (float*)test->tops, (float*)test->probabilities);
    return 1;
}
}
