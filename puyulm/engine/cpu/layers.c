/* All layers of a decoder, one after another, by the kernels of the other libraries: for a few tokens the way through
   Python between two kernels takes about as long as a kernel. Kernels come as addresses, so that each stays in a library
   of its own; what they compute, and in which order, is theirs alone. */

#include <stdint.h>
#include <stdlib.h>

typedef void DenseLinear(const float *x, const void *panels, int half, const float *bias, float *y, int64_t rows,
                         int64_t columns, int64_t outputs, int add, int threads);
typedef int QuantLinear(const void *weight, const float *x, int64_t rows, float *out, int32_t add, int32_t threads);
typedef void RMSNorm(const float *x, const float *weight, float eps, float *y, int64_t rows, int64_t size, int threads);
typedef void RotateQKV(const float *qkv, const float *cosines, const float *sines, float *q, float *k, float *v,
                       int64_t rows, int64_t groups, int64_t queries, int64_t size, int threads);
typedef void SwiGLU(const float *gate_up, float *y, int64_t rows, int64_t groups, int64_t block, int threads);
typedef int Attention(const void *step, void *keys, void *values, float *key_scales, float *value_scales, const float *q,
                      int64_t q_token, int64_t q_head, const float *k, int64_t k_token, int64_t k_head, const float *v,
                      int64_t v_token, int64_t v_head, float *out);

typedef struct {
    DenseLinear *dense;
    QuantLinear *quant;
    RMSNorm *norm;
    RotateQKV *rotate;
    SwiGLU *swiglu;
    Attention *attention;
} Kernels;

/* A weight in panels of floats, with its bias; or, where `quantised`, a `Weight` of quantised.c. */
typedef struct {
    const void *weight;
    const float *bias;
    int64_t columns, outputs;
    int32_t quantised, half;
} Linear;

typedef struct {
    const float *attention_norm, *mlp_norm;
    float attention_eps, mlp_eps;
    Linear qkv, out, gate_up, down;
    void *keys, *values;
    float *key_scales, *value_scales;
} Layer;

typedef struct {
    int64_t layers, hidden, groups, queries, head, intermediate, mlp_block;
} Shape;

static int multiply(const Kernels *kernels, const Linear *l, const float *x, int64_t rows, float *y, int add,
                    int threads) {
    if (l->quantised) return kernels->quant(l->weight, x, rows, y, add, threads);
    kernels->dense(x, l->weight, l->half, l->bias, y, rows, l->columns, l->outputs, add, threads);
    return 0;
}

static int run_layer(const Kernels *kernels, const Shape *s, const Layer *l, const void *step, const float *cosines,
                     const float *sines, float *x, float *narrow, float *wide, int64_t rows, int threads) {
    const int64_t k_size = s->groups * s->head, q_size = k_size * s->queries;
    float *q = wide + rows * (q_size + 2 * k_size), *k = q + rows * q_size, *v = k + rows * k_size;
    float *gated = wide + rows * 2 * s->intermediate;
    int failed = 0;
    kernels->norm(x, l->attention_norm, l->attention_eps, narrow, rows, s->hidden, threads);
    failed |= multiply(kernels, &l->qkv, narrow, rows, wide, 0, threads);
    kernels->rotate(wide, cosines, sines, q, k, v, rows, s->groups, s->queries, s->head, threads);
    failed |= kernels->attention(step, l->keys, l->values, l->key_scales, l->value_scales, q, q_size,
                                 s->queries * s->head, k, k_size, s->head, v, k_size, s->head, wide);
    failed |= multiply(kernels, &l->out, wide, rows, x, 1, threads);
    kernels->norm(x, l->mlp_norm, l->mlp_eps, narrow, rows, s->hidden, threads);
    failed |= multiply(kernels, &l->gate_up, narrow, rows, wide, 0, threads);
    kernels->swiglu(wide, gated, rows, s->intermediate / s->mlp_block, s->mlp_block, threads);
    return failed | multiply(kernels, &l->down, gated, rows, x, 1, threads);
}

/* x [rows, hidden] is overwritten. Returns 0, or 1 where there is no memory. */
int layers_run(const Kernels *kernels, const Shape *s, const Layer *layers, const void *step, const float *cosines,
               const float *sines, float *x, int64_t rows, int threads) {
    const int64_t qkv = s->groups * (s->queries + 2) * s->head;
    const int64_t wide_size = 2 * qkv > 3 * s->intermediate ? 2 * qkv : 3 * s->intermediate;
    float *narrow = malloc(rows * s->hidden * sizeof(float)), *wide = malloc(rows * wide_size * sizeof(float));
    int failed = !narrow || !wide;
    for (int64_t i = 0; i < s->layers && !failed; i++)
        failed = run_layer(kernels, s, layers + i, step, cosines, sines, x, narrow, wide, rows, threads);
    free(narrow);
    free(wide);
    return failed;
}
