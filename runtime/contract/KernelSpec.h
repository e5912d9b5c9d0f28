// Which attention kernel a program needs: everything that changes its machine code besides the program's functor.
// Lengths, strides, head counts, parameters and captures are arguments and never part of a spec.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/KernelArguments.h"

#include <cstdint>

namespace cpflex {

/// The element type of what a kernel writes.
enum class OutputForm : uint8_t {
  Element, ///< that of the inputs
  F32,     ///< partials of context parallelism: f32 O (normalised, beside its LSE), dQ, dK or dV
};

/// Whether a kernel walks tiles of pairs, so that it has tables of its own.
constexpr bool walksTiles(KernelRole role) {
  return role == KernelRole::Forward || role == KernelRole::BackwardKV || role == KernelRole::BackwardQ ||
         role == KernelRole::BackwardCaptures;
}
/// Whether a role has kernels of both families.
constexpr bool hasFamilies(KernelRole role) { return walksTiles(role) && role != KernelRole::BackwardCaptures; }

/// The role that decides the partial tiles of one that has families.
constexpr KernelRole wordsRole(KernelRole role) {
  return role == KernelRole::Forward      ? KernelRole::ForwardWords
         : role == KernelRole::BackwardKV ? KernelRole::BackwardKVWords
                                          : KernelRole::BackwardQWords;
}
/// Whether a role decides the partial tiles of another: its spec is that of the other but for the role.
constexpr bool fillsWords(KernelRole role) {
  return role == KernelRole::ForwardWords || role == KernelRole::BackwardKVWords || role == KernelRole::BackwardQWords;
}
/// The role for which a role that fills words does so.
constexpr KernelRole decidedRole(KernelRole role) {
  return role == KernelRole::ForwardWords      ? KernelRole::Forward
         : role == KernelRole::BackwardKVWords ? KernelRole::BackwardKV
                                               : KernelRole::BackwardQ;
}

/// One kernel to compile. Two equal specs with equal functor text give the same machine code.
struct KernelSpec {
  KernelRole role = KernelRole::Forward;
  KernelFamily family = KernelFamily::MmaSync;
  ElementType element = ElementType::BF16; ///< BF16 or F16
  int headDim = 64, vHeadDim = 64;         ///< multiples of 8, at most 256
  bool hasSoftmax = true;
  bool hasMask = false;
  ScoreForm scoreForm = ScoreForm::Identity;
  PositionMode positions = PositionMode::Identity;
  OutputForm output = OutputForm::Element;
  friend bool operator==(const KernelSpec &, const KernelSpec &) = default;
};

} // namespace cpflex
