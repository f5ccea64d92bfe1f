/* Adds what LoRA adapters say to the output of a linear layer: y += (x A^T) B^T, row by row, each row
 * with the adapter of its own request (Chen et al., Punica, arXiv 2310.18547; here for a CPU).
 *
 * Rows come sorted by adapter, so that up to ROWS of one adapter share each load of its weights.
 * Weights and activations are bfloat16 or float32; sums are float32 and are rounded once, at the end.
 */
#include <omp.h>

#include "team.h"
#include "vectors.h"

#define ROWS 4        /* computed at once */
#define MOST_RANK 512
#define SMALL_WORK 16384 /* products below which waking a second thread costs more than it saves */

#ifdef __AVX512BF16__
#include "lora_dot.h"
#define HAS_PRODUCTS
#endif
#define NAME(f) f##_bfloat16
#define ELEMENT uint16_t
#define WIDEN widen_bf16
#define NARROW narrow_bf16
#define READ read_bfloats
#define WRITE write_bfloats
#include "lora_rows.h"
#undef HAS_PRODUCTS
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
#include "lora_rows.h"
