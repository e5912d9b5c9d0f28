// Looking at the words of a command line; see CommandLine.h.
#include "tools/cpflexc/CommandLine.h"

#include <fmt/format.h>
#include <llvm/ADT/StringRef.h>

#include <algorithm>
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

void checkCommandWords(const CLI::App &app, int argc, const char *const *argv) {
  const CLI::App *level = &app;
  for (int i = 1; i < argc && std::string_view(argv[i]) != "--"; ++i) {
    const std::string word = argv[i];
    const std::vector<std::string> names = commandsOf(*level);
    // Behind a command that has no commands below it stand its own arguments.
    if (names.empty())
      return;
    if (word.starts_with("-"))
      continue;
    if (std::find(names.begin(), names.end(), word) == names.end())
      throw CommandLineFault(fmt::format("{} has no command '{}'; expected '{}'{}",
                                         level == &app ? app.get_name() : fmt::format("'{}'", level->get_name()), word,
                                         fmt::join(names, "', '"), suggestion(word, names)));
    level = level->get_subcommand(word);
  }
}

} // namespace cpflex
