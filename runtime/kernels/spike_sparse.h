/* Sums behind spikes of a matrix most of whose weights are 0.
 *
 * The dense tiles of spike_sums.h add 32 neurons at a time, zeros among them. Here a weight that is not 0 has a slot: itself
 * and the place of its input. PAD neurons share a chunk of CHUNK_SLOTS slots each; the inputs of a chunk lie in a piece of
 * PIECE_INPUTS. One instruction fetches the spikes of 64 slots, another multiplies them by their weights and adds four at
 * a time to a neuron's sum of 32 bits.
 *
 * Chunks do not look at what fires, and tiles do not look at what is 0. Which of the two an element takes is a guess at
 * their times; the integers are the same. One weight at a time, behind each input that fires, would need no such
 * instructions: on the same processor it took 2 cycles for a weight of four ticks, and won only where 98 % are 0.
 */
#if defined __AVX512BW__ && defined __AVX512VBMI__ && defined __AVX512VNNI__

/* Times of a register of weights in the tiles, of an input that fires in all ticks and of another one; of a chunk; and of a
 * chunk where several elements share what tiles fetch. */
enum { STEADY_TIME = 3, VARYING_TIME = 9, CHUNK_TIME = 14, CHUNK_TIME_OF_MANY = 20 };

/* The first `count` bytes of 64, none where it is negative. */
static inline __m512i load_spikes(const uint8_t *from, int32_t count) {
    return count <= 0 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi8(count < SCAN ? (1ull << count) - 1 : ~0ull, from);
}

static inline __attribute__((always_inline)) void add_chunk(
    __m512i *sums, const int8_t *slots, const __m512i *low, const __m512i *high) {
    const __m512i place = _mm512_loadu_si512(slots), weight = _mm512_loadu_si512(slots + SCAN);
#pragma GCC unroll 4
    for (int32_t t = 0; t < PATTERN_TICKS; t++)
        sums[t] = _mm512_dpbusd_epi32(sums[t], _mm512_permutex2var_epi8(low[t], place, high[t]), weight);
}

/* Up to PATTERN_TICKS ticks of one element, times 2^exponent. */
static void sum_chunks(const node *n, const uint8_t *spikes, int32_t ticks, int32_t *out) {
    const int32_t row = row_of(n->size), source_row = row_of(n->inputs);
    const int32_t left = n->exponent > 0 ? n->exponent : 0, right = n->exponent < 0 ? -n->exponent : 0;
    const int8_t *slots = n->slots;
    const int32_t *chunks = n->chunks;
    for (int32_t tile = 0; tile < row; tile += PAD) {
        __m512i even[PATTERN_TICKS], odd[PATTERN_TICKS];   /* neither waits for the other */
#pragma GCC unroll 4
        for (int32_t t = 0; t < PATTERN_TICKS; t++) even[t] = odd[t] = _mm512_setzero_si512();
        for (int32_t first = 0; first < source_row; first += PIECE_INPUTS) {
            __m512i low[PATTERN_TICKS], high[PATTERN_TICKS];
#pragma GCC unroll 4
            for (int32_t t = 0; t < PATTERN_TICKS; t++) {
                const uint8_t *from = spikes + (int64_t)t * source_row + first;
                const int32_t count = t < ticks ? source_row - first : 0;
                low[t] = load_spikes(from, count);
                high[t] = load_spikes(from + SCAN, count - SCAN);
            }
            int32_t waiting = *chunks++;
            for (; waiting >= 2; waiting -= 2, slots += 4 * SCAN) {
                add_chunk(even, slots, low, high);
                add_chunk(odd, slots + 2 * SCAN, low, high);
            }
            if (waiting) {
                add_chunk(even, slots, low, high);
                slots += 2 * SCAN;
            }
        }
#pragma GCC unroll 4
        for (int32_t t = 0; t < PATTERN_TICKS; t++)
            if (t < ticks) *(ints *)(out + (int64_t)t * row + tile) = (ints)_mm512_add_epi32(even[t], odd[t]) << left >> right;
    }
}

/* Whether chunks should take less time than tiles for one element. */
static int32_t chunks_are_quicker(const engine *e, const node *n, const uint8_t *spikes, int32_t elements) {
    const int32_t source_row = row_of(n->inputs), registers = (row_of(n->size) + WIDE - 1) / WIDE;
    int64_t by_tiles = 0, by_chunks = 0;
    for (int32_t tick = 0; tick < e->ticks; tick += PATTERN_TICKS) {
        const int32_t ticks = e->ticks - tick < PATTERN_TICKS ? e->ticks - tick : PATTERN_TICKS;
        for (int32_t first = 0; first < source_row; first += SCAN) {
            const uint8_t *from = spikes + (int64_t)tick * source_row + first;
            __m512i any = _mm512_setzero_si512(), all = _mm512_set1_epi8(1);
            for (int32_t t = 0; t < ticks; t++) {
                const __m512i fires = load_spikes(from + (int64_t)t * source_row, source_row - first);
                any = _mm512_or_si512(any, fires);
                all = _mm512_and_si512(all, fires);
            }
            const int32_t steady = __builtin_popcountll(_mm512_test_epi8_mask(all, all));
            const int32_t varying = __builtin_popcountll(_mm512_test_epi8_mask(any, any)) - steady;
            by_tiles += (int64_t)registers * (STEADY_TIME * steady + VARYING_TIME * varying);
        }
        by_chunks += n->chunk_count * (elements > 1 ? CHUNK_TIME_OF_MANY : CHUNK_TIME);
    }
    return by_chunks < by_tiles;
}

/* Sums behind the spikes of some elements, times 2^exponent; neighbours that take tiles share them. */
static void sum_sparse(const engine *e, const node *n, const uint8_t *spikes, int32_t elements, int32_t *out) {
    const int32_t row = row_of(n->size), source_row = row_of(n->inputs);
    const int64_t step = (int64_t)e->ticks * source_row, size = (int64_t)e->ticks * row;
    int32_t start = 0;
    for (int32_t k = 0; k < elements; k++) {
        if (!n->only_chunks && !chunks_are_quicker(e, n, spikes + k * step, elements)) continue;
        sum_spikes(e, n, spikes + start * step, k - start, out + start * size);
        start = k + 1;
        for (int32_t tick = 0; tick < e->ticks; tick += PATTERN_TICKS)
            sum_chunks(n, spikes + k * step + (int64_t)tick * source_row,
                       e->ticks - tick < PATTERN_TICKS ? e->ticks - tick : PATTERN_TICKS, out + k * size + (int64_t)tick * row);
    }
    sum_spikes(e, n, spikes + start * step, elements - start, out + start * size);
}

int32_t dsf_takes_chunks(void) { return 1; }

#else

static void sum_sparse(const engine *e, const node *n, const uint8_t *spikes, int32_t elements, int32_t *out) {
    sum_spikes(e, n, spikes, elements, out);
}

int32_t dsf_takes_chunks(void) { return 0; }

#endif
