// What can be wrong with a command line itself? Words and values of options that nothing serves, and how that is said.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <utility>

namespace cpflex {

/// Thrown where the command line is wrong: an option is missing, has an impossible value or contradicts another. `main`
/// prints `error: message` and returns kCommandLineWrong.
class CommandLineFault : public CLI::ParseError {
public:
  explicit CommandLineFault(std::string message)
      : ParseError("CommandLineFault", std::move(message), CLI::ExitCodes::ValidationError) {}
};

/// Throws CommandLineFault when a word of argv stands where a command is expected and is none; names the nearest.
void checkCommandWords(const CLI::App &app, int argc, const char *const *argv);

} // namespace cpflex
