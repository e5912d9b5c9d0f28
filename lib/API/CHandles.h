// What the opaque handles of cpflex.c.h hold, and how a C++ result becomes a C one.
#pragma once

#include "lib/API/cpflex.c.h"
#include "lib/API/cpflex.h"
#include "runtime/BlockMask/IndexLists.h"

#include <exception>
#include <new>

struct cpflex_error {
  cpflex_code code = CPFLEX_INVALID_ARGUMENT;
  std::string message;
  std::vector<cpflex::Diagnostic> diagnostics; ///< notes follow their message
};

struct cpflex_buffer {
  std::string bytes;
};

struct cpflex_program {
  std::shared_ptr<const cpflex::Program> program;
  std::vector<cpflex::Diagnostic> warnings;
  double compileMs = 0;
};

struct cpflex_bind_request {
  std::shared_ptr<const cpflex::Program> program;
  cpflex::BindRequest request;
};

struct cpflex_binding {
  std::shared_ptr<const cpflex::Program> program;
  std::shared_ptr<cpflex::Binding> binding;
};

struct cpflex_block_mask {
  std::shared_ptr<const cpflex::BlockMaskResult> result;
  double buildMs = 0;
  /// What it was built from; null for a mask that was read or imported.
  std::shared_ptr<const cpflex::Program> program;
  std::shared_ptr<const cpflex::Binding> binding;
  const cpflex::EntryPoint *entry = nullptr;
  uint64_t version = 0;
  cpflex::CallPart part;
  int numThreads = 0;
};

struct cpflex_index_lists {
  cpflex::IndexLists lists;
};

struct cpflex_executable {
  std::shared_ptr<cpflex::Executable> executable;
};

struct cpflex_layout {
  cpflex::Layout layout;
};

struct cpflex_plan {
  std::shared_ptr<const cpflex::ContextParallelPlan> plan;
};

struct cpflex_thread_group {
  std::shared_ptr<cpflex::ThreadsHub> hub;
};

struct cpflex_communicator {
  std::shared_ptr<cpflex::Communicator> communicator;
};

struct cpflex_rank {
  std::shared_ptr<cpflex::RankExecutable> rank;
};

namespace cpflex {

/// An error for the caller; never null.
cpflex_error *toError(const Status &status);
/// The errors of a compilation.
cpflex_error *toError(const std::vector<Diagnostic> &diagnostics);

/// Messages with their notes behind them, as the C interface counts them.
std::vector<Diagnostic> withNotes(const std::vector<Diagnostic> &diagnostics);
cpflex_diagnostic toC(const std::vector<Diagnostic> &diagnostics, size_t index);

/// Runs the body of a C function: a Status becomes an error, and so does memory that ran out.
template <typename Body> cpflex_error *guarded(Body body) noexcept {
  try {
    const Status status = body();
    return status ? nullptr : toError(status);
  } catch (const std::bad_alloc &) {
    return toError({StatusCode::OutOfMemory, "host memory is exhausted"});
  } catch (const std::exception &exception) {
    return toError(Status::unavailable(exception.what()));
  }
}

/// InvalidArgument when a pointer that a call needs is null.
Status required(const void *pointer, const char *name);

/// Text that may be null.
inline std::string textOr(const char *text, const char *otherwise) { return text ? text : otherwise; }

/// A new buffer in `*out`.
void giveBytes(std::string bytes, cpflex_buffer **out);

/// The array as a view; `name` stands in messages.
StatusOr<ArrayView> fromC(const cpflex_array &array, const char *name);
cpflex_array toC(const ArrayView &view);

CallPart fromC(const cpflex_part &part);

/// The status of a C++ call, said about the arguments of the C call.
Status inC(const Status &status);

/// The tensors of a call; the names in messages are those of the C structs.
Status fromC(const cpflex_forward_tensors &tensors, ForwardCallTensors &call);
Status fromC(const cpflex_backward_tensors &tensors, BackwardCallTensors &call);

/// The entry point `name`, or the only one when it is null.
StatusOr<const EntryPoint *> findEntry(const Program &program, const char *name);

} // namespace cpflex
