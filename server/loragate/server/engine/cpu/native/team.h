/* Parts of a step that a team of threads computes together: each thread of it calls them, each does its
 * share, and none returns before all have done theirs. (OpenMP's orphaned worksharing.) One thread is
 * a team as well. Strides are in elements. */
#ifndef LORAGATE_TEAM_H
#define LORAGATE_TEAM_H

#include <stdint.h>

#define MOST_SLICES 4 /* q, k and v of one fused layer are three */

/* One linear layer with the weights of every slot. A is [slots, rank, in], B is [slots, rank, out]:
 * B lies transposed, so that both products read memory in order. */
struct lora_layer {
    int64_t in, rank, slices;
    int64_t width[MOST_SLICES];
    const void *a[MOST_SLICES];
    const void *b[MOST_SLICES];
};

/* The rows of one step that have an adapter: row[i] uses slot[i], sorted by slot. Of the layer's rank,
 * rank[slot] is in use; beyond are zeros, which would cost as much as numbers. */
struct lora_batch {
    int64_t count;
    const int64_t *row;
    const int64_t *slot;
    const int64_t *rank;
};

/* Weights as `pack_linear` lays them out or, where there are scales, `quantise_linear`. */
struct linear {
    int64_t out, in;
    const void *packed;
    const uint16_t *scales; /* bfloat16 */
};

/* linear.c: `room` is of the thread that begins the team, by `room_for` at least as large an `in`. */
float *room_for(int64_t in);
void team_linear(const struct linear *linear, uint16_t *y, int64_t y_stride, const uint16_t *x,
                 int64_t x_stride, int64_t rows, float *room);

/* lora.c */
void team_lora_add_bfloat16(const struct lora_layer *layer, const struct lora_batch *batch, uint16_t *y,
                            int64_t y_stride, const uint16_t *x, int64_t x_stride);

/* elementwise.c */
void team_add_rms_norm_bfloat16(uint16_t *x, uint16_t *residual, const uint16_t *weight, int64_t rows,
                                int64_t width, float epsilon);
void team_silu_and_mul_bfloat16(uint16_t *out, const uint16_t *x, int64_t rows, int64_t width);
void team_rotate_bfloat16(uint16_t *x, const int64_t *position, const uint16_t *table, int64_t rows,
                          int64_t stride, int64_t heads, int64_t head_width, int64_t half);

#endif
