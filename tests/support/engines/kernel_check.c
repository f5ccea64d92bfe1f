/* Runs each kernel on small random numbers beside the same formula in double, and says by how much they
 * differ, of the largest number of the result. It needs no Python, so that it can be compiled for another
 * processor and run by an emulator. Ends with 1 where a kernel is wrong. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "team.h"
#include "vectors.h"

int64_t linear_columns(void);
void pack_linear(const uint16_t *w, int64_t out, int64_t in, uint16_t *packed);
void quantise_linear(const uint16_t *packed, int64_t out, int64_t in, uint8_t *quantised, uint16_t *scales);
int64_t linear_groups(int64_t in);
void linear_forward(const struct linear *linear, uint16_t *y, int64_t y_stride, const uint16_t *x,
                    int64_t x_stride, int64_t rows);
void lora_add_bfloat16(const struct lora_layer *layer, const struct lora_batch *batch, uint16_t *y,
                       int64_t y_stride, const uint16_t *x, int64_t x_stride);
void add_rms_norm_bfloat16(uint16_t *x, uint16_t *residual, const uint16_t *weight, int64_t rows,
                           int64_t width, float epsilon);
void silu_and_mul_bfloat16(uint16_t *out, const uint16_t *x, int64_t rows, int64_t width);
void rotate_bfloat16(uint16_t *x, const int64_t *position, const uint16_t *table, int64_t rows,
                     int64_t stride, int64_t heads, int64_t head_width, int64_t half);

#define ROUNDING 8e-3 /* one rounding to bfloat16, of the largest number */

static uint32_t seed = 1;
static int is_wrong;

static float random_number(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed / 2147483648.0f;
}

static uint16_t *random_numbers(int64_t count) {
    uint16_t *numbers = malloc((size_t)count * sizeof *numbers);
    for (int64_t i = 0; i < count; i++) numbers[i] = narrow_bf16(random_number());
    return numbers;
}

static double at(const uint16_t *numbers, int64_t index) { return widen_bf16(numbers[index]); }

static void compare(const char *name, const uint16_t *actual, const double *expected, int64_t count) {
    double error = 0, largest = 1e-9;
    for (int64_t i = 0; i < count; i++) {
        double off = fabs(at(actual, i) - expected[i]);
        if (!(off <= error)) error = off; /* NaN stays */
        largest = fmax(largest, fabs(expected[i]));
    }
    int is_right = error <= 2 * ROUNDING * largest;
    printf("%-24s %.1e %s\n", name, error / largest, is_right ? "right" : "WRONG");
    if (!is_right) is_wrong = 1;
}

static void check_linear(int64_t rows) {
    int64_t in = 140, out = 5 * linear_columns();
    uint16_t *w = random_numbers(out * in), *x = random_numbers(rows * in), *y = random_numbers(rows * out);
    uint16_t *packed = random_numbers(out * in);
    double *expected = calloc((size_t)(rows * out), sizeof *expected);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t o = 0; o < out; o++)
            for (int64_t k = 0; k < in; k++) expected[i * out + o] += at(x, i * in + k) * at(w, o * in + k);
    pack_linear(w, out, in, packed);
    struct linear linear = {out, in, packed, NULL};
    linear_forward(&linear, y, out, x, in, rows);
    char name[40];
    snprintf(name, sizeof name, "linear, %d rows", (int)rows);
    compare(name, y, expected, rows * out);
    uint8_t *quantised = malloc((size_t)(out * in));
    uint16_t *scales = malloc((size_t)(out * linear_groups(in)) * sizeof *scales);
    quantise_linear(packed, out, in, quantised, scales);
    struct linear small = {out, in, quantised, scales};
    linear_forward(&small, y, out, x, in, rows);
    snprintf(name, sizeof name, "linear, int8, %d rows", (int)rows);
    compare(name, y, expected, rows * out);
}

static void check_lora(void) {
    int64_t in = 70, rank = 6, out = 75, slots = 3, rows = 7;
    int64_t row[] = {0, 2, 3, 4, 5, 6, 1}, slot[] = {0, 0, 0, 0, 0, 1, 2}, ranks[] = {6, 3, 5};
    uint16_t *a = random_numbers(slots * rank * in), *b = random_numbers(slots * rank * out);
    uint16_t *x = random_numbers(rows * in), *y = random_numbers(rows * out);
    double *expected = calloc((size_t)(rows * out), sizeof *expected);
    for (int64_t i = 0; i < rows * out; i++) expected[i] = at(y, i);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t r = 0; r < ranks[slot[i]]; r++) {
            double h = 0;
            for (int64_t k = 0; k < in; k++) h += at(x, row[i] * in + k) * at(a, (slot[i] * rank + r) * in + k);
            for (int64_t o = 0; o < out; o++)
                expected[row[i] * out + o] += h * at(b, (slot[i] * rank + r) * out + o);
        }
    struct lora_layer layer = {in, rank, 1, {out}, {a}, {b}};
    struct lora_batch batch = {rows, row, slot, ranks};
    lora_add_bfloat16(&layer, &batch, y, out, x, in);
    compare("LoRA", y, expected, rows * out);
}

static void check_norm(void) {
    int64_t rows = 3, width = 96;
    uint16_t *x = random_numbers(rows * width), *residual = random_numbers(rows * width);
    uint16_t *weight = random_numbers(width);
    double *sums = calloc((size_t)(rows * width), sizeof *sums), *normed = calloc((size_t)(rows * width), sizeof *sums);
    for (int64_t i = 0; i < rows; i++) {
        double squares = 0;
        for (int64_t k = i * width; k < (i + 1) * width; k++) {
            sums[k] = at(x, k) + at(residual, k);
            squares += sums[k] * sums[k];
        }
        for (int64_t k = 0; k < width; k++)
            normed[i * width + k] = sums[i * width + k] / sqrt(squares / (double)width + 1e-5) * at(weight, k);
    }
    add_rms_norm_bfloat16(x, residual, weight, rows, width, 1e-5f);
    compare("residual", residual, sums, rows * width);
    compare("norm", x, normed, rows * width);
}

static void check_activation(void) {
    int64_t rows = 3, width = 64;
    uint16_t *x = random_numbers(rows * 2 * width), *out = random_numbers(rows * width);
    double *expected = calloc((size_t)(rows * width), sizeof *expected);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < width; k++) {
            double gate = at(x, i * 2 * width + k);
            expected[i * width + k] = gate / (1 + exp(-gate)) * at(x, i * 2 * width + width + k);
        }
    silu_and_mul_bfloat16(out, x, rows, width);
    compare("activation", out, expected, rows * width);
}

static void check_rotation(void) {
    int64_t rows = 3, heads = 2, half = 16, width = heads * 2 * half, position[] = {4, 0, 2};
    uint16_t *x = random_numbers(rows * width), *table = random_numbers(5 * 2 * half);
    double *expected = calloc((size_t)(rows * width), sizeof *expected);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t k = 0; k < half; k++) {
                int64_t first = i * width + head * 2 * half + k;
                double c = at(table, position[i] * 2 * half + k), s = at(table, position[i] * 2 * half + half + k);
                expected[first] = at(x, first) * c - at(x, first + half) * s;
                expected[first + half] = at(x, first + half) * c + at(x, first) * s;
            }
    rotate_bfloat16(x, position, table, rows, width, heads, 2 * half, half);
    compare("rotation", x, expected, rows * width);
}

int main(void) {
    for (int64_t rows = 1; rows <= 14; rows++) check_linear(rows);
    check_linear(500);
    check_lora();
    check_norm();
    check_activation();
    check_rotation();
    return is_wrong;
}
