/* Integer engine of a spiking network: the arithmetic of export/network/nodes.py, event by event, for one token at a time.
 *
 * A network is an array of nodes in evaluation order. An *element* is one token of one lane; a *row* is one tick of one
 * element. In stream mode a lane has one element per decision, and nodes that look back keep their past in rings; in
 * window mode a lane has one element per token of its window, and the past lies beside the present. Rows are padded to
 * PAD neurons, which never fire, so that no loop has a remainder.
 *
 * Nothing is allocated here and nothing is global: one engine per thread.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#include "spike_network.h"
#include "spike_sums.h"
#include "spike_sparse.h"
#include "spike_neurons.h"
#include "spike_attention.h"

static void synapses(const engine *e, const node *n, int32_t elements) {
    const int32_t row = row_of(n->size);
    int32_t *out = n->values;
    if (!n->behind_spikes) {   /* graded inputs, the same at every tick */
        for (int32_t k = 0; k < elements; k++) {
            memset(e->sums, 0, sizeof(int32_t) * row);
            for (int32_t m = 0; m < n->inputs; m++) {
                const int32_t graded = e->graded[k * e->features + m] << e->shift[m];
                for (int32_t i = 0; i < row; i++) e->sums[i] += graded * n->weights[(int64_t)m * row + i];
            }
            shift_row(e->sums, row, n->exponent);
            for (int32_t t = 0; t < e->ticks; t++)
                memcpy(out + ((int64_t)k * e->ticks + t) * row, e->sums, sizeof(int32_t) * row);
        }
        return;
    }
    (n->chunks ? sum_sparse : sum_spikes)(e, n, e->nodes[n->first_source].values, elements, out);
}

/* A host embedding's integers, the same at every tick; another node's values may have lain there. */
static void enter(const engine *e, const node *n, int32_t elements) {
    const int32_t row = row_of(n->size);
    int32_t *out = n->values;
    for (int32_t k = 0; k < elements; k++)
        for (int32_t t = 0; t < e->ticks; t++, out += row) {
            memcpy(out, e->graded + (int64_t)k * e->features, sizeof(int32_t) * n->size);
            memset(out + n->size, 0, sizeof(int32_t) * (row - n->size));
        }
}

/* Move recent counts to where they cannot overflow. */
void dsf_settle(engine *e) {
    for (int32_t index = 0; index < e->count; index++) {
        const node *n = &e->nodes[index];
        const int32_t counts = n->recent ? (n->kind == LIF ? 2 : 1) * row_of(n->size) : 0;
        for (int32_t i = 0; i < counts; i++) {
            n->fired[i] += n->recent[i];
            n->recent[i] = 0;
        }
    }
    e->unsettled = 0;
}

static void both(uint8_t *restrict out, const uint8_t *restrict x, const uint8_t *restrict y, int32_t size, int32_t row) {
    for (int32_t i = 0; i < size; i++) out[i] = x[i] & y[i];
    for (int32_t i = size; i < row; i++) out[i] = 0;
}

/* AND of two parts of populations, offsets within their rows. */
static void gate(const node *n, const node *a, int32_t at_a, const node *b, int32_t at_b, int32_t rows) {
    const int32_t row = row_of(n->size), row_a = row_of(a->size), row_b = row_of(b->size);
    for (int64_t r = 0; r < rows; r++)
        both((uint8_t *)n->values + r * row, (const uint8_t *)a->values + r * row_a + at_a,
             (const uint8_t *)b->values + r * row_b + at_b, n->size, row);
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static void residual(const engine *e, const node *n, int32_t rows) {
    const int32_t row = row_of(n->size);
    const int32_t *a = e->nodes[n->first_source].values;
    const int32_t *b = n->second_source < 0 ? NULL : e->nodes[n->second_source].values;
    int32_t *out = n->values;
    for (int32_t tile = 0; tile < row; tile += PAD) {
        const ints bias = *(const ints *)(n->bias + tile);
        for (int32_t r = 0; r < rows; r++) {
            const int64_t at = (int64_t)r * row + tile;
            ints total = *(const ints *)(a + at) + bias;
            if (b) total += *(const ints *)(b + at);
            *(ints *)(out + at) = total;
        }
    }
}

static void readout(const engine *e, const node *n, int32_t element, int64_t *accumulators) {
    const int32_t row = row_of(n->inputs);
    const int32_t *r = (const int32_t *)e->nodes[n->first_source].values + (int64_t)element * e->ticks * row;
    for (int32_t i = 0; i < n->inputs; i++) {
        int32_t total = 0;
        for (int32_t t = 0; t < e->ticks; t++) total += r[t * row + i];
        e->sums[i] = (total + (1 << n->exponent >> 1)) >> n->exponent;
    }
    for (int32_t a = 0; a < n->size; a++) {
        int64_t total = n->bias[a];
        for (int32_t i = 0; i < n->inputs; i++) total += (int64_t)n->weights[(int64_t)a * row + i] * e->sums[i];
        accumulators[a] = total;
    }
}

static void evaluate(const engine *e, int32_t elements) {
    const int32_t rows = elements * e->ticks;
    if (e->nodes[0].values) enter(e, &e->nodes[0], elements);
    for (int32_t index = 1; index < e->count - 1; index++) {
        node *n = &e->nodes[index];
        const node *a = &e->nodes[n->first_source];
        const node *b = n->second_source < 0 ? NULL : &e->nodes[n->second_source];
        switch (n->kind) {
        case SYNAPSES: synapses(e, n, elements); break;
        case RESIDUAL: residual(e, n, rows); break;
        case LIF: fire(e, n, elements); break;
        case GATE: gate(n, a, n->first, a, n->second, rows); break;
        case AND: gate(n, a, n->first, b, 0, rows); break;
        default:
            if (!e->window_mode) remember(e, n, n->kind == WINDOW ? b : a, elements);
            if (n->kind == WINDOW) window(e, n, elements);
            else if (n->kind == COUNT) counted(e, n, elements);
            else outer(e, n, elements);
        }
        if (n->recent && n->kind != LIF) count_spikes(n, rows);
    }
}

/* Copy the present token's spikes of one lane to where the caller wants them. */
static void report(const engine *e, int32_t lane, int32_t element) {
    for (int32_t index = 0; index < e->count; index++) {
        const node *n = &e->nodes[index];
        if (!n->spikes_out) continue;
        const int32_t row = row_of(n->size);
        for (int32_t t = 0; t < e->ticks; t++)
            memcpy(n->spikes_out + ((int64_t)lane * e->ticks + t) * n->size,
                   (const uint8_t *)n->values + ((int64_t)element * e->ticks + t) * row, n->size);
    }
}

/* One decision of every lane, from the encoder's integers (lanes, features) to accumulators (lanes, actions). */
void dsf_decide(engine *e, const int32_t *graded, int64_t *accumulators) {
    const int32_t features = e->features;
    int32_t lane = 0;
    while (lane < e->lanes) {
        const int32_t first_lane = lane;
        int32_t elements = 0;
        for (; lane < e->lanes; lane++) {
            const int64_t age = e->age[lane];
            const int32_t tokens = !e->window_mode ? 1 : age + 1 < e->context ? (int32_t)age + 1 : e->context;
            if (elements + tokens > e->chunk) break;   /* a chunk holds one whole window at least */
            int32_t *ring = NULL;
            if (e->window_mode) {
                ring = e->tokens + (int64_t)lane * e->context * features;
                memcpy(ring + age % e->context * features, graded + (int64_t)lane * features, sizeof(int32_t) * features);
            }
            for (int32_t i = 0; i < tokens; i++) {
                const int32_t *from = graded + (int64_t)lane * features;
                if (ring) from = ring + (age - tokens + 1 + i) % e->context * features;
                memcpy(e->graded + (int64_t)(elements + i) * features, from, sizeof(int32_t) * features);
                e->lane_of[elements + i] = lane;
                e->before[elements + i] = i;
                e->left[elements + i] = tokens - i;
            }
            elements += tokens;
        }
        evaluate(e, elements);
        e->tokens_seen += elements;
        if ((e->unsettled += elements) >= SETTLED_ELEMENTS) dsf_settle(e);
        for (int32_t k = 0; k < elements; k++)
            if (k + 1 == elements || e->lane_of[k + 1] != e->lane_of[k]) {
                readout(e, &e->nodes[e->count - 1], k, accumulators + (int64_t)e->lane_of[k] * e->actions);
                report(e, e->lane_of[k], k);
            }
        for (int32_t done = first_lane; done < lane; done++) e->age[done]++;
    }
}

/* Encode token vectors (lanes, features), then decide; returns 0, or 1 where a value is not finite (nothing is done). */
int dsf_encode_and_decide(engine *e, const double *vectors, int32_t *graded, int64_t *accumulators) {
    const int64_t size = (int64_t)e->lanes * e->features;
    for (int64_t i = 0; i < size; i++)
        if (!isfinite(vectors[i])) return 1;
    for (int32_t lane = 0; lane < e->lanes; lane++)
        for (int32_t m = 0; m < e->features; m++) {
            const float x = (float)vectors[(int64_t)lane * e->features + m]; /* as training's tokens are rounded */
            const double scaled = rint(((double)x - e->offset[m]) / e->step[m]);
            const double limit = e->limit;
            graded[(int64_t)lane * e->features + m] = (int32_t)(scaled > limit ? limit : scaled < -limit ? -limit : scaled);
        }
    dsf_decide(e, graded, accumulators);
    return 0;
}
