/* Paged attention of a step: the pieces' keys and values are stored, and each query sees its sequence up to itself.

   What a query gets depends on its own vector and its own keys in order, and on nothing else, to the last bit. Keys
   are taken in parts of 256 that start at multiples of 256 of the position. Within a part: scores, each one sum over
   ascending dimensions; their maximum; weights and their sum in a fixed tree; the mix of values over ascending keys.
   Parts are then folded into the result in ascending order. How many queries share a tile, how parts are shared out
   to threads and which blocks hold the keys changes where and when this is computed, never the operations. */

#include <stdlib.h>

#include "attention_rows.h"

enum {
    PART_BLOCKS = PART / BLOCK,
    CHUNK = 4, /* blocks that stay in the first cache while all queries of a tile meet them */
    TILE = 48, /* queries that share the reading of keys */
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
int paged_attention(const step *s, void *keys, void *values, float *key_scales, float *value_scales,
                    const float *q_data, int64_t q_token, int64_t q_head, const float *k_data, int64_t k_token,
                    int64_t k_head, const float *v_data, int64_t v_token, int64_t v_head, float *out) {
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
