/* A decoder layer as Llama has it (Touvron et al., arXiv 2302.13971), but for its attention: what comes
 * before that in one call, what comes after in another. With a few rows each part takes microseconds,
 * so one team of threads goes through all of them and nothing else comes in between. */
#include "team.h"

/* A linear layer; `lora` may be absent. */
struct projection {
    const uint16_t *packed; /* by pack_linear */
    int64_t out, in;
    const struct lora_layer *lora;
};

struct decoder_layer {
    struct projection qkv, attended, gate_up, down;
    const uint16_t *attention_norm, *mlp_norm;
    int64_t heads; /* of queries and of keys, which lie side by side */
    int64_t head_width, half;
    float epsilon;
};

static void project(const struct projection *p, const struct lora_batch *batch, uint16_t *y,
                    const uint16_t *x, int64_t rows, float *room) {
    team_linear_bfloat16(p->packed, p->out, p->in, y, p->out, x, p->in, rows, room);
    if (p->lora && batch->count) team_lora_add_bfloat16(p->lora, batch, y, p->out, x, p->in);
}

/* From x [rows, hidden], which is overwritten, to queries, keys and values; adds x to the residual.
 * `table` is as in `rotate`. */
void layer_before_attention(const struct decoder_layer *layer, const struct lora_batch *batch, uint16_t *x,
                            uint16_t *residual, uint16_t *qkv, const int64_t *position,
                            const uint16_t *table, int64_t rows) {
    float *room = room_to_widen(layer->qkv.in);
#pragma omp parallel
    {
        team_add_rms_norm_bfloat16(x, residual, layer->attention_norm, rows, layer->qkv.in, layer->epsilon);
        project(&layer->qkv, batch, qkv, x, rows, room);
        team_rotate_bfloat16(qkv, position, table, rows, layer->qkv.out, layer->heads, layer->head_width,
                             layer->half);
    }
}

/* From what attention made to the layer's output in x, which is overwritten. `wide` has room for gate
 * and up of each row, `narrow` for their product. */
void layer_after_attention(const struct decoder_layer *layer, const struct lora_batch *batch,
                           const uint16_t *attended, uint16_t *x, uint16_t *residual, uint16_t *wide,
                           uint16_t *narrow, int64_t rows) {
    int64_t widest = layer->attended.in > layer->down.in ? layer->attended.in : layer->down.in;
    float *room = room_to_widen(layer->gate_up.in > widest ? layer->gate_up.in : widest);
#pragma omp parallel
    {
        project(&layer->attended, batch, x, attended, rows, room);
        team_add_rms_norm_bfloat16(x, residual, layer->mlp_norm, rows, layer->attended.out, layer->epsilon);
        project(&layer->gate_up, batch, wide, x, rows, room);
        team_silu_and_mul_bfloat16(narrow, wide, rows, layer->down.in);
        project(&layer->down, batch, x, narrow, rows, room);
    }
}
