// The embedded compiler: how a program compiles `.cpf` text, binds arrays, derives block masks and obtains what the CPU
// and GPU runtimes run. No type of LLVM, MLIR, CUDA or MPI appears here.
#pragma once

#include "lib/Frontend/Diagnostic.h"
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/Files/Npy.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/DeviceFunctions.h"
#include "runtime/contract/HostFunctions.h"
#include "runtime/contract/Residual.h"
#include "runtime/contract/Status.h"
#include "runtime/contract/Tape.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// How a program is compiled.
struct CompileOptions {
  std::vector<std::string> includeDirs;         ///< searched for imports after the file's own folder
  std::map<std::string, std::string> constants; ///< values of `const` declarations; other names are left alone
};

/// Where `Program::emit` stops.
enum class Stage { Ast, Mask, MaskOpt, MaskGrad, Classifier, Llvm, Assembly, Cuda };

/// One attention entry point of a program.
struct EntryPoint {
  std::string name;
  bool hasMask = false;
  bool hasScore = false;
  int sinkCapture = -1;       ///< slot of the sinks, -1 without
  std::optional<float> scale; ///< none: 1 / sqrt(head size)
  bool hasSoftmax = true;
  Tape tape;                  ///< of the mask; meaningful when hasMask
  std::vector<Residual> residuals;
};

class Program;

/// A program, or null beside the errors that say why. Warnings come with a program too.
struct CompileResult {
  std::shared_ptr<Program> program;
  std::vector<Diagnostic> diagnostics;
  double compileMs = 0; ///< from text to tapes
};

/// Compiles the text of a `.cpf` file; `path` names it in messages and locates its imports. Thread safe.
CompileResult compileText(const std::string &path, const std::string &text, const CompileOptions &options = {});

/// Reads and compiles a `.cpf` file; a file that cannot be read is a diagnostic too.
CompileResult compileFile(const std::string &path, const CompileOptions &options = {});

/// Translates a FlexAttention function of a Python file to `.cpf` text; empty when there is no such function.
std::string portToCpf(const std::string &path, const std::string &text, const std::string &function,
                      std::vector<Diagnostic> &diagnostics);

/// A compiled program. Immutable to its users; calls from several threads are served one after the other.
class Program {
public:
  ~Program();
  const Signature &signature() const;
  const std::vector<EntryPoint> &entries() const;

  /// Whether the program declares a `const` of this name.
  bool hasConstant(const std::string &name) const;

  /// The entry point `name`, or the only one when `name` is empty. InvalidArgument names the choices.
  StatusOr<const EntryPoint *> entry(const std::string &name) const;

  /// The program's text at a stage of the compiler; of one entry point for Llvm, Assembly and Cuda.
  StatusOr<std::string> emit(Stage stage, const EntryPoint &entry) const;

  /// Machine code for this CPU. Compiled on first use and kept. `bindings` decide between 32-bit and 64-bit ints.
  StatusOr<HostFunctions> hostFunctions(const EntryPoint &entry, const Bindings &bindings) const;

  /// The functor that CUDA kernels call, ints chosen likewise.
  StatusOr<DeviceFunctions> deviceFunctions(const EntryPoint &entry, const Bindings &bindings) const;

  struct State;
  explicit Program(std::unique_ptr<State> state);

private:
  std::unique_ptr<State> state_;
};

/// The sizes of a call; -1 where not given.
struct CallSizes {
  int64_t batch = -1, heads = -1, kvHeads = -1, qLen = -1, kvLen = -1;
};

/// Arrays and values for what a program declares.
struct BindRequest {
  std::map<std::string, Array> arrays;
  std::map<std::string, std::string> params; ///< values as text; constants of the program may be among them
  CallSizes sizes;
};

/// Bound arrays, params and dimensions of one program: owns converted copies of the arrays. Immutable, shared freely
/// between threads.
class Binding {
public:
  /// Checks shapes, types and stated facts, unifies dimensions and fills in what was not given: batch and heads 1,
  /// kvHeads as heads, kvLen as qLen. Errors name the capture or param.
  static StatusOr<std::shared_ptr<const Binding>> create(const Program &program, const BindRequest &request);

  const Bindings &bindings() const { return bindings_; }
  const CallSizes &sizes() const { return sizes_; }
  CaptureSummaries &summaries() const { return summaries_; }
  const Array &array(int slot) const { return arrays_[slot]; }

private:
  Binding() = default;
  std::vector<Array> arrays_;
  std::vector<CaptureView> views_;
  std::vector<ScalarSlot> params_;
  std::vector<int64_t> dims_;
  Bindings bindings_;
  CallSizes sizes_;
  mutable CaptureSummaries summaries_;
};

/// The exact BlockMask of an entry point over a binding.
StatusOr<BlockMaskResult> buildBlockMask(const Program &program, const EntryPoint &entry, const Binding &binding,
                                         int64_t tileQ, int64_t tileKV, int threads);

/// The options that buildBlockMask above uses, for exact counting with countAllowed.
BlockMaskOptions blockMaskOptions(const Program &program, const EntryPoint &entry, const Binding &binding,
                                  int64_t tileQ, int64_t tileKV, int threads);

} // namespace cpflex
