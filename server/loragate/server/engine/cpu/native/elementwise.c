/* Norm, activation and rotary embedding, one call each. For a few rows in one thread: with PyTorch's
 * operators and vLLM's, waking a second thread costs ten times the work (60 of 65 microseconds). */
#include <math.h>

#include "team.h"
#include "vectors.h"

#define SMALL_WORK 65536 /* elements */

static inline floats pick(integers where, floats yes, floats no) {
    return (floats)((where & (integers)yes) | (~where & (integers)no));
}

/* e^x to about two units in the last place of a float32: 2^n by its bits, 2^f by a polynomial. */
static inline floats exponential(floats x) {
    const floats zero = {0};
    x = pick(x < -87.0f, zero - 87.0f, x);
    x = pick(x > 87.0f, zero + 87.0f, x);
    floats n = x * 1.44269504f + 12582912.0f; /* rounds: 1.5 * 2^23 leaves no fraction bits */
    integers exponent = (integers)n - 0x4b400000;
    n = n - 12582912.0f;
    floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    floats p = zero + 1.9875691500e-4f; /* Cephes' expf, Moshier */
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    return p * (floats)((exponent + 127) << 23);
}

#define NAME(f) f##_bfloat16
#define ELEMENT uint16_t
#define WIDEN widen_bf16
#define NARROW narrow_bf16
#define READ read_bfloats
#define WRITE write_bfloats
#include "elementwise_rows.h"
#undef NAME
#undef ELEMENT
#undef WIDEN
#undef NARROW
#undef READ
#undef WRITE

#define NAME(f) f##_float32
#define ELEMENT float
#define WIDEN keep_float
#define NARROW keep_float
#define READ read_floats
#define WRITE write_floats
#include "elementwise_rows.h"
