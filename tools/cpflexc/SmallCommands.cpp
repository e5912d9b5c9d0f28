// `cpflexc port`, `devices` and `cache`: translating a FlexAttention function, and what this machine has.
#include "tools/cpflexc/Options.h"

#include "lib/API/HostCodeCache.h"
#include "lib/API/ProgramCache.h"
#include "runtime/Cuda/CudaDevice.h"
#include "runtime/Cuda/KernelCache.h"

#include <fmt/format.h>

#include <cstdio>

namespace cpflex {

namespace {

int port(const Options &options) {
  const size_t separator = options.file.rfind("::");
  const std::string path = options.file.substr(0, separator), function = options.file.substr(separator + 2);
  refuseSharedFiles({{"FILE.py", path}}, {{"-o", options.output}});
  StatusOr<std::string> text = readFile(path);
  if (!text)
    return reportFailure(asInputFault(text.status()));
  std::vector<Diagnostic> diagnostics;
  const std::string ported = portToCpf(path, *text, function, diagnostics);
  bool hasErrors = false;
  for (const Diagnostic &diagnostic : diagnostics) {
    std::fputs(renderDiagnostic(diagnostic).c_str(), stderr);
    hasErrors |= diagnostic.severity == Severity::Error;
  }
  if (ported.empty() && !hasErrors)
    return reportFailure(Status::invalid(fmt::format("'{}' has no function '{}'", path, function)));
  // What could not be translated is left as it was.
  const int written = ported.empty() ? kInputWrong : writeOutput(options, ported);
  return hasErrors ? int(kInputWrong) : written;
}

int listDevices() {
  const CudaDeviceList list = listCudaDevices();
  if (list.devices.empty())
    printText(fmt::format("no GPU: {}\n", list.whyNone));
  for (const CudaDeviceDescription &device : list.devices)
    printText(fmt::format("cuda:{}  {}  sm_{}  {} processors  {:.1f} GiB  {}\n", device.index, device.name,
                          device.computeCapability, device.numProcessors,
                          double(device.memoryInBytes) / double(int64_t(1) << 30),
                          device.whyNotUsable.empty() ? "usable" : device.whyNotUsable));
  return kDone;
}

int listCache() {
  const KernelCache cache(KernelCache::defaultFolder());
  for (const KernelCache::Entry &entry : cache.list())
    printText(fmt::format("{}  {}  {}  {} bytes  {} registers  {} bytes spilled\n", entry.key.substr(0, 16),
                          entry.functionName, entry.architecture, entry.sizeInBytes, entry.registers,
                          entry.spillBytes));
  const std::vector<HostCodeCache::Entry> hostEntries = HostCodeCache(cache.folder()).list();
  for (const HostCodeCache::Entry &entry : hostEntries)
    printText(fmt::format("{}  {}  cpu  {} bytes\n", entry.key.substr(0, 16), entry.entry, entry.sizeInBytes));
  const std::vector<ProgramCache::Entry> programs = ProgramCache(cache.folder()).list();
  for (const ProgramCache::Entry &entry : programs)
    printText(fmt::format("{}  {}  program  {} bytes\n", entry.key.substr(0, 16), entry.path, entry.sizeInBytes));
  printText(fmt::format("{} kernels, {} entry points for the cpu and {} programs in {}\n", cache.list().size(),
                        hostEntries.size(), programs.size(), cache.folder()));
  return kDone;
}

int clearCache() {
  const KernelCache cache(KernelCache::defaultFolder());
  StatusOr<KernelCache::Cleared> cleared = cache.clear();
  if (!cleared)
    return reportFailure(cleared.status());
  printText(fmt::format("{} entries removed, {} bytes\n", cleared->numEntries, cleared->sizeInBytes));
  return kDone;
}

} // namespace

void addSmallCommands(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<Options>();
  CLI::App *command = app.add_subcommand("port", "translate a FlexAttention function");
  command->add_option("function", options->file, "FILE.py::FUNCTION")->required()->check([](const std::string &text) {
    const size_t separator = text.rfind("::");
    if (separator == std::string::npos || separator == 0 || separator + 2 == text.size())
      throw CommandLineFault(fmt::format("'{}' names no function; expected FILE.py::FUNCTION", text));
    return std::string();
  });
  addOutputOption(*command, options->output);
  command->callback([options, &exitCode] { exitCode = port(*options); });
  app.add_subcommand("devices", "list GPUs")->callback([&exitCode] { exitCode = listDevices(); });
  CLI::App *cache = app.add_subcommand("cache", "list or clear compiled code");
  cache->require_subcommand(1);
  cache->add_subcommand("list", "kernels, host code and programs on disk")->callback([&exitCode] {
    exitCode = listCache();
  });
  cache->add_subcommand("clear", "remove them")->callback([&exitCode] { exitCode = clearCache(); });
}

} // namespace cpflex
