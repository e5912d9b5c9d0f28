// What does an Executable hold? Its own calls and the plans that ranks make of it read it.
#pragma once

#include "lib/API/CudaCalls.h"
#include "lib/API/cpflex.h"
#include "runtime/Host/HostAttention.h"

#include <atomic>
#include <mutex>

namespace cpflex {

struct Executable::State {
  std::shared_ptr<const Program> program;
  EntryPoint entry;
  std::shared_ptr<const Binding> binding;
  std::shared_ptr<const BlockMask> mask;
  uint64_t version = 0; ///< of the binding
  /// Bound before the last update: calls of it may still be queued on a GPU. The next update waits for that one's
  /// uploads, and so for these.
  std::shared_ptr<const Binding> bindingBefore;
  bool hasNarrowInts = false;                  ///< the code computes ints in 32 bits
  mutable std::atomic<bool> isPlanned = false; ///< a ContextParallelPlan holds on to binding and mask
  AttentionProblem problem;
  HostFunctions functions;
  std::vector<float> sink; ///< one per head of the whole problem
  ElementType type = ElementType::F32;
  DeviceId device;
  CallPart part; ///< with an end for every axis
  CallPasses passes = CallPasses::Forward;
  HostAttentionOptions host;
  int64_t forwardInBytes = 0, backwardInBytes = 0;
  std::unique_ptr<CudaCalls> cuda; ///< null on the CPU

  /// Workers of one call at a time; a call beside it starts its own.
  std::mutex threadsMutex;
  std::unique_ptr<HostThreads> threads;

  std::mutex workspacesMutex;
  std::vector<void *> workspacesInUse;
};

} // namespace cpflex
