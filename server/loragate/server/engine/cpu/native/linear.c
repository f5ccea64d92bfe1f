/* Products with a model's bfloat16 weights, y = x W^T. With few rows of x, as while tokens are
 * generated, the time is that of reading W once, so W stays bfloat16 in memory, whatever the processor
 * multiplies. Each row is summed in the same order however many there are, so it does not depend on its
 * company. */
#include <stdio.h>
#include <stdlib.h>

#include "team.h"
#include "vectors.h"

#define PAIR 2 /* numbers along k that lie side by side in a panel */
#define SMALL_WORK 65536 /* products below which waking a second thread costs more than it saves */
#define AHEAD 2048 /* bytes of a panel that are asked for before they are needed */

#if defined(__AVX512BF16__)
#include <immintrin.h>
#define VECTORS 2 /* of y in a panel */
#define ROWS 12   /* 24 of the 32 registers are sums */
#elif defined(__AVX512F__)
#define VECTORS 2
#define ROWS 12
#elif defined(__AVX2__)
#define VECTORS 2
#define ROWS 5 /* 10 of the 16 registers: with 12 the compiler runs out */
#else /* as NEON has it: 32 registers of four numbers */
#define VECTORS 4
#define ROWS 6
#endif
#define COLUMNS (VECTORS * LANES) /* of y in a panel */

int64_t linear_columns(void) { return COLUMNS; }

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
/* The processor's own product of two pairs. */
typedef uint16_t factor;

static inline __attribute__((always_inline)) void tile(
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
typedef float factor;

static inline __attribute__((always_inline)) void tile(
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
#endif

/* Blocks of rows are as equal as can be: 16 are 8 and 8. */
static int64_t begin_of(int64_t block, int64_t blocks, int64_t rows) { return rows * block / blocks; }

/* One panel of y for all rows. The compiler sees each number of rows as a constant. */
static void multiply_panel(const uint16_t *panel, int64_t in, uint16_t *y, int64_t y_stride,
                           const factor *x, int64_t x_stride, int64_t rows) {
    int64_t blocks = (rows + ROWS - 1) / ROWS;
    for (int64_t block = 0; block < blocks; block++) {
        int64_t first = begin_of(block, blocks, rows);
        const factor *xs = x + first * x_stride;
        uint16_t *ys = y + first * y_stride;
        switch (begin_of(block + 1, blocks, rows) - first) {
            case 1: tile(1, panel, in, xs, x_stride, ys, y_stride); break;
            case 2: tile(2, panel, in, xs, x_stride, ys, y_stride); break;
            case 3: tile(3, panel, in, xs, x_stride, ys, y_stride); break;
            case 4: tile(4, panel, in, xs, x_stride, ys, y_stride); break;
            case 5: tile(5, panel, in, xs, x_stride, ys, y_stride); break;
#if ROWS > 5
            case 6: tile(6, panel, in, xs, x_stride, ys, y_stride); break;
#endif
#if ROWS > 6
            case 7: tile(7, panel, in, xs, x_stride, ys, y_stride); break;
            case 8: tile(8, panel, in, xs, x_stride, ys, y_stride); break;
            case 9: tile(9, panel, in, xs, x_stride, ys, y_stride); break;
            case 10: tile(10, panel, in, xs, x_stride, ys, y_stride); break;
            case 11: tile(11, panel, in, xs, x_stride, ys, y_stride); break;
            case 12: tile(12, panel, in, xs, x_stride, ys, y_stride); break;
#endif
        }
    }
}

#ifdef __AVX512BF16__
float *room_to_widen(int64_t in) {
    (void)in;
    return NULL;
}

void team_linear_bfloat16(const uint16_t *packed, int64_t out, int64_t in, uint16_t *y, int64_t y_stride,
                          const uint16_t *x, int64_t x_stride, int64_t rows, float *room) {
    (void)room;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < out; panel += COLUMNS)
        multiply_panel(packed + panel * in, in, y + panel, y_stride, x, x_stride, rows);
}
#else
#define MOST_WIDENED 240 /* rows of x at once: what they take stays in the second cache, or near it */
#define AT_ONCE 64       /* numbers of a row that one thread widens */

float *room_to_widen(int64_t in) {
    static _Thread_local float *room; /* kept for the thread's life: it is asked for at every layer */
    static _Thread_local int64_t size;
    int64_t wanted = MOST_WIDENED * in;
    if (wanted > size) {
        free(room);
        room = aligned_alloc(64, (size_t)(wanted * (int64_t)sizeof *room + 63) / 64 * 64);
        if (room == NULL) {
            fputs("loragate: no memory left for a product\n", stderr);
            abort();
        }
        size = wanted;
    }
    return room;
}

/* Numbers `begin` to `end` of each row, one block of rows after the other: [block][k][row]. */
static void widen(float *room, const uint16_t *x, int64_t x_stride, int64_t rows, int64_t in,
                  int64_t begin, int64_t end) {
    int64_t blocks = (rows + ROWS - 1) / ROWS;
    for (int64_t block = 0; block < blocks; block++) {
        int64_t first = begin_of(block, blocks, rows), count = begin_of(block + 1, blocks, rows) - first;
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = begin; k < end; k++)
                room[first * in + k * count + i] = widen_bf16(x[(first + i) * x_stride + k]);
    }
}

void team_linear_bfloat16(const uint16_t *packed, int64_t out, int64_t in, uint16_t *y, int64_t y_stride,
                          const uint16_t *x, int64_t x_stride, int64_t rows, float *room) {
    for (int64_t first = 0; first < rows; first += MOST_WIDENED) {
        int64_t count = rows - first < MOST_WIDENED ? rows - first : MOST_WIDENED;
        /* The barrier at the end of each loop is needed: all of x is read for each panel, and is
         * overwritten by the next round, or by the next layer. */
#pragma omp for schedule(static)
        for (int64_t k = 0; k < in; k += AT_ONCE)
            widen(room, x + first * x_stride, x_stride, count, in, k, k + AT_ONCE < in ? k + AT_ONCE : in);
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < out; panel += COLUMNS)
            multiply_panel(packed + panel * in, in, y + first * y_stride + panel, y_stride, room, in, count);
    }
}
#endif

/* `out` is a multiple of COLUMNS, `in` of PAIR; strides are in elements. */
void linear_bfloat16(const uint16_t *packed, int64_t out, int64_t in, uint16_t *y, int64_t y_stride,
                     const uint16_t *x, int64_t x_stride, int64_t rows) {
    float *room = room_to_widen(in);
#pragma omp parallel if (rows * out * in >= SMALL_WORK)
    team_linear_bfloat16(packed, out, in, y, y_stride, x, x_stride, rows, room);
}
