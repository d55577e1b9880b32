/* Leaky integrate-and-fire neurons behind a per-channel affine map, forward and surrogate backward, for CPUs; and the
 * backward pass of that map alone.
 *
 *   x = scale * y + shift          (the affine map is a batch norm whose statistics are known)
 *   m[t] = decay * v[t-1] + x[t]   s[t] = m[t] > threshold   v[t] = m[t] * (1 - s[t])   v[-1] = 0
 *
 * Every channel has a decay of its own; where all have one, the vector holds it so many times.
 *
 * Backward recomputes m from y, so that no membrane and no mask is ever stored; the reset is detached, and the
 * surrogate is snnTorch-style: ds/dm = slope where |m - threshold| < half_width.
 *
 * Arrays are (ticks, rows, channels), C order. Sums run over fixed chunks of rows that are added in order, so a result
 * never depends on the number of threads. Compiled without floating-point contraction: rounding is snnTorch's.
 */
#include <stdint.h>

enum { LANES = 64,      /* channels whose membranes stay in registers and in the first-level cache */
       CHUNK = 32 };    /* rows behind one partial sum; CHUNK_ROWS in native.py */

#define NEVER_INLINE __attribute__((noinline)) /* each copy takes the compiler seconds, and a call nothing beside a row */

typedef uint16_t bfloat16;

static inline float float_of_bfloat16(bfloat16 x) {
    union { uint32_t bits; float value; } u = { (uint32_t)x << 16 };
    return u.value;
}

static inline bfloat16 bfloat16_of_float(float x) {   /* round to nearest, ties to even; NaN stays NaN */
    union { float value; uint32_t bits; } u = { x };
    return x != x ? 0x7fc0 : (bfloat16)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}

#define SAME(x) (x)

#define NAME(f) f##_float32
#define REAL float
#define CURRENT float
#define SPIKE float
#define LOAD SAME
#define STORE SAME
#define LOAD_SPIKE SAME
#define STORE_SPIKE SAME
#include "lif_typed.h"

#define NAME(f) f##_float64
#define REAL double
#define CURRENT double
#define SPIKE double
#define LOAD SAME
#define STORE SAME
#define LOAD_SPIKE SAME
#define STORE_SPIKE SAME
#include "lif_typed.h"

#define NAME(f) f##_float32_bfloat16
#define REAL float
#define CURRENT float
#define SPIKE bfloat16
#define LOAD SAME
#define STORE SAME
#define LOAD_SPIKE float_of_bfloat16
#define STORE_SPIKE bfloat16_of_float
#include "lif_typed.h"

#define NAME(f) f##_bfloat16
#define REAL float
#define CURRENT bfloat16
#define SPIKE bfloat16
#define LOAD float_of_bfloat16
#define STORE bfloat16_of_float
#define LOAD_SPIKE float_of_bfloat16
#define STORE_SPIKE bfloat16_of_float
#include "lif_typed.h"
