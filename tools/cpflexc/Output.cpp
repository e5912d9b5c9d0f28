// Writing results, and keeping them apart from what is read; see Output.h.
#include "tools/cpflexc/Output.h"

#include "tools/cpflexc/CommandLine.h"
#include "tools/cpflexc/Options.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include <fcntl.h>

namespace cpflex {

void reserveStandardStreams() {
  for (int stream = 0; stream < 3; ++stream)
    if (fcntl(stream, F_GETFD) == -1 && errno == EBADF)
      // The lowest free number is `stream`. Opened for the other direction, so that its use fails.
      if (open("/dev/null", stream == 0 ? O_WRONLY : O_RDONLY) != stream)
        return;
}

void printText(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

int closeOutput(int exitCode) {
  errno = 0;
  if (std::fflush(stdout) == 0 && !std::ferror(stdout))
    return exitCode;
  const std::string reason = errno ? fmt::format(" ({})", std::generic_category().message(errno)) : std::string();
  std::fprintf(stderr, "error: standard output cannot be written%s\n", reason.c_str());
  return exitCode == kDone ? int(kMachineFailed) : exitCode;
}

// Whether two paths name one file, which need not exist.
static bool isSameFile(const std::string &one, const std::string &other) {
  std::error_code error;
  if (std::filesystem::equivalent(one, other, error))
    return true;
  // Only absolute paths of files that do not exist become canonical.
  const auto canonical = [&](const std::string &path) {
    return error ? std::filesystem::path() : std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
  };
  error.clear();
  const auto first = canonical(one), second = canonical(other);
  return error ? one == other : first == second;
}

void refuseSharedFiles(const std::vector<NamedFile> &inputs, const std::vector<NamedFile> &outputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const NamedFile &output = outputs[i];
    std::error_code error;
    const auto type = std::filesystem::status(output.path, error).type();
    const bool isFile = type == std::filesystem::file_type::regular || type == std::filesystem::file_type::not_found;
    if (output.path.empty() || !isFile)
      continue;
    for (const NamedFile &input : inputs)
      if (!input.path.empty() && isSameFile(output.path, input.path))
        throw CommandLineFault(
            fmt::format("{} is '{}', which {} reads; expected another file", output.option, output.path, input.option));
    for (size_t other = 0; other < i; ++other)
      if (!outputs[other].path.empty() && isSameFile(output.path, outputs[other].path))
        throw CommandLineFault(fmt::format("{} is '{}', which {} writes; expected another file", output.option,
                                           output.path, outputs[other].option));
  }
}

} // namespace cpflex
