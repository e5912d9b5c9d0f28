// Asking the system for memory; see HostMemory.h.
#include "runtime/contract/HostMemory.h"

#include <fmt/format.h>

#include <sys/mman.h>
#include <sys/sysinfo.h>

namespace cpflex {

namespace {

bool isAvailable(double sizeInBytes) {
  struct sysinfo machine{};
  if (sysinfo(&machine) == 0 &&
      sizeInBytes > (double(machine.totalram) + double(machine.totalswap)) * double(machine.mem_unit))
    return false;
  constexpr double kMostAddresses = double(int64_t(1) << 62);
  if (sizeInBytes > kMostAddresses)
    return false;
  const size_t size = size_t(sizeInBytes);
  void *address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return address != MAP_FAILED && munmap(address, size) == 0;
}

} // namespace

Status checkHostMemory(std::string_view what, double sizeInBytes) {
  // Less than this never decides, and asking would cost a call for each small array.
  constexpr double kSmall = 1 << 24;
  if (sizeInBytes <= kSmall || isAvailable(sizeInBytes))
    return Status::ok();
  return {StatusCode::OutOfMemory, fmt::format("not enough memory for {}: {:.0f} bytes", what, sizeInBytes)};
}

} // namespace cpflex
