// Ranks on GPUs of their own, in one process or many, through NCCL's grouped sends and receives.
#pragma once

#include "runtime/Comm/CudaCommunicator.h"
#include "runtime/Comm/NcclLibrary.h"

#include <deque>
#include <memory>

namespace cpflex {

/// One rank's place in an NCCL group.
struct NcclPlace {
  nccl::UniqueId id; ///< the same on all ranks
  int32_t rank = 0, worldSize = 1;
};

/// One GPU's end. After an error, or a deadline, the NCCL communicator is aborted, so that no kernel of it waits on.
class NcclCommunicator : public CudaCommunicator {
public:
  /// Joins the group and waits until all ranks have, at most `deadlineSeconds`; the same limit holds for each start().
  static StatusOr<std::unique_ptr<NcclCommunicator>> join(std::shared_ptr<const NcclLibrary> library,
                                                          std::shared_ptr<const CudaPort> port, const NcclPlace &place,
                                                          double deadlineSeconds);
  /// Uses the caller's own ncclComm_t, which stays the caller's unless an error aborts it.
  static StatusOr<std::unique_ptr<NcclCommunicator>> adopt(std::shared_ptr<const NcclLibrary> library,
                                                           std::shared_ptr<const CudaPort> port, nccl::Comm comm,
                                                           double deadlineSeconds);
  ~NcclCommunicator() override;

  int32_t rank() const override { return rank_; }
  int32_t worldSize() const override { return worldSize_; }
  std::string_view transport() const override { return "nccl"; }
  StatusOr<int64_t> start(const MessageGroup &group) override;
  Status wait(int64_t ticket, Deadline deadline) override;
  /// Aborts this rank's end; the others notice by NCCL or by their deadlines.
  void abort(const Status &reason) override;

private:
  struct Started {
    int64_t ticket = 0;
    int32_t step = 0;
    std::string purpose, peers;
    CudaEvent done; ///< recorded unless the group was empty
    bool isEmpty = false;
  };
  NcclCommunicator(std::shared_ptr<const NcclLibrary> library, std::shared_ptr<const CudaPort> port,
                   double deadlineSeconds)
      : CudaCommunicator(std::move(port)), library_(std::move(library)), deadlineSeconds_(deadlineSeconds) {}
  /// Waits until NCCL has nothing in progress. `where` tells who waits for what.
  Status settle(const std::string &where, Deadline deadline);
  Status enqueue(const MessageGroup &group, const std::string &where);
  void abortNow();

  std::shared_ptr<const NcclLibrary> library_;
  double deadlineSeconds_;
  nccl::Comm comm_ = nullptr;
  enum class Ownership : uint8_t { Own, Callers } ownership_ = Ownership::Own;
  int32_t rank_ = 0, worldSize_ = 1;
  int64_t nextTicket_ = 0;
  std::deque<Started> started_;
};

} // namespace cpflex
