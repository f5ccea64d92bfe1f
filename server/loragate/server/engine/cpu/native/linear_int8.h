/* Products with weights of eight bits: [panel][k / TOGETHER][COLUMNS][TOGETHER], and a scale for each
 * GROUP of them along k, [panel][group][COLUMNS], in bfloat16. x is rounded to eight bits as well, each
 * row with a scale for each group, since a few of a layer's inputs are far larger than all others. Sums
 * within a group are whole numbers, so exact; beyond it they are float32.
 *
 * With one scale for a whole row of W in place of its groups', log-probabilities of SmolLM2-135M were
 * off by 0.12 nats in place of 0.07, of which bfloat16 alone makes 0.04. */
#ifndef LORAGATE_LINEAR_INT8_H
#define LORAGATE_LINEAR_INT8_H

#include "linear_bfloat16.h" /* from whose weights those here are made */

#define GROUP 64

/* TOGETHER numbers along k lie in one word of each lane, of w and of x; `dot` adds their products. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
/* The processor's own product takes w without a sign: OFFSET was added to it, and comes off again by
 * what a group's sum begins with. */
#define TOGETHER 4
#define OFFSET 128
static inline integers read_weights(const uint8_t *p) {
    integers w;
    memcpy(&w, p, sizeof w);
    return w;
}
static inline integers dot(integers sums, integers w, integers x) {
#ifdef __AVX512VNNI__
    return (integers)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)w, (__m512i)x);
#else
    return (integers)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)w, (__m256i)x);
#endif
}
#else
#define TOGETHER 2
#define OFFSET 0
#if defined(__AVX512BW__)
#include <immintrin.h>
static inline integers read_weights(const uint8_t *p) {
    return (integers)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
static inline integers dot(integers sums, integers w, integers x) {
    return sums + (integers)_mm512_madd_epi16((__m512i)w, (__m512i)x);
}
#elif defined(__AVX2__)
#include <immintrin.h>
static inline integers read_weights(const uint8_t *p) {
    return (integers)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}
static inline integers dot(integers sums, integers w, integers x) {
    return sums + (integers)_mm256_madd_epi16((__m256i)w, (__m256i)x);
}
#else
typedef int8_t small_integers __attribute__((vector_size(LANES * 2)));
typedef int16_t short_integers __attribute__((vector_size(LANES * 4)));
static inline integers read_weights(const uint8_t *p) {
    small_integers w;
    memcpy(&w, p, sizeof w);
    return (integers)__builtin_convertvector(w, short_integers);
}
static inline integers dot(integers sums, integers w, integers x) {
    return sums + (w << 16 >> 16) * (x << 16 >> 16) + (w >> 16) * (x >> 16);
}
#endif
#endif

/* Rows of x as they are multiplied: one block of rows after the other, in each [k / TOGETHER][row] and
 * [group][row]. */
struct quantised {
    int32_t *words;
    float *scales;
    int32_t *starts; /* what each group's sum begins with */
};

static inline int64_t groups_of(int64_t in) { return (in + GROUP - 1) / GROUP; }

/* `room` is for rows * in floats, which is more than enough. */
static inline struct quantised quantised_in(float *room, int64_t rows, int64_t in) {
    struct quantised x = {(int32_t *)room, room + rows * in / TOGETHER, NULL};
    x.starts = (int32_t *)(x.scales + rows * groups_of(in));
    return x;
}

/* Numbers nearest to values / scale, which are 127 at most. */
static inline int32_t nearest(float value, float inverse) {
    /* Added to this, a number's last bit is worth one, so the sum's bits are the rounded number. */
    const float magic = 12582912.0f;
    float sum = value * inverse + magic;
    int32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return bits - 0x4b400000;
}

/* A bfloat16 number by which the largest value, given by its bits without the sign, becomes 127 at
 * most. NaN is larger than all as bits, and stays. */
static inline uint16_t scale_of(uint32_t largest) {
    float f;
    memcpy(&f, &largest, sizeof f);
    f /= 127;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits >> 16) + ((bits & 0xffff) != 0)); /* up */
}

/* One group of each row. */
static void quantise_rows(struct quantised to, const uint16_t *x, int64_t x_stride, int64_t rows,
                          int64_t in, int64_t group) {
    int64_t begin = group * GROUP, length = in - begin < GROUP ? in - begin : GROUP;
    for (int64_t block = 0; block < blocks_of(rows); block++) {
        int64_t first = begin_of(block, rows), count = begin_of(block + 1, rows) - first;
        int32_t *words = to.words + first * in / TOGETHER + begin / TOGETHER * count;
        for (int64_t i = 0; i < count; i++) {
            const uint16_t *row = x + (first + i) * x_stride + begin;
            uint32_t largest = 0;
            for (int64_t k = 0; k < length; k++) {
                uint32_t size = (uint32_t)(row[k] & 0x7fff) << 16;
                if (size > largest) largest = size;
            }
            float scale = widen_bf16(scale_of(largest)), inverse = largest ? 1 / scale : 0;
            int32_t sum = 0, numbers[GROUP];
            for (int64_t k = 0; k < length; k++) sum += numbers[k] = nearest(widen_bf16(row[k]), inverse);
            for (int64_t k = 0; k < length; k += TOGETHER) {
                uint32_t word = 0;
                for (int64_t j = 0; j < TOGETHER; j++)
                    word |= ((uint32_t)numbers[k + j] & (0xffffffffu >> (32 - 32 / TOGETHER)))
                            << (32 / TOGETHER * j);
                words[k / TOGETHER * count + i] = (int32_t)word;
            }
            int64_t at = first * groups_of(in) + group * count + i;
            to.scales[at] = scale;
            to.starts[at] = -OFFSET * sum;
        }
    }
}

static inline __attribute__((always_inline)) void multiply_int8(
    int rows, const uint8_t *panel, const uint16_t *panel_scales, int64_t in, const int32_t *x,
    const float *scales, const int32_t *starts, uint16_t *y, int64_t y_stride) {
    floats sums[ROWS][VECTORS] = {0};
    for (int64_t begin = 0; begin < in; begin += GROUP, scales += rows, starts += rows) {
        int64_t end = begin + GROUP < in ? begin + GROUP : in;
        integers parts[ROWS][VECTORS];
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < VECTORS; j++) parts[i][j] = starts[i] - (integers){0};
        for (int64_t k = begin; k < end; k += TOGETHER, x += rows) {
            const uint8_t *from = panel + k * COLUMNS;
            for (int64_t ahead = 0; ahead < COLUMNS * TOGETHER; ahead += 64)
                __builtin_prefetch(from + AHEAD + ahead, 0, 3);
            integers w[VECTORS];
            for (int j = 0; j < VECTORS; j++) w[j] = read_weights(from + j * LANES * TOGETHER);
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < VECTORS; j++) parts[i][j] = dot(parts[i][j], w[j], x[i] - (integers){0});
        }
        for (int j = 0; j < VECTORS; j++) {
            floats scale = read_bfloats(panel_scales + j * LANES);
            for (int i = 0; i < rows; i++)
                sums[i][j] += scales[i] * scale * __builtin_convertvector(parts[i][j], floats);
        }
        panel_scales += COLUMNS;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < VECTORS; j++) write_bfloats(y + i * y_stride + j * LANES, sums[i][j]);
}

/* One panel's weights from those of `pack_linear`, which lie [k / PAIR][COLUMNS][PAIR]. */
static void quantise_panel(const uint16_t *packed, int64_t in, uint8_t *to, uint16_t *scales) {
    for (int64_t begin = 0; begin < in; begin += GROUP) {
        int64_t end = begin + GROUP < in ? begin + GROUP : in;
        float inverse[COLUMNS];
        for (int column = 0; column < COLUMNS; column++) {
            uint32_t largest = 0;
            for (int64_t k = begin; k < end; k++) {
                uint32_t size = (uint32_t)(packed[place_of(k, column)] & 0x7fff) << 16;
                if (size > largest) largest = size;
            }
            inverse[column] = largest ? 1 / widen_bf16(scale_of(largest)) : 0;
            *scales++ = scale_of(largest);
        }
        for (int64_t k = begin; k < end; k += TOGETHER)
            for (int column = 0; column < COLUMNS; column++)
                for (int64_t j = k; j < k + TOGETHER; j++) {
                    float w = widen_bf16(packed[place_of(j, column)]);
                    *to++ = (uint8_t)(nearest(w, inverse[column]) + OFFSET);
                }
    }
}

#endif
