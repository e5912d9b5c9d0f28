// How processes that were started apart agree on a few bytes before they have a communicator, and which of them this
// process is.
#pragma once

#include "runtime/Comm/Communicator.h"
#include "runtime/Cuda/SharedLibrary.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// Where the processes of a job meet.
struct Rendezvous {
  enum class Kind : uint8_t { File, Tcp } kind = Kind::File;
  std::string path; ///< of a file that does not exist yet, in a folder that all see
  std::string host; ///< where rank 0 listens
  int port = 0;
};

/// Reads `file:PATH` or `tcp:HOST:PORT`, both also with `//` after the colon. A port that torchrun uses itself
/// (MASTER_PORT) is refused.
StatusOr<Rendezvous> parseRendezvous(const std::string &text,
                                     const EnvironmentLookup &environment = processEnvironment);

/// Gives rank 0's bytes to all ranks; `bytes` has the same size everywhere and is overwritten on the others. Rank 0
/// returns once every rank has them (by tcp), or removes the file when `leaveRendezvous` is called (by file).
Status shareBytes(const Rendezvous &rendezvous, int32_t rank, int32_t worldSize, std::vector<uint8_t> &bytes,
                  Deadline deadline);
/// Rank 0 removes what shareBytes left; called when all ranks are known to have met.
void leaveRendezvous(const Rendezvous &rendezvous, int32_t rank);

/// This process's place among those that a launcher started.
struct JobPlace {
  int32_t rank = 0, worldSize = 1;
  int32_t localRank = 0; ///< among those of this machine
};

/// The place that torchrun, Open MPI's mpirun, MPICH's mpiexec or srun has put in the environment; none without a
/// launcher.
std::optional<JobPlace> jobPlace(const EnvironmentLookup &environment = processEnvironment);

} // namespace cpflex
