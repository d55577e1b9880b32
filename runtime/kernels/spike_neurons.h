/* Populations that fire, and counting what they do. */
/* trunc_to_zero(v * kept / 4096), as Lava; in two halves, so that no product leaves 32 bits (|v| < 2^23). */
static inline ints leaked(ints v, int32_t kept) {
    const ints sign = v >> 31, magnitude = (v ^ sign) - sign;
    const ints high = magnitude >> DECAY_BITS, low = magnitude & ((1 << DECAY_BITS) - 1);
    return ((high * kept + (low * kept >> DECAY_BITS)) ^ sign) - sign;
}

/* The same where each neuron keeps a share of its own. */
static inline ints leaked_each(ints v, ints kept) {
    const ints sign = v >> 31, magnitude = (v ^ sign) - sign;
    const ints high = magnitude >> DECAY_BITS, low = magnitude & ((1 << DECAY_BITS) - 1);
    return ((high * kept + (low * kept >> DECAY_BITS)) ^ sign) - sign;
}

static inline ints clipped(ints v) {
    const ints above = v > MEMBRANE_LIMIT, below = v < -MEMBRANE_LIMIT;
    return (v & ~(above | below)) | (above & MEMBRANE_LIMIT) | (below & -MEMBRANE_LIMIT);
}

/* What is true of each of PAD neurons, and what follows from it: bits where the processor has registers of them. */
#ifdef __AVX512F__
typedef __mmask16 truths;
static inline truths is_above(ints a, ints b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
static inline truths is_active(ints a, ints b, ints c) {
    return _mm512_test_epi32_mask((__m512i)(a | b | c), (__m512i)(a | b | c));
}
static inline ints cleared(ints v, truths where) { return (ints)_mm512_mask_mov_epi32((__m512i)v, where, _mm512_setzero_si512()); }
static inline ints counted_on(ints total, truths where) {
    return (ints)_mm512_mask_sub_epi32((__m512i)total, where, (__m512i)total, _mm512_set1_epi32(-1));
}
#else
typedef ints truths;
static inline truths is_above(ints a, ints b) { return a > b; }
static inline truths is_active(ints a, ints b, ints c) { return (a | b | c) != 0; }
static inline ints cleared(ints v, truths where) { return v & ~where; }
static inline ints counted_on(ints total, truths where) { return total - where; }
#endif

static inline void store_spikes(uint8_t *to, truths where) {
#if defined __AVX512BW__ && defined __AVX512VL__
    _mm_store_si128((__m128i *)to, _mm_maskz_mov_epi8(where, _mm_set1_epi8(1)));
#elif defined __AVX512F__
    _mm_store_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_maskz_set1_epi32(where, 1)));
#else
    *(bytes *)to = __builtin_convertvector(where & 1, bytes);
#endif
}

enum { ANY_LEAK, POWER_LEAK, OWN_LEAK };   /* the share of the membrane that is kept; each neuron its own */

/* A tile of PAD neurons in all elements, so that what is counted stays in registers. Inlined for constants. Where all
 * neurons have a bias, every update is active. */
static inline __attribute__((always_inline)) void fire_tile(
    const node *n, const int32_t *currents, int32_t tile, int32_t elements, int32_t ticks, const int32_t leak,
    const int32_t saturates, const int32_t biased) {
    const int32_t row = row_of(n->size), kept = n->kept;
    const int32_t shift = leak == POWER_LEAK ? DECAY_BITS - __builtin_ctz((uint32_t)kept) : 0, towards_zero = (1 << shift) - 1;
    const ints bias = *(const ints *)(n->bias + tile), threshold = *(const ints *)(n->threshold + tile);
    ints fired = *(ints *)(n->recent + tile), active = *(ints *)(n->recent + row + tile);
    const ints own = leak == OWN_LEAK ? *(const ints *)(n->kepts + tile) : bias;
    uint8_t *values = n->values;
    int64_t at = tile;
    for (int32_t k = 0; k < elements; k++) {
        ints v = { 0 };
        for (int32_t t = 0; t < ticks; t++, at += row) {
            const ints current = *(const ints *)(currents + at);
            if (!biased) active = counted_on(active, is_active(v, current, bias));
            if (t > 0) v = leak == POWER_LEAK ? (v + (v >> 31 & towards_zero)) >> shift
                         : leak == OWN_LEAK ? leaked_each(v, own) : leaked(v, kept);
            v += current * (1 << FRACTION_BITS) + bias;
            if (saturates) v = clipped(v);   /* elsewhere the overflow proof holds */
            const truths spikes = is_above(v, threshold);
            v = cleared(v, spikes);
            fired = counted_on(fired, spikes);
            store_spikes(values + at, spikes);
        }
    }
    *(ints *)(n->recent + tile) = fired;
    *(ints *)(n->recent + row + tile) = biased ? active + elements * ticks : active;
}

static inline int32_t all_biased(const int32_t *bias) {
    int32_t all = 1;
    for (int32_t i = 0; i < PAD; i++) all &= bias[i] != 0;
    return all;
}

static inline __attribute__((always_inline)) void fire_as(
    const engine *e, const node *n, int32_t elements, int32_t ticks, const int32_t leak, const int32_t saturates) {
    const int32_t *currents = e->nodes[n->first_source].values;
    for (int32_t tile = 0; tile < row_of(n->size); tile += PAD)
        if (all_biased(n->bias + tile)) fire_tile(n, currents, tile, elements, ticks, leak, saturates, 1);
        else fire_tile(n, currents, tile, elements, ticks, leak, saturates, 0);
}

static void fire(const engine *e, const node *n, int32_t elements) {
    const int32_t power = n->kept && !(n->kept & (n->kept - 1));
    if (n->kepts) fire_as(e, n, elements, e->ticks, OWN_LEAK, n->saturates);
    else if (n->saturates) fire_as(e, n, elements, e->ticks, ANY_LEAK, 1);
    else if (!power) fire_as(e, n, elements, e->ticks, ANY_LEAK, 0);
    else if (e->ticks == USUAL_TICKS) fire_as(e, n, elements, USUAL_TICKS, POWER_LEAK, 0);   /* without a loop */
    else fire_as(e, n, elements, e->ticks, POWER_LEAK, 0);
}

/* Of what is not a LIF, which counts for itself. Sums of up to 255 rows fit in bytes. */
static void count_spikes(const node *n, int32_t rows) {
    const int32_t row = row_of(n->size);
    for (int32_t tile = 0; tile < row; tile += PAD)
        for (int32_t first = 0; first < rows; first += 255) {
            const int32_t end = first + 255 < rows ? first + 255 : rows;
            unsigned_bytes total = { 0 };
            for (int32_t r = first; r < end; r++)
                total += *(const unsigned_bytes *)((const uint8_t *)n->values + (int64_t)r * row + tile);
            *(ints *)(n->recent + tile) += __builtin_convertvector(total, ints);
        }
}
