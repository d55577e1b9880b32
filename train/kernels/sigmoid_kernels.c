/* Leaky integrate-and-fire neurons whose surrogate is a sigmoid's derivative (STRL's), forward and backward, for CPUs.
 *
 *   m[t] = decay * v[t-1] + gain * y[t]   s[t] = m[t] > threshold   v[t] = m[t] * (1 - s[t])   v[-1] = 0
 *   ds/dm = slope * p * (1 - p) with p = 1 / (1 + exp(-slope * (m - threshold))), the reset detached
 *
 * Backward recomputes m from y, so that no membrane and no mask is ever stored. Every element is a neuron of its own:
 * arrays are (ticks, size), and a tick stride of 0 stands for one (size,) that all ticks share. Compiled without
 * floating-point contraction: rounding is snnTorch's.
 */
#include <math.h>
#include <stdint.h>

enum { LANES = 64 };    /* neurons whose membranes stay in registers and in the first-level cache */

/* exp(x) for x <= 0, relative error below 1e-6, 0 below -87; plain arithmetic, so that the compiler vectorises it.
 * x = n ln 2 + r with |r| <= ln 2 / 2: n is rounded by adding 1.5 * 2^23, whose low bits then hold it. */
static inline float exp_float(float x) {
    const float shifted = x * 1.44269504f + 0x1.8p23f, n = shifted - 0x1.8p23f;
    const float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f; /* ln 2 in two parts, the first times n exactly */
    const union { float value; uint32_t bits; } rounded = { shifted };
    const union { uint32_t bits; float value; } power = { (rounded.bits << 23) + 0x3f800000u }; /* 2^n */
    float sum = 1.0f / 720.0f; /* Taylor's: the next term is 1.2e-7 at most */
    sum = sum * r + 1.0f / 120.0f;
    sum = sum * r + 1.0f / 24.0f;
    sum = sum * r + 1.0f / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return x < -87.0f ? 0.0f : sum * power.value;
}

#define NAME(f) f##_float32
#define REAL float
#define EXP exp_float
#include "sigmoid_typed.h"

#define NAME(f) f##_float64
#define REAL double
#define EXP exp
#include "sigmoid_typed.h"
