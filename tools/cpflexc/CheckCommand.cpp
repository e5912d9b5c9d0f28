// `cpflexc check`: what the compiler warns of, and what a mask over bound arrays makes suspicious.
#include "tools/cpflexc/Options.h"

#include "runtime/BlockMask/BlockMaskStatistics.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cstdio>

namespace cpflex {

namespace {

struct CheckCommandOptions : Options {
  std::string format = "text";
  bool areWarningsErrors = false;
};

const char *toString(Severity severity) {
  return severity == Severity::Error ? "error" : severity == Severity::Warning ? "warning" : "note";
}

std::string rangesText(const std::vector<Range> &ranges) {
  constexpr size_t kMostShown = 4;
  std::string text;
  for (size_t i = 0; i < ranges.size() && i < kMostShown; ++i)
    text += fmt::format("{}[{}, {})", i ? ", " : "", ranges[i].begin, ranges[i].end);
  return text + (ranges.size() > kMostShown ? ", ..." : "");
}

// Appends what the mask of one entry point shows.
Status lint(const CheckCommandOptions &options, const Program &program, const EntryPoint &entry, const Binding &binding,
            std::vector<Diagnostic> &found) {
  const auto warn = [&](std::string message) {
    Diagnostic diagnostic;
    diagnostic.file = options.file;
    diagnostic.severity = Severity::Warning;
    diagnostic.message = fmt::format("'{}': {}", entry.name, message);
    found.push_back(std::move(diagnostic));
  };
  auto built = buildBlockMask(program, entry, binding, 128, 128, threadCount(options));
  if (!built)
    return built.status();
  const TileCounts counts = countTiles(built->mask);
  if (counts.empty == 0)
    warn("no tile of 128 x 128 is empty, so nothing is skipped");
  if (counts.full == 0 && counts.partial > 0)
    warn("no tile of 128 x 128 is full, so every pair is decided one by one");
  auto pairs = countAllowed(built->mask, &entry.tape, binding.bindings(),
                            blockMaskOptions(program, entry, binding, 128, 128, threadCount(options)));
  if (!pairs)
    return pairs.status();
  for (const RowSetPairs &rowSet : pairs->rowSets) {
    if (!rowSet.rowsWithoutKeys.empty())
      warn("query rows attend to nothing: " + rangesText(rowSet.rowsWithoutKeys));
    if (!rowSet.columnsWithoutQueries.empty())
      warn("keys are seen by no query: " + rangesText(rowSet.columnsWithoutQueries));
  }
  return Status::ok();
}

int check(const CheckCommandOptions &options) {
  CompileOptions compileOptions{.includeDirs = options.includeDirs};
  for (const std::string &define : options.defines) {
    auto parts = splitAssignment(define, "-D");
    if (!parts)
      return reportFailure(parts.status());
    compileOptions.constants[parts->first] = parts->second;
  }
  CompileResult result = compileFile(options.file, compileOptions);
  std::vector<Diagnostic> found = result.diagnostics;
  if (result.program && (options.sizes.qLen >= 0 || options.sizes.kvLen >= 0 || !options.binds.empty())) {
    StatusOr<std::shared_ptr<Binding>> binding = bindProgram(options, *result.program);
    if (!binding)
      return reportFailure(binding.status());
    for (const EntryPoint &entry : result.program->entries())
      if (entry.hasMask && (options.entry.empty() || options.entry == entry.name))
        if (Status status = lint(options, *result.program, entry, **binding, found); !status)
          return reportFailure(status);
  }
  if (options.format == "json") {
    auto list = nlohmann::ordered_json::array();
    for (const Diagnostic &diagnostic : found)
      list.push_back({{"file", diagnostic.file}, {"line", diagnostic.line}, {"column", diagnostic.column},
                      {"severity", toString(diagnostic.severity)}, {"message", diagnostic.message}});
    fmt::print("{}\n", list.dump());
  } else {
    for (const Diagnostic &diagnostic : found)
      std::fputs(renderDiagnostic(diagnostic).c_str(), stderr);
    if (result.program)
      fmt::print("{}: {} entry points, {} warnings\n", options.file, result.program->entries().size(), found.size());
  }
  return !result.program || (options.areWarningsErrors && !found.empty()) ? kInputWrong : kDone;
}

} // namespace

void addCheckCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<CheckCommandOptions>();
  CLI::App *command = app.add_subcommand("check", "find mistakes in a program");
  addCommonOptions(*command, *options);
  command->add_option("--format", options->format, "text or json")->check(CLI::IsMember({"text", "json"}));
  command->add_flag("--Werror", options->areWarningsErrors, "warnings are errors");
  command->callback([options, &exitCode] { exitCode = check(*options); });
}

} // namespace cpflex
