/* The operators for one element type; elementwise.c includes this once for each. Widths are multiples
 * of LANES; whoever calls sees to that. Strides are in elements. */

static inline void NAME(scale_row)(ELEMENT *out, const ELEMENT *x, const ELEMENT *weight,
                                   int64_t width, float squares, float epsilon) {
    float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
    for (int64_t k = 0; k < width; k += LANES)
        WRITE(out + k, READ(x + k) * scale * READ(weight + k));
}

/* out = x / rms(x) * weight, by row. */
void NAME(rms_norm)(ELEMENT *out, const ELEMENT *x, const ELEMENT *weight, int64_t rows,
                    int64_t width, int64_t x_stride, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL_WORK)
    for (int64_t row = 0; row < rows; row++) {
        const ELEMENT *from = x + row * x_stride;
        floats squares = {0};
        for (int64_t k = 0; k < width; k += LANES) squares += READ(from + k) * READ(from + k);
        NAME(scale_row)(out + row * width, from, weight, width, sum_of(squares), epsilon);
    }
}

/* residual += x; x = residual / rms(residual) * weight. Both contiguous. */
void NAME(team_add_rms_norm)(ELEMENT *x, ELEMENT *residual, const ELEMENT *weight, int64_t rows,
                             int64_t width, float epsilon) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        ELEMENT *left = x + row * width, *right = residual + row * width;
        floats squares = {0};
        for (int64_t k = 0; k < width; k += LANES) {
            floats both = READ(left + k) + READ(right + k);
            squares += both * both;
            WRITE(right + k, both);
        }
        NAME(scale_row)(left, right, weight, width, sum_of(squares), epsilon);
    }
}

void NAME(add_rms_norm)(ELEMENT *x, ELEMENT *residual, const ELEMENT *weight, int64_t rows,
                        int64_t width, float epsilon) {
#pragma omp parallel if (rows * width > SMALL_WORK)
    NAME(team_add_rms_norm)(x, residual, weight, rows, width, epsilon);
}

/* out = silu(gate) * up, where a row of x is gate and up side by side. */
void NAME(team_silu_and_mul)(ELEMENT *out, const ELEMENT *x, int64_t rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const ELEMENT *gate = x + row * 2 * width, *up = gate + width;
        for (int64_t k = 0; k < width; k += LANES) {
            floats g = READ(gate + k);
            WRITE(out + row * width + k, g / (exponential(-g) + 1.0f) * READ(up + k));
        }
    }
}

void NAME(silu_and_mul)(ELEMENT *out, const ELEMENT *x, int64_t rows, int64_t width) {
#pragma omp parallel if (rows * width > SMALL_WORK)
    NAME(team_silu_and_mul)(out, x, rows, width);
}

/* Rotates the first 2 * half of each head by its position's angles, in place: element k with element
 * k + half (GPT-NeoX's order). A row of the table is half cosines, then half sines. */
void NAME(team_rotate)(ELEMENT *x, const int64_t *position, const ELEMENT *table, int64_t rows,
                       int64_t stride, int64_t heads, int64_t head_width, int64_t half) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const ELEMENT *cosines = table + position[row] * 2 * half, *sines = cosines + half;
        for (int64_t head = 0; head < heads; head++) {
            ELEMENT *first = x + row * stride + head * head_width, *second = first + half;
            for (int64_t k = 0; k < half; k += LANES) {
                floats a = READ(first + k), b = READ(second + k);
                floats c = READ(cosines + k), s = READ(sines + k);
                WRITE(first + k, a * c - b * s);
                WRITE(second + k, b * c + a * s);
            }
        }
    }
}

void NAME(rotate)(ELEMENT *x, const int64_t *position, const ELEMENT *table, int64_t rows,
                  int64_t stride, int64_t heads, int64_t head_width, int64_t half) {
#pragma omp parallel if (rows * heads * head_width > SMALL_WORK)
    NAME(team_rotate)(x, position, table, rows, stride, heads, head_width, half);
}
