/* Sixteen floats at a time, on what the processor has: AVX-512, AVX2 with FMA, or plain C.

   Each function does the same to every lane and rounds once, so that all three give the same bits: v16_fma is one
   rounding everywhere but on processors without a fused multiply-add. */

#ifndef PUYULM_VECTOR_H
#define PUYULM_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

typedef struct { __m512 a; } v16;

INLINE v16 v16_set(float x) { return (v16){_mm512_set1_ps(x)}; }
INLINE v16 v16_load(const float *p) { return (v16){_mm512_loadu_ps(p)}; }
INLINE void v16_store(float *p, v16 x) { _mm512_storeu_ps(p, x.a); }
INLINE v16 v16_add(v16 x, v16 y) { return (v16){_mm512_add_ps(x.a, y.a)}; }
INLINE v16 v16_sub(v16 x, v16 y) { return (v16){_mm512_sub_ps(x.a, y.a)}; }
INLINE v16 v16_mul(v16 x, v16 y) { return (v16){_mm512_mul_ps(x.a, y.a)}; }
INLINE v16 v16_div(v16 x, v16 y) { return (v16){_mm512_div_ps(x.a, y.a)}; }
INLINE v16 v16_fma(v16 x, v16 y, v16 z) { return (v16){_mm512_fmadd_ps(x.a, y.a, z.a)}; }
INLINE v16 v16_min(v16 x, v16 y) { return (v16){_mm512_min_ps(x.a, y.a)}; }
INLINE v16 v16_max(v16 x, v16 y) { return (v16){_mm512_max_ps(x.a, y.a)}; }

INLINE v16 v16_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (v16){_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

/* 2^n of whole numbers -126 <= n <= 127. */
INLINE v16 v16_pow2(v16 n) {
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.a), _mm512_set1_epi32(127));
    return (v16){_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}

#elif defined(__AVX2__) && defined(__FMA__)

typedef struct { __m256 a, b; } v16;

INLINE v16 v16_set(float x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE v16 v16_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void v16_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
INLINE v16 v16_add(v16 x, v16 y) { return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE v16 v16_sub(v16 x, v16 y) { return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INLINE v16 v16_mul(v16 x, v16 y) { return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE v16 v16_div(v16 x, v16 y) { return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INLINE v16 v16_min(v16 x, v16 y) { return (v16){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INLINE v16 v16_max(v16 x, v16 y) { return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

INLINE __m256 v8_load_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE v16 v16_load_bf16(const uint16_t *p) { return (v16){v8_load_bf16(p), v8_load_bf16(p + 8)}; }

INLINE __m256 v8_pow2(__m256 n) {
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
/* 2^n of whole numbers -126 <= n <= 127. */
INLINE v16 v16_pow2(v16 n) { return (v16){v8_pow2(n.a), v8_pow2(n.b)}; }

#else

typedef struct { float f[LANES]; } v16;

#define EACH_LANE(expression)                                \
    v16 out;                                                 \
    for (int i = 0; i < LANES; i++) out.f[i] = (expression); \
    return out

INLINE v16 v16_set(float x) { EACH_LANE(x); }
INLINE v16 v16_load(const float *p) { EACH_LANE(p[i]); }
INLINE void v16_store(float *p, v16 x) { memcpy(p, x.f, sizeof x.f); }
INLINE v16 v16_add(v16 x, v16 y) { EACH_LANE(x.f[i] + y.f[i]); }
INLINE v16 v16_sub(v16 x, v16 y) { EACH_LANE(x.f[i] - y.f[i]); }
INLINE v16 v16_mul(v16 x, v16 y) { EACH_LANE(x.f[i] * y.f[i]); }
INLINE v16 v16_div(v16 x, v16 y) { EACH_LANE(x.f[i] / y.f[i]); }
INLINE v16 v16_min(v16 x, v16 y) { EACH_LANE(x.f[i] < y.f[i] ? x.f[i] : y.f[i]); }
INLINE v16 v16_max(v16 x, v16 y) { EACH_LANE(x.f[i] > y.f[i] ? x.f[i] : y.f[i]); }
#ifdef __FP_FAST_FMAF
INLINE v16 v16_fma(v16 x, v16 y, v16 z) { EACH_LANE(fmaf(x.f[i], y.f[i], z.f[i])); }
#else
INLINE v16 v16_fma(v16 x, v16 y, v16 z) { EACH_LANE(x.f[i] * y.f[i] + z.f[i]); }
#endif

INLINE float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
INLINE v16 v16_load_bf16(const uint16_t *p) { EACH_LANE(float_of_bits((uint32_t)p[i] << 16)); }

/* 2^n of whole numbers -126 <= n <= 127. */
INLINE v16 v16_pow2(v16 n) { EACH_LANE(float_of_bits((uint32_t)((int32_t)n.f[i] + 127) << 23)); }

#endif

/* The first `count` < 16 lanes from memory, the others 0; and back. */
INLINE v16 v16_load_part(const float *p, int64_t count) {
    float lanes[LANES] = {0};
    memcpy(lanes, p, count * sizeof(float));
    return v16_load(lanes);
}
INLINE void v16_store_part(float *p, v16 x, int64_t count) {
    float lanes[LANES];
    v16_store(lanes, x);
    memcpy(p, lanes, count * sizeof(float));
}

/* All lanes, in one fixed tree. */
INLINE float v16_sum(v16 x) {
    float lanes[LANES];
    v16_store(lanes, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

#endif
