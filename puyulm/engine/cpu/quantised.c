/* Products of float activations with weights of 4 or 8 bits.

   Activations are rounded to 8 bits, each token's groups of 32 inputs for themselves. A product is exact in integers
   inside a group, and groups are added in ascending order by one fused multiply-add each:

       sum = fma((float)integers, weight_scale * activation_scale, sum)

   A result therefore depends on nothing but its own token and its own row of weights.

   Weights lie in panels of 16 outputs. A panel's codes are [groups][inputs of the group / 4][16 outputs][4 inputs], so
   that 4 activations, repeated, meet 16 outputs at once. With 4 bits a byte holds codes of two such quads: the even
   one in its low half, the odd one in its high half. */

#include "integers.h"

#include <stdlib.h>

enum { PANEL = LANES, GROUP = 32, QUADS = GROUP / 4, QUAD_BYTES = 4 * PANEL };

/* Bytes to ask memory for ahead of their use. A thread's panels follow one another, so it reads one long stream; several
   panels at once, each a stream of its own, were slower. */
enum { AHEAD = 8192 };

/* Products that take as long as it takes to wake a thread. */
enum { WORTH_THREADS = 1 << 17 };

/* Rows of activations for which sums fit in the registers; with many more rows, of fewer rows and two panels, which share
   each activation that is loaded. */
#if defined(__AVX512F__)
#define MANY_ROWS 8
#define PAIR_ROWS 6
#elif defined(__AVX2__)
#define MANY_ROWS 4
#define PAIR_ROWS 0
#else
#define MANY_ROWS 1
#define PAIR_ROWS 0
#endif
enum { MAX_PANELS = 2 };

typedef struct {
    const uint8_t *codes;
    const void *scales;   /* [panels][scale groups][16], half or single precision */
    const uint8_t *zeros; /* [panels][scale groups][16]; NULL where all are 8 */
    const float *bias;    /* [outputs] or NULL */
    int64_t outputs, inputs, groups, groups_per_scale, scale_groups;
    int32_t bits, half;
} Weight;

typedef struct {
    int8_t *codes; /* [rows][groups][32] */
    float *scales; /* [rows][groups] */
    int32_t *sums; /* [rows][groups], of the codes */
} Activations;

/* Bits of positive floats are in the order of their values, and infinities and NaN come last: found without a branch. */
static uint32_t largest_bits(const float *x) {
    uint32_t largest = 0;
    for (int i = 0; i < GROUP; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* Added to a float below 2^22, this rounds it to a whole number, halves to even, and leaves that in the lowest bits. */
static const float ROUNDER = 0x1.8p23f;

static void round_group(const float *x, int8_t *codes, float *scale, int32_t *sum) {
    uint32_t largest = largest_bits(x);
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    *scale = largest < 0x7f800000 ? magnitude / 127.0f : NAN;
    *sum = 0;
    if (!(*scale > 0)) { /* NaN, or too small for a scale */
        memset(codes, 0, GROUP);
        return;
    }
    float rounded[GROUP];
    for (int i = 0; i < GROUP; i += LANES) {
        v16 exact = v16_div(v16_load(x + i), v16_set(*scale));
        exact = v16_max(v16_min(exact, v16_set(127)), v16_set(-127)); /* subnormal scales are coarse */
        v16_store(rounded + i, v16_add(exact, v16_set(ROUNDER)));
    }
    int32_t bits[GROUP], total = 0;
    memcpy(bits, rounded, sizeof bits);
    for (int i = 0; i < GROUP; i++) codes[i] = (int8_t)bits[i];
    for (int i = 0; i < GROUP; i++) total += codes[i];
    *sum = total;
}

/* Groups [first, last) of all rows', counted row after row. */
static void round_groups(const float *x, int64_t inputs, int64_t groups, Activations to, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / groups, at = i % groups * GROUP;
        const float *from = x + row * inputs + at;
        float padded[GROUP] = {0};
        if (inputs - at < GROUP) {
            memcpy(padded, from, (inputs - at) * sizeof(float));
            from = padded;
        }
        round_group(from, to.codes + i * GROUP, to.scales + i, to.sums + i);
    }
}

INLINE v16 load_scales(const Weight *w, int64_t at) {
    return w->half ? v16_load_half((const uint16_t *)w->scales + at) : v16_load((const float *)w->scales + at);
}

INLINE bytes quad_codes(int bits, const uint8_t *codes, int quad) {
    if (bits == 8) return bytes_load(codes + quad * QUAD_BYTES);
    bytes both = bytes_load(codes + quad / 2 * QUAD_BYTES);
    return quad % 2 ? high_halves(both) : low_halves(both);
}

/* Exact sums of one group for `rows` rows of activations and `panels` panels, `apart` bytes from one to the next. */
INLINE void group_sums(int bits, int rows, int panels, const uint8_t *codes, int64_t apart, const int8_t *x,
                       int64_t stride, sums to[][MAX_PANELS]) {
    for (int row = 0; row < rows; row++)
        for (int p = 0; p < panels; p++) to[row][p] = sums_set(0);
    if (panels == 1) /* a pair of panels meets so many rows that memory keeps up by itself */
        for (int i = 0; i < (bits == 8 ? QUADS : QUADS / 2); i++) __builtin_prefetch(codes + AHEAD + 64 * i);
#pragma GCC unroll 8
    for (int quad = 0; quad < QUADS; quad++) {
        bytes w[MAX_PANELS];
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++) w[p] = quad_codes(bits, codes + p * apart, quad);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            bytes repeated = bytes_repeat(x + row * stride + 4 * quad);
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++)
                to[row][p] = bits == 8 ? add_8bit(to[row][p], w[p], repeated) : add_4bit(to[row][p], w[p], repeated);
        }
    }
}

INLINE void store(const Weight *w, int64_t panel, v16 sum, float *out, int add) {
    int64_t at = panel * PANEL, left = w->outputs - at;
    out += at;
    if (left >= PANEL) {
        if (w->bias) sum = v16_add(sum, v16_load(w->bias + at));
        v16_store(out, add ? v16_add(v16_load(out), sum) : sum);
    } else {
        if (w->bias) sum = v16_add(sum, v16_load_part(w->bias + at, left));
        v16_store_part(out, add ? v16_add(v16_load_part(out, left), sum) : sum, left);
    }
}

/* `rows` rows of activations times `panels` panels. */
INLINE void tile(int bits, int rows, int panels, const Weight *w, int64_t panel, Activations x, int64_t row, float *out,
                 int add) {
    const int64_t group_bytes = (bits == 8 ? QUADS : QUADS / 2) * QUAD_BYTES, stride = w->groups * GROUP;
    const uint8_t *codes = w->codes + panel * w->groups * group_bytes;
    v16 total[MANY_ROWS][MAX_PANELS], weight_scales[MAX_PANELS];
    sums zeros[MAX_PANELS], exact[MANY_ROWS][MAX_PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) total[r][p] = v16_set(0);
    for (int p = 0; p < panels; p++) zeros[p] = sums_set(8);

    for (int64_t s = 0, group = 0; s < w->scale_groups; s++) {
        for (int p = 0; p < panels; p++) {
            const int64_t of_panel = ((panel + p) * w->scale_groups + s) * PANEL;
            weight_scales[p] = load_scales(w, of_panel);
            if (bits == 4 && w->zeros) zeros[p] = sums_load_bytes(w->zeros + of_panel);
        }
        for (int64_t i = 0; i < w->groups_per_scale; i++, group++) {
            const int64_t at = row * w->groups + group;
            group_sums(bits, rows, panels, codes + group * group_bytes, w->groups * group_bytes, x.codes + at * GROUP,
                       stride, exact);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int64_t of = at + r * w->groups;
                v16 scale = v16_set(x.scales[of]);
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++) {
                    sums sum = bits == 8 ? total_8bit(exact[r][p], x.sums[of])
                                         : total_4bit(exact[r][p], zeros[p], x.sums[of]);
                    total[r][p] = v16_fma(v16_of_sums(sum), v16_mul(weight_scales[p], scale), total[r][p]);
                }
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) store(w, panel + p, total[r][p], out + (row + r) * w->outputs, add);
}

typedef void Tile(const Weight *w, int64_t panel, Activations x, int64_t row, float *out, int add);

#define TILE(name, rows, panels)                                                                       \
    static void name(const Weight *w, int64_t panel, Activations x, int64_t row, float *out, int add) { \
        if (w->bits == 8)                                                                              \
            tile(8, rows, panels, w, panel, x, row, out, add);                                         \
        else                                                                                           \
            tile(4, rows, panels, w, panel, x, row, out, add);                                         \
    }

TILE(one_row, 1, 1)
#if MANY_ROWS >= 4
TILE(two_rows, 2, 1)
TILE(three_rows, 3, 1)
TILE(four_rows, 4, 1)
#endif
#if MANY_ROWS >= 8
TILE(five_rows, 5, 1)
TILE(six_rows, 6, 1)
TILE(seven_rows, 7, 1)
TILE(eight_rows, 8, 1)
#endif
#if PAIR_ROWS
TILE(five_rows_of_pair, 5, 2)
TILE(six_rows_of_pair, 6, 2)
#endif

/* By number of rows, less one. */
static Tile *const TILES[MANY_ROWS] = {
    one_row,
#if MANY_ROWS >= 4
    two_rows, three_rows, four_rows,
#endif
#if MANY_ROWS >= 8
    five_rows, six_rows, seven_rows, eight_rows,
#endif
};

static void multiply_panels(const Weight *w, int64_t panel, int64_t last, Activations x, int64_t rows, float *out,
                            int add) {
#if PAIR_ROWS
    /* Tiles of six rows and of five: any number of rows from 20 on is made of these. */
    const int64_t tiles = (rows + PAIR_ROWS - 1) / PAIR_ROWS;
    if (rows >= 20)
        for (; panel + 2 <= last; panel += 2)
            for (int64_t i = 0; i < tiles; i++) {
                int64_t row = i * rows / tiles;
                (((i + 1) * rows / tiles - row) == PAIR_ROWS ? six_rows_of_pair : five_rows_of_pair)(w, panel, x, row, out, add);
            }
#endif
    for (; panel < last; panel++)
        for (int64_t row = 0; row < rows; row += MANY_ROWS)
            TILES[(rows - row < MANY_ROWS ? rows - row : MANY_ROWS) - 1](w, panel, x, row, out, add);
}

/* x [rows, inputs] -> codes [rows, groups, 32], scales and sums [rows, groups]; the last group is filled with zeros. */
void quantised_round(const float *x, int64_t rows, int64_t inputs, int8_t *codes, float *scales, int32_t *sums,
                     int32_t threads) {
    int64_t groups = (inputs + GROUP - 1) / GROUP, parts = threads;
    Activations to = {codes, scales, sums};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        round_groups(x, inputs, groups, to, rows * groups * part / parts, rows * groups * (part + 1) / parts);
}

/* out [rows, outputs] = x [rows, inputs] times the weight, plus bias; `add` adds all that to what stands in out.
   Returns 0, or 1 where there is no memory for the rounded activations. */
int quantised_multiply(const Weight *w, const float *x, int64_t rows, float *out, int32_t add, int32_t threads) {
    const int64_t groups = rows * w->groups, panels = (w->outputs + PANEL - 1) / PANEL;
    if (rows * w->outputs * w->inputs < WORTH_THREADS) threads = 1;
    const int64_t parts = threads;
    char *memory = malloc(groups * (GROUP + sizeof(float) + sizeof(int32_t)) + 1);
    if (!memory) return 1;
    Activations rounded = {(int8_t *)(memory + groups * 8), (float *)memory, (int32_t *)(memory + groups * 4)};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++)
            round_groups(x, w->inputs, w->groups, rounded, groups * part / parts, groups * (part + 1) / parts);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++)
            multiply_panels(w, panels * part / parts, panels * (part + 1) / parts, rounded, rows, out, add);
    }
    free(memory);
    return 0;
}
