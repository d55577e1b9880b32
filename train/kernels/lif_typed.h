/* The kernels for one combination of types; lif_kernels.c includes this once per combination. */

typedef struct {
    REAL threshold, half_width, slope;
} NAME(Neuron);

/* ``partial`` is zeroed scratch space, (2 * chunks of rows, channels), here and below, but for backward_sums.
 * Sum and squared deviations of every channel over all rows of (rows, channels): mean and m2 = sum (y - mean)^2. */
void NAME(moments)(const CURRENT *restrict y, double *restrict mean, double *restrict m2, REAL *restrict partial,
                   int64_t rows, int64_t channels, int threads) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        const int64_t first = k * CHUNK, last = first + CHUNK < rows ? first + CHUNK : rows;
        const CURRENT *origin = y + first * channels; /* shifting by a sample keeps the squares small */
        REAL *sum = partial + 2 * k * channels, *square = sum + channels;
        for (int64_t c = 0; c < channels; c++) sum[c] = square[c] = 0;
        for (int64_t r = first; r < last; r++) {
            const CURRENT *row = y + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                const REAL d = (REAL)LOAD(row[c]) - (REAL)LOAD(origin[c]);
                sum[c] += d;
                square[c] += d * d;
            }
        }
    }
    for (int64_t c = 0; c < channels; c++) mean[c] = m2[c] = 0;
    for (int64_t k = 0; k < chunks; k++) { /* Chan et al. 1983: merge the chunks' means and squared deviations */
        const int64_t first = k * CHUNK, size = rows - first < CHUNK ? rows - first : CHUNK;
        const REAL *sum = partial + 2 * k * channels, *square = sum + channels;
        for (int64_t c = 0; c < channels; c++) {
            const double here = (double)LOAD(y[first * channels + c]) + sum[c] / (double)size;
            const double spread = square[c] - (double)sum[c] * sum[c] / size, gap = here - mean[c];
            m2[c] += spread + gap * gap * ((double)first * size / (first + size));
            mean[c] += gap * size / (first + size);
        }
    }
}

void NAME(forward)(const CURRENT *restrict y, const REAL *restrict scale, const REAL *restrict shift,
                   const REAL *restrict decay, SPIKE *restrict spikes, int64_t ticks, int64_t rows, int64_t channels,
                   REAL threshold, int threads) {
    const int64_t plane = rows * channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c0 = 0; c0 < channels; c0 += LANES) {
            const int64_t n = channels - c0 < LANES ? channels - c0 : LANES;
            REAL v[LANES] = {0};
            for (int64_t t = 0; t < ticks; t++) {
                const int64_t at = t * plane + r * channels + c0;
                for (int64_t c = 0; c < n; c++) {
                    const REAL m =
                        decay[c0 + c] * v[c] + (scale[c0 + c] * (REAL)LOAD(y[at + c]) + shift[c0 + c]);
                    const int fired = m > threshold;
                    spikes[at + c] = STORE_SPIKE(fired ? (REAL)1 : (REAL)0);
                    v[c] = fired ? (REAL)0 : m;
                }
            }
        }
}

/* Gradient of the loss to x for one row and up to LANES channels, ticks running backwards, into g (ticks, LANES). */
NEVER_INLINE static void NAME(row_gradient)(const CURRENT *restrict y, const REAL *restrict scale,
                                            const REAL *restrict shift, const REAL *restrict decay,
                                            const SPIKE *restrict grad, REAL *restrict g, int64_t ticks, int64_t plane,
                                            int64_t n, const NAME(Neuron) *neuron) {
    REAL carry[LANES] = {0};
    const REAL threshold = neuron->threshold; /* in registers: g may not alias them */
    const REAL half_width = neuron->half_width, height = neuron->slope;
    for (int64_t t = 0; t < ticks; t++) /* membranes before reset, into g */
        for (int64_t c = 0; c < n; c++) {
            const REAL m = decay[c] * carry[c] + (scale[c] * (REAL)LOAD(y[t * plane + c]) + shift[c]);
            g[t * LANES + c] = m;
            carry[c] = m > threshold ? (REAL)0 : m;
        }
    for (int64_t c = 0; c < n; c++) carry[c] = 0;
    for (int64_t t = ticks - 1; t >= 0; t--)
        for (int64_t c = 0; c < n; c++) {
            const REAL m = g[t * LANES + c], distance = m - threshold;
            const REAL near = distance < 0 ? -distance : distance;
            const REAL slope = near < half_width ? height : (REAL)0;
            const REAL kept = m > threshold ? (REAL)0 : decay[c];
            carry[c] = slope * (REAL)LOAD_SPIKE(grad[t * plane + c]) + kept * carry[c];
            g[t * LANES + c] = carry[c];
        }
}

/* Adds the gradient to the decays, sum over ticks of g[t] * v[t-1], for that row; g is row_gradient's. */
NEVER_INLINE static void NAME(row_decays)(const CURRENT *restrict y, const REAL *restrict scale,
                                          const REAL *restrict shift, const REAL *restrict decay,
                                          const REAL *restrict g, REAL *restrict decays, int64_t ticks, int64_t plane,
                                          int64_t n, REAL threshold) {
    REAL v[LANES] = {0};
    for (int64_t t = 0; t < ticks; t++)
        for (int64_t c = 0; c < n; c++) {
            const REAL m = decay[c] * v[c] + (scale[c] * (REAL)LOAD(y[t * plane + c]) + shift[c]);
            decays[c] += g[t * LANES + c] * v[c];
            v[c] = m > threshold ? (REAL)0 : m;
        }
}

/* Per channel: sum of g and sum of g * (y - centre), what a batch norm's own gradient needs; and where decays are learned
 * (``sum_gv`` is no NULL) sum of g[t] * v[t-1], the gradient to them. ``partial`` is (3 * chunks of rows, channels). */
NEVER_INLINE static void NAME(sums)(
    const CURRENT *restrict y, const REAL *restrict scale, const REAL *restrict shift, const REAL *restrict decay,
    const REAL *restrict centre, const SPIKE *restrict grad, double *restrict sum_g, double *restrict sum_gy,
    double *restrict sum_gv, REAL *restrict partial, int64_t ticks, int64_t rows, int64_t channels, REAL threshold,
    REAL half_width, REAL slope, int threads) {
    const NAME(Neuron) neuron = {threshold, half_width, slope};
    const int64_t plane = rows * channels, chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        const int64_t last = (k + 1) * CHUNK < rows ? (k + 1) * CHUNK : rows;
        REAL g[ticks * LANES];
        for (int64_t r = k * CHUNK; r < last; r++)
            for (int64_t c0 = 0; c0 < channels; c0 += LANES) {
                const int64_t n = channels - c0 < LANES ? channels - c0 : LANES, at = r * channels + c0;
                REAL *sum = partial + 3 * k * channels + c0, *product = sum + channels;
                NAME(row_gradient)(y + at, scale + c0, shift + c0, decay + c0, grad + at, g, ticks, plane, n, &neuron);
                if (sum_gv)
                    NAME(row_decays)(y + at, scale + c0, shift + c0, decay + c0, g, product + channels, ticks, plane, n,
                                     threshold);
                for (int64_t t = 0; t < ticks; t++)
                    for (int64_t c = 0; c < n; c++) {
                        sum[c] += g[t * LANES + c];
                        product[c] += g[t * LANES + c] * ((REAL)LOAD(y[at + t * plane + c]) - centre[c0 + c]);
                    }
            }
    }
    for (int64_t c = 0; c < channels; c++) sum_g[c] = sum_gy[c] = 0;
    for (int64_t k = 0; k < chunks; k++)
        for (int64_t c = 0; c < channels; c++) {
            sum_g[c] += partial[3 * k * channels + c];
            sum_gy[c] += partial[(3 * k + 1) * channels + c];
        }
    if (!sum_gv) return;
    for (int64_t c = 0; c < channels; c++) sum_gv[c] = 0;
    for (int64_t k = 0; k < chunks; k++)
        for (int64_t c = 0; c < channels; c++) sum_gv[c] += partial[(3 * k + 2) * channels + c];
}

void NAME(backward_sums)(const CURRENT *restrict y, const REAL *restrict scale, const REAL *restrict shift,
                         const REAL *restrict decay, const REAL *restrict centre, const SPIKE *restrict grad,
                         double *restrict sum_g, double *restrict sum_gy, REAL *restrict partial, int64_t ticks,
                         int64_t rows, int64_t channels, REAL threshold, REAL half_width, REAL slope, int threads) {
    NAME(sums)(y, scale, shift, decay, centre, grad, sum_g, sum_gy, 0, partial, ticks, rows, channels, threshold,
               half_width, slope, threads);
}

void NAME(backward_decays)(const CURRENT *restrict y, const REAL *restrict scale, const REAL *restrict shift,
                           const REAL *restrict decay, const REAL *restrict centre, const SPIKE *restrict grad,
                           double *restrict sum_g, double *restrict sum_gy, double *restrict sum_gv,
                           REAL *restrict partial, int64_t ticks, int64_t rows, int64_t channels, REAL threshold,
                           REAL half_width, REAL slope, int threads) {
    NAME(sums)(y, scale, shift, decay, centre, grad, sum_g, sum_gy, sum_gv, partial, ticks, rows, channels, threshold,
               half_width, slope, threads);
}

/* grad_y = gain * g + offset + slant * (y - centre). */
void NAME(backward_apply)(const CURRENT *restrict y, const REAL *restrict scale, const REAL *restrict shift,
                          const REAL *restrict decay, const REAL *restrict centre, const REAL *restrict gain,
                          const REAL *restrict offset, const REAL *restrict slant, const SPIKE *restrict grad,
                          CURRENT *restrict grad_y, int64_t ticks, int64_t rows, int64_t channels, REAL threshold,
                          REAL half_width, REAL slope, int threads) {
    const NAME(Neuron) neuron = {threshold, half_width, slope};
    const int64_t plane = rows * channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        REAL g[ticks * LANES];
        for (int64_t c0 = 0; c0 < channels; c0 += LANES) {
            const int64_t n = channels - c0 < LANES ? channels - c0 : LANES, at = r * channels + c0;
            NAME(row_gradient)(y + at, scale + c0, shift + c0, decay + c0, grad + at, g, ticks, plane, n, &neuron);
            for (int64_t t = 0; t < ticks; t++)
                for (int64_t c = 0; c < n; c++) {
                    const REAL deviation = (REAL)LOAD(y[at + t * plane + c]) - centre[c0 + c];
                    grad_y[at + t * plane + c] =
                        STORE(gain[c0 + c] * g[t * LANES + c] + offset[c0 + c] + slant[c0 + c] * deviation);
                }
        }
    }
}

/* The same two steps for a batch norm without a neuron behind it: g is the gradient itself, over (rows, channels). */
void NAME(affine_sums)(const CURRENT *restrict y, const REAL *restrict centre, const SPIKE *restrict grad,
                       double *restrict sum_g, double *restrict sum_gy, REAL *restrict partial, int64_t rows,
                       int64_t channels, int threads) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        const int64_t last = (k + 1) * CHUNK < rows ? (k + 1) * CHUNK : rows;
        REAL *sum = partial + 2 * k * channels, *product = sum + channels;
        for (int64_t r = k * CHUNK; r < last; r++)
            for (int64_t c = 0; c < channels; c++) {
                const REAL g = LOAD_SPIKE(grad[r * channels + c]);
                sum[c] += g;
                product[c] += g * ((REAL)LOAD(y[r * channels + c]) - centre[c]);
            }
    }
    for (int64_t c = 0; c < channels; c++) sum_g[c] = sum_gy[c] = 0;
    for (int64_t k = 0; k < chunks; k++)
        for (int64_t c = 0; c < channels; c++) {
            sum_g[c] += partial[2 * k * channels + c];
            sum_gy[c] += partial[(2 * k + 1) * channels + c];
        }
}

void NAME(affine_apply)(const CURRENT *restrict y, const REAL *restrict centre, const REAL *restrict gain,
                        const REAL *restrict offset, const REAL *restrict slant, const SPIKE *restrict grad,
                        CURRENT *restrict grad_y, int64_t rows, int64_t channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c++) {
            const REAL deviation = (REAL)LOAD(y[r * channels + c]) - centre[c];
            const REAL g = LOAD_SPIKE(grad[r * channels + c]);
            grad_y[r * channels + c] = STORE(gain[c] * g + offset[c] + slant[c] * deviation);
        }
}

#undef NAME
#undef REAL
#undef CURRENT
#undef SPIKE
#undef LOAD
#undef STORE
#undef LOAD_SPIKE
#undef STORE_SPIKE
