/* Sums behind spikes: every input that fires adds its row of weights.
 *
 * Neurons tend to fire in all ticks of a token or in none, so each row of weights is read once for up to PATTERN_TICKS
 * ticks, and inputs that fire in all of them are added once. int16 sums hold SAFE_EVENTS weights of 8 bits and are then
 * added to int32: a block is SAFE_EVENTS inputs and PATTERN_TICKS ticks.
 *
 * Weights lie tile by tile, (tiles, inputs, neurons of the tile): of wide matrices, rows a power of two apart would
 * drive each other out of the first-level cache.
 *
 * Two ways to the same integers, chosen when this is compiled. A dense product with dot-product instructions (vpdpbusd)
 * would be a third: it does the work of four ticks for silent inputs too, and took 1.4 times as long as events on the
 * shipped network, with groups of inputs that are silent in a token left out (1.6 times without). It would win where
 * most inputs fire in some ticks of a token but not in all.
 */
static void shift_row(int32_t *values, int64_t size, int32_t exponent) {
    if (exponent > 0)
        for (int64_t n = 0; n < size; n++) values[n] = (int32_t)((uint32_t)values[n] << exponent);
    else if (exponent < 0)
        for (int64_t n = 0; n < size; n++) values[n] >>= -exponent;
}

/* Neurons of the tile that starts where so many remain in the row; fast_engine.py arranges weights accordingly. */
static int32_t tile_width(int32_t remaining) { return remaining >= TILE ? TILE : remaining >= NARROW_TILE ? NARROW_TILE : PAD; }

#ifdef __AVX512BW__

enum { GROUP = 16,            /* elements that share a tile of weights in the first-level cache */
       WIDE = NARROW_TILE,    /* int16 in a register */
       SCAN = 64 };           /* inputs whose spikes are in a register */

typedef struct {
    int32_t always, sometimes;                    /* inputs that fire in all ticks, and in some of them */
    uint8_t steady[SAFE_EVENTS + SCAN];           /* the former; registers are stored whole */
    uint8_t varying[SAFE_EVENTS + SCAN];          /* the latter, and their pattern: bit t is tick t */
    uint8_t pattern[SAFE_EVENTS + SCAN];
} events;

/* Append the bytes of `values` that `which` selects. */
static inline void append(uint8_t *to, __mmask64 which, __m512i values) {
#ifdef __AVX512VBMI2__
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(which, values));
#else
    uint8_t all[SCAN];
    _mm512_storeu_si512(all, values);
    for (uint64_t left = which; left; left &= left - 1) *to++ = all[__builtin_ctzll(left)];
#endif
}

/* Which inputs of a block fire, and when. */
static void find_events(const uint8_t *spikes, int64_t row, int32_t ticks, int32_t inputs, events *found) {
    static const uint8_t numbers[SCAN] = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
        32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63 };
    found->always = found->sometimes = 0;
    for (int32_t first = 0; first < inputs; first += SCAN) {
        const __mmask64 there = inputs - first < SCAN ? (1ull << (inputs - first)) - 1 : ~0ull;
        __m512i pattern = _mm512_setzero_si512();
        for (int32_t t = 0; t < ticks; t++) {
            const __m512i fires = _mm512_maskz_loadu_epi8(there, spikes + t * row + first);
            pattern = _mm512_or_si512(pattern, _mm512_slli_epi16(fires, t));   /* a spike is 1: none leaves its byte */
        }
        const __mmask64 any = _mm512_test_epi8_mask(pattern, pattern);
        const __mmask64 all = _mm512_cmpeq_epi8_mask(pattern, _mm512_set1_epi8((char)((1 << ticks) - 1)));
        const __m512i input = _mm512_add_epi8(_mm512_loadu_si512(numbers), _mm512_set1_epi8((char)first));
        append(found->steady + found->always, all, input);
        append(found->varying + found->sometimes, any & ~all, input);
        append(found->pattern + found->sometimes, any & ~all, pattern);
        found->always += (int32_t)__builtin_popcountll(all);
        found->sometimes += (int32_t)__builtin_popcountll(any & ~all);
    }
}

/* Of each pattern, the lanes to add to in each tick: all or none. */
#define LANES(pattern) { -(uint32_t)((pattern) & 1), -(uint32_t)((pattern) >> 1 & 1), -(uint32_t)((pattern) >> 2 & 1), -(uint32_t)((pattern) >> 3) }
static const uint32_t lanes_of[1 << PATTERN_TICKS][PATTERN_TICKS] = {
    LANES(0), LANES(1), LANES(2), LANES(3), LANES(4), LANES(5), LANES(6), LANES(7),
    LANES(8), LANES(9), LANES(10), LANES(11), LANES(12), LANES(13), LANES(14), LANES(15) };

/* Add the weights of a block's events to a tile of `width` neurons.
 * Without a branch per tick: which ticks an input fires in is as good as random. Inlined, so that sums stay in registers
 * for a constant width. */
static inline __attribute__((always_inline)) void add_events(
    const events *found, const int8_t *weights, int32_t ticks, int32_t *out, int64_t row, const int32_t width, int32_t add,
    int32_t left, int32_t right) {
    const int32_t vectors = (width + WIDE - 1) / WIDE;
    const __mmask32 there = width < WIDE ? (1u << width) - 1 : ~0u;
    __m512i sums[PATTERN_TICKS][TILE / WIDE], steady[TILE / WIDE];
#pragma GCC unroll 4
    for (int32_t i = 0; i < vectors; i++) steady[i] = _mm512_setzero_si512();
    for (int32_t e = 0; e < found->always; e++) {
        const int8_t *w = weights + found->steady[e] * width;
#pragma GCC unroll 4
        for (int32_t i = 0; i < vectors; i++)
            steady[i] = _mm512_add_epi16(steady[i], _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, w + i * WIDE)));
    }
#pragma GCC unroll 4
    for (int32_t t = 0; t < PATTERN_TICKS; t++)
#pragma GCC unroll 4
        for (int32_t i = 0; i < vectors; i++) sums[t][i] = steady[i];
    for (int32_t e = 0; e < found->sometimes; e++) {
        const int8_t *w = weights + found->varying[e] * width;
        const uint32_t *fires = lanes_of[found->pattern[e]];
#pragma GCC unroll 4
        for (int32_t i = 0; i < vectors; i++) {
            const __m512i weight = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, w + i * WIDE));
#pragma GCC unroll 4
            for (int32_t t = 0; t < PATTERN_TICKS; t++) sums[t][i] = _mm512_mask_add_epi16(sums[t][i], fires[t], sums[t][i], weight);
        }
    }
#pragma GCC unroll 4
    for (int32_t t = 0; t < PATTERN_TICKS; t++)
#pragma GCC unroll 4
        for (int32_t i = 0; i < vectors; i++)
#pragma GCC unroll 2
            for (int32_t half = 0; half < WIDE / PAD; half++) {
                if (t >= ticks || half * PAD >= width) continue;
                ints *to = (ints *)(out + t * row + i * WIDE + half * PAD);
                ints total = widened_sums((shorts)(half ? _mm512_extracti64x4_epi64(sums[t][i], 1) : _mm512_castsi512_si256(sums[t][i])));
                if (add) total += *to;
                if (left | right) total = total << left >> right;
                *to = total;
            }
}

/* Sums behind the spikes of some elements, times 2^exponent. A tile of weights serves GROUP elements at a time. */
static void sum_spikes(const engine *e, const node *n, const uint8_t *spikes, int32_t elements, int32_t *out) {
    const int32_t row = row_of(n->size), source_row = row_of(n->inputs);
    events found[GROUP];
    for (int32_t k = 0; k < elements; k += GROUP)
        for (int32_t tick = 0; tick < e->ticks; tick += PATTERN_TICKS)
            for (int32_t first = 0; first < source_row; first += SAFE_EVENTS) {
                const int32_t group = elements - k < GROUP ? elements - k : GROUP;
                const int32_t inputs = source_row - first < SAFE_EVENTS ? source_row - first : SAFE_EVENTS;
                const int32_t ticks = e->ticks - tick < PATTERN_TICKS ? e->ticks - tick : PATTERN_TICKS;
                const int32_t add = first > 0, last = first + SAFE_EVENTS >= source_row;
                const int32_t left = last && n->exponent > 0 ? n->exponent : 0, right = last && n->exponent < 0 ? -n->exponent : 0;
                const int64_t at = (int64_t)k * e->ticks + tick;
                for (int32_t g = 0; g < group; g++)
                    find_events(spikes + (at + (int64_t)g * e->ticks) * source_row + first, source_row, ticks, inputs, &found[g]);
                for (int32_t tile = 0, width; tile < row; tile += width) {
                    width = tile_width(row - tile);
                    const int8_t *weights = n->weights + (int64_t)tile * n->inputs + (int64_t)first * width;
                    for (int32_t g = 0; g < group; g++) {
                        int32_t *to = out + (at + (int64_t)g * e->ticks) * row + tile;
                        if (width == TILE) add_events(&found[g], weights, ticks, to, row, TILE, add, left, right);
                        else if (width == WIDE) add_events(&found[g], weights, ticks, to, row, WIDE, add, left, right);
                        else add_events(&found[g], weights, ticks, to, row, PAD, add, left, right);
                    }
                }
            }
}

#else

typedef struct {   /* inputs by the ticks in which they fire */
    int32_t count[1 << PATTERN_TICKS];
    uint16_t inputs[1 << PATTERN_TICKS][SAFE_EVENTS];
} patterns;

/* Inputs of a block by the ticks in which they fire: bit t of a pattern is tick t of PATTERN_TICKS. */
static void sort_by_pattern(const uint8_t *spikes, int64_t row, int32_t ticks, int32_t inputs, patterns *found) {
    uint8_t pattern[SAFE_EVENTS] __attribute__((aligned(64)));
    memcpy(pattern, spikes, inputs);
    for (int32_t t = 1; t < ticks; t++)
        for (int32_t n = 0; n < inputs; n++) pattern[n] |= (uint8_t)(spikes[t * row + n] << t);
    memset(found->count, 0, sizeof found->count);
    for (int32_t n = 0; n < inputs; n += 8) {   /* inputs is a whole number of rows */
        uint64_t eight;
        memcpy(&eight, pattern + n, 8);
        while (eight) {
            const int32_t byte = __builtin_ctzll(eight) >> 3, which = eight >> 8 * byte & 255;
            found->inputs[which][found->count[which]++] = (uint16_t)(n + byte);
            eight &= ~(255ull << 8 * byte);
        }
    }
}

/* Add the weights of a block's events to a tile of `width` neurons and up to PATTERN_TICKS ticks. An input that fires
 * in several ticks is read once. Inlined, so that sums stay in registers for a constant width. */
static inline __attribute__((always_inline)) void add_events(
    const patterns *found, const int8_t *weights, int32_t ticks, int32_t *out, int64_t row, const int32_t width) {
    const int32_t vectors = width / PAD;
    shorts sums[PATTERN_TICKS][TILE / PAD];
    memset(sums, 0, sizeof sums);
    for (int32_t which = 1; which < 1 << ticks; which++) {
        const int32_t count = found->count[which];
        if (!count) continue;
        shorts shared[TILE / PAD] = { { 0 } };
        for (int32_t e = 0; e < count; e++) {
            const int8_t *w = weights + found->inputs[which][e] * width;
            for (int32_t i = 0; i < vectors; i++) shared[i] += widened(w + i * PAD);
        }
        for (int32_t t = 0; t < ticks; t++)
            if (which >> t & 1)
                for (int32_t i = 0; i < vectors; i++) sums[t][i] += shared[i];
    }
    for (int32_t t = 0; t < ticks; t++)
        for (int32_t i = 0; i < vectors; i++)
            *(ints *)(out + t * row + i * PAD) += widened_sums(sums[t][i]);
}

static void sum_element(const engine *e, const node *n, const uint8_t *spikes, int32_t *out) {
    const int32_t row = row_of(n->size), source_row = row_of(n->inputs);
    memset(out, 0, sizeof(int32_t) * e->ticks * row);
    for (int32_t first = 0; first < source_row; first += SAFE_EVENTS)
        for (int32_t tick = 0; tick < e->ticks; tick += PATTERN_TICKS) {
            const int32_t inputs = source_row - first < SAFE_EVENTS ? source_row - first : SAFE_EVENTS;
            const int32_t ticks = e->ticks - tick < PATTERN_TICKS ? e->ticks - tick : PATTERN_TICKS;
            patterns found;
            sort_by_pattern(spikes + tick * source_row + first, source_row, ticks, inputs, &found);
            for (int32_t tile = 0, width; tile < row; tile += width) {
                width = tile_width(row - tile);
                const int8_t *weights = n->weights + (int64_t)tile * n->inputs + (int64_t)first * width;
                int32_t *to = out + tick * row + tile;
                if (width == TILE) add_events(&found, weights, ticks, to, row, TILE);
                else if (width == NARROW_TILE) add_events(&found, weights, ticks, to, row, NARROW_TILE);
                else add_events(&found, weights, ticks, to, row, PAD);
            }
        }
}

/* Sums behind the spikes of some elements, times 2^exponent. */
static void sum_spikes(const engine *e, const node *n, const uint8_t *spikes, int32_t elements, int32_t *out) {
    const int64_t step = (int64_t)e->ticks * row_of(n->inputs), size = (int64_t)e->ticks * row_of(n->size);
    for (int32_t k = 0; k < elements; k++) sum_element(e, n, spikes + k * step, out + k * size);
    shift_row(out, elements * size, n->exponent);
}

#endif
