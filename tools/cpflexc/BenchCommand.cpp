// `cpflexc bench`: the median time of repeated runs, as one JSON object.
#include "tools/cpflexc/GpuBench.h"
#include "tools/cpflexc/RankBench.h"
#include "tools/cpflexc/Timing.h"

#include <nlohmann/json.hpp>

namespace cpflex {

namespace {

struct BenchCommandOptions : Options {
  bool isBackward = false;
};

constexpr int kRepetitions = 7;

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
  if (call.machine) {
    if (int code = benchGpu(options, call, kRepetitions, json))
      return code;
    return writeOutput(options, json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
  std::vector<double> times;
  for (int i = 0; i <= kRepetitions; ++i) {
    const auto begin = Clock::now();
    if (Status status = runOnHost(call, options); !status)
      return reportFailure(status);
    if (i > 0) // the first run warms up
      times.push_back(millisecondsSince(begin));
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
