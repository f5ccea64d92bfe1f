/* As many numbers at once as a register has, in GCC's portable vectors: AVX-512, AVX2 or NEON come of
 * them. bfloat16 is the upper half of a float32. */
#ifndef LORAGATE_VECTORS_H
#define LORAGATE_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef int32_t integers __attribute__((vector_size(LANES * 4)));
typedef uint16_t bfloats __attribute__((vector_size(LANES * 2)));

static inline floats read_bfloats(const uint16_t *p) {
    bfloats h;
    memcpy(&h, p, sizeof h);
    words w = __builtin_convertvector(h, words) << 16;
    return (floats)w;
}

static inline words read_words(const uint16_t *p) {
    words w;
    memcpy(&w, p, sizeof w);
    return w;
}

static inline floats read_floats(const float *p) {
    floats f;
    memcpy(&f, p, sizeof f);
    return f;
}

static inline float widen_bf16(uint16_t h) {
    uint32_t w = (uint32_t)h << 16;
    float f;
    memcpy(&f, &w, sizeof f);
    return f;
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
static inline bfloats narrow_bfloats(floats f) {
    words w = (words)f;
    words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    words is_nan = (words)((w & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((is_nan & ((w >> 16) | 0x40)) | (~is_nan & rounded), bfloats);
}

static inline uint16_t narrow_bf16(float f) {
    uint32_t w;
    memcpy(&w, &f, sizeof w);
    if ((w & 0x7fffffff) > 0x7f800000) return (uint16_t)((w >> 16) | 0x40);
    return (uint16_t)((w + 0x7fff + ((w >> 16) & 1)) >> 16);
}

static inline void write_bfloats(uint16_t *p, floats f) {
    bfloats h = narrow_bfloats(f);
    memcpy(p, &h, sizeof h);
}

static inline void write_floats(float *p, floats f) { memcpy(p, &f, sizeof f); }

/* What is needed soon, into the second cache. */
static inline void ask_for(const void *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i, 0, 2);
}

static inline float keep_float(float f) { return f; }

static inline float sum_of(floats f) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += f[i];
    return s;
}

#endif
