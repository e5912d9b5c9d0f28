/* The embedded compiler for C programs and for languages that call C: everything that cpflex.h offers, as opaque
 * handles and plain structs. Installed as <cpflex/cpflex.c.h>; link with libcpflex.so, which exports cpflex_* for it.
 *
 * The way through it: cpflex_compile_* -> program; cpflex_bind_request_* and cpflex_bind -> binding;
 * cpflex_block_mask_*
 * -> what is skipped; cpflex_load -> executable; cpflex_forward, cpflex_backward into the caller's arrays.
 *
 * Errors. A function that can fail returns NULL when it succeeded, else a cpflex_error that the caller frees; its out
 * parameters are then left as they were. Nothing is printed, thrown or kept in a global variable. Errors name the
 * argument, what it was and what was expected.
 * Ownership. Every handle has its own _free, which accepts NULL. Handles hold what they were made from: a program may
 * be freed before its bindings, a binding before its executables. Text and arrays that a getter returns belong to the
 * handle they were asked of and live as long as it does. Threads. Handles may be used by several threads at once,
 * except a bind request and where stated otherwise. Units. Sizes and strides of arrays count elements, sizes of memory
 * count bytes. Ranges are half-open. */
#ifndef CPFLEX_C_H
#define CPFLEX_C_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define CPFLEX_EXPORT __attribute__((visibility("default")))
#else
#define CPFLEX_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version
 * --------------------------------------------------------------------------------------------------------- */

/** The version of the structs and functions of this header; the library's soname ends in it. */
#define CPFLEX_ABI_VERSION 1

/** The ABI version that the loaded library has. A program compares it with CPFLEX_ABI_VERSION before other calls;
 * compile and port functions compare too and refuse another one. */
CPFLEX_EXPORT uint32_t cpflex_abi_version(void);

/** The release, as `cpflexc --version` prints it: "0.1.0". Static storage. */
CPFLEX_EXPORT const char *cpflex_version(void);

/* ---- Errors and messages
 * --------------------------------------------------------------------------------------------- */

/** What kind of fault an error is. */
typedef int32_t cpflex_code;
enum {
  CPFLEX_INVALID_ARGUMENT = 1,  /**< the caller's text or value is wrong */
  CPFLEX_UNSUPPORTED = 2,       /**< well formed, but nothing here serves it */
  CPFLEX_UNAVAILABLE = 3,       /**< a library, device or file is missing or failed */
  CPFLEX_OUT_OF_MEMORY = 4,     /**< host or device memory is exhausted */
  CPFLEX_DEADLINE_EXCEEDED = 5, /**< a wait outlasted its deadline */
  CPFLEX_DATA_LOSS = 6          /**< stored bytes are damaged */
};

typedef int32_t cpflex_severity;
enum { CPFLEX_SEVERITY_ERROR = 0, CPFLEX_SEVERITY_WARNING = 1, CPFLEX_SEVERITY_NOTE = 2 };

/** One message of the compiler at one place of a program. A note follows the message that it belongs to. */
typedef struct cpflex_diagnostic {
  const char *file;             /**< as the caller named it; "" when there is no source */
  int32_t line, column;         /**< from 1, columns count bytes; 0 when there is no source */
  int32_t end_line, end_column; /**< half-open */
  cpflex_severity severity;
  const char *text;        /**< lower case, without a final period */
  const char *source_line; /**< the text of `line` */
} cpflex_diagnostic;

typedef struct cpflex_error cpflex_error;
CPFLEX_EXPORT cpflex_code cpflex_error_code(const cpflex_error *error);
/** The whole error as text; errors in a program come one after the other with source lines and carets. */
CPFLEX_EXPORT const char *cpflex_error_message(const cpflex_error *error);
/** Located messages, for errors of compile and port functions; 0 for others. */
CPFLEX_EXPORT size_t cpflex_error_num_diagnostics(const cpflex_error *error);
/** Diagnostic `index`; all members 0 or "" when there is none of this index. */
CPFLEX_EXPORT cpflex_diagnostic cpflex_error_diagnostic(const cpflex_error *error, size_t index);
CPFLEX_EXPORT void cpflex_error_free(cpflex_error *error);

/** How much a log callback is told: its level and all above. */
typedef int32_t cpflex_log_level;
enum {
  CPFLEX_LOG_NONE = 0,
  CPFLEX_LOG_WARNING = 1, /**< results are right, but something is slower or missing: a cache that cannot be written */
  CPFLEX_LOG_INFO = 2,    /**< what took time: compilations with their milliseconds */
  CPFLEX_LOG_DEBUG = 3    /**< what was found in caches */
};

/** Called with one line of text, without line end, that lives during the call. May come from any thread that is inside
 * a function of this header, from several at once; must not call back. */
typedef void (*cpflex_log_function)(void *user_data, cpflex_log_level level, const char *text);

/** Bytes that a function returned: text (a 0 byte follows its last one) or the contents of a file. */
typedef struct cpflex_buffer cpflex_buffer;
CPFLEX_EXPORT const char *cpflex_buffer_bytes(const cpflex_buffer *buffer);
/** Number of bytes without the final 0. */
CPFLEX_EXPORT size_t cpflex_buffer_size(const cpflex_buffer *buffer);
CPFLEX_EXPORT void cpflex_buffer_free(cpflex_buffer *buffer);

/* ---- Arrays
 * ---------------------------------------------------------------------------------------------------------- */

/** Element types of arrays. */
typedef int32_t cpflex_dtype;
enum {
  CPFLEX_BOOL = 0,
  CPFLEX_I8,
  CPFLEX_I16,
  CPFLEX_I32,
  CPFLEX_I64,
  CPFLEX_U8,
  CPFLEX_U16,
  CPFLEX_U32,
  CPFLEX_U64,
  CPFLEX_F16,
  CPFLEX_BF16,
  CPFLEX_F32
};

/** Where memory is, with DLPack's numbers. Unknown is taken on trust. */
typedef int32_t cpflex_device_type;
enum { CPFLEX_DEVICE_UNKNOWN = 0, CPFLEX_DEVICE_CPU = 1, CPFLEX_DEVICE_CUDA = 2 };

/** An array of up to 4 axes in the caller's memory. */
typedef struct cpflex_array {
  void *data; /**< the element at index 0 of every axis; may be NULL when there are no elements */
  cpflex_dtype dtype;
  int32_t rank;       /**< 0 to 4 */
  int64_t shape[4];   /**< of the first `rank` axes */
  int64_t strides[4]; /**< in elements; 0 repeats an element; may be negative only where stated */
  cpflex_device_type device_type;
  int32_t device_index;
} cpflex_array;

/** A dense array in C order in host memory, for the common case. */
CPFLEX_EXPORT cpflex_array cpflex_dense_array(void *data, cpflex_dtype dtype, int32_t rank, const int64_t *shape);

/** DLPack's structs, as <dlpack/dlpack.h> or <cpflex/DLPack.h> declare them. */
struct DLManagedTensor;
struct DLManagedTensorVersioned;

/** Describes a DLPack tensor as an array: its memory stays the tensor's. INVALID_ARGUMENT for more than 4 axes, vector
 * lanes or an element type that has no cpflex_dtype; UNSUPPORTED for devices that are neither a CPU nor CUDA. */
CPFLEX_EXPORT cpflex_error *cpflex_array_from_dlpack(const struct DLManagedTensor *tensor, cpflex_array *array);

/* ---- Programs
 * -------------------------------------------------------------------------------------------------------- */

typedef struct cpflex_program cpflex_program;

/** A name with its value as text. */
typedef struct cpflex_named_text {
  const char *name;
  const char *value;
} cpflex_named_text;

/** How a program is compiled. Only abi_version has to be set; the rest may be 0. Copied by the call that takes it. */
typedef struct cpflex_compile_options {
  uint32_t abi_version;            /**< CPFLEX_ABI_VERSION */
  const char *const *include_dirs; /**< searched for imports after the file's own folder */
  size_t num_include_dirs;
  const cpflex_named_text *constants; /**< values of `const` declarations: "2", "0.5", "True" */
  size_t num_constants;
  cpflex_log_function log; /**< told by the program and all that is made from it; NULL: nobody is */
  void *log_user_data;     /**< must live as long as the last handle made from the program */
  cpflex_log_level log_level;
  const char *cache_dir; /**< folder of compiled code; NULL: $CPFLEX_CACHE_DIR, else the user's cache; "": none */
} cpflex_compile_options;

/** Compiles the text of a `.cpf` file. `path` names it in messages and its folder is searched for imports; the file
 * need not exist, and is not looked at later either. `text` has `size` bytes. Errors carry diagnostics. */
CPFLEX_EXPORT cpflex_error *cpflex_compile_text(const char *path, const char *text, size_t size,
                                                const cpflex_compile_options *options, cpflex_program **program);
/** Reads and compiles a `.cpf` file. */
CPFLEX_EXPORT cpflex_error *cpflex_compile_file(const char *path, const cpflex_compile_options *options,
                                                cpflex_program **program);
/** Translates function `function` of a Python file, written for FlexAttention, to the text of a `.cpf` file. Of
 * `options` only abi_version is read. `warnings` (may be NULL) is set to a text that says which types were guessed,
 * often empty. */
CPFLEX_EXPORT cpflex_error *cpflex_port(const char *path, const char *text, size_t size, const char *function,
                                        const cpflex_compile_options *options, cpflex_buffer **cpf,
                                        cpflex_buffer **warnings);
CPFLEX_EXPORT void cpflex_program_free(cpflex_program *program);

/** Warnings of a program that compiled. */
CPFLEX_EXPORT size_t cpflex_program_num_warnings(const cpflex_program *program);
CPFLEX_EXPORT cpflex_diagnostic cpflex_program_warning(const cpflex_program *program, size_t index);
/** Milliseconds from text to program. */
CPFLEX_EXPORT double cpflex_program_compile_ms(const cpflex_program *program);

/** One `attention(...)` of a program. */
typedef struct cpflex_entry {
  const char *name;
  int32_t has_mask, has_score;
  int32_t has_softmax; /**< 0: O = sum of score * V, and there is no LSE */
  int32_t has_scale;
  float scale;          /**< where has_scale; else the scale is 1 / sqrt(head size) */
  int32_t sink_capture; /**< index of the capture that holds the sinks, -1 without */
} cpflex_entry;
CPFLEX_EXPORT size_t cpflex_program_num_entries(const cpflex_program *program);
/** INVALID_ARGUMENT when there is no entry of this index, as for the getters below. */
CPFLEX_EXPORT cpflex_error *cpflex_program_entry(const cpflex_program *program, size_t index, cpflex_entry *entry);

/** One declared array. */
typedef struct cpflex_capture {
  const char *name;
  cpflex_dtype dtype;
  int32_t rank;
  const char *dims[4]; /**< per axis a number, a dimension's name or an expression: "B", "KV_LEN", "2 * R + 1" */
  int32_t is_sorted;   /**< last axis non-decreasing */
  int32_t has_lo, has_hi;
  int64_t lo, hi; /**< every element x satisfies lo <= x < hi where stated */
  int32_t needs_gradient;
} cpflex_capture;
CPFLEX_EXPORT size_t cpflex_program_num_captures(const cpflex_program *program);
CPFLEX_EXPORT cpflex_error *cpflex_program_capture(const cpflex_program *program, size_t index,
                                                   cpflex_capture *capture);

/** The type of a param's value. */
typedef int32_t cpflex_value_type;
enum { CPFLEX_VALUE_BOOL = 0, CPFLEX_VALUE_INT = 1, CPFLEX_VALUE_U32 = 2, CPFLEX_VALUE_FLOAT = 3 };

/** One declared runtime argument. */
typedef struct cpflex_param {
  const char *name;
  cpflex_value_type type;
  int32_t has_default;
  int64_t default_int;  /**< for bool, int and u32 */
  double default_float; /**< for float */
} cpflex_param;
CPFLEX_EXPORT size_t cpflex_program_num_params(const cpflex_program *program);
CPFLEX_EXPORT cpflex_error *cpflex_program_param(const cpflex_program *program, size_t index, cpflex_param *param);

/** 1 when the program declares a `const` of this name, of which compile options may give the value; else 0. */
CPFLEX_EXPORT int32_t cpflex_program_has_constant(const cpflex_program *program, const char *name);

/** The text of a stage of the compiler: "ast", "mask", "mask-opt", "mask-grad", "classifier"; of one entry point also
 * "llvm", "assembly" and "cuda". `entry` may be NULL when the program has one. */
CPFLEX_EXPORT cpflex_error *cpflex_program_emit(const cpflex_program *program, const char *stage, const char *entry,
                                                cpflex_buffer **text);

/* ---- Binding
 * --------------------------------------------------------------------------------------------------------- */

/** Collects arrays and values for one program. Used by one thread at a time. */
typedef struct cpflex_bind_request cpflex_bind_request;
/** A program with its arrays, values and sizes; immutable but for its version. */
typedef struct cpflex_binding cpflex_binding;

/** Who keeps a bound array alive. */
typedef int32_t cpflex_ownership;
enum {
  CPFLEX_COPY = 0,  /**< the elements are copied by the call that takes the array */
  CPFLEX_BORROW = 1 /**< the caller's memory must outlive the binding and all made from it. It is read in place when it
                     * has the declared dtype and device, else copied by cpflex_bind; elements that change between calls
                     * are seen when cpflex_binding_set_version is told. */
};

CPFLEX_EXPORT cpflex_error *cpflex_bind_request_create(const cpflex_program *program, cpflex_bind_request **request);
CPFLEX_EXPORT void cpflex_bind_request_free(cpflex_bind_request *request);
/** CUDA: on which stream arrays in a GPU's memory are read, by the calls that follow, by cpflex_bind and by
 * cpflex_binding_set_version, which wait for it; it must wait for whoever writes them. NULL: the default stream. */
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_stream(cpflex_bind_request *request, void *stream);
/** Binds capture `name`. Strides may be negative. An array in CUDA memory is copied to the host for masks (the call
 * waits for the request's stream) and read in place by executables of its device when it is borrowed. */
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_array(cpflex_bind_request *request, const char *name,
                                                      const cpflex_array *array, cpflex_ownership ownership);
/** Takes over a DLPack tensor, which is then borrowed as above, and binds it to capture `name`. Its deleter is called
 * when nothing needs it any more, on failure before the call returns. */
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_dlpack(cpflex_bind_request *request, const char *name,
                                                       struct DLManagedTensor *tensor);
/** The same for DLPack 1.0; UNSUPPORTED for another major version. */
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_dlpack_versioned(cpflex_bind_request *request, const char *name,
                                                                 struct DLManagedTensorVersioned *tensor);
/** Binds capture `name` to document ids from cumulative lengths [0, l0, l0 + l1, ...] (`cu_seqlens`; i32 or i64, rank
 * 1, host memory): one id for each of `length` tokens, or of the last cumulative length when `length` is negative. */
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_segments(cpflex_bind_request *request, const char *name,
                                                         const cpflex_array *cu_seqlens, int64_t length);
/** Values of params, as text ("1024", "0.5", "True") or as numbers. */
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_text(cpflex_bind_request *request, const char *name, const char *value);
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_int(cpflex_bind_request *request, const char *name, int64_t value);
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_float(cpflex_bind_request *request, const char *name, double value);

/** The sizes of the whole problem; negative: taken from bound arrays, else batch and heads 1, kv_heads as heads, kv_len
 * as q_len. */
typedef struct cpflex_sizes {
  int64_t batch, heads, kv_heads, q_len, kv_len;
} cpflex_sizes;
CPFLEX_EXPORT cpflex_error *cpflex_bind_request_sizes(cpflex_bind_request *request, const cpflex_sizes *sizes);

/** Checks names, shapes, types and stated facts of all that was collected, and binds it. The request may be changed and
 * bound again. INVALID_ARGUMENT names the capture or param. */
CPFLEX_EXPORT cpflex_error *cpflex_bind(const cpflex_bind_request *request, cpflex_binding **binding);
CPFLEX_EXPORT void cpflex_binding_free(cpflex_binding *binding);
/** The sizes in force. */
CPFLEX_EXPORT cpflex_sizes cpflex_binding_sizes(const cpflex_binding *binding);
/** The value of a dimension, built in ("KV_LEN") or of the file. */
CPFLEX_EXPORT cpflex_error *cpflex_binding_dim(const cpflex_binding *binding, const char *name, int64_t *value);

/** The version of the borrowed arrays' contents, 0 at first. */
CPFLEX_EXPORT uint64_t cpflex_binding_version(const cpflex_binding *binding);
/** Says that elements of borrowed arrays changed: verifies the declared facts again and forgets what was derived from
 * the old elements. Masks and executables of another version are refused from then on. No other thread may use the
 * binding or what was made from it during the call. */
CPFLEX_EXPORT cpflex_error *cpflex_binding_set_version(cpflex_binding *binding, uint64_t version);

/** Capture `name` in host memory as the binding holds it, with the declared dtype: document ids for example. */
CPFLEX_EXPORT cpflex_error *cpflex_binding_array(const cpflex_binding *binding, const char *name, cpflex_array *array);
/** The same as a DLPack tensor that keeps the binding alive until its deleter is called. */
CPFLEX_EXPORT cpflex_error *cpflex_binding_dlpack(const cpflex_binding *binding, const char *name,
                                                  struct DLManagedTensor **tensor);
CPFLEX_EXPORT cpflex_error *cpflex_binding_dlpack_versioned(const cpflex_binding *binding, const char *name,
                                                            struct DLManagedTensorVersioned **tensor);

/** A part of the whole problem that a call computes; captures, masks and scores see global indices. All 0: everything.
 * An axis whose end is 0 ends with the problem; heads are query heads and must cover whole groups of kv heads. */
typedef struct cpflex_part {
  int64_t batch_begin, batch_end;
  int64_t head_begin, head_end;
  int64_t q_begin, q_end;
  int64_t kv_begin, kv_end;
} cpflex_part;

/** Evaluates the mask of `entry` for the pairs of one (b, h): out[i * row_stride + j] is 1 when query q_begin + i
 * attends to key kv_begin + j, else 0. INVALID_ARGUMENT for ranges outside of the problem. */
CPFLEX_EXPORT cpflex_error *cpflex_binding_evaluate_mask(const cpflex_binding *binding, const char *entry, int64_t b,
                                                         int64_t h, int64_t q_begin, int64_t q_end, int64_t kv_begin,
                                                         int64_t kv_end, uint8_t *out, int64_t row_stride);

/* ---- Block masks
 * ----------------------------------------------------------------------------------------------------- */

/** Which tiles of a mask are empty, full or partial; exact. Immutable. */
typedef struct cpflex_block_mask cpflex_block_mask;

/** How a block mask is made; all 0 is a good choice. */
typedef struct cpflex_block_mask_options {
  int64_t tile_q, tile_kv; /**< rows and keys of a tile; 0: 128 */
  int32_t num_threads;     /**< 0: one per hardware thread; the result is the same */
  cpflex_part part;
} cpflex_block_mask_options;

/** The mask of an entry point over a binding. `entry` may be NULL when the program has one; `options` may be NULL. */
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_build(const cpflex_binding *binding, const char *entry,
                                                    const cpflex_block_mask_options *options, cpflex_block_mask **mask);
CPFLEX_EXPORT void cpflex_block_mask_free(cpflex_block_mask *mask);

/** What a mask contains. Tiles are summed over the distinct (b, h). */
typedef struct cpflex_block_mask_statistics {
  int64_t q_len, kv_len, tile_q, tile_kv, batch, heads;
  int64_t distinct_bh; /**< number of unlike row sets among the (b, h) */
  int64_t empty, full, partial;
  int64_t bytes;            /**< that the mask stores */
  int64_t points_evaluated; /**< single pairs evaluated while building; 0 for a mask that was read or imported */
  double build_ms;          /**< likewise */
} cpflex_block_mask_statistics;
CPFLEX_EXPORT cpflex_block_mask_statistics cpflex_block_mask_statistics_of(const cpflex_block_mask *mask);

/** Exact counts of pairs, summed over the distinct (b, h). */
typedef struct cpflex_pair_counts {
  int64_t allowed, rows_without_keys, columns_without_queries;
  double density; /**< allowed / all pairs; 0 without pairs */
} cpflex_pair_counts;
/** INVALID_ARGUMENT for a mask that was read or imported, which has no program. */
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_count_pairs(const cpflex_block_mask *mask, cpflex_pair_counts *counts);

/** Classes of tiles, as cpflex_block_mask_classes writes them. */
enum { CPFLEX_TILE_EMPTY = 0, CPFLEX_TILE_FULL = 1, CPFLEX_TILE_PARTIAL = 2 };
/** Writes the class of every tile of (b, h) to classes[q_tile * num_kv_tiles + kv_tile], where num_kv_tiles is kv_len /
 * tile_kv rounded up. `size` is the number of bytes there; INVALID_ARGUMENT when they are too few. */
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_classes(const cpflex_block_mask *mask, int64_t b, int64_t h,
                                                      uint8_t *classes, size_t size);

/** Which batch rows and heads a picture shows: that of the options, or a grid with a panel for each that differs from
 * those before it, at most 64. */
typedef int32_t cpflex_picture_heads;
enum { CPFLEX_PICTURE_ONE = 0, CPFLEX_PICTURE_DISTINCT = 1 };

/** What a picture shows; all 0 is a good choice. */
typedef struct cpflex_picture_options {
  int64_t batch, head;                                  /**< of CPFLEX_PICTURE_ONE */
  int64_t row_begin, row_end, column_begin, column_end; /**< tokens; an empty range is all */
  int64_t max_cells;                                    /**< per axis, larger masks are drawn coarser; 0: 64 */
  int64_t cell_pixels;                                  /**< of svg and png; 0: chosen */
  const char *title;                                    /**< may be NULL */
  cpflex_picture_heads heads;
  /** Token positions where documents begin, ascending, drawn as lines in svg. NULL: what the captures say that the mask
   * was built from, for each batch row; a mask that was read or imported has none. */
  const int64_t *document_bounds;
  size_t num_document_bounds;
} cpflex_picture_options;
/** Draws a mask as "text", "svg" or "png"; "json" gives the object that `cpflexc mask --format json` prints, "npz" the
 * index lists as a NumPy file. `options` may be NULL. */
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_draw(const cpflex_block_mask *mask, const char *format,
                                                   const cpflex_picture_options *options, cpflex_buffer **picture);
/** Draws where two masks of equal lengths and tiles differ, as "text", "svg" or "png", and counts the tiles that do,
 * over the panels drawn. `options` and `differing_tiles` may be NULL. */
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_draw_difference(const cpflex_block_mask *left,
                                                              const cpflex_block_mask *right, const char *format,
                                                              const cpflex_picture_options *options,
                                                              int64_t *differing_tiles, cpflex_buffer **picture);

/** Keeps a mask in a file, or reads one. DATA_LOSS for a damaged file, UNAVAILABLE when it cannot be opened. */
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_save(const cpflex_block_mask *mask, const char *path);
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_read(const char *path, cpflex_block_mask **mask);

/** The index lists of FlexAttention's BlockMask. Counts are i32 [batch, heads, rows], indices i32 [batch, heads, rows,
 * columns]; a row's indices ascend and are padded with the absent ones. */
typedef struct cpflex_index_lists cpflex_index_lists;
typedef int32_t cpflex_index_list;
enum {
  CPFLEX_KV_NUM_BLOCKS = 0,
  CPFLEX_KV_INDICES,
  CPFLEX_FULL_KV_NUM_BLOCKS,
  CPFLEX_FULL_KV_INDICES,
  CPFLEX_Q_NUM_BLOCKS,
  CPFLEX_Q_INDICES,
  CPFLEX_FULL_Q_NUM_BLOCKS,
  CPFLEX_FULL_Q_INDICES
};
/** OUT_OF_MEMORY when the lists would need more than 8 GiB. */
CPFLEX_EXPORT cpflex_error *cpflex_block_mask_to_index_lists(const cpflex_block_mask *mask, cpflex_index_lists **lists);
/** One of the lists, in host memory. */
CPFLEX_EXPORT cpflex_error *cpflex_index_lists_array(const cpflex_index_lists *lists, cpflex_index_list list,
                                                     cpflex_array *array);
CPFLEX_EXPORT void cpflex_index_lists_free(cpflex_index_lists *lists);
/** The mask of four dense i32 lists in host memory; `full_num_blocks` and `full_indices` may be NULL together. Lengths
 * and tiles are those of `shape`; its other members are not read. */
CPFLEX_EXPORT cpflex_error *
cpflex_block_mask_from_index_lists(const cpflex_array *num_blocks, const cpflex_array *indices,
                                   const cpflex_array *full_num_blocks, const cpflex_array *full_indices,
                                   const cpflex_block_mask_statistics *shape, cpflex_block_mask **mask);

/* ---- Executables
 * ----------------------------------------------------------------------------------------------------- */

/** A bound program on a device, ready to run. Several threads may call it at once, each with its own workspace. */
typedef struct cpflex_executable cpflex_executable;

typedef int32_t cpflex_pass;
enum { CPFLEX_FORWARD = 0, CPFLEX_BACKWARD = 1 };

/** What an executable is loaded for. head_dim has to be set; the rest may be 0. */
typedef struct cpflex_load_options {
  const char *device; /**< "cpu", "cuda" or "cuda:1"; NULL: "cpu" */
  cpflex_dtype dtype; /**< of Q, K, V and O: F32, BF16 or F16 on the CPU; BF16 or F16 on CUDA. 0: F32, BF16 on CUDA */
  int64_t head_dim;   /**< columns of Q and K */
  int64_t v_head_dim; /**< columns of V and O; 0: head_dim */
  int32_t has_scale;  /**< 1: `scale` is used instead of the entry point's */
  float scale;
  int32_t has_backward; /**< 1: cpflex_backward will be called */
  int32_t num_threads;  /**< of calls on the CPU; 0: one per hardware thread; results do not depend on it */
  cpflex_part part;     /**< as given to cpflex_block_mask_build */
  void *stream;         /**< CUDA: where tables are uploaded; calls on other streams must wait for it */
} cpflex_load_options;

/** Compiles for the device, or takes code from a cache. `mask` may be NULL: then it is built. INVALID_ARGUMENT for a
 * mask of other sizes or of another version of the binding. */
CPFLEX_EXPORT cpflex_error *cpflex_load(const cpflex_binding *binding, const char *entry, const cpflex_block_mask *mask,
                                        const cpflex_load_options *options, cpflex_executable **executable);
CPFLEX_EXPORT void cpflex_executable_free(cpflex_executable *executable);

/** Takes another binding of the same program and sizes, or the same one at another version, for the calls that follow;
 * `mask` may be NULL: then it is built, with the tiles of the one before. Nothing is compiled. On CUDA nothing is
 * allocated either, and the host waits for no more than the upload of the update before: uploads are queued on
 * `stream`, behind calls that are queued there with the old binding, and calls on other streams must wait for it.
 * Graphs of calls see the new binding too, but for addresses and shapes of arrays that are read in place. The new mask
 * may need twice the memory of the first one, arrays of the host that are copied to the GPU as much as the first ones.
 * Memory that the old binding borrows must last until the queued calls have run; DLPack tensors are released after the
 * next update or with the executable. On the CPU `stream` is NULL. INVALID_ARGUMENT for what does not fit; the
 * executable is then as it was. No other thread may use the executable during the call, and no plan may have been made
 * of it. */
CPFLEX_EXPORT cpflex_error *cpflex_executable_update(cpflex_executable *executable, const cpflex_binding *binding,
                                                     const cpflex_block_mask *mask, void *stream);

/** Bytes of scratch memory that a pass needs, on the executable's device: host memory of any alignment, or CUDA memory
 * at a multiple of 256. Contents need no preparation and mean nothing afterwards. */
CPFLEX_EXPORT int64_t cpflex_executable_workspace_bytes(const cpflex_executable *executable, cpflex_pass pass);

/** Bytes of CUDA memory that an executable holds until it is freed: tables of the mask, decided tiles and captures that
 * were copied there. 0 on the CPU. */
CPFLEX_EXPORT int64_t cpflex_executable_device_bytes(const cpflex_executable *executable);

/** Tensors of a forward call, indexed [b, h, s, d] whatever their order in memory; rank 4, lse and row_max rank 3
 * [b, h, s]. On the device of the executable. Data of optional ones may be NULL. */
typedef struct cpflex_forward_tensors {
  cpflex_array q;       /**< [batch, heads, q_len, head_dim] */
  cpflex_array k;       /**< [batch, kv_heads, kv_len, head_dim] */
  cpflex_array v;       /**< [batch, kv_heads, kv_len, v_head_dim] */
  cpflex_array out;     /**< [batch, heads, q_len, v_head_dim] */
  cpflex_array lse;     /**< optional, f32: natural logarithm, sink included; -inf for a row without keys */
  cpflex_array row_max; /**< optional, f32, CPU only: largest score of each row, sink excluded */
} cpflex_forward_tensors;

/** Computes attention into the caller's arrays. `workspace` (may be NULL on the CPU: memory is then allocated) is used
 * by one call at a time. On CUDA the work is queued on `stream` (a CUstream; NULL is the default stream), nothing
 * waits; on the CPU `stream` is NULL and the results are there on return. INVALID_ARGUMENT for a wrong shape, dtype,
 * stride or device, overlapping outputs, a workspace that is too small or in use. */
CPFLEX_EXPORT cpflex_error *cpflex_forward(const cpflex_executable *executable, const cpflex_forward_tensors *tensors,
                                           void *workspace, int64_t workspace_bytes, void *stream);

/** Tensors of a backward call. What is optional may have NULL data and is then not computed. Gradients are overwritten.
 */
typedef struct cpflex_backward_tensors {
  cpflex_array q, k, v, out, lse; /**< as in and from forward; without softmax `out` and `lse` are not read */
  cpflex_array d_out;             /**< gradient of the loss in out */
  cpflex_array d_lse;             /**< optional, f32: gradient of the loss in lse */
  cpflex_array d_q, d_k, d_v;     /**< gradients in q, k and v (optional on the CPU) */
  /** One f32 array per capture of the program, in its order, or NULL where it is not wanted: dense, of the capture's
   * own shape (an axis that was broadcast has size 1). On CUDA in device memory. May be NULL as a whole. */
  float *const *capture_gradients;
  size_t num_capture_gradients;
  float *sink_gradient; /**< optional, f32, one for each head of the whole problem; those of the part are written */
} cpflex_backward_tensors;

/** Computes gradients by recomputing the scores; otherwise as cpflex_forward. */
CPFLEX_EXPORT cpflex_error *cpflex_backward(const cpflex_executable *executable, const cpflex_backward_tensors *tensors,
                                            void *workspace, int64_t workspace_bytes, void *stream);

/* ---- Several ranks
 * --------------------------------------------------------------------------------------------------- */

/** Which rank of a group owns which tokens, for each batch row. Immutable. */
typedef struct cpflex_layout cpflex_layout;

/** A layout by rule: "contiguous", "head-tail", "striped", or "per-document", which takes the documents' cumulative
 * lengths ([0, l0, l0 + l1, ...]; i32 or i64, rank 1, host memory) in `cu_seqlens`, else NULL. Rules that read a mask
 * belong to cpflex_plan_create. */
CPFLEX_EXPORT cpflex_error *cpflex_layout_create(const char *kind, int64_t length, int32_t world_size,
                                                 const cpflex_array *cu_seqlens, cpflex_layout **layout);
/** The caller's own layout: the positions that rank 0 owns, then those of rank 1, ... (i64, dense, host memory;
 * [length] or [batch, length]), and how many each of `world_size` ranks owns. INVALID_ARGUMENT unless each position is
 * there once. */
CPFLEX_EXPORT cpflex_error *cpflex_layout_from_permutation(const cpflex_array *permutation, const int64_t *shard_sizes,
                                                           int32_t world_size, cpflex_layout **layout);
CPFLEX_EXPORT void cpflex_layout_free(cpflex_layout *layout);

typedef struct cpflex_layout_shape {
  const char *kind; /**< the rule's word; "solved" or "custom" among others. Static storage */
  int64_t length;
  int32_t world_size;
  int64_t rows; /**< 1: all batch rows alike; else the number of batch rows */
} cpflex_layout_shape;
CPFLEX_EXPORT cpflex_layout_shape cpflex_layout_shape_of(const cpflex_layout *layout);
/** Tokens that a rank owns in each batch row; 0 for a rank that is none. */
CPFLEX_EXPORT int64_t cpflex_layout_shard_size(const cpflex_layout *layout, int32_t rank);
/** Writes [rows, length] numbers each: the token at each place of the concatenated shards, and the place of each token.
 * Either may be NULL. */
CPFLEX_EXPORT cpflex_error *cpflex_layout_permutation(const cpflex_layout *layout, int64_t *permutation,
                                                      int64_t *inverse);
/** Copies what `rank` owns of a whole array to its shard: activations, labels, positions. Dense arrays of one dtype in
 * host memory whose shapes differ in `axis` only, the sequence. Where batch rows differ, axis 0 is the batch. */
CPFLEX_EXPORT cpflex_error *cpflex_layout_shard(const cpflex_layout *layout, int32_t rank, int32_t axis,
                                                const cpflex_array *whole, const cpflex_array *shard);
/** The reverse; what other ranks own is left as it is. */
CPFLEX_EXPORT cpflex_error *cpflex_layout_unshard(const cpflex_layout *layout, int32_t rank, int32_t axis,
                                                  const cpflex_array *shard, const cpflex_array *whole);

/** Who owns, computes and sends what when ranks share a call. Immutable. */
typedef struct cpflex_plan cpflex_plan;

/** How ranks share a call. world_size has to be set; the rest may be 0 and is then chosen by a cost model. */
typedef struct cpflex_plan_options {
  int32_t world_size;
  const char *layout;   /**< "contiguous", "head-tail", "striped", "per-document", "ptrr", "solved", or "auto" */
  const char *rotation; /**< "ring", "all-gather", "selective", "ulysses", or "auto" */
  const cpflex_layout *q_layout;  /**< the caller's own; then `layout` is not read */
  const cpflex_layout *kv_layout; /**< NULL: q_layout when the lengths agree, else contiguous */
  int32_t has_ascending_keys;     /**< 1: O and LSE have the bits of one device; transfers then come before compute */
  int32_t has_free_token_counts;  /**< 1: ranks may own unlike numbers of tokens */
  int32_t
      has_exact_needs; /**< 1: only keys that some query attends to travel, not whole tiles; planning evaluates pairs */
  const cpflex_block_mask *const *other_masks; /**< of other calls that use the same layout */
  size_t num_other_masks;
} cpflex_plan_options;

/** Plans the call of an executable of all queries and keys. Every rank makes the plan for itself: it is a function of
 * mask, sizes and options. The backward pass is planned when the executable was loaded for it. */
CPFLEX_EXPORT cpflex_error *cpflex_plan_create(const cpflex_executable *executable, const cpflex_plan_options *options,
                                               cpflex_plan **plan);
CPFLEX_EXPORT void cpflex_plan_free(cpflex_plan *plan);

typedef int32_t cpflex_side;
enum { CPFLEX_SIDE_Q = 0, CPFLEX_SIDE_KV = 1 };
/** The layout of queries (and O), or of keys and values. */
CPFLEX_EXPORT cpflex_error *cpflex_plan_layout(const cpflex_plan *plan, cpflex_side side, cpflex_layout **layout);
/** The schedule of a pass as "text" (lossless), "summary", "json" or "svg". */
CPFLEX_EXPORT cpflex_error *cpflex_plan_print(const cpflex_plan *plan, cpflex_pass pass, const char *format,
                                              cpflex_buffer **text);

/** What a pass costs beside what it must cost. Work counts pairs in tiles that are not empty. */
typedef struct cpflex_plan_numbers {
  const char *rotation; /**< static storage */
  int32_t world_size, num_steps;
  int64_t num_transfers;
  double largest_work, mean_work, work_bound;   /**< of a rank; no layout with whole rows has less than the bound */
  int64_t received_bound, received_bound_worst; /**< bytes, of all ranks and of the worst one, for these token counts */
  double predicted_seconds;
} cpflex_plan_numbers;
CPFLEX_EXPORT cpflex_error *cpflex_plan_numbers_of(const cpflex_plan *plan, cpflex_pass pass,
                                                   cpflex_plan_numbers *numbers);
/** What one rank does in a pass. */
typedef struct cpflex_rank_numbers {
  double work;
  int64_t bytes_sent, bytes_received;
  int64_t bytes_needed; /**< the least that it must receive with this layout */
  int64_t peak_bytes;   /**< shards, buffers and accumulators held at once; no workspace of kernels */
} cpflex_rank_numbers;
CPFLEX_EXPORT cpflex_error *cpflex_plan_rank_numbers(const cpflex_plan *plan, cpflex_pass pass, int32_t rank,
                                                     cpflex_rank_numbers *numbers);

/** One rank's end of a group. Used by one thread at a time; may serve several plans whose calls come in the same order
 * on every rank. Of no more use after an error of a call. */
typedef struct cpflex_communicator cpflex_communicator;

/** Ranks as threads of this process. */
typedef struct cpflex_thread_group cpflex_thread_group;
CPFLEX_EXPORT cpflex_error *cpflex_thread_group_create(int32_t world_size, cpflex_thread_group **group);
CPFLEX_EXPORT void cpflex_thread_group_free(cpflex_thread_group *group);
CPFLEX_EXPORT cpflex_error *cpflex_communicator_of_threads(const cpflex_thread_group *group, int32_t rank,
                                                           cpflex_communicator **communicator);
/** This process of an MPI job. `plugin` is the path of libcpflex_mpi.so; NULL: $CPFLEX_MPI_PLUGIN, else beside the
 * program or this library. MPI is finalised when the communicator is freed. */
CPFLEX_EXPORT cpflex_error *cpflex_communicator_of_mpi(const char *plugin, cpflex_communicator **communicator);

enum { CPFLEX_NCCL_ID_BYTES = 128 };
/** Writes the name of a group of GPUs to be, CPFLEX_NCCL_ID_BYTES bytes: one rank makes it, the caller brings it to
 * all. */
CPFLEX_EXPORT cpflex_error *cpflex_nccl_id(void *id);
/** This rank's end of a group of GPUs, one GPU each, in one process or many. Waits until all ranks have joined, at most
 * `deadline_seconds` (0: 60); the same limit holds for NCCL to take each step's messages. UNAVAILABLE without NCCL or
 * the GPU with the index `gpu`. */
CPFLEX_EXPORT cpflex_error *cpflex_communicator_of_nccl(const void *id, int32_t rank, int32_t world_size, int32_t gpu,
                                                        double deadline_seconds, cpflex_communicator **communicator);
/** The same over the caller's own ncclComm_t, of the NCCL library that this process has loaded. It stays the caller's,
 * and lives longer than the communicator, unless an error aborts it. */
CPFLEX_EXPORT cpflex_error *cpflex_communicator_of_nccl_comm(void *nccl_comm, int32_t gpu, double deadline_seconds,
                                                             cpflex_communicator **communicator);
/** Ranks on GPUs as threads of this process: writes `world_size` communicators, rank r on gpus[r % num_gpus]; ranks may
 * share a GPU. Copy engines carry the messages. */
CPFLEX_EXPORT cpflex_error *cpflex_communicators_of_cuda_threads(int32_t world_size, const int32_t *gpus,
                                                                 size_t num_gpus, cpflex_communicator **communicators);

/** Bytes for `peer`, or room for exactly that many bytes from it. */
typedef struct cpflex_message {
  int32_t peer, is_send;
  void *data;
  int64_t size;
} cpflex_message;
/** Functions of the caller that carry messages, called on the thread that runs the rank. They return 0, or a
 * cpflex_code and write what went wrong to `text` (0-terminated, of `text_size` bytes). */
typedef struct cpflex_transport {
  int32_t rank, world_size;
  void *user_data; /**< lives as long as the communicator */
  /** Starts messages and returns at once. Messages between two ranks match in the order in which they were started,
   * those of one call in the order listed. Their memory is valid until `wait` for the ticket returns. */
  int32_t (*start)(void *user_data, int64_t ticket, int32_t step, const char *purpose, const cpflex_message *messages,
                   size_t num_messages, char *text, size_t text_size);
  /** Returns when all messages of the ticket have left and arrived, or fails after that many seconds. */
  int32_t (*wait)(void *user_data, int64_t ticket, double seconds, char *text, size_t text_size);
  /** May be NULL: tells the other ranks that this one gives up. */
  void (*abort)(void *user_data, const char *reason);
} cpflex_transport;
CPFLEX_EXPORT cpflex_error *cpflex_communicator_of_transport(const cpflex_transport *transport,
                                                             cpflex_communicator **communicator);
CPFLEX_EXPORT int32_t cpflex_communicator_rank(const cpflex_communicator *communicator);
CPFLEX_EXPORT int32_t cpflex_communicator_world_size(const cpflex_communicator *communicator);
/** Tells the other ranks that this one gives up, so that they need not wait. With MPI it ends the job. */
CPFLEX_EXPORT void cpflex_communicator_abort(cpflex_communicator *communicator, const char *reason);
CPFLEX_EXPORT void cpflex_communicator_free(cpflex_communicator *communicator);

/** One rank of a plan, ready to run where its communicator has its messages: on the CPU, or on a GPU in bf16 or f16.
 * Used by one thread at a time. */
typedef struct cpflex_rank cpflex_rank;
/** How a rank runs; all 0 is a good choice. */
typedef struct cpflex_rank_options {
  double deadline_seconds; /**< for each step's messages; 0: 60 */
  int32_t num_threads;     /**< on the CPU; 0: one per hardware thread; results do not depend on it */
  int32_t has_times; /**< 1: passes on a GPU wait for their end and note times for the trace, as those on the CPU do */
} cpflex_rank_options;
/** `options` may be NULL. The plan's executable may be one on the CPU also for ranks on GPUs: planning needs none.
 * INVALID_ARGUMENT for f32 on a GPU, and for an executable on CUDA when the communicator has its messages in host
 * memory. */
CPFLEX_EXPORT cpflex_error *cpflex_rank_load(const cpflex_plan *plan, const cpflex_communicator *communicator,
                                             const cpflex_rank_options *options, cpflex_rank **rank);
CPFLEX_EXPORT void cpflex_rank_free(cpflex_rank *rank);
/** As cpflex_forward and cpflex_backward over the shards of the rank, whose rows are those of the layouts in their
 * order. All ranks call together. `row_max` is not computed; d_q, d_k and d_v are. Gradients of captures and sinks are
 * sums over all ranks, in rank order, on every rank, in host memory. No wait outlasts the deadline; an error names
 * rank, step and peer. On a GPU the other tensors are in its memory; work waits for that of the caller's `stream` (a
 * CUstream) so far, and what follows in `stream` waits for it. The call waits while messages travel, not for the end of
 * its work. On the CPU `stream` is NULL. */
CPFLEX_EXPORT cpflex_error *cpflex_rank_forward(cpflex_rank *rank, const cpflex_forward_tensors *shards, void *stream);
CPFLEX_EXPORT cpflex_error *cpflex_rank_backward(cpflex_rank *rank, const cpflex_backward_tensors *shards,
                                                 void *stream);

/** Bytes of device memory that it holds between calls, known after the first: tables of its masks and the captures that
 * were copied there. 0 on the CPU. */
CPFLEX_EXPORT int64_t cpflex_rank_device_bytes(const cpflex_rank *rank);

/** What all calls of a rank sent and received so far. */
typedef struct cpflex_traffic {
  int64_t messages_sent, bytes_sent, messages_received, bytes_received;
} cpflex_traffic;
/** Traffic of one purpose ("kv", "q", "out", "q-gradient", "dq", "dkv", "gradient of capture 0", "gradient of the
 * sink"; NULL: all) with one peer (negative: all). */
CPFLEX_EXPORT cpflex_traffic cpflex_rank_traffic(const cpflex_rank *rank, const char *purpose, int32_t peer);
/** The most bytes held at once, counted as in cpflex_rank_numbers. */
CPFLEX_EXPORT int64_t cpflex_rank_peak_bytes(const cpflex_rank *rank);
/** Computes and transfers of the last passes of the ranks in this process, where times were noted, as a Chrome trace,
 * which Perfetto opens. */
CPFLEX_EXPORT cpflex_error *cpflex_ranks_trace(const cpflex_rank *const *ranks, size_t num_ranks, cpflex_buffer **json);

#ifdef __cplusplus
}
#endif
#endif
