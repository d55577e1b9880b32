/* Integer engine of a spiking network: the arithmetic of export/nodes.py, event by event, for one token at a time.
 *
 * A network is an array of nodes in evaluation order. An *element* is one token of one lane; a *row* is one tick of one
 * element. In stream mode a lane has one element per decision, and nodes that look back keep their past in rings; in
 * window mode a lane has one element per token of its window, and the past lies beside the present. Rows are padded to
 * PAD neurons, which never fire, so that no loop has a remainder.
 *
 * event_sums.h adds up weights behind spikes.
 *
 * Nothing is allocated here and nothing is global: one engine per thread.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "event_sums.h"
#include "vectors.h"

enum { FRACTION_BITS = 6,   /* membranes are in 1/64 synaptic units */
       DECAY_BITS = 12,
       MEMBRANE_LIMIT = (1 << 23) - 1,
       SETTLED_ELEMENTS = 1 << 20 };   /* times at most 2^10 ticks < 2^31 */

enum { ENCODER, SYNAPSES, RESIDUAL, LIF, GATE, WINDOW, COUNT, OUTER, AND, READOUT };

typedef struct {
    int32_t kind, size;
    int32_t first_source, second_source;   /* nodes that are read; of RESIDUAL, second is -1 if there is only one */
    int32_t first, second, third;          /* offsets within them: query (or first operand), key (second), value */
    int32_t inputs;                        /* SYNAPSES, READOUT: length of a row of weights */
    int32_t exponent;                      /* SYNAPSES: power of two; READOUT: right shift */
    int32_t kept;                          /* LIF: share of 4096 that the membrane keeps */
    int32_t reach, places;                 /* tokens looked back on; places is 1 but for PLACED windows */
    int32_t heads, all_ticks, gain;
    int32_t behind_spikes;                 /* SYNAPSES: 0 where the encoder is read */
    int32_t saturates;                     /* LIF: 0 where no membrane can reach MEMBRANE_LIMIT */
    const int8_t *weights;                 /* SYNAPSES (inputs, row); WINDOW (places, reach); COUNT (reach,): its gain;
                                              READOUT (actions, row) */
    const int32_t *bias, *threshold;       /* (row,) */
    void *values;                          /* (elements, ticks, row): uint8 of spikes, int32 of currents */
    uint8_t *past;                         /* (lanes, reach, ticks, row of what is remembered) */
    uint8_t *spikes_out;                   /* (lanes, ticks, size) of the present token, or NULL */
    int64_t *fired;                        /* (row,) spikes so far of each neuron, of what fires; LIF: (2, row), behind
                                              them its updates with a current, a bias or a membrane that is not 0 */
    int32_t *recent;                       /* the same since the last settling */
} node;

typedef struct {
    node *nodes;
    int32_t count, ticks, context, lanes, features, actions, window_mode, chunk;
    const double *offset, *step;           /* (features,) of the encoder */
    const int32_t *shift;
    int32_t limit;
    int32_t *tokens;                       /* (lanes, context, features) ring of encoder integers, window mode */
    int64_t *age;                          /* (lanes,) tokens since the episode's start */
    int32_t *graded;                       /* (chunk, features) */
    int32_t *lane_of, *before, *left;      /* (chunk,) of each element: its lane, tokens before it in its window, and
                                              tokens from it to the present, itself included */
    int32_t *sums;                         /* (row,) scratch */
    void *events;                          /* (chunk,) scratch of sum_events */
    const uint8_t **pasts;                 /* (longest reach,) scratch */
    int64_t tokens_seen;                   /* elements so far */
    int64_t unsettled;                     /* elements since the last settling */
} engine;

static void shift_row(int32_t *values, int64_t size, int32_t exponent) {
    if (exponent > 0)
        for (int64_t n = 0; n < size; n++) values[n] = (int32_t)((uint32_t)values[n] << exponent);
    else if (exponent < 0)
        for (int64_t n = 0; n < size; n++) values[n] >>= -exponent;
}

static void synapses(const engine *e, const node *n, int32_t elements) {
    const int32_t row = row_of(n->size);
    int32_t *out = n->values;
    if (n->behind_spikes) {
        const uint8_t *spikes = e->nodes[n->first_source].values;
        sum_events(spikes, n->weights, n->inputs, n->size, e->ticks, n->exponent, elements, e->events, out);
        return;
    }
    for (int32_t k = 0; k < elements; k++) {   /* graded inputs, the same at every tick */
        memset(e->sums, 0, sizeof(int32_t) * row);
        for (int32_t m = 0; m < n->inputs; m++) {
            const int32_t graded = e->graded[k * e->features + m] << e->shift[m];
            for (int32_t i = 0; i < row; i++) e->sums[i] += graded * n->weights[(int64_t)m * row + i];
        }
        shift_row(e->sums, row, n->exponent);
        for (int32_t t = 0; t < e->ticks; t++)
            memcpy(out + ((int64_t)k * e->ticks + t) * row, e->sums, sizeof(int32_t) * row);
    }
}

/* ---- neurons ----------------------------------------------------------------------------------------------------- */

/* trunc_to_zero(v * kept / 4096), as Lava; in two halves, so that no product leaves 32 bits (|v| < 2^23). */
static inline ints leaked(ints v, int32_t kept) {
    const ints sign = v >> 31, magnitude = (v ^ sign) - sign;
    const ints high = magnitude >> DECAY_BITS, low = magnitude & ((1 << DECAY_BITS) - 1);
    return ((high * kept + (low * kept >> DECAY_BITS)) ^ sign) - sign;
}

static inline ints clipped(ints v) {
    const ints above = v > MEMBRANE_LIMIT, below = v < -MEMBRANE_LIMIT;
    return (v & ~(above | below)) | (above & MEMBRANE_LIMIT) | (below & -MEMBRANE_LIMIT);
}

/* One LIF population, and how often each of its neurons fired and had work to do. Inlined for constant arguments: how
 * the membrane leaks is decided once. */
static inline __attribute__((always_inline)) void fire_as(const engine *e, const node *n, int32_t elements,
                                                          const int32_t is_power, const int32_t saturates) {
    const int32_t row = row_of(n->size), ticks = e->ticks, kept = n->kept;
    const int32_t shift = DECAY_BITS - __builtin_ctz(kept | 1 << DECAY_BITS);   /* where kept is a power of two */
    const int32_t *restrict current = e->nodes[n->first_source].values;
    const int32_t *restrict biases = n->bias, *restrict thresholds = n->threshold;
    uint8_t *restrict values = n->values;
    int32_t *restrict fired = n->recent, *restrict worked = n->recent + row;
    for (int32_t k = 0; k < elements; k++)
        for (int32_t tile = 0; tile < row; tile += PAD) {
            const ints bias = *(const ints *)(biases + tile), threshold = *(const ints *)(thresholds + tile);
            int64_t at = (int64_t)k * ticks * row + tile;
            ints v = { 0 }, active = { 0 }, count = { 0 };
            for (int32_t t = 0; t < ticks; t++, at += row) {
                const ints input = *(const ints *)(current + at);
                active -= (v | input | bias) != 0;
                v = is_power ? (v + (v >> 31 & ((1 << shift) - 1))) >> shift : leaked(v, kept);   /* both towards zero */
                v += input * (1 << FRACTION_BITS) + bias;
                if (saturates) v = clipped(v);   /* elsewhere the overflow proof holds */
                const ints spikes = v > threshold;
                v &= ~spikes;
                count -= spikes;
                *(bytes *)(values + at) = __builtin_convertvector(spikes & 1, bytes);
            }
            *(ints *)(fired + tile) += count;
            *(ints *)(worked + tile) += active;
        }
}

static void fire(const engine *e, const node *n, int32_t elements) {
    const int32_t is_power = n->kept && !(n->kept & (n->kept - 1));
    if (n->saturates) is_power ? fire_as(e, n, elements, 1, 1) : fire_as(e, n, elements, 0, 1);
    else is_power ? fire_as(e, n, elements, 1, 0) : fire_as(e, n, elements, 0, 0);
}

/* Sums of up to 255 rows fit in bytes. */
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

static void both(uint8_t *restrict out, const uint8_t *restrict x, const uint8_t *restrict y, int32_t size) {
    for (int32_t i = 0; i < size; i++) out[i] = x[i] & y[i];
}

/* AND of two parts of populations, offsets within their rows. */
static void gate(node *n, const node *a, int32_t at_a, const node *b, int32_t at_b, int32_t rows) {
    const int64_t row = row_of(n->size), row_a = row_of(a->size), row_b = row_of(b->size);
    for (int32_t r = 0; r < rows; r++)
        both((uint8_t *)n->values + r * row, (const uint8_t *)a->values + r * row_a + at_a,
             (const uint8_t *)b->values + r * row_b + at_b, n->size);
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

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

/* out[i] = sum over lags of weights[lag] * past[lag][i], for one element's ticks and neurons. */
static void weighted_past(const engine *e, const node *n, const node *source, int32_t k, const int8_t *weights, int32_t *out) {
    const int32_t size = e->ticks * row_of(n->size), tokens = look_back(e, n, source, k);
    memset(out, 0, sizeof(int32_t) * size);
    for (int32_t start = 0; start < tokens; start += SAFE_EVENTS)
        for (int32_t at = 0; at < size; at += PAD) {
            const int32_t end = tokens < start + SAFE_EVENTS ? tokens : start + SAFE_EVENTS;
            shorts total = { 0 };
            for (int32_t lag = start; lag < end; lag++)
                total += widened(e->pasts[lag] + at) * (int16_t)weights[lag];
            *(ints *)(out + at) += widened_sums(total);
        }
}

static void window(const engine *e, node *n, int32_t elements) {
    const node *query = &e->nodes[n->first_source], *gate = &e->nodes[n->second_source];
    const int32_t row = row_of(n->size), query_row = row_of(query->size);
    for (int32_t k = 0; k < elements; k++) {
        const int32_t place = n->places == 1 ? 0 : n->places - e->left[k];
        int32_t *out = (int32_t *)n->values + (int64_t)k * e->ticks * row;
        weighted_past(e, n, gate, k, n->weights + (int64_t)place * n->reach, out);
        for (int32_t t = 0; t < e->ticks; t++) {
            const uint8_t *q = (const uint8_t *)query->values + ((int64_t)k * e->ticks + t) * query_row + n->first;
            for (int32_t i = 0; i < n->size; i++) out[t * row + i] *= q[i];
        }
    }
}

static void counted(const engine *e, node *n, int32_t elements) {
    for (int32_t k = 0; k < elements; k++)
        weighted_past(e, n, &e->nodes[n->first_source], k, n->weights,
                      (int32_t *)n->values + (int64_t)k * e->ticks * row_of(n->size));
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

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static void residual(const engine *e, const node *n, int32_t rows) {
    const int32_t row = row_of(n->size);
    const int32_t *a = e->nodes[n->first_source].values;
    const int32_t *b = n->second_source < 0 ? NULL : e->nodes[n->second_source].values;
    int32_t *out = n->values;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < row; i++) {
            const int64_t at = (int64_t)r * row + i;
            out[at] = a[at] + (b ? b[at] : 0) + n->bias[i];
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
        if (n->recent && n->kind != LIF) count_spikes(n, rows);   /* LIF has counted its own */
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
            const double scaled = rint((vectors[(int64_t)lane * e->features + m] - e->offset[m]) / e->step[m]);
            const double limit = e->limit;
            graded[(int64_t)lane * e->features + m] = (int32_t)(scaled > limit ? limit : scaled < -limit ? -limit : scaled);
        }
    dsf_decide(e, graded, accumulators);
    return 0;
}
