// `cpflexc compile`: the program's text at any stage of the compiler.
#include "tools/cpflexc/Options.h"
#include "tools/cpflexc/ProgramKernels.h"

#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/Cuda/KernelBundle.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <string_view>

namespace cpflex {

namespace {

struct CompileCommandOptions : Options {
  std::string stage = "mask-opt", target;
  bool isBackward = false;
};

const std::map<std::string, Stage> kStages = {
    {"ast", Stage::Ast},   {"mask", Stage::Mask},    {"mask-opt", Stage::MaskOpt},      {"mask-grad", Stage::MaskGrad},
    {"llvm", Stage::Llvm}, {"asm", Stage::Assembly}, {"classifier", Stage::Classifier},
};

// The text, PTX or machine code of all kernels of the entry point, or a bundle of them with the mask.
int emitKernels(const CompileCommandOptions &options, const LoadedProgram &loaded) {
  using Passes = CudaProgramOptions::Passes;
  StatusOr<ProgramKernels> kernels =
      programKernels(options, loaded, options.target == "cpu" ? "" : options.target,
                     options.isBackward ? Passes::ForwardAndBackward : Passes::Forward,
                     options.stage == "bundle" ? KernelBinding::Required : KernelBinding::Optional);
  if (!kernels)
    return reportFailure(kernels.status());
  if (options.stage == "cuda") {
    std::string text;
    for (const KernelSource &source : kernels->sources)
      text += fmt::format("{}// {}, {}\n\n{}", text.empty() ? "" : "\n", source.functionName, source.architecture,
                          source.text);
    return writeOutput(options, text);
  }
  StatusOr<KernelToolchain> toolchain = KernelToolchain::load();
  if (!toolchain)
    return reportFailure(toolchain.status());
  std::string text;
  KernelBundle bundle;
  for (const KernelSource &source : kernels->sources) {
    if (options.stage == "ptx") {
      StatusOr<std::string> ptx = compileToPtx(source, *toolchain->nvrtc);
      if (!ptx)
        return reportFailure(ptx.status());
      text += *ptx;
      continue;
    }
    StatusOr<CompiledKernel> kernel = cachedKernel(source, *toolchain);
    if (!kernel)
      return reportFailure(kernel.status());
    if (options.stage == "bundle") {
      bundle.kernels.push_back(std::move(kernel->image));
      continue;
    }
    if (kernels->sources.size() > 1 && !options.output.empty()) {
      const std::string path = fmt::format("{}.{}", options.output, source.functionName);
      if (Status status = writeFile(path, {kernel->image.cubin.begin(), kernel->image.cubin.end()}); !status)
        return reportFailure(status);
      continue;
    }
    text.append(kernel->image.cubin.begin(), kernel->image.cubin.end());
  }
  if (options.stage == "bundle") {
    const EntryPoint &entry = *loaded.entry;
    bundle.entry = entry.name;
    bundle.signature = loaded.program->signature();
    bundle.tape = entry.tape;
    bundle.residuals = entry.residuals;
    bundle.scale = entry.scale.value_or(0.0f);
    bundle.sinkCapture = entry.sinkCapture;
    bundle.functions = std::move(kernels->functions);
    bundle.options = kernels->options;
    bundle.computeCapability = kernels->computeCapability;
    text = toBytes(bundle);
  }
  return text.empty() ? int(kDone) : writeOutput(options, text);
}

// Throws CommandLineFault when --emit contradicts --target.
void checkStage(const CompileCommandOptions &options) {
  const auto isOneOf = [&](std::initializer_list<std::string_view> stages) {
    return std::find(stages.begin(), stages.end(), options.stage) != stages.end();
  };
  if (options.target == "cpu" && isOneOf({"cuda", "ptx", "cubin", "bundle"}))
    throw CommandLineFault(
        fmt::format("--emit={} is code for a GPU and --target is 'cpu'; expected a target sm_NN", options.stage));
  if (options.target.starts_with("sm_") && isOneOf({"llvm", "asm"}))
    throw CommandLineFault(fmt::format("--emit={} is code for the cpu and --target is '{}'; expected --target=cpu",
                                       options.stage, options.target));
}

int compile(const CompileCommandOptions &options) {
  checkStage(options);
  static constexpr const char *kStagesOfFiles[] = {"ast", "mask", "mask-opt", "mask-grad", "classifier"};
  const bool isOfFile =
      std::find(std::begin(kStagesOfFiles), std::end(kStagesOfFiles), options.stage) != std::end(kStagesOfFiles);
  refuseSharedFiles(inputFiles(options), {{"-o", options.output}});
  LoadedProgram loaded;
  if (int code = loadProgram(options, loaded, isOfFile ? EntryChoice::First : EntryChoice::Named))
    return code;
  if (options.stage == "cuda" || options.stage == "ptx" || options.stage == "cubin" || options.stage == "bundle")
    return emitKernels(options, loaded);
  if (options.stage == "block-mask") {
    StatusOr<std::shared_ptr<Binding>> binding = bindProgram(options, *loaded.program);
    if (!binding)
      return reportFailure(binding.status());
    auto result = buildBlockMask(*loaded.program, *loaded.entry, **binding, 128, 128, threadCount(options));
    return result ? writeOutput(options, drawText(result->mask, {})) : reportFailure(result.status());
  }
  StatusOr<std::string> text = loaded.program->emit(kStages.at(options.stage), *loaded.entry);
  return text ? writeOutput(options, *text) : reportFailure(text.status());
}

} // namespace

void addCompileCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<CompileCommandOptions>();
  CLI::App *command = app.add_subcommand("compile", "print a stage of the compiler");
  addCommonOptions(*command, *options);
  command
      ->add_option("--emit", options->stage,
                   "ast, mask, mask-opt, mask-grad, classifier, llvm, asm, cuda, ptx, cubin, bundle or block-mask")
      ->check(oneOf("--emit", {"ast", "mask", "mask-opt", "mask-grad", "classifier", "llvm", "asm", "cuda", "ptx",
                               "cubin", "bundle", "block-mask"}));
  command->add_option("--target", options->target, "cpu, sm_80, sm_90, sm_90a, ...")->check(checkTarget);
  command->add_flag("--backward", options->isBackward, "kernels of the backward pass too");
  addOutputOption(*command, options->output);
  command->callback([options, &exitCode] { exitCode = compile(*options); });
}

} // namespace cpflex
