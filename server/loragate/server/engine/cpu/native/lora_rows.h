/* The products for one element type; lora.c includes this once for each. */

#ifndef HAS_PRODUCTS
/* h[n][r] = x[n] . a[r] for the n rows of a block. Four ranks at once keep sixteen sums in registers. */
static inline __attribute__((always_inline)) void NAME(shrink)(
    int n, const ELEMENT *const *x, const ELEMENT *a, int64_t in, int64_t rank, float h[][MOST_RANK]) {
    int64_t whole = in - in % LANES;
    int64_t r = 0;
    for (; r + 4 <= rank; r += 4) {
        floats sums[ROWS][4] = {0};
        const ELEMENT *a0 = a + r * in;
        for (int64_t k = 0; k < whole; k += LANES) {
            floats w[4];
            for (int j = 0; j < 4; j++) w[j] = READ(a0 + j * in + k);
            for (int i = 0; i < n; i++) {
                floats v = READ(x[i] + k);
                for (int j = 0; j < 4; j++) sums[i][j] += v * w[j];
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 4; j++) {
                float s = sum_of(sums[i][j]);
                for (int64_t k = whole; k < in; k++)
                    s += WIDEN(x[i][k]) * WIDEN(a0[j * in + k]);
                h[i][r + j] = s;
            }
    }
    for (; r < rank; r++)
        for (int i = 0; i < n; i++) {
            floats s = {0};
            for (int64_t k = 0; k < whole; k += LANES) s += READ(x[i] + k) * READ(a + r * in + k);
            h[i][r] = sum_of(s);
            for (int64_t k = whole; k < in; k++)
                h[i][r] += WIDEN(x[i][k]) * WIDEN(a[r * in + k]);
        }
}

/* y[n] += h[n] B^T. Two vectors of outputs at once. */
static inline __attribute__((always_inline)) void NAME(expand)(
    int n, ELEMENT *const *y, const ELEMENT *b, int64_t out, int64_t rank, float h[][MOST_RANK]) {
    int64_t o = 0;
    for (; o + 2 * LANES <= out; o += 2 * LANES) {
        floats sums[ROWS][2] = {0};
        for (int64_t r = 0; r < rank; r++) {
            floats w0 = READ(b + r * out + o), w1 = READ(b + r * out + o + LANES);
            for (int i = 0; i < n; i++) {
                sums[i][0] += h[i][r] * w0;
                sums[i][1] += h[i][r] * w1;
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 2; j++) {
                ELEMENT *p = y[i] + o + j * LANES;
                WRITE(p, READ(p) + sums[i][j]);
            }
    }
    for (; o < out; o++)
        for (int i = 0; i < n; i++) {
            float s = WIDEN(y[i][o]);
            for (int64_t r = 0; r < rank; r++) s += h[i][r] * WIDEN(b[r * out + o]);
            y[i][o] = NARROW(s);
        }
}
#endif

static inline __attribute__((always_inline)) void NAME(block)(
    int n, const struct lora_layer *layer, int64_t slot, int64_t rank, const int64_t *row,
    ELEMENT *y, int64_t y_stride, const ELEMENT *x, int64_t x_stride) {
    float h[ROWS][MOST_RANK];
    const ELEMENT *xs[ROWS];
    ELEMENT *ys[ROWS];
    for (int i = 0; i < n; i++) {
        xs[i] = x + row[i] * x_stride;
        ys[i] = y + row[i] * y_stride;
    }
    const ELEMENT *a = (const ELEMENT *)layer->a[0] + slot * layer->rank * layer->in;
    for (int64_t s = 0; s < layer->slices; s++) {
        int64_t out = layer->width[s];
        const ELEMENT *b = (const ELEMENT *)layer->b[s] + slot * layer->rank * out;
        ask_for(b, rank * out * sizeof *b);
        NAME(shrink)(n, xs, a, layer->in, rank, h);
        if (s + 1 < layer->slices) {
            a = (const ELEMENT *)layer->a[s + 1] + slot * layer->rank * layer->in;
            ask_for(a, rank * layer->in * sizeof *a);
        }
        NAME(expand)(n, ys, b, out, rank, h);
        for (int i = 0; i < n; i++) ys[i] += out;
    }
}

/* Threads take turns at the adapters, so that four rows of four adapters keep all of them busy. The
 * compiler sees each number of rows as a constant. */
void NAME(team_lora_add)(const struct lora_layer *layer, const struct lora_batch *batch, ELEMENT *y,
                         int64_t y_stride, const ELEMENT *x, int64_t x_stride) {
    int64_t threads = omp_get_num_threads(), turn = omp_get_thread_num();
    for (int64_t i = 0, n; i < batch->count; i += n, turn++) {
        int64_t slot = batch->slot[i];
        for (n = 1; n < ROWS && i + n < batch->count && batch->slot[i + n] == slot;) n++;
        if (turn % threads) continue;
        const int64_t *row = batch->row + i;
        int64_t rank = batch->rank[slot] < layer->rank ? batch->rank[slot] : layer->rank;
        switch (n) {
            case 1: NAME(block)(1, layer, slot, rank, row, y, y_stride, x, x_stride); break;
            case 2: NAME(block)(2, layer, slot, rank, row, y, y_stride, x, x_stride); break;
            case 3: NAME(block)(3, layer, slot, rank, row, y, y_stride, x, x_stride); break;
            default: NAME(block)(4, layer, slot, rank, row, y, y_stride, x, x_stride); break;
        }
    }
#pragma omp barrier
}

/* Strides are in elements. */
void NAME(lora_add)(const struct lora_layer *layer, const struct lora_batch *batch, ELEMENT *y,
                    int64_t y_stride, const ELEMENT *x, int64_t x_stride) {
    int is_small = batch->count * layer->rank * layer->in < SMALL_WORK;
#pragma omp parallel if (!is_small && batch->count > 1)
    NAME(team_lora_add)(layer, batch, y, y_stride, x, x_stride);
}
