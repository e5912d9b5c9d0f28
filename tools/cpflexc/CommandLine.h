// What can be wrong with a command line itself? Words and values of options that nothing serves, and how that is said.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace cpflex {

/// Thrown where the command line is wrong: an option is missing, has an impossible value or contradicts another. `main`
/// prints `error: message` and returns kCommandLineWrong.
class CommandLineFault : public CLI::ParseError {
public:
  explicit CommandLineFault(std::string message)
      : ParseError("CommandLineFault", std::move(message), CLI::ExitCodes::ValidationError) {}
};

/// Checks of the value of an option, for CLI::Option::check; `option` is its name. They throw CommandLineFault.
using ValueCheck = std::function<std::string(const std::string &)>;
inline constexpr int64_t kMostNumber = std::numeric_limits<int64_t>::max();
/// A decimal number from `least` to `most`, both included.
ValueCheck wholeNumber(const std::string &option, int64_t least, int64_t most = kMostNumber);
/// A finite number above 0.
ValueCheck secondsAboveZero(const std::string &option);
/// A file to read or write. Standard output stands for no such file.
ValueCheck fileName(const std::string &option);

/// One of these words, which the help lists.
CLI::Validator oneOf(const std::string &option, std::vector<std::string> words);

/// Adds `-o FILE`; `-` is standard output, as is no -o.
void addOutputOption(CLI::App &command, std::string &output);

/// Throws CommandLineFault when a word of argv stands where a command is expected and is none, naming the nearest, or
/// when there is no command and nothing else that is an answer by itself, as --help.
void checkCommandWords(const CLI::App &app, int argc, const char *const *argv);

} // namespace cpflex
