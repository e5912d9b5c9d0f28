// A C++ program that embeds cpflex: compiles a mask for packed documents, looks at its block mask, and runs attention
// forward and backward into its own memory, alone and by three ranks.
#include <cpflex/cpflex.h>
#include <cpflex/runtime/BlockMask/BlockMaskPicture.h>
#include <cpflex/runtime/BlockMask/BlockMaskStatistics.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <tuple>
#include <vector>

namespace {

constexpr const char *kProgram = R"(
from cpflex.std import causal

doc: tensor[i32, KV_LEN](sorted)
slope: tensor[f32, H](grad=True)

@mask
def same_document(b, h, q, kv):
    return doc[q] == doc[kv]

@score
def biased(s, b, h, q, kv):
    return s + slope[h] * (kv - q)

attention("packed", mask=same_document & causal, score=biased)
)";

constexpr int64_t kHeads = 4, kKVHeads = 2, kLength = 384, kHeadDim = 32;

/// Prints what went wrong; gives the exit code.
int failed(const char *step, const cpflex::Status &status) {
  std::fprintf(stderr, "embed: %s: %s\n", step, status.message().c_str());
  return 1;
}

/// A dense tensor [1, heads, rows, columns] over `values`.
cpflex::CallTensor tensorOf(std::vector<float> &values, int64_t heads, int64_t rows, int64_t columns) {
  values.resize(size_t(heads * rows * columns));
  return {.data = values.data(),
          .type = cpflex::ElementType::F32,
          .shape = {1, heads, rows, columns},
          .strides = {heads * rows * columns, rows * columns, columns, 1},
          .device = {cpflex::DeviceType::Cpu, 0}};
}

void fill(std::vector<float> &values, double frequency) {
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = float(std::sin(frequency * double(i)));
}

} // namespace

int main() {
  // 1. Compile. Errors are located in the program's text; warnings may come beside a program.
  cpflex::CompileOptions compile;
  compile.log = {.level = cpflex::LogLevel::Warning, .function = [](cpflex::LogLevel, const std::string &text) {
                   std::fprintf(stderr, "%s\n", text.c_str());
                 }};
  const cpflex::CompileResult compiled = cpflex::compileText("packed.cpf", kProgram, compile);
  for (const cpflex::Diagnostic &diagnostic : compiled.diagnostics)
    std::fputs(cpflex::renderDiagnostic(diagnostic).c_str(), stderr);
  if (!compiled.program)
    return 1;
  const std::shared_ptr<cpflex::Program> program = compiled.program;
  const auto entry = program->entry("packed");
  if (!entry)
    return failed("entry point", entry.status());

  // 2. Bind: three documents from their cumulative lengths, and one slope for each head.
  const auto ids = cpflex::documentIdArray(*program, "doc", {0, 100, 256, kLength});
  if (!ids)
    return failed("document ids", ids.status());
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
  cpflex::BindRequest request;
  request.arrays["doc"] = *ids;
  request.views["slope"] = {.data = slopes.data(),
                            .type = cpflex::ElementType::F32,
                            .shape = {kHeads},
                            .strides = {1},
                            .device = {},
                            .owner = nullptr};
  request.sizes = {.batch = 1, .heads = kHeads, .kvHeads = kKVHeads, .qLen = kLength, .kvLen = kLength};
  const auto binding = cpflex::Binding::create(*program, request);
  if (!binding)
    return failed("binding", binding.status());

  // 3. The block mask: what is skipped.
  const auto mask = cpflex::buildBlockMask(*program, **entry, **binding, /*tileQ=*/64, /*tileKV=*/64, /*threads=*/0);
  if (!mask)
    return failed("block mask", mask.status());
  std::printf("%s", cpflex::drawText(mask->mask, {.title = "packed documents"}).c_str());
  const cpflex::TileCounts counts = cpflex::countTiles(mask->mask);
  std::printf("tiles: %lld empty, %lld full, %lld partial\n", (long long)counts.empty, (long long)counts.full,
              (long long)counts.partial);

  // 4. Load, and allocate what calls need.
  cpflex::LoadOptions load;
  load.headDim = kHeadDim;
  load.passes = cpflex::CallPasses::ForwardAndBackward;
  const auto executable =
      cpflex::Executable::load(program, **entry, *binding, std::make_shared<const cpflex::BlockMask>(mask->mask), load);
  if (!executable)
    return failed("loading", executable.status());
  using Pass = cpflex::Executable::Pass;
  std::vector<char> workspace(size_t(
      std::max((*executable)->workspaceInBytes(Pass::Forward), (*executable)->workspaceInBytes(Pass::Backward))));

  // 5. Forward.
  std::vector<float> q, k, v, out, lse;
  cpflex::ForwardCallTensors forward;
  forward.q = tensorOf(q, kHeads, kLength, kHeadDim);
  forward.k = tensorOf(k, kKVHeads, kLength, kHeadDim);
  forward.v = tensorOf(v, kKVHeads, kLength, kHeadDim);
  forward.out = tensorOf(out, kHeads, kLength, kHeadDim);
  forward.lse = tensorOf(lse, kHeads, kLength, 1);
  fill(q, 0.37), fill(k, 0.73), fill(v, 0.11);
  if (const cpflex::Status status = (*executable)->forward(forward, workspace.data(), int64_t(workspace.size()));
      !status)
    return failed("forward", status);

  // 6. Backward, for the loss 'sum of out': then the gradients in V sum to the number of outputs, since weights sum
  // to 1.
  std::vector<float> dOut, dQ, dK, dV, dSlope(kHeads);
  cpflex::BackwardCallTensors backward;
  backward.q = forward.q, backward.k = forward.k, backward.v = forward.v;
  backward.out = forward.out, backward.lse = forward.lse;
  backward.dOut = tensorOf(dOut, kHeads, kLength, kHeadDim);
  backward.dQ = tensorOf(dQ, kHeads, kLength, kHeadDim);
  backward.dK = tensorOf(dK, kKVHeads, kLength, kHeadDim);
  backward.dV = tensorOf(dV, kKVHeads, kLength, kHeadDim);
  dOut.assign(dOut.size(), 1.0f);
  for (const cpflex::CaptureDeclaration &capture : program->signature().captures)
    backward.captureGradients.push_back(capture.name == "slope" ? dSlope.data() : nullptr);
  if (const cpflex::Status status = (*executable)->backward(backward, workspace.data(), int64_t(workspace.size()));
      !status)
    return failed("backward", status);
  double sum = 0;
  for (float gradient : dV)
    sum += gradient;
  std::printf("gradients in V sum to %.1f of %lld\n", sum, (long long)(kHeads * kLength * kHeadDim));

  // 7. The same call by three ranks, here threads: each gets its shard of the tensors and receives the keys that it
  // needs.
  const auto plan = cpflex::ContextParallelPlan::create(*executable, {.worldSize = 3});
  if (!plan)
    return failed("planning", plan.status());
  const cpflex::Layout &layout = (*plan)->forward().qLayout;
  std::printf("%s", cpflex::toSummary((*plan)->forward()).c_str());
  std::vector<float> together(out.size());
  const std::vector<cpflex::Status> statuses = cpflex::runRanksInThreads(3, [&](cpflex::Communicator &communicator) {
    // The group owns the communicator; the rank borrows it.
    const auto rank = cpflex::RankExecutable::load(*plan, {std::shared_ptr<void>(), &communicator});
    if (!rank)
      return rank.status();
    const int32_t index = communicator.rank();
    const int64_t rows = layout.shardSize(index);
    const auto shapeOf = [](int64_t heads) {
      return cpflex::SequenceArrayShape{
          .batch = 1, .outer = heads, .inner = kHeadDim, .elementSizeInBytes = int64_t(sizeof(float))};
    };
    std::vector<float> myQ, myK, myV, myOut;
    cpflex::ForwardCallTensors shards;
    shards.q = tensorOf(myQ, kHeads, rows, kHeadDim);
    shards.k = tensorOf(myK, kKVHeads, rows, kHeadDim);
    shards.v = tensorOf(myV, kKVHeads, rows, kHeadDim);
    shards.out = tensorOf(myOut, kHeads, rows, kHeadDim);
    for (auto [whole, mine, heads] : {std::tuple(&q, &myQ, kHeads), {&k, &myK, kKVHeads}, {&v, &myV, kKVHeads}})
      if (cpflex::Status status = cpflex::shard(layout, index, shapeOf(heads), whole->data(), mine->data()); !status)
        return status;
    if (cpflex::Status status = (*rank)->forward(shards); !status)
      return status;
    return cpflex::unshard(layout, index, shapeOf(kHeads), myOut.data(), together.data());
  });
  if (const cpflex::Status status = cpflex::firstFailure(statuses); !status)
    return failed("ranks", status);
  double difference = 0;
  for (size_t i = 0; i < out.size(); ++i)
    difference = std::max(difference, double(std::abs(out[i] - together[i])));
  std::printf("three ranks differ from one device by %s\n", difference < 1e-5 ? "rounding only" : "more than rounding");

  // 8. A mistake is a Status that names the argument.
  forward.k.shape[2] = kLength - 1;
  const cpflex::Status wrong = (*executable)->forward(forward, workspace.data(), int64_t(workspace.size()));
  std::printf("a wrong call: %s\n", wrong.message().c_str());
  return wrong ? 1 : 0;
}
