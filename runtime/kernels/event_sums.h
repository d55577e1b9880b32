/* Sums of weights behind spikes, event by event.
 *
 * Every input that fires adds its row of weights. Neurons tend to fire in all ticks of a token or in none, so inputs are
 * sorted by the ticks in which they fire, and each row of weights is read once for up to PATTERN_TICKS ticks. int16 sums
 * hold SAFE_EVENTS weights of 8 bits and are then added to int32.
 */
#ifndef DSF_EVENT_SUMS_H
#define DSF_EVENT_SUMS_H

#include <stdint.h>
#include <string.h>
#include "vectors.h"

enum { TILE = 128,          /* neurons whose sums stay in registers while events are added */
       SAFE_EVENTS = 256,   /* 256 * 127 < 2^15 */
       PATTERN_TICKS = 4,   /* 15 patterns of ticks */
       CHUNK = 64 };        /* spikes that are sorted at once */

#ifdef __AVX512VBMI2__
#define EIGHT(n) n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7
static const uint8_t FIRST_NUMBERS[CHUNK] __attribute__((aligned(64))) = { EIGHT(0),  EIGHT(8),  EIGHT(16), EIGHT(24),
                                                                           EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56) };
#endif

/* Inputs of a block by the ticks in which they fire: bit t of a pattern is tick t of PATTERN_TICKS. */
typedef struct {
    uint16_t first[(1 << PATTERN_TICKS) + 1];   /* where each pattern's inputs begin, and the end */
    uint8_t inputs[SAFE_EVENTS + CHUNK];        /* and room for the last vector that is stored */
} events;

/* Inputs (at most SAFE_EVENTS) that fire, pattern after pattern, in order within each. */
static void sort_by_pattern(const uint8_t *spikes, int64_t row, int32_t ticks, int32_t inputs, events *found) {
    uint8_t pattern[SAFE_EVENTS] __attribute__((aligned(64)));
    memcpy(pattern, spikes, inputs);
    for (int32_t t = 1; t < ticks; t++)
        for (int32_t n = 0; n < inputs; n++) pattern[n] |= (uint8_t)(spikes[t * row + n] << t);
    found->first[0] = found->first[1] = 0;   /* pattern 0 fires in no tick */
#ifdef __AVX512VBMI2__
    uint16_t count = 0;
    memset(pattern + inputs, 0, (size_t)(-inputs & (CHUNK - 1)));
    for (int32_t which = 1; which < 1 << PATTERN_TICKS; which++) {
        for (int32_t n = 0; n < inputs; n += CHUNK) {
            const __m512i patterns = _mm512_load_si512(pattern + n);
            const __mmask64 fire = _mm512_cmpeq_epi8_mask(patterns, _mm512_set1_epi8((char)which));
            const __m512i numbers = _mm512_add_epi8(_mm512_load_si512(FIRST_NUMBERS), _mm512_set1_epi8((char)n));
            _mm512_storeu_si512(found->inputs + count, _mm512_maskz_compress_epi8(fire, numbers));
            count += (uint16_t)__builtin_popcountll(fire);
        }
        found->first[which + 1] = count;
    }
#else
    uint8_t fired[SAFE_EVENTS];
    uint16_t next[1 << PATTERN_TICKS] = { 0 };
    int32_t count = 0;
    for (int32_t n = 0; n < inputs; n += 8) {   /* inputs is a whole number of rows */
        uint64_t eight;
        memcpy(&eight, pattern + n, 8);
        while (eight) {
            const int32_t byte = __builtin_ctzll(eight) >> 3;
            fired[count++] = (uint8_t)(n + byte);
            next[pattern[n + byte]]++;
            eight &= ~(255ull << 8 * byte);
        }
    }
    for (int32_t which = 1; which < 1 << PATTERN_TICKS; which++) {
        found->first[which + 1] = found->first[which] + next[which];
        next[which] = found->first[which];
    }
    for (int32_t i = 0; i < count; i++) found->inputs[next[pattern[fired[i]]]++] = fired[i];
#endif
}

/* What happens to a block's sums: the first block writes them, others add to what is there, the last one shifts. */
typedef struct { int32_t is_first, is_last, exponent; } turn;

static inline ints settled(ints sums, const ints *there, turn now) {
    if (!now.is_first) sums += *there;
    if (!now.is_last) return sums;
    return now.exponent >= 0 ? sums << now.exponent : sums >> -now.exponent;
}

/* Add the weights of a block's events to LONG * VECTORS neurons of up to PATTERN_TICKS ticks. An input that fires in
 * several ticks is read once. Inlined, so that sums stay in registers for a constant number of vectors. */
static inline __attribute__((always_inline)) void add_events(
    const events *found, const int8_t *weights, int64_t row, int32_t ticks, turn now, int32_t *out, const int32_t vectors) {
    long_shorts sums[PATTERN_TICKS][TILE / LONG];
    memset(sums, 0, sizeof sums);
    for (int32_t which = 1; which < 1 << ticks; which++) {
        const uint8_t *input = found->inputs + found->first[which], *end = found->inputs + found->first[which + 1];
        if (input == end) continue;
        long_shorts shared[TILE / LONG] = { { 0 } };
        for (; input < end; input++) {
            const int8_t *w = weights + *input * row;
            for (int32_t i = 0; i < vectors; i++) shared[i] += long_widened(w + i * LONG);
        }
        for (int32_t t = 0; t < PATTERN_TICKS; t++)
            if (which >> t & 1)
                for (int32_t i = 0; i < vectors; i++) sums[t][i] += shared[i];
    }
    for (int32_t t = 0; t < ticks; t++)
        for (int32_t i = 0; i < vectors * (LONG / PAD); i++) {
            const shorts part = ((const shorts *)sums[t])[i];
            ints *there = (ints *)(out + t * row + i * PAD);
            *there = settled(widened_sums(part), there, now);
        }
}

/* The same for PAD neurons, where a row ends in the middle of a long vector. */
static void add_few_events(
    const events *found, const int8_t *weights, int64_t row, int32_t ticks, turn now, int32_t *out) {
    for (int32_t t = 0; t < ticks; t++) {
        shorts sums = { 0 };
        for (int32_t which = 1; which < 1 << ticks; which++)
            if (which >> t & 1)
                for (int32_t e = found->first[which]; e < found->first[which + 1]; e++)
                    sums += widened(weights + found->inputs[e] * row);
        ints *there = (ints *)(out + t * row);
        *there = settled(widened_sums(sums), there, now);
    }
}

/* Sums behind the spikes of all elements: for a block of inputs and a few ticks at a time, so that int16 holds them, and
 * tile by tile, so that a block's weights stay in the first-level cache while all elements use them.
 *
 * spikes is (elements, ticks, row of inputs), weights (inputs, row), out (elements, ticks, row); exponent is the power of
 * two on every sum, and found has room for one entry per element. */
static void sum_events(const uint8_t *spikes, const int8_t *weights, int32_t inputs, int32_t outputs, int32_t ticks,
                       int32_t exponent, int32_t elements, events *found, int32_t *out) {
    const int64_t row = row_of(outputs), source_row = row_of(inputs);
    const int64_t step = ticks * row, source_step = ticks * source_row;   /* from element to element */
    for (int32_t first = 0; first < source_row; first += SAFE_EVENTS)
        for (int32_t tick = 0; tick < ticks; tick += PATTERN_TICKS) {
            const int32_t some = source_row - first < SAFE_EVENTS ? (int32_t)source_row - first : SAFE_EVENTS;
            const int32_t few = ticks - tick < PATTERN_TICKS ? ticks - tick : PATTERN_TICKS;
            const turn now = { first == 0, first + SAFE_EVENTS >= source_row, exponent };
            const uint8_t *fire = spikes + tick * source_row + first;
            const int8_t *w = weights + first * row;
            int32_t *sums = out + tick * row;
            int32_t tile = 0;
            for (int32_t k = 0; k < elements; k++)
                sort_by_pattern(fire + k * source_step, source_row, few, some, found + k);
            for (; tile + TILE <= row; tile += TILE)
                for (int32_t k = 0; k < elements; k++)
                    add_events(found + k, w + tile, row, few, now, sums + k * step + tile, TILE / LONG);
            for (; tile + LONG <= row; tile += LONG)
                for (int32_t k = 0; k < elements; k++)
                    add_events(found + k, w + tile, row, few, now, sums + k * step + tile, 1);
            for (; tile < row; tile += PAD)
                for (int32_t k = 0; k < elements; k++)
                    add_few_events(found + k, w + tile, row, few, now, sums + k * step + tile);
        }
}

#endif
