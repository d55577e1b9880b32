/* Vectors of neurons, and the conversions between them that compilers do not find by themselves. */
#ifndef DSF_VECTORS_H
#define DSF_VECTORS_H

#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { PAD = 16 };   /* neurons in a vector; rows are multiples of this */

typedef int8_t bytes __attribute__((vector_size(16), aligned(16)));
typedef uint8_t unsigned_bytes __attribute__((vector_size(16), aligned(16)));
typedef int16_t shorts __attribute__((vector_size(32), aligned(32)));
typedef int32_t ints __attribute__((vector_size(64), aligned(64)));

/* Sign extension. GCC 12 makes five instructions of what processors have one for. */
static inline shorts widened(const void *weights) {
#ifdef __AVX2__
    return (shorts)_mm256_cvtepi8_epi16(_mm_load_si128(weights));
#else
    return __builtin_convertvector(*(const bytes *)weights, shorts);
#endif
}

#ifdef __AVX512BW__
typedef int16_t long_shorts __attribute__((vector_size(64), aligned(64)));
static inline long_shorts long_widened(const void *weights) {
    return (long_shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256(weights));
}
#else
typedef shorts long_shorts;
static inline long_shorts long_widened(const void *weights) { return widened(weights); }
#endif
enum { LONG = sizeof(long_shorts) / sizeof(int16_t) };   /* neurons in the longest vector that this processor adds */

static inline ints widened_sums(shorts sums) {
#ifdef __AVX512F__
    return (ints)_mm512_cvtepi16_epi32((__m256i)sums);
#else
    return __builtin_convertvector(sums, ints);
#endif
}

static int32_t row_of(int32_t size) { return (size + PAD - 1) / PAD * PAD; }

#endif
