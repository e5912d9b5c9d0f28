// `cpflexc explain`: why one pair attends or not, value by value.
#include "runtime/BlockMask/PointEvaluator.h"
#include "tools/cpflexc/Options.h"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <memory>

namespace cpflex {

namespace {

struct ExplainCommandOptions : Options {
  std::string at;
};

const char *nameOf(Operation operation) {
  switch (operation) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator:                                                                                          \
    return #mnemonic;
#include "runtime/contract/Operations.def"
  case Operation::Constant: return "constant";
  case Operation::Param: return "param";
  case Operation::Dim: return "dim";
  case Operation::Coordinate: return "coordinate";
  case Operation::Load: return "load";
  case Operation::Induction: return "index";
  case Operation::ReduceAny: return "any";
  case Operation::ReduceAll: return "all";
  case Operation::ReduceSum: return "sum";
  case Operation::ReduceMin: return "min over";
  case Operation::ReduceMax: return "max over";
  }
  return "";
}

std::string textOf(ValueType type, ScalarSlot value) {
  if (type == ValueType::Bool)
    return value ? "True" : "False";
  if (type != ValueType::Float)
    return fmt::format("{}", value);
  const uint32_t bits = uint32_t(value);
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return fmt::format("{}", number);
}

// What an instruction is, with the names that the user wrote.
std::string labelOf(const TapeInstruction &instruction, const Signature &signature) {
  static constexpr const char *kCoordinates[] = {"b", "h", "q", "kv"};
  switch (instruction.operation) {
  case Operation::Coordinate: return kCoordinates[instruction.immediate];
  case Operation::Param: return signature.params[instruction.immediate].name;
  case Operation::Dim: return signature.dims[instruction.immediate];
  case Operation::Load: return "load " + signature.captures[instruction.immediate].name;
  default: return nameOf(instruction.operation);
  }
}

int explain(const ExplainCommandOptions &options) {
  int64_t at[4] = {};
  const char *begin = options.at.data(), *end = begin + options.at.size();
  for (int i = 0; i < 4; ++i) {
    auto [stop, error] = std::from_chars(begin, end, at[i]);
    const bool isLast = i == 3;
    if (error != std::errc() || at[i] < 0 || (isLast ? stop != end : stop == end || *stop != ',')) {
      fmt::print(stderr, "error: '--at {}' is not four numbers b,h,q,kv\n", options.at);
      return kCommandLineWrong;
    }
    begin = stop + 1;
  }
  LoadedProgram loaded;
  if (int code = loadProgram(options, loaded); code != kDone)
    return code;
  auto binding = bindProgram(options, *loaded.program);
  if (!binding)
    return reportFailure(binding.status());
  const CallSizes &sizes = (*binding)->sizes();
  const std::pair<const char *, int64_t> limits[] = {
      {"b", sizes.batch}, {"h", sizes.heads}, {"q", sizes.qLen}, {"kv", sizes.kvLen}};
  for (int i = 0; i < 4; ++i)
    if (at[i] >= limits[i].second)
      return reportFailure(Status::invalid(
          fmt::format("'{}' is {}; expected 0 to {}", limits[i].first, at[i], limits[i].second - 1)));
  if (!loaded.entry->hasMask)
    return writeOutput(options, fmt::format("'{}' has no mask: every pair attends\n", loaded.entry->name));
  const Tape &tape = loaded.entry->tape;
  if (Status status = verifyTape(tape, (*binding)->bindings()); !status.isOk())
    return reportFailure(status);
  const PointExplanation explanation =
      explainPoint(tape, (*binding)->bindings(), at[0], at[1], at[2], at[3]);
  std::string text = fmt::format("b={} h={} q={} kv={}: {}\n", at[0], at[1], at[2], at[3],
                                 explanation.attends ? "attends" : "does not attend");
  for (const ExplainedValue &value : explanation.values) {
    const TapeInstruction &instruction = tape.instructions[value.instruction];
    if (instruction.operation == Operation::Constant)
      continue;
    text += fmt::format("  {:>10}  {} = {}{}\n",
                        instruction.line ? fmt::format("{}:{}", instruction.line, instruction.column) : "",
                        labelOf(instruction, loaded.program->signature()), textOf(value.type, value.value),
                        value.isOutOfRange ? " (outside the array)" : "");
  }
  return writeOutput(options, text);
}

} // namespace

void addExplainCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<ExplainCommandOptions>();
  CLI::App *command = app.add_subcommand("explain", "say why one pair attends or not");
  addCommonOptions(*command, *options);
  command->add_option("--at", options->at, "b,h,q,kv in global positions")->required();
  command->add_option("-o", options->output, "file to write");
  command->callback([options, &exitCode] { exitCode = explain(*options); });
}

} // namespace cpflex
