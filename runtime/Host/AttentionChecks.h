// What makes the arguments of CPU attention acceptable; everything behind these checks may assume it.
#pragma once

#include "runtime/Host/HostAttention.h"

#include <initializer_list>
#include <span>

namespace cpflex {

/// A tensor argument with its name in messages and what it has to be.
struct CheckedTensor {
  enum class Types : uint8_t {
    Any, ///< f32, bf16 or f16
    F32,
    LikeFirst, ///< the type of the first argument of the list
  };
  enum class Role : uint8_t {
    Input,
    Output,
    InPlace, ///< an input that may be the same memory as an output
  };

  const char *name;
  TensorView view;
  int64_t sizes[4];
  Types types = Types::Any;
  Role role = Role::Input;
  bool isOptional = false;
};

/// Checks sizes, heads, positions and the mask.
Status checkProblem(const AttentionProblem &problem);

/// Checks data, element types and strides of every argument, and that outputs overlap neither each other nor inputs.
Status checkTensors(std::span<const CheckedTensor> arguments);

/// Most threads that a call may ask for by number.
inline constexpr int kMaxThreads = 4096;

/// Checks the number of threads and the instruction set.
Status checkOptions(const HostAttentionOptions &options);

/// Checks the size of the workspace when there is one.
Status checkWorkspace(const HostAttentionOptions &options, int64_t neededInBytes);

/// The shapes that the arguments of attention have.
struct AttentionShapes {
  explicit AttentionShapes(const AttentionProblem &problem)
      : q{problem.batch, problem.qHeads, problem.qLen, problem.headDim},
        k{problem.batch, problem.kvHeads, problem.kvLen, problem.headDim},
        v{problem.batch, problem.kvHeads, problem.kvLen, problem.vHeadDim},
        out{problem.batch, problem.qHeads, problem.qLen, problem.vHeadDim},
        row{problem.batch, problem.qHeads, problem.qLen, 1} {}
  int64_t q[4], k[4], v[4], out[4], row[4];
};

} // namespace cpflex
