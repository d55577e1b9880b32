/* A spiking network as fast_engine.py lays it out, and the vectors that its arithmetic is made of. */
enum { PAD = 16,            /* neurons in a vector; rows are multiples of this */
       TILE = 128,          /* neurons whose sums stay in registers while events are added */
       NARROW_TILE = 32,    /* of what remains of a row */
       SAFE_EVENTS = 256,   /* 256 * 127 < 2^15 */
       PATTERN_TICKS = 4,   /* 15 patterns of ticks */
       USUAL_TICKS = 4,     /* of a token */
       PIECE_INPUTS = 128,  /* of sparse weights: bytes of two registers */
       FRACTION_BITS = 6,   /* membranes are in 1/64 synaptic units */
       DECAY_BITS = 12,
       MEMBRANE_LIMIT = (1 << 23) - 1,
       SETTLED_ELEMENTS = 1 << 20 };   /* times at most 2^10 ticks < 2^31 */

enum { ENCODER, SYNAPSES, RESIDUAL, LIF, GATE, WINDOW, COUNT, OUTER, AND, READOUT };

typedef int8_t bytes __attribute__((vector_size(16), aligned(16)));
typedef uint8_t unsigned_bytes __attribute__((vector_size(16), aligned(16)));
typedef int16_t shorts __attribute__((vector_size(32), aligned(32)));
typedef int32_t ints __attribute__((vector_size(64), aligned(64)));

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
    const int8_t *weights;                 /* SYNAPSES (inputs, row), behind spikes tile by tile; WINDOW (places, reach); COUNT (reach,): its gain;
                                              READOUT (actions, row) */
    const int32_t *bias, *threshold;       /* (row,) */
    const int32_t *kepts;                  /* (row,) LIF: kept of each neuron; NULL where one holds for all */
    const int32_t *chunks;                 /* (tiles of PAD neurons, pieces of PIECE_INPUTS inputs) of SYNAPSES that are sparse:
                                              how many chunks of slots there are; NULL of others */
    const int8_t *slots;                   /* (chunks, 2, PAD, CHUNK_SLOTS): places of inputs within the piece, then weights */
    int64_t chunk_count;
    int32_t only_chunks;                   /* 1: never tiles */
    void *values;                          /* (elements, ticks, row): uint8 of spikes, int32 of currents; ENCODER: NULL, but
                                              for a host embedding, which a residual reads */
    uint8_t *past;                         /* (lanes, reach, ticks, row of what is remembered) */
    uint8_t *spikes_out;                   /* (lanes, ticks, size) of the present token, or NULL */
    int64_t *fired;                        /* (row,) spikes so far of each neuron, of what fires; LIF: (2, row), behind
                                              them its updates with a current, a bias or a membrane that is not 0 */
    int32_t *recent;                       /* the same since the last settling */
} node;

typedef struct {
    node *nodes;
    int32_t count, ticks, context, lanes, features, actions, window_mode, chunk;
    const double *offset, *step;           /* (features,) of the encoder; a host embedding's are not read */
    const int32_t *shift;
    int32_t limit;
    int32_t *tokens;                       /* (lanes, context, features) ring of encoder integers, window mode */
    int64_t *age;                          /* (lanes,) tokens since the episode's start */
    int32_t *graded;                       /* (chunk, features) */
    int32_t *lane_of, *before, *left;      /* (chunk,) of each element: its lane, tokens before it in its window, and
                                              tokens from it to the present, itself included */
    int32_t *sums;                         /* (row,) scratch */
    const uint8_t **pasts;                 /* (longest reach,) scratch */
    int64_t tokens_seen;                   /* elements so far */
    int64_t unsettled;                     /* elements since the last settling */
} engine;

/* Sign extension. GCC 12 makes five instructions of what processors have one for. */
static inline shorts widened(const void *weights) {
#ifdef __AVX2__
    return (shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128(weights));
#else
    bytes loaded;
    memcpy(&loaded, weights, sizeof loaded);
    return __builtin_convertvector(loaded, shorts);
#endif
}

static inline ints widened_sums(shorts sums) {
#ifdef __AVX512F__
    return (ints)_mm512_cvtepi16_epi32((__m256i)sums);
#else
    return __builtin_convertvector(sums, ints);
#endif
}

static int32_t row_of(int32_t size) { return (size + PAD - 1) / PAD * PAD; }
