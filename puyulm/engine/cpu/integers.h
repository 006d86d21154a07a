/* Sums of products of small integers for sixteen outputs at a time, on what the processor has: AVX-512 VNNI, AVX VNNI,
   AVX2, or plain C. All sums are exact, so all four give the same bits.

   A `bytes` holds four consecutive inputs of each of sixteen outputs. Sums of a group of 32 inputs begin at zero, take
   eight `bytes` through add_8bit or add_4bit, and end in total_8bit or total_4bit; what stands in them in between
   differs from processor to processor. */

#ifndef PUYULM_INTEGERS_H
#define PUYULM_INTEGERS_H

#include "vector.h"

INLINE int32_t four_bytes(const int8_t *p) {
    int32_t all;
    memcpy(&all, p, 4);
    return all;
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

typedef struct { __m512i a; } bytes;
typedef struct { __m512i a; } sums;

INLINE bytes bytes_load(const uint8_t *p) { return (bytes){_mm512_loadu_si512(p)}; }
INLINE bytes bytes_repeat(const int8_t *p) { return (bytes){_mm512_set1_epi32(four_bytes(p))}; }
INLINE bytes low_halves(bytes w) { return (bytes){_mm512_and_si512(w.a, _mm512_set1_epi8(15))}; }
INLINE bytes high_halves(bytes w) { return low_halves((bytes){_mm512_srli_epi16(w.a, 4)}); }

INLINE sums sums_set(int32_t x) { return (sums){_mm512_set1_epi32(x)}; }
INLINE sums sums_load_bytes(const uint8_t *p) {
    return (sums){_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))};
}
INLINE v16 v16_of_sums(sums x) { return (v16){_mm512_cvtepi32_ps(x.a)}; }
INLINE v16 v16_load_half(const uint16_t *p) {
    return (v16){_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))};
}

/* The instruction wants one factor without a sign: 128 is added to the codes and taken off in the total. */
INLINE sums add_8bit(sums sum, bytes w, bytes x) {
    return (sums){_mm512_dpbusd_epi32(sum.a, _mm512_xor_si512(w.a, _mm512_set1_epi8(-128)), x.a)};
}
INLINE sums add_4bit(sums sum, bytes w, bytes x) { return (sums){_mm512_dpbusd_epi32(sum.a, w.a, x.a)}; }
INLINE sums total_8bit(sums sum, int32_t x_sum) {
    return (sums){_mm512_sub_epi32(sum.a, _mm512_set1_epi32(128 * x_sum))};
}
/* Zeros fill the lower 16 bits of their lanes and the sum of activations fits in 16, so that the faster product of
   pairs does. */
INLINE sums total_4bit(sums sum, sums zeros, int32_t x_sum) {
    return (sums){_mm512_sub_epi32(sum.a, _mm512_madd_epi16(zeros.a, _mm512_set1_epi32(x_sum & 0xffff)))};
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

typedef struct { __m256i a, b; } bytes;
typedef struct { __m256i a, b; } sums;

INLINE bytes bytes_load(const uint8_t *p) {
    return (bytes){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
INLINE bytes bytes_repeat(const int8_t *p) {
    __m256i all = _mm256_set1_epi32(four_bytes(p));
    return (bytes){all, all};
}
INLINE bytes low_halves(bytes w) {
    __m256i mask = _mm256_set1_epi8(15);
    return (bytes){_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
INLINE bytes high_halves(bytes w) { return low_halves((bytes){_mm256_srli_epi16(w.a, 4), _mm256_srli_epi16(w.b, 4)}); }

INLINE sums sums_set(int32_t x) { return (sums){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE sums sums_load_bytes(const uint8_t *p) {
    __m128i all = _mm_loadu_si128((const __m128i *)p);
    return (sums){_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}
#if defined(__AVX512F__)
INLINE v16 v16_of_sums(sums x) {
    return (v16){_mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(x.a), x.b, 1))};
}
INLINE v16 v16_load_half(const uint16_t *p) { return (v16){_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))}; }
#else
INLINE v16 v16_of_sums(sums x) { return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE v16 v16_load_half(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
#endif

#if defined(__AVXVNNI__)

INLINE __m256i add_8bit_lane(__m256i sum, __m256i w, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sum, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x);
}
INLINE __m256i add_4bit_lane(__m256i sum, __m256i w, __m256i x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
INLINE __m256i total_8bit_lane(__m256i sum, int32_t x_sum) {
    return _mm256_sub_epi32(sum, _mm256_set1_epi32(128 * x_sum));
}
INLINE __m256i widen_4bit_lane(__m256i sum) { return sum; }

#else

/* The instruction wants one factor without a sign: that of the code moves to the activation. Two products are at most
   2 * 127 * 127, which 16 bits hold. */
INLINE __m256i add_8bit_lane(__m256i sum, __m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* Sixteen products of at most 15 * 127 are all that go into a lane of a group: 16 bits hold them. */
INLINE __m256i add_4bit_lane(__m256i sum, __m256i w, __m256i x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
}
INLINE __m256i total_8bit_lane(__m256i sum, int32_t x_sum) {
    (void)x_sum;
    return sum;
}
INLINE __m256i widen_4bit_lane(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

#endif

INLINE sums add_8bit(sums sum, bytes w, bytes x) {
    return (sums){add_8bit_lane(sum.a, w.a, x.a), add_8bit_lane(sum.b, w.b, x.b)};
}
INLINE sums add_4bit(sums sum, bytes w, bytes x) {
    return (sums){add_4bit_lane(sum.a, w.a, x.a), add_4bit_lane(sum.b, w.b, x.b)};
}
INLINE sums total_8bit(sums sum, int32_t x_sum) {
    return (sums){total_8bit_lane(sum.a, x_sum), total_8bit_lane(sum.b, x_sum)};
}
INLINE sums total_4bit(sums sum, sums zeros, int32_t x_sum) {
    __m256i x = _mm256_set1_epi32(x_sum & 0xffff);
    return (sums){_mm256_sub_epi32(widen_4bit_lane(sum.a), _mm256_madd_epi16(zeros.a, x)),
                  _mm256_sub_epi32(widen_4bit_lane(sum.b), _mm256_madd_epi16(zeros.b, x))};
}

#else

/* Vectors of the C compiler, which cuts them to what the processor has. */
typedef int16_t shorts __attribute__((vector_size(64)));
typedef int32_t words __attribute__((vector_size(64)));
typedef struct { shorts of; } bytes;
typedef struct { words of; } sums;

INLINE bytes bytes_load(const uint8_t *p) {
    bytes w;
    memcpy(&w, p, sizeof w);
    return w;
}
INLINE bytes bytes_repeat(const int8_t *p) { return (bytes){(shorts)(four_bytes(p) - (words){0})}; }
INLINE bytes low_halves(bytes w) { return (bytes){w.of & 0x0f0f}; }
INLINE bytes high_halves(bytes w) { return (bytes){w.of >> 4 & 0x0f0f}; }

INLINE sums sums_set(int32_t x) { return (sums){x - (words){0}}; }
INLINE sums sums_load_bytes(const uint8_t *p) {
    sums all;
    for (int i = 0; i < LANES; i++) all.of[i] = p[i];
    return all;
}
INLINE v16 v16_of_sums(sums x) {
    float all[LANES];
    for (int i = 0; i < LANES; i++) all[i] = (float)x.of[i];
    return v16_load(all);
}

/* IEEE half precision; the factor moves the exponent's zero from 15 to 127, for subnormal numbers too. */
INLINE float half_to_float(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, 4);
    value = (half & 0x7c00) == 0x7c00 ? (half & 0x3ff ? NAN : INFINITY) : value * 0x1p112f;
    return half & 0x8000 ? -value : value;
}
INLINE v16 v16_load_half(const uint16_t *p) {
    float all[LANES];
    for (int i = 0; i < LANES; i++) all[i] = half_to_float(p[i]);
    return v16_load(all);
}

INLINE words widen(shorts pairs) { return ((words)pairs << 16 >> 16) + ((words)pairs >> 16); }

/* Two products are at most 2 * 127 * 127, which 16 bits hold. */
INLINE sums add_8bit(sums sum, bytes w, bytes x) {
    return (sums){sum.of + widen((w.of << 8 >> 8) * (x.of << 8 >> 8) + (w.of >> 8) * (x.of >> 8))};
}
/* Sixteen products of at most 15 * 127 are all that go into 16 bits of a group: they hold them. */
INLINE sums add_4bit(sums sum, bytes w, bytes x) {
    return (sums){(words)((shorts)sum.of + (w.of & 255) * (x.of << 8 >> 8) + (w.of >> 8) * (x.of >> 8))};
}
INLINE sums total_8bit(sums sum, int32_t x_sum) {
    (void)x_sum;
    return sum;
}
INLINE sums total_4bit(sums sum, sums zeros, int32_t x_sum) {
    return (sums){widen((shorts)sum.of) - zeros.of * x_sum};
}

#endif

#endif
