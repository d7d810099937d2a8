// Draws from a row of logits: the argmax of logits / T plus noise of the place and the token, after filters. The same steps as
// in sampling.py, where they are explained: single additions, multiplications and divisions, and whole numbers in floats, so
// the same logits give the same token in both, whoever is beside the row and however many threads share it.
//
// Part of native.cpp, which includes it after its vectors.

#include <climits>

extern "C" {

// `min_scaled` is log(min_p), minus infinity for none; `scale` 1 / T. `scratch` has the floats that adadecode_draw_len says.
struct Draw {
    uint32_t key[2];
    int32_t top_k, first_position;
    float scale, min_scaled;
    double top_p;
    float* scratch;
};
}

namespace {

constexpr int BLOCK_WORDS = 4;              // tokens that share a counter
constexpr int GROUP = BLOCK_WORDS * LANES;  // tokens whose words are made at once
constexpr float MOST_NOISE = 22.9f;         // more than any
constexpr double WHOLE = 17179869184.0;     // 2^34, the weight of the most likely output
constexpr int NUM_BINS = 2048;
constexpr float BINS_PER_NAT = NUM_BINS / 25.0f;  // further down a weight is zero

typedef double vd __attribute__((vector_size(LANES * 8)));

// Products of 32 bits: their high and their low halves.
inline void multiply(vu x, uint32_t by, vu& high, vu& low) {
#if defined(__AVX512F__)
    const __m512i a = (__m512i)x, m = _mm512_set1_epi64(by);
    const __m512i even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
    high = (vu)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    low = (vu)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
#elif defined(__AVX2__)
    const __m256i a = (__m256i)x, m = _mm256_set1_epi64x(by);
    const __m256i even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
    high = (vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = (vu)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
#else
    for (int i = 0; i < LANES; i++) {
        const uint64_t product = uint64_t(x[i]) * by;
        high[i] = uint32_t(product >> 32);
        low[i] = uint32_t(product);
    }
#endif
}

inline void multiply(uint32_t x, uint32_t by, uint32_t& high, uint32_t& low) {
    const uint64_t product = uint64_t(x) * by;
    high = uint32_t(product >> 32);
    low = uint32_t(product);
}

// The four words of Philox4x32-10 at counter (block, place, 0, 0), for one block or LANES of them.
template <class U>
inline void philox(const uint32_t* key, U block, uint32_t place, U* words) {
    U a = block, b = U{} + place, c = U{}, d = U{};
    uint32_t first_key = key[0], second_key = key[1];
    for (int round = 0; round < 10; round++) {
        U high_a, low_a, high_c, low_c;
        multiply(a, 0xd2511f53u, high_a, low_a);
        multiply(c, 0xcd9e8d57u, high_c, low_c);
        a = high_c ^ b ^ first_key;
        b = low_c;
        c = high_a ^ d ^ second_key;
        d = low_a;
        first_key += 0x9e3779b9u;
        second_key += 0xbb67ae85u;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

// The words of GROUP consecutive tokens from the first of `block` on, in their order.
inline void words_of_group(const uint32_t* key, uint32_t block, uint32_t place, vu* words) {
    constexpr int QUADS = LANES / 4;
    vu blocks;
    for (int i = 0; i < LANES; i++) blocks[i] = block + QUADS * (i % 4) + i / 4;
    vu w[4];
    philox(key, blocks, place, w);
    // the four words of a block come side by side: of blocks in the order above that is the order of tokens
#if defined(__AVX512F__)
    const __m512i a = _mm512_unpacklo_epi32((__m512i)w[0], (__m512i)w[1]), b = _mm512_unpacklo_epi32((__m512i)w[2], (__m512i)w[3]);
    const __m512i c = _mm512_unpackhi_epi32((__m512i)w[0], (__m512i)w[1]), d = _mm512_unpackhi_epi32((__m512i)w[2], (__m512i)w[3]);
    words[0] = (vu)_mm512_unpacklo_epi64(a, b), words[1] = (vu)_mm512_unpackhi_epi64(a, b);
    words[2] = (vu)_mm512_unpacklo_epi64(c, d), words[3] = (vu)_mm512_unpackhi_epi64(c, d);
#elif defined(__AVX2__)
    const __m256i a = _mm256_unpacklo_epi32((__m256i)w[0], (__m256i)w[1]), b = _mm256_unpacklo_epi32((__m256i)w[2], (__m256i)w[3]);
    const __m256i c = _mm256_unpackhi_epi32((__m256i)w[0], (__m256i)w[1]), d = _mm256_unpackhi_epi32((__m256i)w[2], (__m256i)w[3]);
    words[0] = (vu)_mm256_unpacklo_epi64(a, b), words[1] = (vu)_mm256_unpackhi_epi64(a, b);
    words[2] = (vu)_mm256_unpacklo_epi64(c, d), words[3] = (vu)_mm256_unpackhi_epi64(c, d);
#else
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < LANES; i++) words[j][i] = w[i % 4][i / 4 * 4 + j];
#endif
}

// The words of LANES tokens.
inline void words_of_tokens(const uint32_t* key, const int64_t* token_ids, int count, uint32_t place, vu& words) {
    vu ids = {};
    for (int i = 0; i < std::min(count, LANES); i++) ids[i] = uint32_t(token_ids[i]);
    vu w[4];
    philox(key, ids >> 2, place, w);
    const vu lane = ids & 3;
    words = vu{};
    for (uint32_t j = 0; j < 4; j++) words |= w[j] & (vu)(lane == j);
}

inline bool any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    for (int i = 0; i < LANES; i++)
        if (mask[i]) return true;
    return false;
#endif
}

inline float from_bits(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline float draw_log(float x) {
    constexpr int32_t LEAST_SQRT = 0x3f3504f3;
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    bits -= LEAST_SQRT;
    const float n = float(bits >> 23), f = from_bits((bits & 0x7fffff) + LEAST_SQRT) - 1.0f;
    const float s = f / (f + 2.0f), squared = s * s;
    float series = squared * float(2.0 / 9) + float(2.0 / 7);
    series = series * squared + float(2.0 / 5);
    series = series * squared + float(2.0 / 3);
    return n * 0.693359375f + (s * 2.0f + (s * squared * series + n * -2.12194440e-4f));
}

inline float share_of(uint32_t word) {
    return std::min((float(word) + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
}

inline float gumbel(uint32_t word) {
    const float w = share_of(word), u = 1.0f - w, lost = 1.0f - u;
    return -draw_log(lost == 0.0f ? w : -draw_log(u) * (w / std::max(lost, 0x1p-24f)));
}

// exp(x) for x <= 0, by operations that sampling.py has too; of x below -30 that of -30.
inline vf draw_exp(vf x) {
    x = x > splat(-30.0f) ? x : splat(-30.0f);
    const vf n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    vf p = r * float(1.0 / 720) + float(1.0 / 120);
    for (float term : {float(1.0 / 24), float(1.0 / 6), 0.5f, 1.0f, 1.0f}) p = p * r + term;
    return p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}

// The weights of LANES outputs that are `scaled` below the first, whole numbers up to 2^34: their sums are exact.
inline vd weights_of(vf scaled) {
    const vd ROUNDING = 6755399441055744.0 - vd{};  // 1.5 * 2^52
    return (__builtin_convertvector(draw_exp(scaled), vd) * WHOLE + ROUNDING) - ROUNDING;
}

inline double weight_of(float scaled) { return weights_of(splat(scaled))[0]; }

inline double sum(vd v) {
    double total = 0.0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

struct Output {
    float logit;
    int32_t idx;
};

// The order in which filters take outputs.
inline bool is_before(Output a, Output b) { return a.logit > b.logit || (a.logit == b.logit && a.idx < b.idx); }

// One row, its logits [V] with minus infinity behind them to a whole vector, its largest logit and the last output that the
// filters keep. A row with logits that are not finite, minus infinity aside, `is_sound` not and nothing is drawn from it.
struct Row {
    const float* logits;
    int V;
    float top;
    int32_t top_idx;
    uint32_t place;
    bool is_sound, is_filtered;
    Output last;

    vf scaled(int v, float scale) const { return (load(logits + v) - splat(top)) * splat(scale); }
    float scaled_at(int v, float scale) const { return (logits[v] - top) * scale; }
    bool keeps(int v) const { return !is_filtered || !is_before(last, {logits[v], v}); }

    // Which of LANES outputs from v on are kept.
    vi kept(int v) const {
        const vf some = load(logits + v);
        vi idx;
        for (int i = 0; i < LANES; i++) idx[i] = v + i;
        return (vi)(some > splat(last.logit)) | ((vi)(some == splat(last.logit)) & (vi)(idx <= last.idx));
    }
};

// What a thread works in: `outputs` has room for V.
struct DrawRoom {
    Row* rows;
    double* bins;
    Output* outputs;

    static size_t row_floats(int M) { return (size_t(M) * sizeof(Row) + 63) / 64 * 16; }
    static size_t thread_floats(int V) { return 2 * NUM_BINS + 2 * size_t(padded(V)); }
    DrawRoom(const Draw& draw, int M, int V, int thread) {
        rows = (Row*)draw.scratch;
        bins = (double*)(draw.scratch + row_floats(M) + thread * thread_floats(V));
        outputs = (Output*)(bins + NUM_BINS);
    }
};

// The first `count` of a row's outputs in their order.
inline void first_outputs(const Row& row, int count, Output* outputs) {
    int v = 0;
    for (; v < count; v++) outputs[v] = {row.logits[v], v};
    std::make_heap(outputs, outputs + count, is_before);  // the last of them first
    const auto take = [&](int v) {
        const Output output{row.logits[v], v};
        if (!is_before(output, outputs[0])) return;
        std::pop_heap(outputs, outputs + count, is_before);
        outputs[count - 1] = output;
        std::push_heap(outputs, outputs + count, is_before);
    };
    for (; v % LANES && v < row.V; v++) take(v);
    for (; v < row.V; v += LANES)
        if (any((vi)(load(row.logits + v) > splat(outputs[0].logit))))
            for (int i = 0; i < LANES && v + i < row.V; i++) take(v + i);
    std::sort_heap(outputs, outputs + count, is_before);
}

// The last of the fewest outputs, the first in their order, whose weights reach `least`, which those of all do: outputs are
// counted into bins of logits, and only those of the bin where the sum comes to `least` are sorted. Outputs of less weight than
// `skipped` are none of them.
inline Output last_by_mass(const Row& row, float scale, double least, double skipped, const DrawRoom& room) {
    const auto bin_of = [&](vf scaled) { return __builtin_convertvector(scaled * -BINS_PER_NAT, vi); };
    const auto is_counted = [&](vf scaled) {
        return (vi)(scaled > splat(-24.9f)) & (vi)(draw_exp(scaled) * float(WHOLE) >= splat(float(skipped)));
    };
    std::fill(room.bins, room.bins + NUM_BINS, 0.0);
    for (int v = 0; v < row.V; v += LANES) {
        const vf scaled = row.scaled(v, scale);
        const vi counted = is_counted(scaled);
        if (!any(counted)) continue;
        const vi bins = bin_of(scaled);
        const vd weights = weights_of(scaled);
        for (int i = 0; i < LANES; i++)
            if (counted[i]) room.bins[bins[i]] += weights[i];
    }
    double mass = 0.0;
    int bin = 0, last_bin = 0, count = 0;
    for (; bin < NUM_BINS; bin++) {
        if (room.bins[bin] > 0.0) last_bin = bin;
        if (mass + room.bins[bin] >= least) break;
        mass += room.bins[bin];
    }
    if (bin == NUM_BINS) bin = last_bin;
    for (int v = 0; v < row.V; v += LANES) {
        const vf scaled = row.scaled(v, scale);
        const vi found = is_counted(scaled) & (vi)(bin_of(scaled) == bin);
        if (!any(found)) continue;
        for (int i = 0; i < LANES; i++)
            if (found[i]) room.outputs[count++] = {row.logits[v + i], v + i};
    }
    std::sort(room.outputs, room.outputs + count, is_before);
    int idx = 0;
    for (; idx < count - 1; idx++) {
        mass += weight_of(row.scaled_at(room.outputs[idx].idx, scale));
        if (mass >= least) break;
    }
    return room.outputs[idx];
}

// Which outputs the filters keep, told by the last of them.
inline Output last_kept(const Draw& draw, const Row& row, const DrawRoom& room) {
    Output last{-INFINITY, INT_MAX};
    if (draw.top_k && draw.top_k < row.V) {
        first_outputs(row, draw.top_k, room.outputs);
        int count = draw.top_k;
        if (draw.top_p < 1.0) {
            double total = 0.0, mass = 0.0;
            for (int i = 0; i < count; i++) total += weight_of(row.scaled_at(room.outputs[i].idx, draw.scale));
            for (int i = 0; i < count; i++) {
                mass += weight_of(row.scaled_at(room.outputs[i].idx, draw.scale));
                if (mass >= draw.top_p * total) count = i + 1;
            }
        }
        last = room.outputs[count - 1];
    } else if (draw.top_p < 1.0) {
        vd total = {};
        for (int v = 0; v < row.V; v += LANES) total += weights_of(row.scaled(v, draw.scale));
        const double mass = sum(total);
        // all that is lighter is together less than what top-p leaves out
        const double skipped = draw.top_p < 1.0 - 1e-6 ? 0.99 * (1.0 - draw.top_p) * mass / row.V : 0.0;
        last = last_by_mass(row, draw.scale, draw.top_p * mass, skipped, room);
    }
    if (draw.min_scaled > -INFINITY) {
        vf least = splat(INFINITY);
        for (int v = 0; v < row.V; v += LANES) {
            const vf some = load(row.logits + v);
            const vf kept = row.scaled(v, draw.scale) >= splat(draw.min_scaled) ? some : splat(INFINITY);
            least = kept < least ? kept : least;
        }
        Output by_min{INFINITY, INT_MAX};
        for (int i = 0; i < LANES; i++) by_min.logit = std::min(by_min.logit, least[i]);
        if (is_before(by_min, last)) last = by_min;
    }
    return last;
}

// The noise of output `idx`.
inline float noise_of(const Draw& draw, const Row& row, const int64_t* token_ids, int idx) {
    const uint32_t token_id = token_ids ? uint32_t(token_ids[idx]) : uint32_t(idx);
    uint32_t words[4];
    philox(draw.key, token_id / BLOCK_WORDS, row.place, words);
    return gumbel(words[token_id % BLOCK_WORDS]);
}

// The highest score, and who has it: the lowest output among equals.
struct Winner {
    float score;
    int32_t idx;
};

// The winner among outputs [lo, hi), lo a multiple of GROUP's blocks, and the row's largest logit. Noise is made only where it
// could win, and its logarithms are taken only where they must: -log(1 - w) is at least w, so noise is at most -log(w).
inline Winner winner_of(const Draw& draw, const Row& row, const int64_t* token_ids, int lo, int hi) {
    Winner best{noise_of(draw, row, token_ids, row.top_idx), row.top_idx};
    const auto scaled_at = [&](int v) {
        if (v >= hi) return splat(-INFINITY);
        const vf scaled = row.scaled(v, draw.scale);
        return row.is_filtered ? (row.kept(v) ? scaled : splat(-INFINITY)) : scaled;
    };
    const auto try_all = [&](vf scaled, vu words, int v) {
        const vf w = (__builtin_convertvector(words, vf) + 0.5f) * 0x1p-32f;
        const vi may_win = (vi)(w <= vexp(scaled - splat(best.score)) * 1.0001f) & (vi)(scaled > splat(-INFINITY));
        if (!any(may_win)) return;
        for (int i = 0; i < LANES; i++) {
            if (!may_win[i]) continue;
            const float score = scaled[i] + gumbel(words[i]);
            if (score > best.score || (score == best.score && v + i < best.idx)) best = {score, v + i};
        }
    };
    if (token_ids) {
        for (int v = lo; v < hi; v += LANES) {
            const vf scaled = scaled_at(v);
            if (!any((vi)(scaled > splat(best.score - MOST_NOISE)))) continue;
            vu words;
            words_of_tokens(draw.key, token_ids + v, hi - v, row.place, words);
            try_all(scaled, words, v);
        }
        return best;
    }
    for (int v = lo; v < hi; v += GROUP) {
        vf scaled[BLOCK_WORDS], most = splat(-INFINITY);
        for (int j = 0; j < BLOCK_WORDS; j++) {
            scaled[j] = scaled_at(v + j * LANES);
            most = scaled[j] > most ? scaled[j] : most;
        }
        if (!any((vi)(most > splat(best.score - MOST_NOISE)))) continue;
        vu words[BLOCK_WORDS];
        words_of_group(draw.key, uint32_t(v) / BLOCK_WORDS, row.place, words);
        for (int j = 0; j < BLOCK_WORDS; j++) try_all(scaled[j], words[j], v + j * LANES);
    }
    return best;
}

// What the tempered, filtered distribution gives output `idx`.
inline float chance_of(const Draw& draw, const Row& row, int idx) {
    vd total = {};
    for (int v = 0; v < row.V; v += LANES) {
        const vf scaled = row.scaled(v, draw.scale);
        total += weights_of(row.is_filtered ? (row.kept(v) ? scaled : splat(-INFINITY)) : scaled);
    }
    return float(weight_of(row.scaled_at(idx, draw.scale)) / sum(total));
}
}  // namespace
