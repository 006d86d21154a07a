/* y = x W^T + b for float32 rows, with weights in panels of 16 outputs: [N/16][K][16], float32 or bfloat16.

   Every output is computed in one order: for every 256 k's a chain of fused multiply-adds over ascending k, starting
   from 0; these sums added, ascending; then the bias; then what the row is added to. (One chain over all k would round
   three times worse at K = 2048.) Tiles, the number of rows and of threads change when an output is computed, never
   how: a row's bits depend on the row and the weights alone. */

#include "vector.h"

#include <omp.h>
#include <stdlib.h>

/* Tiles: rows and panels whose sums stay in registers. Streams: likewise, for so few rows that reading the weights
   takes most of the time; more rows have each weight brought to the first cache first. */
#if defined(__AVX512F__)
#define TILE_ROWS 14
#define TILE_PANELS 2
#define STREAM_ROWS 8
#define STREAM_PANELS 4
#else
#define TILE_ROWS 6
#define TILE_PANELS 1
#define STREAM_ROWS 3
#define STREAM_PANELS 6
#endif

#define DEPTH 256        /* k's of a chain, and of a tile, whose weights, 16 or 32 KiB, stay in the first cache */
#define BLOCK_ROWS 168   /* rows packed at once: whole tiles of 6 and of 14 */
#define AHEAD 2048       /* bytes before its use that a weight is asked for */

typedef struct {
    const float *x;
    const void *panels;
    const float *bias;
    float *y;
    int64_t m, k, n;
    int half, add; /* half: the panels are bfloat16 */
} Product;

/* Bytes of a panel's weights for one k. */
INLINE int64_t width(int half) { return LANES * (half ? sizeof(uint16_t) : sizeof(float)); }

INLINE v16 weights(const void *panel, int64_t k, int half) {
    if (half) return v16_load_bf16((const uint16_t *)panel + k * LANES);
    return v16_load((const float *)panel + k * LANES);
}

INLINE const char *panel_at(const Product *p, int64_t panel, int half) {
    return (const char *)p->panels + panel * p->k * width(half);
}

/* What happens to a finished sum: bias, residual, and out. */
INLINE void finish(const Product *p, int64_t row, int64_t panel, v16 sum) {
    int64_t column = panel * LANES, count = p->n - column;
    float *y = p->y + row * p->n + column;
    if (count >= LANES) {
        if (p->bias) sum = v16_add(sum, v16_load(p->bias + column));
        v16_store(y, p->add ? v16_add(v16_load(y), sum) : sum);
    } else {
        if (p->bias) sum = v16_add(sum, v16_load_part(p->bias + column, count));
        v16_store_part(y, p->add ? v16_add(v16_load_part(y, count), sum) : sum, count);
    }
}

/* ---- few rows: each weight is read once, from `panels` streams side by side, and used for every row ---- */

INLINE void stream(const Product *p, int64_t row, int rows, int64_t first, int panels, int half) {
    const float *x = p->x + row * p->k;
    const char *w[STREAM_PANELS];
    v16 total[STREAM_ROWS][STREAM_PANELS];
    for (int j = 0; j < panels; j++) {
        w[j] = panel_at(p, first + j, half);
        for (int r = 0; r < rows; r++) total[r][j] = v16_set(0);
    }
    for (int64_t start = 0; start < p->k; start += DEPTH) {
        int64_t stop = start + DEPTH < p->k ? start + DEPTH : p->k;
        v16 sum[STREAM_ROWS][STREAM_PANELS];
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < panels; j++) sum[r][j] = v16_set(0);
        for (int64_t k = start; k < stop; k++)
#pragma GCC unroll 8
            for (int j = 0; j < panels; j++) {
                if (!half || k % 2 == 0) __builtin_prefetch(w[j] + k * width(half) + AHEAD);
                v16 weight = weights(w[j], k, half);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) sum[r][j] = v16_fma(v16_set(x[r * p->k + k]), weight, sum[r][j]);
            }
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < panels; j++) total[r][j] = v16_add(total[r][j], sum[r][j]);
    }
    for (int j = 0; j < panels; j++)
        for (int r = 0; r < rows; r++) finish(p, row + r, first + j, total[r][j]);
}

/* As many panels as there are registers for their sums, then the rest one by one. */
#define STREAM(ROWS, PANELS)                                                                           \
    case ROWS:                                                                                         \
        for (; first + (PANELS) <= last; first += (PANELS)) stream(p, row, ROWS, first, PANELS, half); \
        for (; first < last; first++) stream(p, row, ROWS, first, 1, half);                            \
        return

INLINE void stream_rows(const Product *p, int64_t row, int rows, int64_t first, int64_t last, int half) {
    switch (rows) {
        STREAM(1, STREAM_PANELS);
#if STREAM_ROWS == 3
        STREAM(2, 3); STREAM(3, 2);
#else
        STREAM(2, 4); STREAM(3, 4); STREAM(4, 4); STREAM(5, 4); STREAM(6, 4); STREAM(7, 3); STREAM(8, 3);
#endif
    }
}

INLINE void few_rows(const Product *p, int64_t first, int64_t last, int half) {
    int64_t blocks = (p->m + STREAM_ROWS - 1) / STREAM_ROWS;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t row = i * p->m / blocks, next = (i + 1) * p->m / blocks;
        stream_rows(p, row, (int)(next - row), first, last, half);
    }
}

/* ---- many rows: tiles over packed rows, weights from the first cache ---- */

/* Rows are cut into tiles as equal as can be, so that no tile is nearly empty. */
typedef struct {
    int64_t row, rows, tiles;
} Block;

INLINE int64_t tile_start(const Block *b, int64_t tile) { return tile * b->rows / b->tiles; }

/* One tile, k by k: [k][rows]. */
static void pack_tile(const Product *p, const Block *b, int64_t tile, float *packed) {
    int64_t start = tile_start(b, tile), rows = tile_start(b, tile + 1) - start;
    packed += start * p->k;
    const float *x = p->x + (b->row + start) * p->k;
    for (int64_t k = 0; k < p->k; k += LANES) {
        int64_t stop = k + LANES < p->k ? k + LANES : p->k;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = k; i < stop; i++) packed[i * rows + r] = x[r * p->k + i];
    }
}

/* Adds to a tile's sums, [rows][panels], those of `depth` k's. `next` is what will be read after this. */
INLINE void tile(int rows, int panels, const float *x, const float *const *w, const char *const *next, int64_t depth,
                 float *sums, int begins, int half) {
    v16 sum[TILE_ROWS][TILE_PANELS];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < panels; j++) sum[r][j] = v16_set(0);
    for (int64_t k = 0; k < depth; k++) {
        v16 weight[TILE_PANELS];
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++) {
            weight[j] = v16_load(w[j] + k * LANES);
            __builtin_prefetch(next[j] + k * width(half), 0, 2);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            v16 value = v16_set(x[k * rows + r]);
#pragma GCC unroll 4
            for (int j = 0; j < panels; j++) sum[r][j] = v16_fma(value, weight[j], sum[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < panels; j++) {
            float *at = sums + (r * panels + j) * LANES;
            v16_store(at, v16_add(begins ? v16_set(0) : v16_load(at), sum[r][j]));
        }
}

#define TILE(ROWS) \
    case ROWS: tile(ROWS, panels, x, w, next, depth, sums, begins, half); return

INLINE void tile_rows(int rows, int panels, const float *x, const float *const *w, const char *const *next,
                      int64_t depth, float *sums, int begins, int half) {
    switch (rows) {
        TILE(1); TILE(2); TILE(3); TILE(4); TILE(5); TILE(6);
#if TILE_ROWS == 14
        TILE(7); TILE(8); TILE(9); TILE(10); TILE(11); TILE(12); TILE(13); TILE(14);
#endif
    }
}

/* All rows of a block against `panels` panels. */
INLINE void block_panels(const Product *p, const Block *b, const float *packed, int64_t first, int panels, int half) {
    float sums[BLOCK_ROWS * TILE_PANELS * LANES] __attribute__((aligned(64)));
    float wide[TILE_PANELS][DEPTH * LANES] __attribute__((aligned(64)));
    for (int64_t k = 0; k < p->k; k += DEPTH) {
        int64_t depth = p->k - k < DEPTH ? p->k - k : DEPTH;
        const float *w[TILE_PANELS];
        const char *next[TILE_PANELS];
        for (int j = 0; j < panels; j++) {
            const char *panel = panel_at(p, first + j, half);
            next[j] = panel + (k + DEPTH < p->k ? k + DEPTH : p->k * panels) * width(half);
            if (half)
                for (int64_t i = 0; i < depth; i++) v16_store(wide[j] + i * LANES, weights(panel, k + i, 1));
            w[j] = half ? wide[j] : (const float *)panel + k * LANES;
        }
        for (int64_t t = 0; t < b->tiles; t++) {
            int64_t start = tile_start(b, t), rows = tile_start(b, t + 1) - start;
            tile_rows((int)rows, panels, packed + start * p->k + k * rows, w, next, depth,
                      sums + start * panels * LANES, k == 0, half);
        }
    }
    for (int64_t r = 0; r < b->rows; r++)
        for (int j = 0; j < panels; j++)
            finish(p, b->row + r, first + j, v16_load(sums + (r * panels + j) * LANES));
}

INLINE void many_rows(const Product *p, float *packed, int64_t first, int64_t last, int half) {
    for (int64_t row = 0; row < p->m; row += BLOCK_ROWS) {
        int64_t rows = p->m - row < BLOCK_ROWS ? p->m - row : BLOCK_ROWS;
        Block b = {row, rows, (rows + TILE_ROWS - 1) / TILE_ROWS};
#pragma omp for
        for (int64_t t = 0; t < b.tiles; t++) pack_tile(p, &b, t, packed);
        int64_t panel = first;
        for (; panel + TILE_PANELS <= last; panel += TILE_PANELS) block_panels(p, &b, packed, panel, TILE_PANELS, half);
        for (; panel < last; panel++) block_panels(p, &b, packed, panel, 1, half);
#pragma omp barrier
    }
}

/* `half` is handed down as a constant, for which the compiler makes a version of each. */
static void share(const Product *p, float *packed, int64_t first, int64_t last) {
    if (packed && p->half) many_rows(p, packed, first, last, 1);
    else if (packed) many_rows(p, packed, first, last, 0);
    else if (p->half) few_rows(p, first, last, 1);
    else few_rows(p, first, last, 0);
}

/* x [m, k] and y [m, n] without gaps; bias [n] or null; `add`: y += instead of y =. */
void dense_linear(const float *x, const void *panels, int half, const float *bias, float *y, int64_t m, int64_t k,
                  int64_t n, int add, int threads) {
    Product p = {x, panels, bias, y, m, k, n, half, add};
    int64_t count = (n + LANES - 1) / LANES;
    int64_t rows = m < BLOCK_ROWS ? m : BLOCK_ROWS;
    /* Without room to pack, the slower way has the same result. */
    float *packed = m > STREAM_ROWS && k ? aligned_alloc(64, (rows * k * sizeof(float) + 63) / 64 * 64) : NULL;
#pragma omp parallel num_threads(m * k * n > 65536 ? threads : 1) /* waking threads takes time too */
    {
        int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
        share(&p, packed, count * part / parts, count * (part + 1) / parts);
    }
    free(packed);
}

/* Rows of W: ids [m] -> y [m, k]. Gives the place of an id that is not below n, or -1 where all are. */
int64_t dense_rows(const int64_t *ids, const void *panels, int half, float *y, int64_t m, int64_t k, int64_t n,
                   int threads) {
    for (int64_t i = 0; i < m; i++)
        if (ids[i] < 0 || ids[i] >= n) return i;
#pragma omp parallel for num_threads(m > 1 ? threads : 1)
    for (int64_t i = 0; i < m; i++) {
        int64_t at = ids[i] / LANES * k * LANES + ids[i] % LANES;
        for (int64_t j = 0; j < k; j++, at += LANES) {
            uint32_t bits = half ? (uint32_t)((const uint16_t *)panels)[at] << 16 : ((const uint32_t *)panels)[at];
            memcpy(y + i * k + j, &bits, sizeof bits);
        }
    }
    return -1;
}
