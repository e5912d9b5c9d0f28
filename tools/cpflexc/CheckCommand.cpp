// `cpflexc check`: what the compiler says about a program, and what is probably a mistake in it.
#include "tools/cpflexc/Options.h"

#include "lib/API/Lint.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
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

// Lengths at which masks without arrays are looked at when none are given.
constexpr int64_t kDefaultLength = 8192;

// Whether `message` speaks of the array `name`, as 'name' or 'name[...]'.
bool speaksOf(const std::string &message, const std::string &name) {
  return message.find("'" + name + "'") != std::string::npos || message.find("'" + name + "[") != std::string::npos;
}

// A binding that was refused, at the declaration that it breaks where there is one.
Diagnostic refusal(const Program &program, const CheckCommandOptions &options, const Status &status) {
  Diagnostic diagnostic;
  diagnostic.file = options.file;
  diagnostic.message = status.message();
  for (const CaptureDeclaration &capture : program.signature().captures)
    if (speaksOf(status.message(), capture.name))
      diagnostic = warningAtDeclaration(program, capture.name, status.message());
  diagnostic.severity = Severity::Error;
  return diagnostic;
}

// Appends what is suspicious about the program, over what is bound where something is; `leftOut` says what was not
// looked at.
Status lint(const CheckCommandOptions &options, const Program &program, std::vector<Diagnostic> &found,
            std::string &leftOut) {
  const auto append = [&](std::vector<Diagnostic> list) {
    for (Diagnostic &diagnostic : list)
      found.push_back(std::move(diagnostic));
  };
  append(lintProgram(program));
  Options bound = options;
  const bool isBindingMeant = options.sizes.qLen >= 0 || options.sizes.kvLen >= 0 || !options.binds.empty();
  if (!isBindingMeant && program.signature().captures.empty())
    bound.sizes.qLen = bound.sizes.kvLen = kDefaultLength;
  StatusOr<std::shared_ptr<Binding>> binding = bindProgram(bound, program);
  if (!binding) {
    append(lintWithoutBinding(program));
    if (isBindingMeant)
      found.push_back(refusal(program, options, binding.status()));
    else
      leftOut = "; rows, keys and tiles are looked at when every array and argument is given";
    return Status::ok();
  }
  for (const EntryPoint &entry : program.entries()) {
    if (!options.entry.empty() && options.entry != entry.name)
      continue;
    StatusOr<std::vector<Diagnostic>> lints = lintEntry(program, entry, **binding, threadCount(options));
    if (!lints)
      return lints.status();
    append(std::move(*lints));
  }
  return Status::ok();
}

std::string counted(size_t number, const char *what) {
  return fmt::format("{} {}{}", number, what, number == 1 ? "" : "s");
}

nlohmann::ordered_json toJson(const Diagnostic &diagnostic) {
  nlohmann::ordered_json json = {{"file", diagnostic.file},
                                 {"line", diagnostic.line},
                                 {"column", diagnostic.column},
                                 {"severity", toString(diagnostic.severity)},
                                 {"message", diagnostic.message}};
  if (const auto &fix = diagnostic.fixIt)
    json["fix"] = {{"line", fix->line},
                   {"column", fix->column},
                   {"end_line", fix->endLine},
                   {"end_column", fix->endColumn},
                   {"replacement", fix->replacement}};
  for (const Diagnostic &note : diagnostic.notes)
    json["notes"].push_back(toJson(note));
  return json;
}

int check(const CheckCommandOptions &options) {
  CompileOptions compileOptions{.includeDirs = options.includeDirs};
  compileOptions.constants = assignments(options.defines, "-D");
  CompileResult result = compileFile(options.file, compileOptions);
  std::string leftOut;
  std::vector<Diagnostic> found = result.diagnostics;
  if (result.program) {
    if (!options.entry.empty())
      if (StatusOr<const EntryPoint *> entry = result.program->entry(options.entry); !entry)
        return reportFailure(entry.status());
    if (Status status = lint(options, *result.program, found, leftOut); !status)
      return reportFailure(status);
  }
  const auto count = [&](Severity severity) {
    return std::count_if(found.begin(), found.end(), [&](const Diagnostic &d) { return d.severity == severity; });
  };
  if (options.format == "json") {
    auto list = nlohmann::ordered_json::array();
    for (const Diagnostic &diagnostic : found)
      list.push_back(toJson(diagnostic));
    printText(list.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    for (const Diagnostic &diagnostic : found)
      std::fputs(renderDiagnostic(diagnostic).c_str(), stderr);
    if (result.program)
      printText(fmt::format("{}: {}, {}{}\n", options.file, counted(result.program->entries().size(), "entry point"),
                            counted(size_t(count(Severity::Warning)), "warning"), leftOut));
  }
  const bool isWrong = count(Severity::Error) > 0 || (options.areWarningsErrors && !found.empty());
  return !result.program || isWrong ? kInputWrong : kDone;
}

} // namespace

void addCheckCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<CheckCommandOptions>();
  CLI::App *command = app.add_subcommand("check", "find mistakes in a program");
  addCommonOptions(*command, *options);
  command->add_option("--format", options->format, "text or json")->check(oneOf("--format", {"text", "json"}));
  command->add_flag("--Werror", options->areWarningsErrors, "warnings are errors");
  command->callback([options, &exitCode] { exitCode = check(*options); });
}

} // namespace cpflex
