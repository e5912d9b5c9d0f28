// `cpflexc bench`: the median time of repeated runs, as one JSON object.
#include "tools/cpflexc/RankBench.h"

#include "runtime/Cuda/CudaAttention.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>

namespace cpflex {

namespace {

struct BenchCommandOptions : Options {
  bool isBackward = false;
};

constexpr int kRepetitions = 7;

template <typename T> double median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : double(values[values.size() / 2]);
}

int bench(const BenchCommandOptions &options) {
  AttentionCall call;
  TensorFiles files;
  files.isBackward = options.isBackward;
  if (int code = prepareCall(options, files, call))
    return code;
  nlohmann::ordered_json json;
  json["device"] = options.device;
  json["dtype"] = toString(call.type);
  json["q_len"] = call.problem.qLen;
  json["kv_len"] = call.problem.kvLen;
  json["repetitions"] = kRepetitions;
  json["compile_ms"] = call.loaded.compileMs;
  json["mask_ms"] = call.maskMs;
  if (options.ranks > 1 || options.transport != "threads") {
    if (Status status = benchRanks(options, call, kRepetitions, json); !status)
      return reportFailure(status);
    return writeOutput(options, json.dump() + "\n");
  }
  int index = 0;
  if (isCuda(options, index)) {
    StatusOr<CudaMachine> machine = CudaMachine::open(index);
    if (!machine)
      return reportFailure(machine.status());
    auto functions = call.loaded.program->deviceFunctions(*call.loaded.entry, call.binding->bindings());
    if (!functions)
      return reportFailure(functions.status());
    HostAttentionArrays arrays{.q = call.qView, .k = call.kView, .v = call.vView, .o = call.outView, .lse = call.lseView,
                               .dO = call.dOutView, .dLse = {}, .dQ = call.dQView, .dK = call.dKView, .dV = call.dVView};
    StatusOr<CudaRunReport> report =
        runAttentionCuda(*machine, *functions, call.problem, arrays,
                         {.warmups = 2, .timed = kRepetitions, .family = kernelFamily(options)});
    if (!report)
      return reportFailure(report.status());
    json["kernel_compile_ms"] = report->compileMs;
    json["update_ms"] = report->updateMs;
    json["forward_call_us"] = median(report->forwardCallUs);
    json["forward_ms"] = median(report->forwardMs);
    if (options.isBackward)
      json["backward_ms"] = median(report->backwardMs);
    return writeOutput(options, json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
  std::vector<double> times;
  for (int i = 0; i <= kRepetitions; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (Status status = runOnHost(call, options); !status)
      return reportFailure(status);
    if (i > 0) // the first run warms up
      times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  json[options.isBackward ? "forward_and_backward_ms" : "forward_ms"] = median(times);
  return writeOutput(options, json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

} // namespace

void addBenchCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<BenchCommandOptions>();
  CLI::App *command = app.add_subcommand("bench", "time attention");
  addCommonOptions(*command, *options);
  addRankOptions(*command, *options);
  addKernelOption(*command, *options);
  command->add_flag("--backward", options->isBackward, "time backward too");
  command->callback([options, &exitCode] { exitCode = bench(*options); });
}

} // namespace cpflex
