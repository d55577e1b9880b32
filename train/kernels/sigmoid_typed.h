/* The kernels for one type; sigmoid_kernels.c includes this once per type. */

void NAME(forward)(const REAL *restrict y, REAL *restrict spikes, int64_t ticks, int64_t size, int64_t y_stride,
                   REAL gain, REAL decay, REAL threshold, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < size; first += LANES) {
        const int64_t n = size - first < LANES ? size - first : LANES;
        REAL v[LANES] = {0};
        for (int64_t t = 0; t < ticks; t++) {
            const REAL *restrict now = y + t * y_stride + first;
            REAL *restrict fires = spikes + t * size + first;
            for (int64_t c = 0; c < n; c++) {
                const REAL m = decay * v[c] + gain * now[c];
                const int fired = m > threshold;
                fires[c] = fired ? (REAL)1 : (REAL)0;
                v[c] = fired ? (REAL)0 : m;
            }
        }
    }
}

/* grad_y has the ticks of y: where all ticks share one y, it is the sum of theirs. */
void NAME(backward)(const REAL *restrict y, const REAL *restrict grad, REAL *restrict grad_y, int64_t ticks,
                    int64_t size, int64_t y_stride, int64_t grad_stride, REAL slope, REAL gain, REAL decay,
                    REAL threshold, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < size; first += LANES) {
        const int64_t n = size - first < LANES ? size - first : LANES;
        REAL m[ticks * LANES], carry[LANES] = {0}, total[LANES] = {0};
        for (int64_t t = 0; t < ticks; t++) { /* membranes before reset */
            const REAL *restrict now = y + t * y_stride + first;
            for (int64_t c = 0; c < n; c++) {
                const REAL membrane = decay * carry[c] + gain * now[c];
                m[t * LANES + c] = membrane;
                carry[c] = membrane > threshold ? (REAL)0 : membrane;
            }
        }
        for (int64_t c = 0; c < n; c++) carry[c] = 0;
        for (int64_t t = ticks - 1; t >= 0; t--) {
            const REAL *restrict arriving = grad + t * grad_stride + first, *restrict membrane = m + t * LANES;
            for (int64_t c = 0; c < n; c++) {
                const REAL distance = membrane[c] - threshold, kept = membrane[c] > threshold ? (REAL)0 : decay;
                const REAL e = EXP(-slope * (distance < 0 ? -distance : distance)); /* p (1 - p) is even */
                carry[c] = slope * e / ((1 + e) * (1 + e)) * arriving[c] + kept * carry[c];
            }
            if (y_stride)
                for (int64_t c = 0; c < n; c++) grad_y[t * y_stride + first + c] = gain * carry[c];
            else
                for (int64_t c = 0; c < n; c++) total[c] += carry[c];
        }
        if (!y_stride)
            for (int64_t c = 0; c < n; c++) grad_y[first + c] = gain * total[c];
    }
}

#undef NAME
#undef REAL
#undef EXP
