/* What a layer does between its matrix products. Every row is computed for itself, in one order of operations. */

#include "vector.h"

#include <omp.h>

/* For few numbers waking the other threads takes longer than the work. */
INLINE int threads_for(int64_t numbers, int threads) { return numbers > 32768 ? threads : 1; }

INLINE v16 load_some(const float *p, int64_t count) { return count < LANES ? v16_load_part(p, count) : v16_load(p); }

INLINE void store_some(float *p, v16 x, int64_t count) {
    if (count < LANES) v16_store_part(p, x, count);
    else v16_store(p, x);
}

/* y = x / sqrt(mean(x^2) + eps) * weight; x and y [m, n], each without gaps. */
void block_rms_norm(const float *x, const float *weight, float eps, float *y, int64_t m, int64_t n, int threads) {
#pragma omp parallel for num_threads(threads_for(m * n, threads))
    for (int64_t row = 0; row < m; row++) {
        const float *from = x + row * n;
        float *to = y + row * n;
        v16 squares = v16_set(0);
        for (int64_t i = 0; i < n; i += LANES) {
            v16 values = load_some(from + i, n - i);
            squares = v16_fma(values, values, squares);
        }
        v16 scale = v16_set(1.0f / sqrtf(v16_sum(squares) / (float)n + eps));
        for (int64_t i = 0; i < n; i += LANES) {
            v16 values = v16_mul(load_some(from + i, n - i), scale);
            store_some(to + i, v16_mul(values, load_some(weight + i, n - i)), n - i);
        }
    }
}

/* One head: halves (a, b) -> (a cos - b sin, b cos + a sin); the first half of `sin` is negated already. */
INLINE void rotate(const float *x, const float *cosines, const float *sines, float *y, int64_t half) {
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t j = half + i, count = half - i;
        v16 a = load_some(x + i, count), b = load_some(x + j, count);
        v16 low = v16_mul(a, load_some(cosines + i, count)), high = v16_mul(b, load_some(cosines + j, count));
        store_some(y + i, v16_fma(b, load_some(sines + i, count), low), count);
        store_some(y + j, v16_fma(a, load_some(sines + j, count), high), count);
    }
}

/* qkv [m, groups, queries + 2, d], cosines and sines [m, d] -> q [m, groups, queries, d], k and v [m, groups, d]. */
void block_rotate_qkv(const float *qkv, const float *cosines, const float *sines, float *q, float *k, float *v,
                      int64_t m, int64_t groups, int64_t queries, int64_t d, int threads) {
#pragma omp parallel for num_threads(threads_for(m * groups * (queries + 2) * d, threads))
    for (int64_t row = 0; row < m; row++)
        for (int64_t group = row * groups; group < (row + 1) * groups; group++) {
            const float *from = qkv + group * (queries + 2) * d, *c = cosines + row * d, *s = sines + row * d;
            for (int64_t head = 0; head < queries; head++)
                rotate(from + head * d, c, s, q + (group * queries + head) * d, d / 2);
            rotate(from + queries * d, c, s, k + group * d, d / 2);
            memcpy(v + group * d, from + (queries + 1) * d, d * sizeof(float));
        }
}

/* e^x, within 1 unit in the last place, for -87.3 <= x <= 88.3; beyond, what it is at the end of that range. NaN
   stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2; e^r by the polynomial of Cephes' expf (S. Moshier). */
INLINE v16 exponential(v16 x) {
    /* An operand that is NaN must come second to survive. */
    x = v16_max(v16_set(-87.3f), v16_min(v16_set(88.3f), x));
    const v16 round = v16_set(12582912.0f); /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    v16 n = v16_sub(v16_fma(x, v16_set(1.44269504088896341f), round), round);
    v16 r = v16_fma(n, v16_set(-0.693359375f), x);
    r = v16_fma(n, v16_set(2.12194440e-4f), r);
    v16 p = v16_set(1.9875691500e-4f);
    p = v16_fma(p, r, v16_set(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set(5.0000001201e-1f));
    p = v16_add(v16_fma(p, v16_mul(r, r), r), v16_set(1));
    return v16_mul(p, v16_pow2(n));
}

/* gate / (1 + e^-gate) * up */
INLINE v16 gated(v16 gate, v16 up) {
    v16 falling = exponential(v16_sub(v16_set(0), gate));
    return v16_mul(v16_div(gate, v16_add(v16_set(1), falling)), up);
}

/* gate_up [m, groups, 2, block] -> y [m, groups, block] */
void block_swiglu(const float *gate_up, float *y, int64_t m, int64_t groups, int64_t block, int threads) {
    int64_t pieces = (block + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads_for(m * groups * block, threads))
    for (int64_t at = 0; at < m * groups * pieces; at++) {
        int64_t group = at / pieces, i = at % pieces * LANES, count = block - i;
        const float *gate = gate_up + group * 2 * block + i;
        store_some(y + group * block + i, gated(load_some(gate, count), load_some(gate + block, count)), count);
    }
}

/* The exponential alone, to be tested. */
void block_exponential(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store_some(y + i, exponential(load_some(x + i, n - i)), n - i);
}
