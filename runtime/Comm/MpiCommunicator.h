// Ranks as processes of an MPI job, through a plugin loaded at run time.
#pragma once

#include "runtime/Comm/Communicator.h"
#include "runtime/Comm/MpiPlugin.h"

#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace cpflex {

/// This process's end of an MPI job. MPI is initialised by `open` and finalised with the last object; make one per
/// process.
class MpiCommunicator : public Communicator {
public:
  /// Loads the plugin: `path`, or when empty the environment's CPFLEX_MPI_PLUGIN, or `libcpflex_mpi.so` beside the
  /// executable, in ../lib, beside libcpflex.so, or on the loader's path. Unavailable, in one sentence, when there is
  /// none.
  static StatusOr<std::unique_ptr<MpiCommunicator>> open(const std::string &path = "");
  ~MpiCommunicator() override;

  int32_t rank() const override { return rank_; }
  int32_t worldSize() const override { return worldSize_; }
  std::string_view transport() const override { return "mpi"; }
  StatusOr<int64_t> start(const MessageGroup &group) override;
  Status wait(int64_t ticket, Deadline deadline) override;
  /// Ends the whole job: MPI has no gentler way to reach ranks that wait.
  void abort(const Status &reason) override;

private:
  struct Message {
    void *request = nullptr;
    int32_t peer = 0;
    bool isSend = false;
    int64_t sizeInBytes = 0;
  };
  struct Started {
    int64_t ticket = 0;
    int32_t step = 0;
    std::string purpose;
    std::vector<Message> messages;
  };
  explicit MpiCommunicator(const CpflexMpiTable *table) : table_(table) {}
  Status failure(int code, const Message &message, const Started &started) const;

  const CpflexMpiTable *table_;
  int rank_ = 0, worldSize_ = 1;
  bool isBroken_ = false; ///< requests were given up: finalising would wait for them
  int64_t nextTicket_ = 0;
  std::deque<Started> started_;
};

} // namespace cpflex
