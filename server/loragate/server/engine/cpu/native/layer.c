/* A decoder layer as Llama has it (Touvron et al., arXiv 2302.13971), but for its attention: what comes
 * before that in one call, what comes after in another. With a few rows each part takes microseconds,
 * so one team of threads goes through all of them and nothing else comes in between. */
#include "team.h"

/* A linear layer; `lora` may be absent. */
struct projection {
    const struct linear *linear;
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
    int64_t out = p->linear->out, in = p->linear->in;
    team_linear(p->linear, y, out, x, in, rows, room);
    if (p->lora && batch->count) team_lora_add_bfloat16(p->lora, batch, y, out, x, in);
}

/* From x [rows, hidden], which is overwritten, to queries, keys and values; adds x to the residual.
 * `table` is as in `rotate`. */
void layer_before_attention(const struct decoder_layer *layer, const struct lora_batch *batch, uint16_t *x,
                            uint16_t *residual, uint16_t *qkv, const int64_t *position,
                            const uint16_t *table, int64_t rows) {
    int64_t hidden = layer->qkv.linear->in, width = layer->qkv.linear->out;
    float *room = room_for(hidden);
#pragma omp parallel
    {
        team_add_rms_norm_bfloat16(x, residual, layer->attention_norm, rows, hidden, layer->epsilon);
        project(&layer->qkv, batch, qkv, x, rows, room);
        team_rotate_bfloat16(qkv, position, table, rows, width, layer->heads, layer->head_width, layer->half);
    }
}

/* From what attention made to the layer's output in x, which is overwritten. `wide` has room for gate
 * and up of each row, `narrow` for their product. */
void layer_after_attention(const struct decoder_layer *layer, const struct lora_batch *batch,
                           const uint16_t *attended, uint16_t *x, uint16_t *residual, uint16_t *wide,
                           uint16_t *narrow, int64_t rows) {
    int64_t hidden = layer->gate_up.linear->in, inner = layer->down.linear->in;
    int64_t heads = layer->attended.linear->in, widest = heads > inner ? heads : inner;
    float *room = room_for(hidden > widest ? hidden : widest);
#pragma omp parallel
    {
        project(&layer->attended, batch, x, attended, rows, room);
        team_add_rms_norm_bfloat16(x, residual, layer->mlp_norm, rows, hidden, layer->epsilon);
        project(&layer->gate_up, batch, wide, x, rows, room);
        team_silu_and_mul_bfloat16(narrow, wide, rows, inner);
        project(&layer->down, batch, x, narrow, rows, room);
    }
}
