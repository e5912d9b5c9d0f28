// Where do results go? To standard output, whose failures are seen at the end, or to files that the command does not
// read.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// Makes a standard stream that the caller closed one that fails, before a file of ours takes its number.
void reserveStandardStreams();

/// Writes to standard output; a failure shows in closeOutput.
void printText(std::string_view text);

/// Writes out what standard output still holds. When some of it could not be written, prints why and turns kDone into
/// kMachineFailed; else returns `exitCode`.
int closeOutput(int exitCode);

/// A file that an option names.
struct NamedFile {
  std::string option;
  std::string path; ///< empty: the option was not given
};

/// Throws CommandLineFault when an output is an input or another output, under whichever name. Devices and pipes may
/// repeat.
void refuseSharedFiles(const std::vector<NamedFile> &inputs, const std::vector<NamedFile> &outputs);

} // namespace cpflex
