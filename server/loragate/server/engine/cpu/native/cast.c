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
    int64_t begin; /* bytes into the file */
    int64_t rows, columns;
    int64_t type;
    int64_t is_transposed;
};

static int64_t size_of(int64_t type) { return type == FLOAT32 ? 4 : 2; }

static inline float read_at(const char *from, int64_t type, int64_t index) {
    return type == FLOAT32 ? ((const float *)from)[index] : widen_bf16(((const uint16_t *)from)[index]);
}

static inline void write_at(char *to, int64_t type, int64_t index, float value) {
    if (type == FLOAT32)
        ((float *)to)[index] = value;
    else
        ((uint16_t *)to)[index] = narrow_bf16(value);
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

/* Reads `count` bytes at `begin`. EIO for a file that has become shorter. */
static int read_all(int file, char *bytes, int64_t count, int64_t begin) {
    while (count > 0) {
        ssize_t got = pread(file, bytes, (size_t)count, (off_t)begin);
        if (got == 0) return EIO;
        if (got < 0 && errno != EINTR) return errno;
        if (got > 0) bytes += got, begin += got, count -= got;
    }
    return 0;
}

/* Writes `count` tensors of the file `source` one after the other to `target`, in `type`. Returns 0
 * or an errno. */
int cast_tensors(
    int source, const struct tensor *tensors, int64_t count, int64_t type, int target) {
    int64_t most = 1;
    for (int64_t i = 0; i < count; i++) {
        int64_t numbers = tensors[i].rows * tensors[i].columns;
        if (numbers > most) most = numbers;
    }
    char *given = malloc((size_t)(most * size_of(FLOAT32)));
    char *made = malloc((size_t)(most * size_of(FLOAT32)));
    int failed = given == NULL || made == NULL ? ENOMEM : 0;
    for (int64_t i = 0; i < count && !failed; i++) {
        int64_t numbers = tensors[i].rows * tensors[i].columns;
        failed = read_all(source, given, numbers * size_of(tensors[i].type), tensors[i].begin);
        if (failed) break;
        convert_any(&tensors[i], given, made, type);
        failed = write_all(target, made, numbers * size_of(type));
    }
    free(given);
    free(made);
    return failed;
}
