// `cpflexc run`: attention over arrays or random values, on the CPU, a group of ranks or a GPU, with a check against
// double.
#include "tools/cpflexc/RankGroup.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

namespace cpflex {

namespace {

struct RunCommandOptions : Options {
  TensorFiles files;
  std::string out, lse, dQ, dK, dV, trace;
  std::vector<std::string> captureGradients;
  bool isChecked = false, isBackwardAsked = false;
};

Status runOnGpu(const RunCommandOptions &options, AttentionCall &call) {
  StatusOr<DeviceFunctions> functions =
      call.loaded.program->deviceFunctions(*call.loaded.entry, call.binding->bindings());
  if (!functions)
    return functions.status();
  HostAttentionArrays arrays{.q = call.qView,
                             .k = call.kView,
                             .v = call.vView,
                             .o = call.outView,
                             .lse = call.lseView,
                             .dO = call.dOutView,
                             .dLse = {},
                             .dQ = call.dQView,
                             .dK = call.dKView,
                             .dV = call.dVView};
  arrays.dSink = call.sinkGradient.empty() ? nullptr : call.sinkGradient.data();
  if (!options.captureGradients.empty() || options.isChecked)
    arrays.dCaptures = call.captureGradientPointers;
  StatusOr<CudaRunReport> report =
      runAttentionCuda(*call.machine, *functions, call.problem, arrays, {.family = kernelFamily(options)});
  if (!report)
    return report.status();
  for (const std::string &warning : report->program->warnings())
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  return Status::ok();
}

// Compares with dense attention in double and prints one line per tensor.
int checkResults(const AttentionCall &call) {
  const AttentionProblem &p = call.problem;
  StatusOr<ReferenceForward> forward = referenceAttentionForward(p, call.qView, call.kView, call.vView);
  if (!forward)
    return reportFailure(forward.status());
  const double bound = call.type == ElementType::F32 ? 2e-6 : 1e-2;
  bool isGood = true;
  const auto compare = [&](const char *name, double error) {
    isGood &= error <= bound;
    printText(fmt::format("{:<12} relative error {:.2e}  {}\n", name, error,
                          error <= bound ? "ok" : fmt::format("above {:.0e}", bound)));
  };
  compare("out", relativeError(call.outView, forward->out, {p.batch, p.qHeads, p.qLen, p.vHeadDim}));
  if (call.lseView.data)
    compare("lse", relativeError(call.lseView, forward->lse, {p.batch, p.qHeads, p.qLen, 1}));
  if (call.isBackward) {
    std::vector<bool> wanted;
    for (const float *gradient : call.captureGradientPointers)
      wanted.push_back(gradient != nullptr);
    StatusOr<ReferenceBackward> backward =
        referenceAttentionBackward(p, call.qView, call.kView, call.vView, call.dOutView, {}, wanted);
    if (!backward)
      return reportFailure(backward.status());
    compare("dq",
            relativeError(call.dQView, backward->dQ, {p.batch, p.qHeads, p.qLen, p.headDim}, backward->termsOfDQ));
    compare("dk",
            relativeError(call.dKView, backward->dK, {p.batch, p.kvHeads, p.kvLen, p.headDim}, backward->termsOfDK));
    compare("dv", relativeError(call.dVView, backward->dV, {p.batch, p.kvHeads, p.kvLen, p.vHeadDim}));
    const auto flat = [](const float *data) {
      return TensorView{const_cast<float *>(data), ElementType::F32, {0, 0, 0, 1}};
    };
    if (!call.sinkGradient.empty())
      compare("dsink", relativeError(flat(call.sinkGradient.data()), backward->sink, {1, 1, 1, p.qHeads}));
    for (size_t slot = 0; slot < wanted.size(); ++slot)
      if (wanted[slot])
        compare(("d" + call.loaded.program->signature().captures[slot].name).c_str(),
                errorOfSums(call.captureGradientPointers[slot], backward->captures[slot],
                            backward->captureMagnitudes[slot]));
  }
  return isGood ? kDone : kInputWrong;
}

// The capture of that name, which has a gradient.
StatusOr<size_t> slotWithGradient(const AttentionCall &call, const std::string &name) {
  const auto &captures = call.loaded.program->signature().captures;
  for (size_t slot = 0; slot < captures.size(); ++slot) {
    if (captures[slot].name != name)
      continue;
    if (int(slot) == call.loaded.entry->sinkCapture || call.captureGradientPointers[slot])
      return slot;
    return Status::invalid(fmt::format("array '{}' takes no gradient; expected one declared with grad=True", name));
  }
  return Status::invalid(fmt::format("the program declares no array '{}'", name));
}

// Whether the call has the results that are asked for.
Status checkResultsAskedFor(const RunCommandOptions &options, const AttentionCall &call) {
  if (!options.lse.empty() && !call.loaded.entry->hasSoftmax)
    return Status::invalid("--lse asks for the log-sum-exp of attention without softmax; expected no --lse");
  for (const auto &[name, path] : assignments(options.captureGradients, "--dcapture"))
    CPFLEX_RETURN_IF_ERROR(slotWithGradient(call, name).status());
  return Status::ok();
}

Status writeCaptureGradient(const AttentionCall &call, const std::string &name, const std::string &path) {
  StatusOr<size_t> slot = slotWithGradient(call, name);
  if (!slot)
    return slot.status();
  if (int(*slot) != call.loaded.entry->sinkCapture)
    return writeNpy(path, call.captureGradients[*slot]);
  const char *bytes = reinterpret_cast<const char *>(call.sinkGradient.data());
  return writeNpy(path, {ElementType::F32,
                         {int64_t(call.sinkGradient.size())},
                         {bytes, bytes + call.sinkGradient.size() * sizeof(float)}});
}

Status writeResults(const RunCommandOptions &options, const AttentionCall &call) {
  for (auto [path, array] : {std::pair(&options.out, &call.out),
                             {&options.lse, &call.lse},
                             {&options.dQ, &call.dQ},
                             {&options.dK, &call.dK},
                             {&options.dV, &call.dV}})
    if (!path->empty())
      CPFLEX_RETURN_IF_ERROR(writeNpy(*path, *array));
  for (const auto &[name, path] : assignments(options.captureGradients, "--dcapture"))
    CPFLEX_RETURN_IF_ERROR(writeCaptureGradient(call, name, path));
  return Status::ok();
}

void checkFiles(const RunCommandOptions &options) {
  std::vector<NamedFile> inputs = inputFiles(options);
  const TensorFiles &files = options.files;
  inputs.insert(inputs.end(), {{"--q", files.q}, {"--k", files.k}, {"--v", files.v}, {"--dout", files.dOut}});
  std::vector<NamedFile> outputs = {{"--out", options.out}, {"--lse", options.lse}, {"--dq", options.dQ},
                                    {"--dk", options.dK},   {"--dv", options.dV},   {"--trace", options.trace}};
  for (const auto &[name, path] : assignments(options.captureGradients, "--dcapture"))
    outputs.push_back({"--dcapture", path});
  refuseSharedFiles(inputs, outputs);
}

int run(RunCommandOptions &options) {
  checkFiles(options);
  int index = 0;
  const bool onGpu = isCuda(options, index);
  const bool isGrouped = options.ranks > 1 || options.transport != "threads" || !options.trace.empty();
  if (isGrouped)
    checkTransport(options);
  options.files.isBackward = options.isBackwardAsked || !options.files.dOut.empty() || !options.dQ.empty() ||
                             !options.dK.empty() || !options.dV.empty() || !options.captureGradients.empty();
  AttentionCall call;
  if (int code = prepareCall(options, options.files, call))
    return code;
  if (Status status = checkResultsAskedFor(options, call); !status)
    return reportFailure(status);
  const auto begin = std::chrono::steady_clock::now();
  bool isWriter = true;
  Status status = isGrouped ? runRanks(options, options.trace, call, isWriter)
                  : onGpu   ? runOnGpu(options, call)
                            : runOnHost(call, options);
  if (!status)
    return reportFailure(status);
  if (!isWriter)
    return kDone;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (Status written = writeResults(options, call); !written)
    return reportFailure(written);
  printText(fmt::format("{} x {} heads, {} x {} tokens, {}: {:.1f} ms\n", call.problem.batch, call.problem.qHeads,
                        call.problem.qLen, call.problem.kvLen, toString(call.type), seconds * 1e3));
  return options.isChecked ? checkResults(call) : kDone;
}

} // namespace

void addRunCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<RunCommandOptions>();
  CLI::App *command = app.add_subcommand("run", "compute attention");
  addCommonOptions(*command, *options);
  addRankOptions(*command, *options);
  addKernelOption(*command, *options);
  command->add_option("--q", options->files.q, "queries (.npy)")->check(fileName("--q"));
  command->add_option("--k", options->files.k, "keys")->check(fileName("--k"));
  command->add_option("--v", options->files.v, "values")->check(fileName("--v"));
  CLI::Option *seed = command->add_option("--random", options->files.seed, "seed of random tensors [0]");
  seed->check(wholeNumber("--random", 0));
  for (const char *name : {"--q", "--k", "--v"})
    command->get_option(name)->excludes(seed);
  command->add_option("--out", options->out, "output")->check(fileName("--out"));
  command->add_option("--lse", options->lse, "log-sum-exp")->check(fileName("--lse"));
  command->add_option("--dout", options->files.dOut, "gradient of the output; runs backward")
      ->check(fileName("--dout"));
  command->add_option("--dq", options->dQ, "gradient of q")->check(fileName("--dq"));
  command->add_option("--dk", options->dK, "gradient of k")->check(fileName("--dk"));
  command->add_option("--dv", options->dV, "gradient of v")->check(fileName("--dv"));
  command->add_option("--dcapture", options->captureGradients, "NAME=F, gradient of an array")->expected(1)->take_all();
  command->add_flag("--backward", options->isBackwardAsked, "run backward too");
  command->add_flag("--check", options->isChecked, "compare with a reference in double");
  command->add_option("--trace", options->trace, "trace of the ranks (.json)")->check(fileName("--trace"));
  command->callback([options, &exitCode] { exitCode = run(*options); });
}

} // namespace cpflex
