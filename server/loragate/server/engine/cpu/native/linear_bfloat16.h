/* Products with bfloat16 weights: [panel][k / PAIR][COLUMNS][PAIR]. */
#ifndef LORAGATE_LINEAR_BFLOAT16_H
#define LORAGATE_LINEAR_BFLOAT16_H

#include "panels.h"

#define PAIR 2 /* numbers along k that lie side by side in a panel */

/* Where in a panel number k of one of its columns lies. */
static inline int64_t place_of(int64_t k, int64_t column) {
    return k / PAIR * PAIR * COLUMNS + column * PAIR + k % PAIR;
}

#ifdef __AVX512BF16__
#include <immintrin.h>

/* The processor's own product of two pairs; x is read as it is. */
#define WIDENS 0
typedef uint16_t factor;

static inline __attribute__((always_inline)) void multiply_bfloat16(
    int rows, const uint16_t *panel, int64_t in, const factor *x, int64_t x_stride, uint16_t *y,
    int64_t y_stride) {
    __m512 sums[ROWS][VECTORS];
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < in; k += PAIR) {
        const uint16_t *from = panel + k * COLUMNS;
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(from);
        __m512bh w1 = (__m512bh)_mm512_loadu_si512(from + COLUMNS);
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)from + AHEAD + 64, _MM_HINT_T0);
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, x + i * x_stride + k, sizeof pair);
            __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], v, w0);
            sums[i][1] = _mm512_dpbf16_ps(sums[i][1], v, w1);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < VECTORS; j++) {
            __m256i rounded = (__m256i)_mm512_cvtneps_pbh(sums[i][j]);
            _mm256_storeu_si256((__m256i *)(y + i * y_stride + j * LANES), rounded);
        }
}
#else
/* Both numbers of a pair are widened in registers, one by a shift and one by a mask. x was before: it is
 * read for every panel. Its rows lie [k][row], so that one address is enough for all. */
#define WIDENS 1
typedef float factor;

static inline __attribute__((always_inline)) void multiply_bfloat16(
    int rows, const uint16_t *panel, int64_t in, const factor *x, int64_t unused, uint16_t *y,
    int64_t y_stride) {
    (void)unused;
    floats sums[ROWS][VECTORS] = {0};
    for (int64_t k = 0; k < in; k += PAIR) {
        const uint16_t *from = panel + k * COLUMNS;
        for (int64_t ahead = 0; ahead < COLUMNS * PAIR; ahead += 32)
            __builtin_prefetch(from + AHEAD / 2 + ahead, 0, 3);
        floats w[VECTORS];
        for (int j = 0; j < VECTORS; j++) w[j] = (floats)(read_words(from + j * LANES * PAIR) << 16);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < VECTORS; j++) sums[i][j] += x[k * rows + i] * w[j];
        for (int j = 0; j < VECTORS; j++)
            w[j] = (floats)(read_words(from + j * LANES * PAIR) & 0xffff0000u);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < VECTORS; j++) sums[i][j] += x[(k + 1) * rows + i] * w[j];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < VECTORS; j++) write_bfloats(y + i * y_stride + j * LANES, sums[i][j]);
}

/* Numbers `begin` to `end` of each row, one block of rows after the other: [block][k][row]. */
static void widen(float *to, const uint16_t *x, int64_t x_stride, int64_t rows, int64_t in, int64_t begin,
                  int64_t end) {
    for (int64_t block = 0; block < blocks_of(rows); block++) {
        int64_t first = begin_of(block, rows), count = begin_of(block + 1, rows) - first;
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = begin; k < end; k++)
                to[first * in + k * count + i] = widen_bf16(x[(first + i) * x_stride + k]);
    }
}
#endif

#endif
