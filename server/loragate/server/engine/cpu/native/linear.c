/* Products with a model's bfloat16 weights, y = x W^T, for processors with AVX-512's bfloat16 dot
 * product. With few rows of x, as while tokens are generated, the time is that of reading W once. Each
 * row is summed in the same order however many there are, so it does not depend on its company. */
#include "team.h"
#include "vectors.h"

#define COLUMNS 32 /* of y in a panel: two vectors */
#define PAIR 2     /* numbers along k that one instruction multiplies */
#define ROWS 12    /* 24 of the 32 registers are sums */
#define SMALL_WORK 65536 /* products below which waking a second thread costs more than it saves */
#define AHEAD 2048 /* bytes of a panel that are asked for before they are needed */

/* Panels of COLUMNS rows of W, [panel][k / PAIR][COLUMNS][PAIR]: read in order, whatever x has. */
void pack_linear(const uint16_t *w, int64_t out, int64_t in, uint16_t *packed) {
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < out; panel += COLUMNS) {
        uint16_t *to = packed + panel * in;
        for (int64_t k = 0; k < in; k += PAIR)
            for (int column = 0; column < COLUMNS; column++)
                for (int j = 0; j < PAIR; j++) *to++ = w[(panel + column) * in + k + j];
    }
}

#ifdef __AVX512BF16__
#include <immintrin.h>

static inline __attribute__((always_inline)) void tile(
    int rows, const uint16_t *panel, int64_t in, const uint16_t *x, int64_t x_stride, uint16_t *y,
    int64_t y_stride) {
    __m512 sums[ROWS][2];
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
        for (int j = 0; j < 2; j++) {
            __m256i rounded = (__m256i)_mm512_cvtneps_pbh(sums[i][j]);
            _mm256_storeu_si256((__m256i *)(y + i * y_stride + j * LANES), rounded);
        }
}

/* The compiler sees each number of rows as a constant. */
void team_linear_bfloat16(const uint16_t *packed, int64_t out, int64_t in, uint16_t *y, int64_t y_stride,
                          const uint16_t *x, int64_t x_stride, int64_t rows) {
    int64_t blocks = (rows + ROWS - 1) / ROWS;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < out; panel += COLUMNS) {
        const uint16_t *w = packed + panel * in;
        for (int64_t block = 0; block < blocks; block++) {
            int64_t first = rows * block / blocks; /* blocks as equal as can be: 16 is 8 and 8 */
            const uint16_t *xs = x + first * x_stride;
            uint16_t *ys = y + first * y_stride + panel;
            switch (rows * (block + 1) / blocks - first) {
                case 1: tile(1, w, in, xs, x_stride, ys, y_stride); break;
                case 2: tile(2, w, in, xs, x_stride, ys, y_stride); break;
                case 3: tile(3, w, in, xs, x_stride, ys, y_stride); break;
                case 4: tile(4, w, in, xs, x_stride, ys, y_stride); break;
                case 5: tile(5, w, in, xs, x_stride, ys, y_stride); break;
                case 6: tile(6, w, in, xs, x_stride, ys, y_stride); break;
                case 7: tile(7, w, in, xs, x_stride, ys, y_stride); break;
                case 8: tile(8, w, in, xs, x_stride, ys, y_stride); break;
                case 9: tile(9, w, in, xs, x_stride, ys, y_stride); break;
                case 10: tile(10, w, in, xs, x_stride, ys, y_stride); break;
                case 11: tile(11, w, in, xs, x_stride, ys, y_stride); break;
                case 12: tile(12, w, in, xs, x_stride, ys, y_stride); break;
            }
        }
    }
}

/* `out` is a multiple of COLUMNS, `in` of PAIR; strides are in elements. */
void linear_bfloat16(const uint16_t *packed, int64_t out, int64_t in, uint16_t *y, int64_t y_stride,
                     const uint16_t *x, int64_t x_stride, int64_t rows) {
#pragma omp parallel if (rows * out * in >= SMALL_WORK)
    team_linear_bfloat16(packed, out, in, y, y_stride, x, x_stride, rows);
}
#endif
