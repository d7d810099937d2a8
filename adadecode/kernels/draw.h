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
typedef uint64_t vq __attribute__((vector_size(LANES * 4)));

// Products of 32 bits, each of an element's low half. What is in the high halves of the others does no harm.
inline vq multiply(vq x, uint32_t by) {
#if defined(__AVX512F__)
    return (vq)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(by));
#elif defined(__AVX2__)
    return (vq)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(by));
#else
    return (x & 0xffffffffu) * by;
#endif
}
inline uint64_t multiply(uint64_t x, uint32_t by) { return uint64_t(uint32_t(x)) * by; }

// The four words of Philox4x32-10 at counter (block, place, 0, 0), in the low halves of 64 bits: of one block, or of NUM
// vectors of them at once.
template <int NUM, class U>
INLINE inline void philox(const uint32_t* key, const U* blocks, uint32_t place, U (*words)[4]) {
    U a[NUM], b[NUM], c[NUM], d[NUM];
    each<NUM>([&](auto n) INLINE { a[n] = blocks[n], b[n] = U{} + place, c[n] = U{}, d[n] = U{}; });
    uint32_t first_key = key[0], second_key = key[1];
    for (int round = 0; round < 10; round++) {
        each<NUM>([&](auto n) INLINE {
            const U first = multiply(a[n], 0xd2511f53u), second = multiply(c[n], 0xcd9e8d57u);
            a[n] = (second >> 32) ^ (b[n] ^ first_key);
            b[n] = second;
            c[n] = (first >> 32) ^ (d[n] ^ second_key);
            d[n] = first;
        });
        first_key += 0x9e3779b9u;
        second_key += 0xbb67ae85u;
    }
    each<NUM>([&](auto n) INLINE { words[n][0] = a[n], words[n][1] = b[n], words[n][2] = c[n], words[n][3] = d[n]; });
}

// The words of GROUP consecutive tokens from the first of `block` on, in their order.
INLINE inline void words_of_group(const uint32_t* key, uint32_t block, uint32_t place, vu* words) {
    constexpr int HALF = LANES / 2;
    vq blocks[2], w[2][4];
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < HALF; i++) {
#if defined(__AVX512F__) || defined(__AVX2__)
            blocks[n][i] = block + n * HALF + (i % 2) * (HALF / 2) + i / 2;
#else
            blocks[n][i] = block + n * HALF + i;
#endif
        }
    philox<2>(key, blocks, place, w);
    // the four words of a block come side by side: of blocks in the order above that is the order of tokens
    for (int n = 0; n < 2; n++) {
#if defined(__AVX512F__)
        const __m512i ab = _mm512_mask_blend_epi32(0xaaaa, (__m512i)w[n][0], _mm512_slli_epi64((__m512i)w[n][1], 32));
        const __m512i cd = _mm512_mask_blend_epi32(0xaaaa, (__m512i)w[n][2], _mm512_slli_epi64((__m512i)w[n][3], 32));
        words[2 * n] = (vu)_mm512_unpacklo_epi64(ab, cd), words[2 * n + 1] = (vu)_mm512_unpackhi_epi64(ab, cd);
#elif defined(__AVX2__)
        const __m256i ab = _mm256_blend_epi32((__m256i)w[n][0], _mm256_slli_epi64((__m256i)w[n][1], 32), 0xaa);
        const __m256i cd = _mm256_blend_epi32((__m256i)w[n][2], _mm256_slli_epi64((__m256i)w[n][3], 32), 0xaa);
        words[2 * n] = (vu)_mm256_unpacklo_epi64(ab, cd), words[2 * n + 1] = (vu)_mm256_unpackhi_epi64(ab, cd);
#else
        for (int i = 0; i < 2 * LANES; i++) words[2 * n + i / LANES][i % LANES] = uint32_t(w[n][i % 4][i / 4]);
#endif
    }
}

inline uint32_t word_of(const uint32_t* key, uint32_t token_id, uint32_t place) {
    const uint64_t block = token_id / BLOCK_WORDS;
    uint64_t words[1][4];
    philox<1>(key, &block, place, words);
    return uint32_t(words[0][token_id % BLOCK_WORDS]);
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

// More than exp(x), for x from -80 to 80, and by less than a tenth: 2^k (1 + f) is at least 2^(k + f). Below, that of -80.
inline vf more_than_exp(vf x) {
    x = x > splat(-80.0f) ? x : splat(-80.0f);
    return (vf)__builtin_convertvector(x * 12102203.2f + 1065357000.0f, vi);
}

// The weights of LANES outputs that are `scaled` below the first, whole numbers up to 2^34: their sums are exact.
inline vd whole_weights(vf exps) {
    const vd ROUNDING = 6755399441055744.0 - vd{};  // 1.5 * 2^52
    return (__builtin_convertvector(exps, vd) * WHOLE + ROUNDING) - ROUNDING;
}
inline vd weights_of(vf scaled) { return whole_weights(draw_exp(scaled)); }

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
    bool is_lazy;  // top-p is not in `last`: who was drawn is asked whether it is among the first

    vf scaled(int v, float scale) const { return (load(logits + v) - splat(top)) * splat(scale); }
    float scaled_at(int v, float scale) const { return (logits[v] - top) * scale; }
    bool keeps(int v) const { return !is_filtered || !is_before(last, {logits[v], v}); }

    // Which of LANES outputs from v on come no later than `output` in the order of filters.
    vi up_to(int v, Output output) const {
        const vf some = load(logits + v);
        vi idx;
        for (int i = 0; i < LANES; i++) idx[i] = v + i;
        return (vi)(some > splat(output.logit)) | ((vi)(some == splat(output.logit)) & (vi)(idx <= output.idx));
    }

    // Which of LANES outputs from v on are kept.
    vi kept(int v) const { return up_to(v, last); }
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
    } else if (draw.top_p < 1.0 && !row.is_lazy) {
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
    return gumbel(word_of(draw.key, token_id, row.place));
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
        const vf least_w = __builtin_convertvector((vi)(words >> 1), vf) * 0x1p-31f;
        const vi may_win = (vi)(least_w <= more_than_exp(scaled - splat(best.score))) & (vi)(scaled > splat(-INFINITY));
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
            const vi may_win = (vi)(scaled > splat(best.score - MOST_NOISE));
            if (!any(may_win)) continue;
            vu words = {};
            for (int i = 0; i < std::min(hi - v, LANES); i++)
                if (may_win[i]) words[i] = word_of(draw.key, uint32_t(token_ids[v + i]), row.place);
            try_all(may_win ? scaled : splat(-INFINITY), words, v);
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

// Whether less than `top_p` of the mass is before `output`: told by bounds of it, which are cheap, unless it is too near.
inline bool is_within_top_p(const Row& row, float scale, double top_p, Output output) {
    // more than `more_than_exp` is over, and than float sums, and weights that are whole, are off
    constexpr double MOST_OVER = 1.1, ROUNDING = 1.01;
    const Output last{output.logit, output.idx - 1};
    vf most_total = {}, most_before = {};
    for (int v = 0; v < row.V; v += LANES) {
        const vf most = more_than_exp(row.scaled(v, scale));
        most_total += most;
        most_before += row.up_to(v, last) ? most : splat(0.0f);
    }
    if (sum(most_before) * ROUNDING < top_p * sum(most_total) / MOST_OVER) return true;
    if (sum(most_before) / MOST_OVER > top_p * sum(most_total) * ROUNDING) return false;
    vd total = {}, before = {};
    for (int v = 0; v < row.V; v += LANES) {
        const vf exps = draw_exp(row.scaled(v, scale));
        total += whole_weights(exps);
        before += whole_weights(row.up_to(v, last) ? exps : splat(0.0f));
    }
    return sum(before) < top_p * sum(total);
}

// Who is drawn under a top-p that is not in `row.last`, where `winner` would be without it: an output that top-p leaves out
// takes all behind it along, and what is left is drawn from again. So nothing is sorted, and one try is mostly enough.
inline int winner_under_top_p(const Draw& draw, Row row, const int64_t* token_ids, int winner) {
    while (!is_within_top_p(row, draw.scale, draw.top_p, {row.logits[winner], winner})) {
        row.is_filtered = true;
        row.last = {row.logits[winner], winner - 1};
        winner = winner_of(draw, row, token_ids, 0, row.V).idx;
    }
    return winner;
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
