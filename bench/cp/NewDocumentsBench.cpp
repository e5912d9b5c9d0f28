// What does a step with new documents cost the host? From cumulative lengths to masks, layout, plans of both passes and
// the masks of each rank's computes: all that changes when the documents of a batch do. Packed documents from the
// length table of a real corpus. Usage: cpflexNewDocumentsBench [ranks] [tokens] [packs]
#include "bench/cp/PackedDocuments.h"
#include "lib/API/cpflex.h"
#include "runtime/Plan/Layouts.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>

using namespace cpflex;

namespace {

constexpr const char *kProgram = "doc: tensor[i32, KV_LEN](sorted)\n\n@mask\ndef packed(b, h, q, kv):\n"
                                 "    return q >= kv and doc[q] == doc[kv]\n";
constexpr uint32_t kSeed = 42;

/// Processor time of this thread, so that other work on the machine does not count.
double threadMilliseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) * 1e3 + double(now.tv_nsec) * 1e-6;
}

[[noreturn]] void fail(const Status &status) {
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

template <typename T> T orFail(StatusOr<T> value) {
  if (!value)
    fail(value.status());
  return std::move(*value);
}

PositionMap positionsOf(const std::vector<OwnedRows> &rows, const Layout &layout, int64_t b) {
  PositionMap positions;
  for (const OwnedRows &each : rows) {
    const PositionMap part = slice(layout.shard(b, each.owner), each.rows);
    positions.pieces.insert(positions.pieces.end(), part.pieces.begin(), part.pieces.end());
  }
  return compacted(std::move(positions));
}

/// The masks of a rank's computes in one pass, as the executor builds them; `summaries` may be null.
double rankMaskMilliseconds(const Schedule &schedule, int32_t rank, const Program &program, const Binding &binding,
                            CaptureSummaries *summaries) {
  const double begin = threadMilliseconds();
  for (const Compute &compute : schedule.computes) {
    if (compute.rank != rank)
      continue;
    BlockMaskOptions options;
    options.batch = compute.batch.size();
    options.heads = compute.heads.size();
    options.qPositions = positionsOf(compute.q, schedule.qLayout, compute.batch.begin);
    options.kvPositions = positionsOf(compute.kv, schedule.kvLayout, compute.batch.begin);
    options.qLen = options.qPositions.size();
    options.kvLen = options.kvPositions.size();
    options.declarations = program.signature().captures;
    options.summaries = summaries;
    orFail(buildBlockMask(&program.entries()[0].tape, binding.bindings(), options));
  }
  return threadMilliseconds() - begin;
}

struct Column {
  const char *name;
  double sum = 0, most = 0;
  void add(double value) {
    sum += value;
    most = std::max(most, value);
  }
};

} // namespace

int main(int argc, char **argv) {
  const int32_t worldSize = argc > 1 ? std::atoi(argv[1]) : 8;
  const int64_t length = argc > 2 ? std::atoll(argv[2]) : 131072;
  const int numPacks = argc > 3 ? std::atoi(argv[3]) : 20;
  CompileOptions compile;
  compile.cacheDir = "";
  const std::shared_ptr<Program> program = compileText("packed.cpf", kProgram, compile).program;
  std::mt19937_64 random(kSeed);
  Column bind{"bind"}, mask{"block mask"}, load{"load"}, plan{"layout and plans"}, own{"masks of the slowest rank"},
      alone{"the same without shared summaries"}, all{"all"};
  for (int pack = -1; pack < numPacks; ++pack) { // the first one compiles and is not counted
    const std::vector<int64_t> offsets = packedDocuments(length, random);
    const double start = threadMilliseconds();
    BindRequest request;
    request.arrays["doc"] = orFail(documentIdArray(*program, "doc", offsets));
    request.sizes = {.batch = 1, .heads = 64, .kvHeads = 8, .qLen = length, .kvLen = length};
    const std::shared_ptr<Binding> binding = orFail(Binding::create(*program, request));
    const double bound = threadMilliseconds();
    const EntryPoint &entry = program->entries()[0];
    auto built = std::make_shared<const BlockMask>(
        orFail(buildBlockMask(*program, entry, *binding, /*tileQ=*/128, /*tileKV=*/128, /*threads=*/1)).mask);
    const double masked = threadMilliseconds();
    LoadOptions options;
    options.type = ElementType::BF16;
    options.headDim = 128;
    options.passes = CallPasses::ForwardAndBackward;
    options.numThreads = 1;
    const std::shared_ptr<Executable> executable = orFail(Executable::load(program, entry, binding, built, options));
    const double loaded = threadMilliseconds();
    const auto planned = orFail(ContextParallelPlan::create(executable, {.worldSize = worldSize}));
    const double done = threadMilliseconds();
    double slowest = 0, slowestAlone = 0;
    for (int32_t rank = 0; rank < worldSize; ++rank) {
      const auto both = [&](CaptureSummaries *summaries) {
        return rankMaskMilliseconds(planned->forward(), rank, *program, *binding, summaries) +
               rankMaskMilliseconds(*planned->backward(), rank, *program, *binding, summaries);
      };
      slowest = std::max(slowest, both(&binding->summaries()));
      slowestAlone = std::max(slowestAlone, both(nullptr));
    }
    if (pack < 0)
      continue;
    bind.add(bound - start);
    mask.add(masked - bound);
    load.add(loaded - masked);
    plan.add(done - loaded);
    own.add(slowest);
    alone.add(slowestAlone);
    all.add(done - start + slowest);
  }
  std::printf("A step with new documents, %d ranks, %lld tokens, 64:8 heads of 128, bf16: %d packs, seed %u, documents "
              "cut at a\n"
              "quarter of the sequence; milliseconds of processor time of one thread.\n\n%-36s %8s %8s\n",
              worldSize, (long long)length, numPacks, kSeed, "", "mean", "most");
  for (const Column *column : {&bind, &mask, &load, &plan, &own, &all, &alone})
    std::printf("%-36s %8.2f %8.2f\n", column->name, column->sum / numPacks, column->most);
  return 0;
}
