/* Paged attention of a step: the pieces' keys and values are stored, and each query sees its sequence up to itself.

   What a query gets depends on its own vector and its own keys in order, and on nothing else, to the last bit. Keys
   are taken in parts of 256 that start at multiples of 256 of the position. Within a part: scores, each one sum over
   ascending dimensions; their maximum; weights and their sum in a fixed tree; the mix of values over ascending keys.
   Parts are then folded into the result in ascending order. How many queries share a tile, how parts are shared out
   to threads and which blocks hold the keys changes where and when this is computed, never the operations. */

#include <omp.h>
#include <stdlib.h>

#include "kv_store.h"

enum {
    PART = 256,                  /* keys whose weights share a maximum */
    PART_BLOCKS = PART / BLOCK,
    CHUNK = 4,                   /* blocks that stay in the first cache while all queries of a tile meet them */
    TILE = 48,                   /* queries that share the reading of keys */
    MAX_DIM = 256,
};

/* Layout of the arguments: puyulm/engine/cpu/attention.py. */
typedef struct {
    int64_t pieces, tokens, table_width, kv_heads, q_per_kv, dim, kind, threads;
    const int32_t *query_starts, *lengths, *block_tables;
    const int64_t *slots;
} step;

typedef struct {
    void *keys, *values;
    float *key_scales, *value_scales;
} store;

typedef struct {
    const float *data;
    int64_t token, head; /* strides */
} heads;

/* Queries row .. row + rows of a piece, a row being a query head of a token, and the parts of their keys they meet. */
typedef struct {
    int64_t piece, row, rows, first_part, parts;
    int64_t saved; /* rows of parts kept by units before this one; -1: this one's are folded at once */
} unit;

typedef struct {
    int64_t seen[TILE]; /* keys that each row sees */
    float query_sums[TILE];
    float queries[TILE * MAX_DIM], weights[TILE * PART];
    float mixed[TILE * MAX_DIM], part_mixed[TILE * MAX_DIM];
} workspace;

/* ---- exponentials, in powers of two: the queries carry the factor log2(e) ---- */

/* 2^x for x <= 0, to 1e-7; exactly 1 for 0 and exactly 0 below -126.5. */
INLINE v16 exp2_of(v16 x) {
    const v16 shift = v16_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    x = v16_max(v16_set(-127.0f), x);       /* pow2(-127) has all bits 0 */
    v16 whole = v16_sub(v16_add(x, shift), shift), f = v16_sub(x, whole);
    v16 y = v16_set(1.5353359e-4f);
    y = v16_fma(y, f, v16_set(1.3398876e-3f));
    y = v16_fma(y, f, v16_set(9.6184369e-3f));
    y = v16_fma(y, f, v16_set(5.5503324e-2f));
    y = v16_fma(y, f, v16_set(2.4022648e-1f));
    y = v16_fma(y, f, v16_set(6.9314718e-1f));
    y = v16_fma(y, f, v16_set(1.0f));
    return v16_mul(y, v16_pow2(whole));
}

INLINE float exp2_one(float x) {
    float lanes[LANES];
    v16_store(lanes, exp2_of(v16_set(x)));
    return lanes[0];
}

/* The first lanes of x; `other` from `count` on. */
INLINE v16 first_lanes(v16 x, int64_t count, float other) {
    if (count >= LANES) return x;
    float lanes[LANES];
    v16_store(lanes, x);
    for (int64_t i = count; i < LANES; i++) lanes[i] = other;
    return v16_load(lanes);
}

INLINE float v16_most(v16 x) {
    float lanes[LANES];
    v16_store(lanes, x);
    for (int i = 1; i < LANES; i++) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
}

/* ---- products of a few rows: the two loops that take the time ---- */

/* Adds the dimensions first .. stop of the products of `rows` queries and `blocks` blocks of keys, asking memory for
   the blocks that come `next` meanwhile. */
INLINE void add_scores(const int kind, const int high, const int rows, const int blocks, const float *q, int64_t dim,
                       int64_t first, int64_t stop, const void *const *keys, const char *const *next, v16 sums[8][4]) {
    for (int64_t d = first; d < stop; d++) {
        v16 k[4];
        int64_t at = (d - (high ? first : 0)) * BLOCK;
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) {
            k[b] = load_stored(kind, keys[b], at, high);
            if (!high) __builtin_prefetch(next[b] + at * element_bytes(kind));
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            v16 x = v16_set(q[r * dim + d]);
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++) sums[r][b] = v16_fma(x, k[b], sums[r][b]);
        }
    }
}

INLINE void score_rows(const int kind, const int rows, const int blocks, const float *q, int64_t dim,
                       const void *const *keys, const char *const *next, float *scores) {
    v16 sums[8][4];
    int64_t low = kind == U4 && stored_width(U4, dim) < dim ? stored_width(U4, dim) : dim;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) sums[r][b] = v16_set(0);
    add_scores(kind, 0, rows, blocks, q, dim, 0, low, keys, next, sums);
    if (kind == U4) add_scores(kind, 1, rows, blocks, q, dim, low, dim, keys, next, sums);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) v16_store(scores + r * PART + b * BLOCK, sums[r][b]);
}

/* Adds the values of the first `keys` keys, by weight, to 16 * `columns` columns of `rows` results. Tokens are `stride`
   elements apart; `mixed` begins with the first of these columns. */
INLINE void mix_rows(const int kind, const int high, const int rows, const int columns, const float *weights,
                     int64_t keys, const void *const *values, const char *const *next, int64_t stride, int64_t column,
                     float *mixed, int64_t padded) {
    v16 sums[8][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) sums[r][c] = v16_load(mixed + r * padded + c * LANES);
    for (int64_t first = 0; first < keys; first += BLOCK, weights += BLOCK, values++, next++) {
        int64_t count = keys - first < BLOCK ? keys - first : BLOCK;
        for (int64_t key = 0; key < count; key++) {
            v16 v[4];
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) {
                int64_t at = key * stride + column + c * LANES;
                v[c] = load_stored(kind, *values, at, high);
                if (!high) __builtin_prefetch(*next + at * element_bytes(kind));
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                v16 x = v16_set(weights[r * PART + key]);
#pragma GCC unroll 4
                for (int c = 0; c < columns; c++) sums[r][c] = v16_fma(x, v[c], sums[r][c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) v16_store(mixed + r * padded + c * LANES, sums[r][c]);
}

/* Rows at once, and vectors beside each other then: as many sums as there are registers for. */
#if defined(__AVX512F__)
#define MOST_ROWS 8
#define SHAPES(DO) DO(8, 2) DO(4, 4) DO(2, 4) DO(1, 4)
#else
#define MOST_ROWS 6
#define SHAPES(DO) DO(6, 1) DO(4, 1) DO(2, 2) DO(1, 4)
#endif

INLINE int rows_at_once(int64_t left) { return left >= MOST_ROWS ? MOST_ROWS : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

INLINE void score_kind(const int kind, int rows, int64_t blocks, const float *q, int64_t dim, const void *const *keys,
                       const char *const *next, float *scores) {
#define CASE(R, N)                                                                      \
    case R:                                                                             \
        for (; blocks >= N; blocks -= N, keys += N, next += N, scores += N * BLOCK)     \
            score_rows(kind, R, N, q, dim, keys, next, scores);                         \
        for (; blocks > 0; blocks--, keys++, next++, scores += BLOCK)                   \
            score_rows(kind, R, 1, q, dim, keys, next, scores);                         \
        break;
    switch (rows) { SHAPES(CASE) }
#undef CASE
}

/* Columns column .. stop, which lie in one half of the bytes. */
INLINE void mix_kind(const int kind, const int high, int rows, const float *weights, int64_t keys,
                     const void *const *values, const char *const *next, int64_t stride, int64_t columns, float *mixed,
                     int64_t padded) {
    int64_t at = 0;
#define CASE(R, N)                                                                                       \
    case R:                                                                                              \
        for (; at + N * LANES <= columns; at += N * LANES)                                               \
            mix_rows(kind, high, R, N, weights, keys, values, next, stride, at, mixed + at, padded);     \
        for (; at < columns; at += LANES)                                                                \
            mix_rows(kind, high, R, 1, weights, keys, values, next, stride, at, mixed + at, padded);     \
        break;
    switch (rows) { SHAPES(CASE) }
#undef CASE
}

static void score(int kind, int rows, int64_t blocks, const float *q, int64_t dim, const void *const *keys,
                  const char *const *next, float *scores) {
    switch (kind) {
    case F32: score_kind(F32, rows, blocks, q, dim, keys, next, scores); break;
    case BF16: score_kind(BF16, rows, blocks, q, dim, keys, next, scores); break;
    case U8: score_kind(U8, rows, blocks, q, dim, keys, next, scores); break;
    case U4: score_kind(U4, rows, blocks, q, dim, keys, next, scores); break;
    }
}

static void mix(int kind, int rows, const float *weights, int64_t keys, const void *const *values,
                const char *const *next, int64_t stride, float *mixed, int64_t padded) {
    int64_t low = kind == U4 && stride < padded ? stride : padded;
    switch (kind) {
    case F32: mix_kind(F32, 0, rows, weights, keys, values, next, stride, low, mixed, padded); break;
    case BF16: mix_kind(BF16, 0, rows, weights, keys, values, next, stride, low, mixed, padded); break;
    case U8: mix_kind(U8, 0, rows, weights, keys, values, next, stride, low, mixed, padded); break;
    case U4:
        mix_kind(U4, 0, rows, weights, keys, values, next, stride, low, mixed, padded);
        mix_kind(U4, 1, rows, weights, keys, values, next, stride, padded - low, mixed + low, padded);
    }
}

/* ---- one part of the keys ---- */

INLINE int64_t seen_in_part(int64_t seen, int64_t part) {
    int64_t left = seen - part * PART;
    return left < 0 ? 0 : left > PART ? PART : left;
}

INLINE int64_t blocks_of(int64_t keys) { return (keys + BLOCK - 1) / BLOCK; }

/* Where a block of this head lies: in units of blocks of one head. */
INLINE int64_t place(const step *s, int64_t piece, int64_t head, int64_t block) {
    return s->block_tables[piece * s->table_width + block] * s->kv_heads + head;
}

INLINE void *block_at(const step *s, void *data, int64_t place) {
    return (char *)data + place * BLOCK * stored_width(s->kind, s->dim) * element_bytes(s->kind);
}

/* Blocks chunk .. chunk + count of a part; what lies beyond the part is its last block. */
static void find_blocks(const step *s, void *data, const unit *u, int64_t head, int64_t part, int64_t chunk,
                        int64_t blocks, const void **found) {
    for (int64_t b = 0; b < CHUNK; b++) {
        int64_t block = chunk + b < blocks ? chunk + b : blocks - 1;
        found[b] = block_at(s, data, place(s, u->piece, head, part * PART_BLOCKS + block));
    }
}

/* Scores of a part into `weights`: raw products, before scales of keys. */
static void score_part(const step *s, const store *kv, const unit *u, int64_t head, int64_t part, workspace *w) {
    int64_t blocks = blocks_of(seen_in_part(w->seen[u->rows - 1], part));
    const void *keys[CHUNK], *next[CHUNK];
    find_blocks(s, kv->keys, u, head, part, 0, blocks, next);
    for (int64_t chunk = 0; chunk < blocks; chunk += CHUNK) {
        int64_t count = blocks - chunk < CHUNK ? blocks - chunk : CHUNK;
        memcpy(keys, next, sizeof keys);
        if (chunk + CHUNK < blocks)
            find_blocks(s, kv->keys, u, head, part, chunk + CHUNK, blocks, next);
        else
            find_blocks(s, kv->values, u, head, part, 0, blocks, next);
        for (int64_t row = 0, rows; row < u->rows; row += rows) {
            rows = rows_at_once(u->rows - row);
            int64_t reach = blocks_of(seen_in_part(w->seen[row + rows - 1], part)) - chunk;
            score(s->kind, rows, reach < count ? reach : count, w->queries + row * s->dim, s->dim, keys,
                  (const char *const *)next, w->weights + row * PART + chunk * BLOCK);
        }
    }
}

/* A row's scores become weights, times the values' scales where there are such. Returns what the offsets of values
   add to every dimension. */
static float weigh_row(const step *s, const store *kv, const unit *u, int64_t head, int64_t part, int64_t row,
                       workspace *w, float *most, float *sum) {
    int64_t seen = seen_in_part(w->seen[row], part), blocks = blocks_of(seen);
    float *weights = w->weights + row * PART;
    int coded = s->kind == U8 || s->kind == U4;
    v16 top = v16_set(-INFINITY), total = v16_set(0), offsets = v16_set(0);
    for (int64_t b = 0; b < blocks; b++) {
        v16 x = v16_load(weights + b * BLOCK);
        if (coded) {
            const float *scales = kv->key_scales + place(s, u->piece, head, part * PART_BLOCKS + b) * 2 * BLOCK;
            v16 shift = v16_mul(v16_load(scales + BLOCK), v16_set(w->query_sums[row]));
            x = v16_fma(v16_load(scales), x, shift);
        }
        x = first_lanes(x, seen - b * BLOCK, -INFINITY);
        v16_store(weights + b * BLOCK, x);
        top = v16_max(top, x);
    }
    *most = v16_most(top);
    for (int64_t b = 0; b < blocks; b++) {
        v16 x = exp2_of(v16_sub(v16_load(weights + b * BLOCK), v16_set(*most)));
        total = v16_add(total, x);
        if (coded) {
            const float *scales = kv->value_scales + place(s, u->piece, head, part * PART_BLOCKS + b) * 2 * BLOCK;
            offsets = v16_fma(x, first_lanes(v16_load(scales + BLOCK), seen - b * BLOCK, 0), offsets);
            x = v16_mul(x, first_lanes(v16_load(scales), seen - b * BLOCK, 0));
        }
        v16_store(weights + b * BLOCK, x);
    }
    *sum = v16_sum(total);
    return v16_sum(offsets);
}

/* Weighted values of a part into `part_mixed`. */
static void mix_part(const step *s, const store *kv, const unit *u, int64_t head, int64_t part, workspace *w) {
    int64_t padded = ROUND_UP(s->dim), keys = seen_in_part(w->seen[u->rows - 1], part), blocks = blocks_of(keys);
    const void *values[CHUNK], *next[CHUNK];
    memset(w->part_mixed, 0, u->rows * padded * sizeof(float));
    find_blocks(s, kv->values, u, head, part, 0, blocks, next);
    for (int64_t chunk = 0; chunk < blocks; chunk += CHUNK) {
        memcpy(values, next, sizeof values);
        if (chunk + CHUNK < blocks)
            find_blocks(s, kv->values, u, head, part, chunk + CHUNK, blocks, next);
        else if (part + 1 < u->first_part + u->parts)
            find_blocks(s, kv->keys, u, head, part + 1, 0, 1, next);
        for (int64_t row = 0, rows; row < u->rows; row += rows) {
            rows = rows_at_once(u->rows - row);
            int64_t reach = seen_in_part(w->seen[row + rows - 1], part) - chunk * BLOCK;
            mix(s->kind, rows, w->weights + row * PART + chunk * BLOCK, reach < CHUNK * BLOCK ? reach : CHUNK * BLOCK,
                values, (const char *const *)next, stored_width(s->kind, s->dim), w->part_mixed + row * padded, padded);
        }
    }
}

/* What a part gives to each row of a unit; rows that see none of it are left alone. */
static void attend_part(const step *s, const store *kv, const unit *u, int64_t head, int64_t part, workspace *w,
                        float *most, float *sum) {
    int64_t padded = ROUND_UP(s->dim), extent = blocks_of(seen_in_part(w->seen[u->rows - 1], part)) * BLOCK;
    float offsets[TILE] = {0};
    score_part(s, kv, u, head, part, w);
    for (int64_t row = 0; row < u->rows; row++) {
        int64_t seen = seen_in_part(w->seen[row], part), own = blocks_of(seen) * BLOCK;
        if (seen) offsets[row] = weigh_row(s, kv, u, head, part, row, w, most + row, sum + row);
        memset(w->weights + row * PART + own, 0, (extent - own) * sizeof(float));
    }
    mix_part(s, kv, u, head, part, w);
    if (s->kind == U8 || s->kind == U4)
        for (int64_t row = 0; row < u->rows; row++)
            for (int64_t d = 0; d < padded; d++) w->part_mixed[row * padded + d] += offsets[row];
}

/* ---- parts together ---- */

/* Folds a part's result into a row's. */
static void fold(int first, float part_most, float part_sum, const float *part_mixed, int64_t padded, float *most,
                 float *sum, float *mixed) {
    if (first) {
        *most = part_most, *sum = part_sum;
        memcpy(mixed, part_mixed, padded * sizeof(float));
        return;
    }
    float top = *most > part_most ? *most : part_most;
    float kept = exp2_one(*most - top), added = exp2_one(part_most - top);
    *most = top;
    *sum = *sum * kept + part_sum * added;
    for (int64_t d = 0; d < padded; d += LANES) {
        v16 more = v16_mul(v16_load(part_mixed + d), v16_set(added));
        v16_store(mixed + d, v16_fma(v16_load(mixed + d), v16_set(kept), more));
    }
}

static void finish(const float *mixed, float sum, int64_t dim, float *out) {
    float share = 1 / sum;
    for (int64_t d = 0; d < dim; d++) out[d] = mixed[d] * share;
}

/* Where a part's results of a unit are kept: for each row its maximum, its sum, 14 unused, the values. */
INLINE float *saved_part(const step *s, const unit *u, int64_t head, int64_t part, float *saved) {
    int64_t row_size = LANES + ROUND_UP(s->dim);
    int64_t rows = u->saved * s->kv_heads + (head * u->parts + part - u->first_part) * u->rows;
    return saved + rows * row_size;
}

/* ---- a unit of work ---- */

/* The unit's queries, scaled, and what they see. */
static void gather(const step *s, const unit *u, int64_t head, heads q, workspace *w) {
    int64_t start = s->query_starts[u->piece], count = s->query_starts[u->piece + 1] - start;
    float scale = (float)(1.4426950408889634 / sqrt((double)s->dim));
    for (int64_t r = 0; r < u->rows; r++) {
        int64_t token = (u->row + r) / s->q_per_kv, member = (u->row + r) % s->q_per_kv;
        const float *from = q.data + (start + token) * q.token + head * q.head + member * s->dim;
        float *to = w->queries + r * s->dim, total = 0;
        for (int64_t d = 0; d < s->dim; d++) to[d] = from[d] * scale;
        for (int64_t d = 0; d < s->dim; d++) total += to[d];
        w->query_sums[r] = total;
        w->seen[r] = s->lengths[u->piece] - count + token + 1;
    }
}

INLINE float *row_of_output(const step *s, const unit *u, int64_t head, int64_t row, float *out) {
    int64_t at = u->row + row, token = s->query_starts[u->piece] + at / s->q_per_kv;
    return out + ((token * s->kv_heads + head) * s->q_per_kv + at % s->q_per_kv) * s->dim;
}

static void run_unit(const step *s, const store *kv, const unit *u, int64_t head, heads q, float *out, float *saved) {
    workspace space, *w = &space;
    int64_t padded = ROUND_UP(s->dim);
    float most[TILE], sum[TILE], part_most[TILE], part_sum[TILE];
    gather(s, u, head, q, w);
    for (int64_t part = u->first_part; part < u->first_part + u->parts; part++) {
        attend_part(s, kv, u, head, part, w, part_most, part_sum);
        float *kept = u->saved < 0 ? NULL : saved_part(s, u, head, part, saved);
        for (int64_t r = 0; r < u->rows; r++) {
            const float *mixed = w->part_mixed + r * padded;
            if (kept) {
                float *row = kept + r * (LANES + padded);
                row[0] = part_most[r], row[1] = part_sum[r];
                memcpy(row + LANES, mixed, padded * sizeof(float));
            } else if (seen_in_part(w->seen[r], part))
                fold(part == 0, part_most[r], part_sum[r], mixed, padded, most + r, sum + r, w->mixed + r * padded);
        }
    }
    if (u->saved < 0)
        for (int64_t r = 0; r < u->rows; r++)
            finish(w->mixed + r * padded, sum[r], s->dim, row_of_output(s, u, head, r, out));
}

/* Folds the kept parts of the units that share the rows of `u`, which are `count` units in a row. */
static void combine(const step *s, const unit *u, int64_t count, int64_t head, float *out, float *saved) {
    int64_t padded = ROUND_UP(s->dim), pieces_start = s->query_starts[u->piece];
    int64_t cached = s->lengths[u->piece] - (s->query_starts[u->piece + 1] - pieces_start);
    float mixed[ROUND_UP(MAX_DIM)], most, sum;
    for (int64_t r = 0; r < u->rows; r++) {
        int64_t seen = cached + (u->row + r) / s->q_per_kv + 1;
        for (const unit *each = u; each < u + count; each++)
            for (int64_t part = each->first_part; part < each->first_part + each->parts; part++) {
                if (!seen_in_part(seen, part)) continue;
                const float *row = saved_part(s, each, head, part, saved) + r * (LANES + padded);
                fold(part == 0, row[0], row[1], row + LANES, padded, &most, &sum, mixed);
            }
        finish(mixed, sum, s->dim, row_of_output(s, u, head, r, out));
    }
}

/* ---- a step ---- */

INLINE int64_t tiles_of(const step *s, int64_t piece) {
    int64_t rows = (s->query_starts[piece + 1] - s->query_starts[piece]) * s->q_per_kv;
    return (rows + TILE - 1) / TILE;
}

/* Waking a thread takes longer than a small step. */
static int64_t useful_threads(const step *s) {
    int64_t work = 0;
    for (int64_t piece = 0; piece < s->pieces; piece++) {
        int64_t rows = (s->query_starts[piece + 1] - s->query_starts[piece]) * s->q_per_kv;
        work += s->lengths[piece] * (4 + rows) * s->kv_heads * s->dim;
    }
    return work < 1 << 19 ? 1 : s->threads;
}

/* Shares a step out, the longest work of each piece first. Where there are too few tiles for the threads, tiles are
   cut into ranges of parts. `units` may be NULL, to count. Returns the number of units; `*saved`: rows to be kept. */
static int64_t plan(const step *s, int64_t threads, unit *units, int64_t *saved) {
    int64_t tiles = 0, made = 0, wanted = 4 * threads;
    for (int64_t piece = 0; piece < s->pieces; piece++) tiles += tiles_of(s, piece);
    int64_t ranges = threads == 1 || tiles == 0 ? 1 : (wanted + tiles * s->kv_heads - 1) / (tiles * s->kv_heads);
    *saved = 0;
    for (int64_t piece = 0; piece < s->pieces; piece++) {
        int64_t count = s->query_starts[piece + 1] - s->query_starts[piece], rows = count * s->q_per_kv;
        for (int64_t row = (tiles_of(s, piece) - 1) * TILE; row >= 0; row -= TILE) {
            int64_t size = rows - row < TILE ? rows - row : TILE;
            int64_t seen = s->lengths[piece] - count + (row + size - 1) / s->q_per_kv + 1;
            int64_t parts = (seen + PART - 1) / PART, each = (parts + ranges - 1) / ranges;
            for (int64_t first = 0; first < parts; first += each, made++) {
                int64_t own = parts - first < each ? parts - first : each;
                if (units) units[made] = (unit){piece, row, size, first, own, own < parts ? *saved : -1};
                if (own < parts) *saved += own * size;
            }
        }
    }
    return made;
}

/* How many units from `u` on share its rows. */
INLINE int64_t siblings(const unit *u, const unit *end) {
    int64_t count = 1;
    while (u + count < end && u[count].piece == u->piece && u[count].row == u->row) count++;
    return count;
}

static void store_token(const step *s, const store *kv, int64_t token, int64_t head, heads k, heads v) {
    int64_t at = s->slots[token] / BLOCK * s->kv_heads + head, place = s->slots[token] % BLOCK;
    int64_t width = stored_width(s->kind, s->dim), size = element_bytes(s->kind);
    put(s->kind, k.data + token * k.token + head * k.head, s->dim, (char *)block_at(s, kv->keys, at) + place * size,
        BLOCK, kv->key_scales + at * 2 * BLOCK + place);
    put(s->kind, v.data + token * v.token + head * v.head, s->dim,
        (char *)block_at(s, kv->values, at) + place * width * size, 1, kv->value_scales + at * 2 * BLOCK + place);
}

/* One layer of a step. Queries are [T, KV, q_per_kv, D], keys and values [T, KV, D], each with its distances between
   tokens and between heads; `out` is [T, KV, q_per_kv, D]. Returns 0, or 1 where there is no memory. */
int paged_attention(const step *s, void *keys, void *values, float *key_scales, float *value_scales, const float *q_data,
                    int64_t q_token, int64_t q_head, const float *k_data, int64_t k_token, int64_t k_head,
                    const float *v_data, int64_t v_token, int64_t v_head, float *out) {
    store cache = {keys, values, key_scales, value_scales}, *kv = &cache;
    heads q = {q_data, q_token, q_head}, k = {k_data, k_token, k_head}, v = {v_data, v_token, v_head};
    int64_t threads = useful_threads(s), rows_saved, count = plan(s, threads, NULL, &rows_saved);
    int64_t run = 32, runs = (s->tokens + run - 1) / run;
    unit *units = malloc(count * sizeof(unit) + 1);
    float *saved = malloc(rows_saved * s->kv_heads * (LANES + ROUND_UP(s->dim)) * sizeof(float) + 1);
    if (units && saved) {
        plan(s, threads, units, &rows_saved);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
#pragma omp for schedule(static) collapse(2)
            for (int64_t head = 0; head < s->kv_heads; head++)
                for (int64_t some = 0; some < runs; some++)
                    for (int64_t token = some * run; token < s->tokens && token < (some + 1) * run; token++)
                        store_token(s, kv, token, head, k, v);
#pragma omp for schedule(dynamic) collapse(2)
            for (int64_t i = 0; i < count; i++)
                for (int64_t head = 0; head < s->kv_heads; head++) run_unit(s, kv, units + i, head, q, out, saved);
            if (rows_saved) {
#pragma omp for schedule(static) collapse(2)
                for (int64_t i = 0; i < count; i++)
                    for (int64_t head = 0; head < s->kv_heads; head++)
                        if (units[i].saved >= 0 && units[i].first_part == 0)
                            combine(s, units + i, siblings(units + i, units + count), head, out, saved);
            }
        }
    }
    int failed = !units || !saved;
    free(units);
    free(saved);
    return failed;
}
