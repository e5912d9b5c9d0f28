// Messages of the host through memory of a device; see ExecutionDevice.h.
#include "runtime/Executor/ExecutionDevice.h"

#include <vector>

namespace cpflex {

Status exchangeHostBytes(ExecutionDevice &device, Communicator &communicator, const MessageGroup &group,
                         Deadline deadline) {
  if (device.memory() == ExecutionDevice::Memory::Host)
    return exchange(communicator, group, deadline);
  MessageGroup staged = group;
  std::vector<void *> buffers;
  auto stage = [&](int64_t sizeInBytes) {
    return buffers.emplace_back(
        device.allocate(sizeInBytes, ExecutionDevice::Contents::Undefined, DeviceQueue::Transfer));
  };
  Status status = Status::ok();
  for (SendOperation &send : staged.sends) {
    void *buffer = stage(send.sizeInBytes);
    if (status && buffer)
      status = device.copyIn(buffer, send.data, send.sizeInBytes);
    send.data = buffer;
  }
  for (ReceiveOperation &receive : staged.receives)
    receive.data = stage(receive.sizeInBytes);
  if (status)
    status = device.status();
  if (status)
    status = exchange(communicator, staged, deadline);
  for (size_t i = 0; status && i < staged.receives.size(); ++i)
    status = device.copyOut(group.receives[i].data, staged.receives[i].data, staged.receives[i].sizeInBytes);
  for (void *buffer : buffers)
    device.release(buffer);
  return status;
}

} // namespace cpflex
