/* The inner loops of attention: exponentials, and products of a few rows with some blocks. */

#ifndef PUYULM_ATTENTION_ROWS_H
#define PUYULM_ATTENTION_ROWS_H

#include "kv_store.h"

#define PART 256 /* keys whose weights share a maximum; also the distance of two rows of scores */

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

#endif
