/* Nodes that look back on earlier tokens. */
/* Where the remembered population's spikes (ticks, row) of element k and the tokens before it are; returns how many
 * there are, at most the node's reach. */
static int32_t look_back(const engine *e, const node *n, const node *source, int32_t k) {
    const int64_t block = (int64_t)e->ticks * row_of(source->size);
    const int32_t lane = e->lane_of[k];
    const int64_t before = e->window_mode ? e->before[k] : e->age[lane];
    const int32_t tokens = before + 1 < n->reach ? (int32_t)before + 1 : n->reach;
    int64_t slot = e->age[lane] % n->reach;
    for (int32_t lag = 0; lag < tokens; lag++) {
        if (e->window_mode) {
            e->pasts[lag] = (const uint8_t *)source->values + (k - lag) * block;
        } else {
            e->pasts[lag] = n->past + ((int64_t)lane * n->reach + slot) * block;
            slot = slot ? slot - 1 : n->reach - 1;
        }
    }
    return tokens;
}

static void remember(const engine *e, const node *n, const node *source, int32_t elements) {
    const int64_t block = (int64_t)e->ticks * row_of(source->size);
    for (int32_t k = 0; k < elements; k++) {
        const int32_t lane = e->lane_of[k];
        const int64_t slot = e->age[lane] % n->reach;
        memcpy(n->past + ((int64_t)lane * n->reach + slot) * block, (const uint8_t *)source->values + k * block, block);
    }
}

/* Sums over lags of weights[lag] * past[lag], for one element's ticks and neurons: (ticks, row). Only of neurons whose
 * query fires, if there is one: the neurons from query[0] on of each of its rows, of which there may be fewer than of
 * the sum; what is read beyond them meets the padding of the past. */
static void weighted_past(const engine *e, const node *n, const node *source, int32_t k, const int8_t *weights,
                          const uint8_t *query, int32_t query_row) {
    const int32_t row = row_of(n->size), tokens = look_back(e, n, source, k);
    int32_t *out = (int32_t *)n->values + (int64_t)k * e->ticks * row;
    for (int32_t t = 0; t < e->ticks; t++)
        for (int32_t tile = 0; tile < row; tile += PAD) {
            const int32_t at = t * row + tile;
            const shorts asked = query ? -widened(query + t * query_row + tile) : ~(shorts){ 0 };
            ints sums = { 0 };
            for (int32_t start = 0; start < tokens; start += SAFE_EVENTS) {
                const int32_t end = tokens < start + SAFE_EVENTS ? tokens : start + SAFE_EVENTS;
                shorts total = { 0 };
                for (int32_t lag = start; lag < end; lag++)
                    total += widened(e->pasts[lag] + at) * (int16_t)weights[lag];
                sums += widened_sums(total & asked);
            }
            *(ints *)(out + at) = sums;
        }
}

static void window(const engine *e, const node *n, int32_t elements) {
    const node *query = &e->nodes[n->first_source], *gate = &e->nodes[n->second_source];
    const int32_t query_row = row_of(query->size);
    for (int32_t k = 0; k < elements; k++) {
        const int32_t place = n->places == 1 ? 0 : n->places - e->left[k];
        weighted_past(e, n, gate, k, n->weights + (int64_t)place * n->reach,
                      (const uint8_t *)query->values + (int64_t)k * e->ticks * query_row + n->first, query_row);
    }
}

static void counted(const engine *e, const node *n, int32_t elements) {
    for (int32_t k = 0; k < elements; k++)
        weighted_past(e, n, &e->nodes[n->first_source], k, n->weights, NULL, 0);
}

static int32_t score(const uint8_t *query, const uint8_t *key, int32_t channels) {
    int32_t total = 0;
    for (int32_t i = 0; i < channels; i++) total += query[i] & key[i];
    return total;
}

static void outer(const engine *e, node *n, int32_t elements) {
    const node *source = &e->nodes[n->first_source];
    const int32_t row = row_of(n->size), wide = row_of(source->size), channels = n->size / n->heads;
    for (int32_t k = 0; k < elements; k++) {
        const uint8_t *present = (const uint8_t *)source->values + (int64_t)k * e->ticks * wide;
        int32_t *out = (int32_t *)n->values + (int64_t)k * e->ticks * row;
        memset(out, 0, sizeof(int32_t) * e->ticks * row);
        for (int32_t lag = 0, tokens = look_back(e, n, source, k); lag < tokens; lag++) {
            const uint8_t *past = e->pasts[lag];
            for (int32_t h = 0; h < n->heads; h++) {
                const int32_t at = h * channels;
                int32_t over_ticks = 0;
                if (n->all_ticks)
                    for (int32_t t = 0; t < e->ticks; t++)
                        over_ticks += score(present + t * wide + n->first + at, past + t * wide + n->second + at, channels);
                for (int32_t t = 0; t < e->ticks; t++) {
                    const uint8_t *q = present + t * wide + n->first + at, *p = past + t * wide;
                    const int32_t c = n->gain * (n->all_ticks ? over_ticks : score(q, p + n->second + at, channels));
                    if (c)
                        for (int32_t i = 0; i < channels; i++) out[t * row + at + i] += c * p[n->third + at + i];
                }
            }
        }
    }
}
