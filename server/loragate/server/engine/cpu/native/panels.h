/* How a product is cut up: W lies in panels of COLUMNS of its rows, and of x some ROWS at a time are
 * multiplied with a panel. Their sums stay in registers. */
#ifndef LORAGATE_PANELS_H
#define LORAGATE_PANELS_H

#include "vectors.h"

#if defined(__AVX512F__)
#define VECTORS 2 /* of y in a panel */
#define ROWS 12   /* 24 of the 32 registers are sums */
#elif defined(__AVX2__)
#define VECTORS 2
#define ROWS 5 /* 10 of the 16 registers: with 12 the compiler runs out */
#else /* as NEON has it: 32 registers of four numbers */
#define VECTORS 4
#define ROWS 6
#endif
#define COLUMNS (VECTORS * LANES) /* of y in a panel */
#define AHEAD 2048                /* bytes of a panel that are asked for before they are needed */

/* Blocks of rows are as equal as can be: 16 are 8 and 8. */
static inline int64_t blocks_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }
static inline int64_t begin_of(int64_t block, int64_t rows) { return rows * block / blocks_of(rows); }

#endif
