// Looking at the words of a command line; see CommandLine.h.
#include "tools/cpflexc/CommandLine.h"

#include <fmt/format.h>
#include <llvm/ADT/StringRef.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <vector>

namespace cpflex {

namespace {

std::vector<std::string> commandsOf(const CLI::App &app) {
  std::vector<std::string> names;
  for (const CLI::App *command : app.get_subcommands([](const CLI::App *) { return true; }))
    names.push_back(command->get_name());
  return names;
}

/// `; did you mean 'name'?` for the nearest name; empty when half of the letters or more differ.
std::string suggestion(const std::string &word, const std::vector<std::string> &names) {
  unsigned least = unsigned(word.size() / 2) + 1;
  std::string nearest;
  for (const std::string &name : names)
    if (unsigned distance = llvm::StringRef(word).edit_distance(name); distance < least || name.starts_with(word)) {
      least = distance;
      nearest = name;
    }
  return nearest.empty() || word.empty() ? std::string() : fmt::format("; did you mean '{}'?", nearest);
}

} // namespace

ValueCheck wholeNumber(const std::string &option, int64_t least, int64_t most) {
  return [=](const std::string &text) {
    int64_t value = 0;
    const char *end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stop == end && least <= value && value <= most)
      return std::string();
    throw CommandLineFault(fmt::format("{} is '{}'; expected a whole number {}", option, text,
                                       most != kMostNumber ? fmt::format("from {} to {}", least, most)
                                                           : fmt::format("of at least {}", least)));
  };
}

ValueCheck secondsAboveZero(const std::string &option) {
  return [=](const std::string &text) {
    double value = 0;
    const char *end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stop == end && value > 0 && std::isfinite(value))
      return std::string();
    throw CommandLineFault(fmt::format("{} is '{}'; expected a number of seconds above 0", option, text));
  };
}

ValueCheck fileName(const std::string &option) {
  return [=](const std::string &text) {
    if (text.empty() || text == "-")
      throw CommandLineFault(fmt::format("{} is '{}'; expected the name of a file", option, text));
    return std::string();
  };
}

CLI::Validator oneOf(const std::string &option, std::vector<std::string> words) {
  const std::string list = fmt::format("{{{}}}", fmt::join(words, ","));
  return CLI::Validator(
      [=](const std::string &text) {
        if (std::find(words.begin(), words.end(), text) == words.end())
          throw CommandLineFault(fmt::format("{} is '{}'; expected '{}'{}", option, text, fmt::join(words, "', '"),
                                             suggestion(text, words)));
        return std::string();
      },
      list);
}

void addOutputOption(CLI::App &command, std::string &output) {
  command.add_option("-o", output, "file to write")->transform([](const std::string &text) {
    if (text.empty())
      throw CommandLineFault("-o is ''; expected the name of a file, or '-' for standard output");
    return text == "-" ? std::string() : text;
  });
}

void checkCommandWords(const CLI::App &app, int argc, const char *const *argv) {
  const CLI::App *level = &app;
  bool isAnswered = false;
  for (int i = 1; i < argc && std::string_view(argv[i]) != "--"; ++i) {
    const std::string word = argv[i];
    const std::vector<std::string> names = commandsOf(*level);
    // Behind a command that has no commands below it stand its own arguments.
    if (names.empty())
      return;
    if (word.starts_with("-")) {
      isAnswered |= level->get_option_no_throw(word) != nullptr;
      continue;
    }
    if (std::find(names.begin(), names.end(), word) == names.end())
      throw CommandLineFault(fmt::format("{} has no command '{}'; expected '{}'{}",
                                         level == &app ? app.get_name() : fmt::format("'{}'", level->get_name()), word,
                                         fmt::join(names, "', '"), suggestion(word, names)));
    level = level->get_subcommand(word);
  }
  if (const std::vector<std::string> names = commandsOf(*level); !names.empty() && !isAnswered)
    throw CommandLineFault(
        fmt::format("'{}' is given no command; expected '{}'", level->get_name(), fmt::join(names, "', '")));
}

} // namespace cpflex
