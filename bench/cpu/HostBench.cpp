// How fast CPU attention is, beside a plain matrix product by the faster of OpenBLAS and oneDNN in the same run on the
// same cores: dense, masked, with score functions, over a sweep of densities, and backward. Masks and scores are
// compiled from
// `.cpf` text. Prints one table.
#include "lib/API/cpflex.h"
#include "runtime/Host/HostAttention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <dlfcn.h>
#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace cpflex;

namespace {

/// Processor time of the process with one thread, so that other programs on the machine do not count; wall time with
/// more.
double seconds(int numThreads) {
  timespec time;
  clock_gettime(numThreads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return double(time.tv_sec) + double(time.tv_nsec) * 1e-9;
}

/// The shortest of `repetitions` runs after one that is not counted: what the code takes when nothing else runs.
template <typename Action> double leastSeconds(int repetitions, int numThreads, Action action) {
  action();
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repetitions; ++i) {
    const double begin = seconds(numThreads);
    action();
    least = std::min(least, seconds(numThreads) - begin);
  }
  return least;
}

/// Unsets what makes a library slower than it is here, before it is loaded.
void unsetSlowingSettings() {
  for (const char *name : {"OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OPENBLAS_VERBOSE", "GOTO_NUM_THREADS",
                           "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "DNNL_MAX_CPU_ISA",
                           "ONEDNN_MAX_CPU_ISA", "DNNL_VERBOSE", "ONEDNN_VERBOSE", "DNNL_JIT_DUMP", "ONEDNN_JIT_DUMP"})
    if (std::getenv(name)) {
      std::printf("unset for this run: %s\n", name);
      unsetenv(name);
    }
}

/// A library's product of two square matrices; rate 0 when it is not installed.
struct Peer {
  std::string version = "not installed";
  double rate = 0; ///< FLOP/s
};

constexpr int kPeerSize = 4096;

template <typename Multiply> double rateOf(int numThreads, Multiply multiply) {
  std::vector<float> a(size_t(kPeerSize) * kPeerSize, 0.5f), b(a), c(a);
  const double time = leastSeconds(7, numThreads, [&] { multiply(a.data(), b.data(), c.data()); });
  return 2.0 * std::pow(double(kPeerSize), 3) / time;
}

Peer openBlas(int numThreads) {
  void *library = dlopen("libopenblas.so.0", RTLD_NOW);
  if (!library)
    return {};
  auto setThreads = reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"));
  auto config = reinterpret_cast<const char *(*)()>(dlsym(library, "openblas_get_config"));
  auto sgemm = reinterpret_cast<void (*)(int, int, int, int, int, int, float, const float *, int, const float *, int,
                                         float, float *, int)>(dlsym(library, "cblas_sgemm"));
  if (!setThreads || !config || !sgemm)
    return {};
  setThreads(numThreads);
  constexpr int kRowMajor = 101, kNoTranspose = 111;
  const double rate = rateOf(numThreads, [&](const float *a, const float *b, float *c) {
    sgemm(kRowMajor, kNoTranspose, kNoTranspose, kPeerSize, kPeerSize, kPeerSize, 1.0f, a, kPeerSize, b, kPeerSize,
          0.0f, c, kPeerSize);
  });
  return {config(), rate};
}

/// oneDNN's C interface is alike in its versions 2 and 3.
Peer oneDnn(int numThreads) {
  void *library = dlopen("libdnnl.so.3", RTLD_NOW);
  library = library ? library : dlopen("libdnnl.so.2", RTLD_NOW);
  if (!library)
    return {};
  struct Version {
    int major, minor, patch;
  };
  auto version = reinterpret_cast<const Version *(*)()>(dlsym(library, "dnnl_version"));
  auto setThreads = reinterpret_cast<void (*)(int)>(dlsym(library, "omp_set_num_threads"));
  auto sgemm = reinterpret_cast<int (*)(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t,
                                        const float *, int64_t, float, float *, int64_t)>(dlsym(library, "dnnl_sgemm"));
  if (!version || !setThreads || !sgemm)
    return {};
  setThreads(numThreads);
  const double rate = rateOf(numThreads, [&](const float *a, const float *b, float *c) {
    sgemm('N', 'N', kPeerSize, kPeerSize, kPeerSize, 1.0f, a, kPeerSize, b, kPeerSize, 0.0f, c, kPeerSize);
  });
  const Version &number = *version();
  return {std::to_string(number.major) + "." + std::to_string(number.minor) + "." + std::to_string(number.patch), rate};
}

constexpr const char *kProgram =
    "W: param[int] = 1024\n"
    "@mask\ndef window(b, h, q, kv):\n    return (q >= kv) & (q - kv < W)\n"
    "@score\ndef alibi(s, b, h, q, kv):\n    return s + exp2(-float(h + 1)) * float(kv - q)\n"
    "@score\ndef soft_cap(s, b, h, q, kv):\n    return 30.0 * tanh(s / 30.0)\n"
    "attention(\"window\", mask=window)\nattention(\"alibi\", score=alibi)\n"
    "attention(\"soft_cap\", score=soft_cap)\n";

/// What a call ends with that failed.
[[noreturn]] void giveUp(const std::string &message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(3);
}

/// Compiled masks and scores.
class CompiledFunctions {
public:
  explicit CompiledFunctions(int64_t length) {
    CompileOptions options;
    options.cacheDir = "";
    program_ = compileText("bench.cpf", kProgram, options).program;
    if (!program_)
      giveUp("the program does not compile");
    auto binding = Binding::create(*program_, {.sizes = {.qLen = length}});
    if (!binding)
      giveUp(binding.status().message());
    binding_ = *binding;
  }
  HostFunctions of(const std::string &entry) const {
    auto functions = program_->hostFunctions(**program_->entry(entry), binding_->bindings());
    if (!functions)
      giveUp(functions.status().message());
    return *functions;
  }

private:
  std::shared_ptr<Program> program_;
  std::shared_ptr<Binding> binding_;
};

BlockMask windowMask(int64_t length, int64_t width) {
  BlockMask mask;
  mask.qLen = mask.kvLen = length;
  TileRows rows;
  rows.rowBegin.push_back(0);
  for (int64_t q = 0; q < mask.numQTiles(); ++q) {
    for (int64_t kv = 0; kv <= q; ++kv) {
      const int64_t least = (q - kv) * 128 - 127, most = (q - kv) * 128 + 127;
      if (least >= width)
        continue;
      const TileClass tileClass = least >= 0 && most < width ? TileClass::Full : TileClass::Partial;
      if (int32_t(rows.runs.size()) > rows.rowBegin.back() && rows.runs.back().tileClass == tileClass)
        ++rows.runs.back().end;
      else
        rows.runs.push_back({int32_t(kv), int32_t(kv + 1), tileClass, 0});
    }
    rows.rowBegin.push_back(int32_t(rows.runs.size()));
  }
  mask.rowSetOf = {0};
  mask.rowSets = {std::move(rows)};
  return mask;
}

int64_t numTilesOf(const BlockMask &mask) {
  int64_t count = 0;
  for (const TileRun &run : mask.rowSets[0].runs)
    count += run.end - run.begin;
  return count;
}

uint16_t toBFloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return uint16_t((bits + 0x8000u) >> 16);
}

/// The tensors of one head and what is measured on them.
class Bench {
public:
  Bench(int64_t length, int64_t headDim, int numThreads, double peerRate)
      : length_(length), headDim_(headDim), threads_(numThreads), peerRate_(peerRate) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (std::vector<float> *tensor : {&q_, &k_, &v_, &dOut_}) {
      tensor->resize(length * headDim);
      for (float &value : *tensor)
        value = normal(generator);
    }
    for (std::vector<float> *tensor : {&out_, &dQ_, &dK_, &dV_})
      tensor->resize(length * headDim);
    lse_.resize(length);
    for (auto [from, to] : {std::pair{&q_, &qNarrow_}, {&k_, &kNarrow_}, {&v_, &vNarrow_}})
      for (float value : *from)
        to->push_back(toBFloat16(value));
    problem_.qLen = problem_.kvLen = length;
    problem_.headDim = problem_.vHeadDim = headDim;
    problem_.scale = 1.0f / std::sqrt(float(headDim));
    problem_.functions = &functions_;
    problem_.bindings = &bindings_;
  }

  double forward(const char *name, const HostFunctions &functions, const BlockMask *mask, int64_t width,
                 double densePairs, ElementType type = ElementType::F32) {
    set(functions, mask, width);
    const bool isNarrow = type != ElementType::F32;
    HostForwardTensors tensors{.q = view(isNarrow ? (void *)qNarrow_.data() : q_.data(), type),
                               .k = view(isNarrow ? (void *)kNarrow_.data() : k_.data(), type),
                               .v = view(isNarrow ? (void *)vNarrow_.data() : v_.data(), type),
                               .out = view(out_.data(), ElementType::F32),
                               .lse = row()};
    const double time = leastSeconds(repetitionsFor(densePairs), threads_.numThreads(),
                                     [&] { check(hostAttentionForward(problem_, tensors, {.threads = &threads_})); });
    print(name, time, 4.0 * densePairs * double(headDim_));
    return time;
  }

  double backward(const char *name, const HostFunctions &functions, const BlockMask *mask, int64_t width,
                  double densePairs, double forwardTime) {
    set(functions, mask, width);
    HostForwardTensors forwardTensors{
        .q = view(q_.data()), .k = view(k_.data()), .v = view(v_.data()), .out = view(out_.data()), .lse = row()};
    check(hostAttentionForward(problem_, forwardTensors, {.threads = &threads_}));
    HostBackwardTensors tensors{.q = view(q_.data()),
                                .k = view(k_.data()),
                                .v = view(v_.data()),
                                .out = view(out_.data()),
                                .lse = row(),
                                .dOut = view(dOut_.data())};
    tensors.dQ = view(dQ_.data()), tensors.dK = view(dK_.data()), tensors.dV = view(dV_.data());
    const double time = leastSeconds(repetitionsFor(densePairs * 2.5), threads_.numThreads(),
                                     [&] { check(hostAttentionBackward(problem_, tensors, {.threads = &threads_})); });
    print(name, time, 10.0 * densePairs * double(headDim_));
    std::printf("%-34s %9s %9.2f times forward\n", "", "", time / forwardTime);
    return time;
  }

private:
  TensorView view(void *data, ElementType type = ElementType::F32) const {
    return {data, type, {length_ * headDim_, length_ * headDim_, headDim_, 1}};
  }
  TensorView row() { return {lse_.data(), ElementType::F32, {length_, length_, 1, 1}}; }
  void set(const HostFunctions &functions, const BlockMask *mask, int64_t width) {
    functions_ = functions;
    problem_.mask = mask;
    width_ = width;
    bindings_.params = &width_;
  }
  static void check(const Status &status) {
    if (!status.isOk())
      giveUp(status.message());
  }
  static int repetitionsFor(double pairs) { return pairs > 4e7 ? 7 : 15; }
  void print(const char *name, double time, double flop) const {
    std::printf("%-34s %9.2f %9.1f", name, time * 1e3, flop / time / 1e9);
    if (peerRate_ > 0)
      std::printf(" %8.3f", flop / time / peerRate_);
    std::printf("\n");
  }

  int64_t length_, headDim_;
  HostThreads threads_;
  double peerRate_;
  std::vector<float> q_, k_, v_, dOut_, out_, dQ_, dK_, dV_, lse_;
  std::vector<uint16_t> qNarrow_, kNarrow_, vNarrow_;
  AttentionProblem problem_;
  HostFunctions functions_;
  Bindings bindings_;
  ScalarSlot width_ = 0;
};

} // namespace

int main(int argc, char **argv) {
  const int numThreads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int64_t length = argc > 2 ? std::atoll(argv[2]) : 8192, headDim = argc > 3 ? std::atoll(argv[3]) : 128;
  unsetSlowingSettings();
  const Peer blas = openBlas(numThreads), dnn = oneDnn(numThreads);
  const double peerRate = std::max(blas.rate, dnn.rate);
  std::printf("threads %d, S %lld, D %lld, B 1, H 1, %s kernels\n", numThreads, (long long)length, (long long)headDim,
              toString(InstructionSet::Native));
  std::printf("peer: the faster of OpenBLAS (%s) and oneDNN (%s)\n", blas.version.c_str(), dnn.version.c_str());
  std::printf("shortest of several runs, %s time\n", numThreads == 1 ? "processor" : "wall");
  std::printf("%-34s %9s %9s %8s\n", "what", "ms", "GFLOP/s", "of peer");
  for (const auto &[name, peer] : {std::pair{"OpenBLAS", &blas}, {"oneDNN", &dnn}})
    if (peer->rate > 0)
      std::printf("%-8s sgemm 4096^3 %12s %9.2f %9.1f %8.3f\n", name, "", 2 * std::pow(4096.0, 3) / peer->rate * 1e3,
                  peer->rate / 1e9, peer->rate / peerRate);
    else
      std::printf("%-8s sgemm 4096^3: skipped, the library is not installed\n", name);

  const CompiledFunctions functions(length);
  Bench bench(length, headDim, numThreads, peerRate);
  const double pairs = double(length) * double(length);
  const double dense = bench.forward("dense f32", {}, nullptr, 0, pairs);
  bench.forward("dense bf16", {}, nullptr, 0, pairs, ElementType::BF16);
  const double withAlibi = bench.forward("alibi", functions.of("alibi"), nullptr, 0, pairs);
  std::printf("%-34s %9s %9.2f times dense\n", "", "", withAlibi / dense);
  const double withCap = bench.forward("soft-cap", functions.of("soft_cap"), nullptr, 0, pairs);
  std::printf("%-34s %9s %9.2f times dense\n", "", "", withCap / dense);

  const BlockMask causal = windowMask(length, length);
  const double causalPairs = pairs / 2 + double(length) / 2;
  const double causalTime = bench.forward("causal", functions.of("window"), &causal, length, causalPairs);

  std::printf("density sweep: GFLOP/s count non-empty tiles\n");
  const double numDenseTiles = std::pow(double(length) / 128, 2);
  for (int64_t divisor : {1, 2, 4, 8, 16, 32}) {
    const BlockMask mask = windowMask(length, length / divisor);
    const double density = double(numTilesOf(mask)) / numDenseTiles;
    char name[64];
    std::snprintf(name, sizeof name, "window %lld, %.1f %% of the tiles", (long long)(length / divisor), 100 * density);
    const double time = bench.forward(name, functions.of("window"), &mask, length / divisor, pairs * density);
    std::printf("%-34s %9s %9.2f times (dense time * share of tiles)\n", "", "", time / (dense * density));
  }

  bench.backward("backward dense", {}, nullptr, 0, pairs, dense);
  bench.backward("backward causal", functions.of("window"), &causal, length, causalPairs, causalTime);
  bench.backward("backward soft-cap", functions.of("soft_cap"), nullptr, 0, pairs, withCap);
  return 0;
}
