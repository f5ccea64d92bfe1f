/* The products of lora_rows.h by AVX-512's bfloat16 dot product, which multiplies two pairs at once.
 * For the second one, what comes of the first is rounded to bfloat16, as in vLLM's kernels for GPUs. */
#include <immintrin.h>

#define WIDE (2 * LANES) /* bfloat16 numbers of a vector */

static inline __m512bh load_wide(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }

static inline __attribute__((always_inline)) void shrink_bfloat16(
    int n, const uint16_t *const *x, const uint16_t *a, int64_t in, int64_t rank, float h[][MOST_RANK]) {
    int64_t whole = in - in % WIDE;
    for (int64_t r = 0; r < rank; r += 4) {
        int64_t last = rank - 1; /* a rank that is no multiple of four: some are computed twice */
        const uint16_t *as[4];
        __m512 sums[ROWS][4];
        for (int j = 0; j < 4; j++) {
            as[j] = a + (r + j < last ? r + j : last) * in;
            for (int i = 0; i < n; i++) sums[i][j] = _mm512_setzero_ps();
        }
        for (int64_t k = 0; k < whole; k += WIDE) {
            __m512bh w[4];
            for (int j = 0; j < 4; j++) w[j] = load_wide(as[j] + k);
            for (int i = 0; i < n; i++) {
                __m512bh v = load_wide(x[i] + k);
                for (int j = 0; j < 4; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], v, w[j]);
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 4; j++) {
                float s = _mm512_reduce_add_ps(sums[i][j]);
                for (int64_t k = whole; k < in; k++) s += widen_bf16(x[i][k]) * widen_bf16(as[j][k]);
                if (r + j < rank) h[i][r + j] = s;
            }
    }
}

static inline __attribute__((always_inline)) void expand_bfloat16(
    int n, uint16_t *const *y, const uint16_t *b, int64_t out, int64_t rank, float h[][MOST_RANK]) {
    int32_t pairs[ROWS][MOST_RANK / 2];
    for (int i = 0; i < n; i++)
        for (int64_t r = 0; r < rank; r += 2) {
            uint32_t second = r + 1 < rank ? narrow_bf16(h[i][r + 1]) : 0;
            pairs[i][r / 2] = (int32_t)(second << 16 | narrow_bf16(h[i][r]));
        }
    /* Interleaving two rows leaves each quarter's first four outputs in one vector, its last in another. */
    static const uint16_t ORDER[WIDE] = {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23,
                                         8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
    __m512i order = _mm512_loadu_si512(ORDER), zero = _mm512_setzero_si512();
    int64_t o = 0;
    for (; o + WIDE <= out; o += WIDE) {
        __m512 sums[ROWS][2];
        for (int i = 0; i < n; i++) {
            __m512i before = _mm512_loadu_si512(y[i] + o);
            sums[i][0] = (__m512)_mm512_unpacklo_epi16(zero, before);
            sums[i][1] = (__m512)_mm512_unpackhi_epi16(zero, before);
        }
        for (int64_t r = 0; r < rank; r += 2) {
            __m512i even = _mm512_loadu_si512(b + r * out + o);
            __m512i odd = r + 1 < rank ? _mm512_loadu_si512(b + (r + 1) * out + o) : zero;
            __m512bh w0 = (__m512bh)_mm512_unpacklo_epi16(even, odd);
            __m512bh w1 = (__m512bh)_mm512_unpackhi_epi16(even, odd);
            for (int i = 0; i < n; i++) {
                __m512bh v = (__m512bh)_mm512_set1_epi32(pairs[i][r / 2]);
                sums[i][0] = _mm512_dpbf16_ps(sums[i][0], v, w0);
                sums[i][1] = _mm512_dpbf16_ps(sums[i][1], v, w1);
            }
        }
        for (int i = 0; i < n; i++) {
            __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(sums[i][1], sums[i][0]);
            _mm512_storeu_si512(y[i] + o, _mm512_permutexvar_epi16(order, rounded));
        }
    }
    for (; o < out; o++)
        for (int i = 0; i < n; i++) {
            float s = widen_bf16(y[i][o]);
            for (int64_t r = 0; r < rank; r++) s += h[i][r] * widen_bf16(b[r * out + o]);
            y[i][o] = narrow_bf16(s);
        }
}
