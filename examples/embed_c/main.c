/* A C program that embeds cpflex: compiles a mask for packed documents, looks at its block mask, and runs attention forward
 * and backward into its own memory. */
#include <cpflex/cpflex.c.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char program_text[] =
    "from cpflex.std import causal\n"
    "doc: tensor[i32, KV_LEN](sorted)\n"
    "sinks: tensor[f32, H](grad=True)\n"
    "@mask\n"
    "def same_document(b, h, q, kv):\n"
    "    return doc[q] == doc[kv]\n"
    "attention(\"packed\", mask=same_document & causal, sink=sinks)\n";

enum { HEADS = 4, KV_HEADS = 2, LENGTH = 384, HEAD_DIM = 32 };

/* All that main makes and frees. */
typedef struct session {
  cpflex_program *program;
  cpflex_bind_request *request;
  cpflex_binding *binding;
  cpflex_block_mask *mask;
  cpflex_executable *executable;
  float *tensors;
  void *workspace;
} session;

/* Prints and frees an error; 1 when there was one. */
static int failed(const char *step, cpflex_error *error) {
  if (!error)
    return 0;
  fprintf(stderr, "embed_c: %s: %s\n", step, cpflex_error_message(error));
  for (size_t i = 0; i < cpflex_error_num_diagnostics(error); ++i) {
    const cpflex_diagnostic diagnostic = cpflex_error_diagnostic(error, i);
    fprintf(stderr, "  line %d, column %d: %s\n", (int)diagnostic.line, (int)diagnostic.column, diagnostic.text);
  }
  cpflex_error_free(error);
  return 1;
}

static void warn(void *user_data, cpflex_log_level level, const char *text) {
  (void)user_data;
  (void)level;
  fprintf(stderr, "%s\n", text);
}

/* The next [1, heads, LENGTH, columns] floats of `*memory`; `frequency` 0 leaves them 0. */
static cpflex_array tensor(float **memory, int64_t heads, int64_t columns, double frequency) {
  const int64_t shape[4] = {1, heads, LENGTH, columns};
  float *values = *memory;
  const int64_t count = heads * LENGTH * columns;
  for (int64_t i = 0; i < count; ++i)
    values[i] = (float)sin(frequency * (double)i);
  *memory += count;
  return cpflex_dense_array(values, CPFLEX_F32, 4, shape);
}

static int bind(session *s) {
  static const float sinks[HEADS] = {-1.0f, 0.0f, 0.5f, 1.0f};
  static const int32_t lengths[] = {0, 100, 256, LENGTH};
  const int64_t num_lengths = 4, num_sinks = HEADS;
  const cpflex_array cu_seqlens = cpflex_dense_array((void *)lengths, CPFLEX_I32, 1, &num_lengths);
  const cpflex_array sink_array = cpflex_dense_array((void *)sinks, CPFLEX_F32, 1, &num_sinks);
  const cpflex_sizes sizes = {1, HEADS, KV_HEADS, LENGTH, LENGTH};
  return failed("request", cpflex_bind_request_create(s->program, &s->request)) ||
         failed("sizes", cpflex_bind_request_sizes(s->request, &sizes)) ||
         failed("doc", cpflex_bind_request_segments(s->request, "doc", &cu_seqlens, LENGTH)) ||
         failed("sinks", cpflex_bind_request_array(s->request, "sinks", &sink_array, CPFLEX_BORROW)) ||
         failed("binding", cpflex_bind(s->request, &s->binding));
}

static int show_mask(session *s) {
  const cpflex_block_mask_options options = {.tile_q = 64, .tile_kv = 64};
  cpflex_buffer *picture = NULL;
  if (failed("block mask", cpflex_block_mask_build(s->binding, "packed", &options, &s->mask)) ||
      failed("picture", cpflex_block_mask_draw(s->mask, "text", NULL, &picture)))
    return 1;
  fwrite(cpflex_buffer_bytes(picture), 1, cpflex_buffer_size(picture), stdout);
  cpflex_buffer_free(picture);
  const cpflex_block_mask_statistics statistics = cpflex_block_mask_statistics_of(s->mask);
  printf("tiles: %lld empty, %lld full, %lld partial\n", (long long)statistics.empty, (long long)statistics.full,
         (long long)statistics.partial);
  return 0;
}

static int run(session *s) {
  const cpflex_load_options options = {.device = "cpu", .dtype = CPFLEX_F32, .head_dim = HEAD_DIM, .has_backward = 1};
  if (failed("loading", cpflex_load(s->binding, "packed", s->mask, &options, &s->executable)))
    return 1;
  int64_t bytes = cpflex_executable_workspace_bytes(s->executable, CPFLEX_FORWARD);
  const int64_t backward_bytes = cpflex_executable_workspace_bytes(s->executable, CPFLEX_BACKWARD);
  bytes = backward_bytes > bytes ? backward_bytes : bytes;
  s->workspace = malloc((size_t)bytes);
  s->tensors = malloc(sizeof(float) * LENGTH * (4 * HEADS * HEAD_DIM + 4 * KV_HEADS * HEAD_DIM + HEADS));
  if (!s->workspace || !s->tensors) {
    fprintf(stderr, "embed_c: no memory\n");
    return 1;
  }

  float *memory = s->tensors;
  cpflex_forward_tensors forward = {0};
  forward.q = tensor(&memory, HEADS, HEAD_DIM, 0.37);
  forward.k = tensor(&memory, KV_HEADS, HEAD_DIM, 0.73);
  forward.v = tensor(&memory, KV_HEADS, HEAD_DIM, 0.11);
  forward.out = tensor(&memory, HEADS, HEAD_DIM, 0);
  forward.lse = tensor(&memory, HEADS, 1, 0);
  if (failed("forward", cpflex_forward(s->executable, &forward, s->workspace, bytes, NULL)))
    return 1;

  /* The loss is the sum of all outputs. */
  float sink_gradient[HEADS];
  cpflex_backward_tensors backward = {0};
  backward.q = forward.q, backward.k = forward.k, backward.v = forward.v;
  backward.out = forward.out, backward.lse = forward.lse;
  backward.d_out = tensor(&memory, HEADS, HEAD_DIM, 0);
  for (int64_t i = 0; i < (int64_t)HEADS * LENGTH * HEAD_DIM; ++i)
    ((float *)backward.d_out.data)[i] = 1.0f;
  backward.d_q = tensor(&memory, HEADS, HEAD_DIM, 0);
  backward.d_k = tensor(&memory, KV_HEADS, HEAD_DIM, 0);
  backward.d_v = tensor(&memory, KV_HEADS, HEAD_DIM, 0);
  backward.sink_gradient = sink_gradient;
  if (failed("backward", cpflex_backward(s->executable, &backward, s->workspace, bytes, NULL)))
    return 1;

  /* Keys and the sink share all the weight: what V does not get went to the sink. */
  double sum = 0;
  for (int64_t i = 0; i < (int64_t)KV_HEADS * LENGTH * HEAD_DIM; ++i)
    sum += ((const float *)backward.d_v.data)[i];
  printf("keys hold %.1f %% of the weight\n", 100 * sum / (HEADS * LENGTH * HEAD_DIM));

  /* A mistake is an error that names the argument. */
  forward.k.shape[2] = LENGTH - 1;
  cpflex_error *wrong = cpflex_forward(s->executable, &forward, s->workspace, bytes, NULL);
  printf("a wrong call: %s\n", cpflex_error_message(wrong));
  const int is_caught = cpflex_error_code(wrong) == CPFLEX_INVALID_ARGUMENT;
  cpflex_error_free(wrong);
  return !is_caught;
}

int main(void) {
  session s = {0};
  cpflex_compile_options options = {0};
  options.abi_version = CPFLEX_ABI_VERSION;
  options.log = warn;
  options.log_level = CPFLEX_LOG_WARNING;
  const int code =
      failed("compiling", cpflex_compile_text("packed.cpf", program_text, strlen(program_text), &options, &s.program)) ||
      bind(&s) || show_mask(&s) || run(&s);
  free(s.workspace);
  free(s.tensors);
  cpflex_executable_free(s.executable);
  cpflex_block_mask_free(s.mask);
  cpflex_binding_free(s.binding);
  cpflex_bind_request_free(s.request);
  cpflex_program_free(s.program);
  return code;
}
