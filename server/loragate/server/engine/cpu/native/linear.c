/* Products with a model's weights, y = x W^T. With few rows of x, as while tokens are generated, the time
 * is that of reading W once, so W stays bfloat16 in memory, whatever the processor multiplies, or is
 * rounded to eight bits. Each row is summed in the same order however many there are, so it does not
 * depend on its company. */
#include <stdio.h>
#include <stdlib.h>

#include "linear_bfloat16.h"
#include "linear_int8.h"
#include "team.h"

#define SMALL_WORK 65536 /* products below which waking a second thread costs more than it saves */
#define MOST_ROWS 240    /* of x at once: what they take stays in the second cache, or near it */
#define AT_ONCE 64       /* numbers of a row that one thread widens */

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

int64_t linear_groups(int64_t in) { return groups_of(in); }

/* From what pack_linear made to [out * in] numbers of eight bits and [out * groups] scales. `in` is a
 * multiple of TOGETHER. */
void quantise_linear(const uint16_t *packed, int64_t out, int64_t in, uint8_t *quantised, uint16_t *scales) {
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < out; panel += COLUMNS)
        quantise_panel(packed + panel * in, in, quantised + panel * in, scales + panel * groups_of(in));
}

float *room_for(int64_t in) {
    static _Thread_local float *room; /* kept for the thread's life: it is asked for at every layer */
    static _Thread_local int64_t size;
    int64_t wanted = MOST_ROWS * in;
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

/* The compiler sees each number of rows as a constant. */
#if ROWS == 12
#define CASES(CASE) \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#elif ROWS == 6
#define CASES(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#else
#define CASES(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#endif

/* One panel of y for all rows. */
static void multiply_panel(const struct linear *linear, int64_t panel, uint16_t *y, int64_t y_stride,
                           const factor *x, int64_t x_stride, int64_t rows) {
    const uint16_t *packed = (const uint16_t *)linear->packed + panel * linear->in;
    for (int64_t block = 0; block < blocks_of(rows); block++) {
        int64_t first = begin_of(block, rows);
        const factor *xs = x + first * x_stride;
        uint16_t *ys = y + first * y_stride + panel;
#define CASE(count) \
    case count: multiply_bfloat16(count, packed, linear->in, xs, x_stride, ys, y_stride); break;
        switch (begin_of(block + 1, rows) - first) { CASES(CASE) }
#undef CASE
    }
}

static void multiply_quantised_panel(const struct linear *linear, int64_t panel, uint16_t *y,
                                     int64_t y_stride, struct quantised x, int64_t rows) {
    int64_t in = linear->in;
    const uint8_t *packed = (const uint8_t *)linear->packed + panel * in;
    const uint16_t *w_scales = linear->scales + panel * groups_of(in);
    for (int64_t block = 0; block < blocks_of(rows); block++) {
        int64_t first = begin_of(block, rows), group = first * groups_of(in);
        const int32_t *xs = x.words + first * in / TOGETHER;
        uint16_t *ys = y + first * y_stride + panel;
#define CASE(count)                                                                               \
    case count:                                                                                   \
        multiply_int8(count, packed, w_scales, in, xs, x.scales + group, x.starts + group, ys, y_stride); \
        break;
        switch (begin_of(block + 1, rows) - first) { CASES(CASE) }
#undef CASE
    }
}

/* The barrier at the end of each loop is needed: all of x is read for each panel,
 * and is overwritten by the next round, or by the next layer. */
static void team_multiply(const struct linear *linear, uint16_t *y, int64_t y_stride, const uint16_t *x,
                          int64_t x_stride, int64_t rows, float *room) {
    int64_t out = linear->out, in = linear->in;
    if (linear->scales) {
        struct quantised quantised = quantised_in(room, rows, in);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups_of(in); group++)
            quantise_rows(quantised, x, x_stride, rows, in, group);
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < out; panel += COLUMNS)
            multiply_quantised_panel(linear, panel, y, y_stride, quantised, rows);
        return;
    }
#if WIDENS
#pragma omp for schedule(static)
    for (int64_t k = 0; k < in; k += AT_ONCE)
        widen(room, x, x_stride, rows, in, k, k + AT_ONCE < in ? k + AT_ONCE : in);
    x_stride = in;
    const float *xs = room;
#else
    const uint16_t *xs = x;
#endif
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < out; panel += COLUMNS)
        multiply_panel(linear, panel, y, y_stride, xs, x_stride, rows);
}

void team_linear(const struct linear *linear, uint16_t *y, int64_t y_stride, const uint16_t *x,
                 int64_t x_stride, int64_t rows, float *room) {
    int64_t most = WIDENS || linear->scales ? MOST_ROWS : rows;
    for (int64_t first = 0; first < rows; first += most) {
        int64_t count = rows - first < most ? rows - first : most;
        team_multiply(linear, y + first * y_stride, y_stride, x + first * x_stride, x_stride, count, room);
    }
}

/* `out` is a multiple of COLUMNS, `in` of PAIR; strides are in elements. */
void linear_forward(const struct linear *linear, uint16_t *y, int64_t y_stride, const uint16_t *x,
                    int64_t x_stride, int64_t rows) {
    float *room = room_for(linear->in);
#pragma omp parallel if (rows * linear->out * linear->in >= SMALL_WORK)
    team_linear(linear, y, y_stride, x, x_stride, rows, room);
}
