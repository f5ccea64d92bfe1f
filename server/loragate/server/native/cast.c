/* Writes tensors to a file in another type, matrices transposed where wanted: what a server does with
 * an adapter before its engine reads it. One call for the whole file, so that Python's lock, which the
 * caller gives up, is not asked for thousands of times. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "vectors.h"

#define ROWS 64 /* of a matrix to transpose, read while they are in the fastest cache */

enum type { FLOAT32, BFLOAT16 };

struct tensor {
    int64_t begin; /* bytes into the source */
    int64_t rows, columns;
    int64_t type;
    int64_t is_transposed;
};

static int64_t size_of(int64_t type) { return type == FLOAT32 ? 4 : 2; }

static inline float read_at(const char *from, int64_t type, int64_t index) {
    return type == FLOAT32 ? ((const float *)from)[index] : widen_half(((const uint16_t *)from)[index]);
}

static inline void write_at(char *to, int64_t type, int64_t index, float value) {
    if (type == FLOAT32)
        ((float *)to)[index] = value;
    else
        ((uint16_t *)to)[index] = narrow_half(value);
}

/* Always inlined with constant types, so that each pair of them has loops of its own. */
static inline __attribute__((always_inline)) void convert(
    const struct tensor *t, const char *from, int64_t from_type, char *to, int64_t to_type) {
    if (!t->is_transposed) {
        for (int64_t i = 0; i < t->rows * t->columns; i++)
            write_at(to, to_type, i, read_at(from, from_type, i));
        return;
    }
    for (int64_t first = 0; first < t->rows; first += ROWS) {
        int64_t end = first + ROWS < t->rows ? first + ROWS : t->rows;
        for (int64_t column = 0; column < t->columns; column++)
            for (int64_t row = first; row < end; row++)
                write_at(to, to_type, column * t->rows + row,
                         read_at(from, from_type, row * t->columns + column));
    }
}

static void convert_any(const struct tensor *t, const char *from, char *to, int64_t to_type) {
    if (t->type == FLOAT32 && to_type == FLOAT32)
        convert(t, from, FLOAT32, to, FLOAT32);
    else if (t->type == FLOAT32)
        convert(t, from, FLOAT32, to, BFLOAT16);
    else if (to_type == FLOAT32)
        convert(t, from, BFLOAT16, to, FLOAT32);
    else
        convert(t, from, BFLOAT16, to, BFLOAT16);
}

static int write_all(int file, const char *bytes, int64_t count) {
    while (count > 0) {
        ssize_t written = write(file, bytes, (size_t)count);
        if (written < 0 && errno != EINTR) return errno;
        if (written > 0) bytes += written, count -= written;
    }
    return 0;
}

/* Writes `count` tensors of `source` one after the other to the file, in `type`. Returns 0 or an
 * errno. */
int cast_tensors(
    const char *source, const struct tensor *tensors, int64_t count, int64_t type, int file) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t bytes = tensors[i].rows * tensors[i].columns * size_of(type);
        if (bytes > most) most = bytes;
    }
    char *buffer = malloc((size_t)most);
    if (buffer == NULL) return ENOMEM;
    int failed = 0;
    for (int64_t i = 0; i < count && !failed; i++) {
        convert_any(&tensors[i], source + tensors[i].begin, buffer, type);
        failed = write_all(file, buffer, tensors[i].rows * tensors[i].columns * size_of(type));
    }
    free(buffer);
    return failed;
}
