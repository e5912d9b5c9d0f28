// `cpflexc plan`: who owns, computes and sends what when several ranks share one attention call.
#include "tools/cpflexc/AttentionCall.h"

#include "runtime/Plan/ScheduleText.h"

namespace cpflex {

namespace {

struct PlanCommandOptions : Options {
  std::string format = "text";
};

int plan(const PlanCommandOptions &options) {
  refuseSharedFiles(inputFiles(options), {{"-o", options.output}});
  LoadedProgram loaded;
  if (int code = loadProgram(options, loaded))
    return code;
  StatusOr<std::shared_ptr<Binding>> binding = bindProgram(options, *loaded.program);
  if (!binding)
    return reportFailure(binding.status());
  auto mask = buildBlockMask(*loaded.program, *loaded.entry, **binding, 128, 128, threadCount(options));
  if (!mask)
    return reportFailure(mask.status());
  const CallSizes &sizes = (*binding)->sizes();
  CallShape shape{
      .batch = sizes.batch, .qHeads = sizes.heads, .kvHeads = sizes.kvHeads, .qLen = sizes.qLen, .kvLen = sizes.kvLen};
  shape.headDim = options.headDim > 0 ? options.headDim : 64;
  shape.vHeadDim = options.vHeadDim > 0 ? options.vHeadDim : shape.headDim;
  shape.type = options.dtype == "bf16"  ? ElementType::BF16
               : options.dtype == "f16" ? ElementType::F16
                                        : ElementType::F32;
  StatusOr<Schedule> schedule = planContextParallel(planRequest(options, shape, &mask->mask));
  if (!schedule)
    return reportFailure(schedule.status());
  if (options.format == "json")
    return writeOutput(options, toJson(*schedule) + "\n");
  if (options.format == "svg")
    return writeOutput(options, toSvg(*schedule, &mask->mask));
  return writeOutput(options, toSummary(*schedule) + toText(*schedule));
}

} // namespace

void addPlanCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<PlanCommandOptions>();
  CLI::App *command = app.add_subcommand("plan", "plan a group of ranks");
  addCommonOptions(*command, *options);
  addRankOptions(*command, *options);
  command->add_option("--format", options->format, "text, json or svg")
      ->check(oneOf("--format", {"text", "json", "svg"}));
  addOutputOption(*command, options->output);
  command->callback([options, &exitCode] { exitCode = plan(*options); });
}

} // namespace cpflex
