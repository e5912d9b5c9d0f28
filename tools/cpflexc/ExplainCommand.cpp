// `cpflexc explain`: why one pair attends or not, value by value; or which kernels compute a program, and with what.
#include "tools/cpflexc/Options.h"
#include "tools/cpflexc/ProgramKernels.h"

#include "lib/API/Lint.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/contract/TileConfig.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace cpflex {

namespace {

struct ExplainCommandOptions : Options {
  std::vector<int64_t> at;
  bool isOfKernels = false, isBackward = false;
  std::string target;
};

// Throws CommandLineFault when the text is not 'b,h,q,kv'.
std::vector<int64_t> parseAt(const std::string &text) {
  std::vector<int64_t> numbers;
  const char *begin = text.data(), *end = begin + text.size();
  while (true) {
    const auto [stop, error] = std::from_chars(begin, end, numbers.emplace_back());
    if (error != std::errc() || (stop != end && *stop != ','))
      break;
    if (stop == end && numbers.size() == 4)
      return numbers;
    if (stop == end)
      break;
    begin = stop + 1;
  }
  throw CommandLineFault(fmt::format("--at is '{}'; expected b,h,q,kv, four whole numbers", text));
}

std::string textOf(const ExplainedValue &value) {
  if (value.type == ValueType::Bool)
    return value.value ? "True" : "False";
  if (value.type != ValueType::Float)
    return fmt::format("{}", value.value);
  const uint32_t bits = uint32_t(value.value);
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return fmt::format("{}", number);
}

const char *mnemonicOf(Operation operation) {
  switch (operation) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator: return #mnemonic;
#include "runtime/contract/Operations.def"
  case Operation::Constant: return "constant";
  case Operation::Param: return "param";
  case Operation::Dim: return "dimension";
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

std::string describe(const TapeInstruction &instruction, const Signature &signature) {
  constexpr const char *kCoordinates[] = {"b", "h", "q", "kv"};
  std::string text = mnemonicOf(instruction.operation);
  if (instruction.operation == Operation::Coordinate)
    return kCoordinates[instruction.immediate];
  if (instruction.operation == Operation::Param)
    return signature.params[instruction.immediate].name;
  if (instruction.operation == Operation::Dim)
    return signature.dims[instruction.immediate];
  if (instruction.operation == Operation::Load)
    text = signature.captures[instruction.immediate].name;
  for (int32_t operand : instruction.operands)
    if (operand >= 0)
      text += fmt::format(" %{}", operand);
  return text;
}

// The class of the pair's tile, and what is left of the mask there where a part of it is decided.
std::string classAt(const BlockMask &mask, const std::vector<Residual> &residuals, const std::vector<int64_t> &at) {
  const TileRows &rows = mask.rows(at[0], at[1]);
  const int64_t row = at[2] / mask.tileQ, column = at[3] / mask.tileKV;
  for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
    if (rows.runs[i].begin <= column && column < rows.runs[i].end) {
      if (rows.runs[i].tileClass == TileClass::Full)
        return "full";
      // Number 0 is the whole mask.
      const size_t residual = rows.runs[i].residual;
      const bool isLess = residual > 0 && residual <= residuals.size();
      return isLess ? fmt::format("partial, where '{}' is left to decide", residuals[residual - 1].text) : "partial";
    }
  return "empty";
}

int explain(const ExplainCommandOptions &options) {
  LoadedProgram loaded;
  if (int code = loadProgram(options, loaded))
    return code;
  StatusOr<std::shared_ptr<Binding>> binding = bindProgram(options, *loaded.program);
  if (!binding)
    return reportFailure(binding.status());
  const CallSizes &sizes = (*binding)->sizes();
  const int64_t ends[] = {sizes.batch, sizes.heads, sizes.qLen, sizes.kvLen};
  constexpr const char *kNames[] = {"b", "h", "q", "kv"};
  for (int i = 0; i < 4; ++i)
    if (options.at[i] < 0 || options.at[i] >= ends[i])
      return reportFailure(Status::invalid(
          fmt::format("{} is {}; {}", kNames[i], options.at[i],
                      ends[i] > 0 ? fmt::format("expected 0 to {}", ends[i] - 1) : "there are none in this call")));
  if (!loaded.entry->hasMask)
    return writeOutput(options, "attends: the entry point has no mask\n");
  auto mask = buildBlockMask(*loaded.program, *loaded.entry, **binding, 128, 128, threadCount(options));
  if (!mask)
    return reportFailure(mask.status());
  const Tape &tape = loaded.entry->tape;
  PointExplanation why =
      explainPoint(tape, (*binding)->bindings(), options.at[0], options.at[1], options.at[2], options.at[3]);
  std::string text = fmt::format("(b, h, q, kv) = ({}): {}; its tile of 128 x 128 is {}\n", fmt::join(options.at, ", "),
                                 why.attends ? "attends" : "does not attend",
                                 classAt(mask->mask, loaded.entry->residuals, options.at));
  std::pair<std::string, int32_t> shown;
  for (const ExplainedValue &value : why.values) {
    const TapeInstruction &instruction = tape.instructions[value.instruction];
    const std::pair place(loaded.entry->files[value.instruction], instruction.line);
    if (place != shown && !place.first.empty())
      text +=
          fmt::format("{}:{}: {}\n", place.first, place.second, sourceLine(*loaded.program, place.first, place.second));
    shown = place;
    text +=
        fmt::format("  %{:<4} {:<28} = {}{}{}\n", value.instruction, describe(instruction, loaded.program->signature()),
                    textOf(value), value.isOutOfRange ? "  (index outside the array)" : "",
                    value.iteration >= 0 ? fmt::format("  (iteration {})", value.iteration) : "");
  }
  return writeOutput(options, text);
}

// The architecture whose kernels are meant: that of --device, where it is a GPU, else --target.
StatusOr<std::string> targetOf(const ExplainCommandOptions &options) {
  if (options.device == "cpu")
    return options.target;
  StatusOr<int> capability = computeCapability(options);
  return capability ? StatusOr<std::string>(fmt::format("sm_{}", *capability)) : capability.status();
}

// One kernel: what the table of tiles says, what the compiler made of it, and what the architecture allows.
std::string describe(const KernelSource &source, const KernelImage &image, int computeCapability) {
  constexpr int kRegistersPerProcessor = 65536, kMostRegisters = 255, kRegisterStep = 8;
  const TileConfig &tiles = source.tiles;
  std::string text =
      fmt::format("{}  {}  runtime/kernels/{}\n", source.functionName, source.architecture, kernelFile(source.spec));
  if (hasFamilies(source.spec.role))
    text += fmt::format("  family         {}\n", source.spec.family == KernelFamily::Wgmma ? "wgmma" : "mma_sync");
  if (walksTiles(source.spec.role))
    text +=
        fmt::format("  tiles          {} queries x {} keys, {} in flight\n", tiles.tileQ, tiles.tileKV, tiles.stages);
  text += fmt::format("  threads        {} per block, registers for {} {} on a processor\n", tiles.threads,
                      tiles.blocksPerProcessor, tiles.blocksPerProcessor == 1 ? "block" : "blocks");
  const int share = kRegistersPerProcessor / (tiles.threads * tiles.blocksPerProcessor) / kRegisterStep * kRegisterStep;
  text += fmt::format("  registers      {} per thread at its start, of {}\n", image.registers,
                      std::min(kMostRegisters, share));
  text += fmt::format("  spilled        {} bytes, {} expected\n", image.spillBytes,
                      tiles.spillLimit ? fmt::format("at most {}", tiles.spillLimit) : "none");
  text += fmt::format("  shared memory  {} bytes per block, of {}\n", tiles.sharedBytes + image.staticSharedBytes,
                      sharedMemoryLimit(computeCapability));
  for (const std::string &warning : image.warnings)
    text += fmt::format("  warning        {}\n", warning);
  return text;
}

int explainKernels(const ExplainCommandOptions &options) {
  using Passes = CudaProgramOptions::Passes;
  LoadedProgram loaded;
  if (int code = loadProgram(options, loaded))
    return code;
  StatusOr<std::string> target = targetOf(options);
  if (!target)
    return reportFailure(target.status());
  StatusOr<ProgramKernels> kernels =
      programKernels(options, loaded, *target, options.isBackward ? Passes::ForwardAndBackward : Passes::Forward,
                     KernelBinding::Optional);
  if (!kernels)
    return reportFailure(kernels.status());
  StatusOr<KernelToolchain> toolchain = KernelToolchain::load();
  if (!toolchain)
    return reportFailure(toolchain.status());
  std::string text =
      fmt::format("{}, head sizes {} of queries and keys, {} of values\n", toString(kernels->options.element),
                  kernels->options.headDim, kernels->options.vHeadDim);
  for (const KernelSource &source : kernels->sources) {
    StatusOr<CompiledKernel> kernel = cachedKernel(source, *toolchain);
    if (!kernel)
      return reportFailure(kernel.status());
    text += describe(source, kernel->image, kernels->computeCapability);
  }
  return writeOutput(options, text);
}

} // namespace

void addExplainCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<ExplainCommandOptions>();
  CLI::App *command = app.add_subcommand("explain", "why a pair attends or not, or which kernels compute a program");
  addCommonOptions(*command, *options);
  auto at = std::make_shared<std::string>();
  CLI::Option *pair = command->add_option("--at", *at, "b,h,q,kv");
  command->add_flag("--kernel", options->isOfKernels, "kernels, tiles, registers and limits");
  command->add_option("--target", options->target, "of --kernel: sm_80, sm_90a, ...")->check(checkTarget);
  command->add_flag("--backward", options->isBackward, "of --kernel: those of the backward pass too");
  command->callback([options, at, pair, &exitCode] {
    if (options->isOfKernels == (pair->count() > 0))
      throw CommandLineFault("expected one of --at b,h,q,kv and --kernel");
    if (!options->isOfKernels && (!options->target.empty() || options->isBackward))
      throw CommandLineFault("--target and --backward belong to --kernel; expected --kernel beside them");
    if (options->target == "cpu")
      throw CommandLineFault("--kernel is of a GPU and --target is 'cpu'; expected a target sm_NN");
    if (!options->target.empty() && options->device != "cpu")
      throw CommandLineFault(
          fmt::format("--target is '{}' and --device is '{}'; expected one of them", options->target, options->device));
    if (options->isOfKernels) {
      exitCode = explainKernels(*options);
      return;
    }
    options->at = parseAt(*at);
    exitCode = explain(*options);
  });
}

} // namespace cpflex
