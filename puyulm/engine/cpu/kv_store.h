/* How keys and values lie in the cache, and the ways in and out.

   A block holds 16 tokens of one key/value head: keys as [D, 16], so that the scores of 16 keys are one vector and no
   sum runs across lanes; values as [16, D]. Codes of 8 and 4 bits have a scale and an offset each token, which lie
   apart as [2, 16] a block: value = offset + scale * code. Two codes of 4 bits share a byte: of W bytes, W being D / 2
   rounded up to a multiple of 16, byte r holds dimension r in its low half and dimension W + r in its high half. */

#ifndef PUYULM_KV_STORE_H
#define PUYULM_KV_STORE_H

#include "vector.h"

#define BLOCK LANES /* tokens of a block */
#define ROUND_UP(n) (((n) + LANES - 1) / LANES * LANES)

enum kind { F32, BF16, U8, U4 };

/* Elements of the store that a token's key, or value, takes. */
INLINE int64_t stored_width(int kind, int64_t dim) { return kind == U4 ? ROUND_UP((dim + 1) / 2) : dim; }

INLINE int64_t element_bytes(int kind) { return kind == F32 ? 4 : kind == BF16 ? 2 : 1; }

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))

INLINE v16 v16_of_bytes(__m128i bytes) {
#if defined(__AVX512F__)
    return (v16){_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
#else
    return (v16){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                 _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
#endif
}
INLINE v16 v16_load_u8(const uint8_t *p) { return v16_of_bytes(_mm_loadu_si128((const __m128i *)p)); }
INLINE v16 v16_load_u4(const uint8_t *p, int high) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return v16_of_bytes(_mm_and_si128(high ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15)));
}

#else

INLINE v16 v16_load_u8(const uint8_t *p) { EACH_LANE((float)p[i]); }
INLINE v16 v16_load_u4(const uint8_t *p, int high) { EACH_LANE((float)(high ? p[i] >> 4 : p[i] & 15)); }

#endif

/* Sixteen elements as floats; `high`: of the high halves, for 4 bits. */
INLINE v16 load_stored(int kind, const void *store, int64_t at, int high) {
    switch (kind) {
    case BF16: return v16_load_bf16((const uint16_t *)store + at);
    case U8: return v16_load_u8((const uint8_t *)store + at);
    case U4: return v16_load_u4((const uint8_t *)store + at, high);
    default: return v16_load((const float *)store + at);
    }
}

INLINE uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 64); /* rounding must not make an infinity of a NaN */
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* Codes of a head's D values, and their scale and offset. A NaN makes the scale NaN. */
static void quantize(const float *x, int64_t dim, float levels, uint8_t *codes, float *scale, float *offset) {
    float low = x[0], high = x[0], total = 0;
    for (int64_t d = 0; d < dim; d++) {
        low = x[d] < low ? x[d] : low;
        high = x[d] > high ? x[d] : high;
        total += x[d];
    }
    float step = (high - low) / levels, divisor = step > 0 ? step : 1;
    for (int64_t d = 0; d < dim; d++) {
        float code = rintf((x[d] - low) / divisor);
        codes[d] = (uint8_t)(code > 0 ? code < levels ? code : levels : 0);
    }
    *scale = total - total == 0 ? step : total - total; /* not finite: NaN */
    *offset = low;
}

/* Stores a head's values at `store`, elements `apart`. */
static void put(int kind, const float *x, int64_t dim, void *store, int64_t apart, float *scales) {
    uint8_t codes[2 * ROUND_UP(256)] = {0};
    if (kind == F32)
        for (int64_t d = 0; d < dim; d++) ((float *)store)[d * apart] = x[d];
    else if (kind == BF16)
        for (int64_t d = 0; d < dim; d++) ((uint16_t *)store)[d * apart] = bf16_of(x[d]);
    else {
        int64_t width = stored_width(kind, dim);
        uint8_t *bytes = store;
        quantize(x, dim, kind == U8 ? 255 : 15, codes, scales, scales + BLOCK);
        for (int64_t r = 0; r < width; r++) bytes[r * apart] = kind == U8 ? codes[r] : codes[r] | codes[width + r] << 4;
    }
}

#endif
