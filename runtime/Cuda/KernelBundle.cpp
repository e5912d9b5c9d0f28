// Bundles as bytes: a line that says what the file is, the digest of the rest, then the members in order. Integers have
// eight bytes, lowest first; texts and sequences begin with their length.
#include "runtime/Cuda/KernelBundle.h"

#include "runtime/Cuda/Sha256.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace cpflex {
namespace {

constexpr std::string_view kFirstLine = "cpflex bundle 2\n", kFirstWords = "cpflex bundle ";
constexpr size_t kDigestLength = 64;
constexpr int kIntegerBytes = 8;

class Writer {
public:
  std::string bytes;
  template <typename T> void value(const T &given) {
    auto bits = static_cast<uint64_t>(given);
    for (int i = 0; i < kIntegerBytes; ++i)
      bytes.push_back(static_cast<char>(bits >> 8 * i));
  }
  template <typename Text> void text(const Text &given) {
    value(given.size());
    bytes.append(given.data(), given.size());
  }
  template <typename T, typename Visit> void sequence(const std::vector<T> &given, Visit visit) {
    value(given.size());
    for (const T &element : given)
      visit(const_cast<T &>(element));
  }
};

/// Reads what Writer wrote; once the bytes end too early everything is 0.
class Reader {
public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T> void value(T &wanted) { wanted = static_cast<T>(integer()); }
  template <typename Text> void text(Text &wanted) {
    std::string_view taken = take(length());
    wanted.assign(taken.begin(), taken.end());
  }
  template <typename T, typename Visit> void sequence(std::vector<T> &wanted, Visit visit) {
    // An element has one byte at least, which bounds what a wrong length allocates.
    wanted.resize(length());
    for (T &element : wanted)
      visit(element);
  }
  bool isGood() const { return isGood_ && bytes_.empty(); }

private:
  uint64_t integer() {
    uint64_t bits = 0;
    std::string_view taken = take(kIntegerBytes);
    for (size_t i = 0; i < taken.size(); ++i)
      bits |= uint64_t(static_cast<unsigned char>(taken[i])) << 8 * i;
    return bits;
  }
  size_t length() {
    uint64_t wanted = integer();
    isGood_ = isGood_ && wanted <= bytes_.size();
    return isGood_ ? wanted : 0;
  }
  std::string_view take(size_t count) {
    isGood_ = isGood_ && count <= bytes_.size();
    std::string_view taken = isGood_ ? bytes_.substr(0, count) : std::string_view();
    bytes_.remove_prefix(taken.size());
    return taken;
  }
  std::string_view bytes_;
  bool isGood_ = true;
};

// Each struct's members in the order of the file, for both directions.

template <typename Archive> void visit(Archive &archive, CaptureDeclaration &capture) {
  archive.text(capture.name);
  archive.value(capture.type);
  archive.sequence(capture.dims, [&](std::string &dim) { archive.text(dim); });
  for (bool *fact : {&capture.isSorted, &capture.hasLo, &capture.hasHi, &capture.needsGradient})
    archive.value(*fact);
  archive.value(capture.lo);
  archive.value(capture.hi);
}

template <typename Archive> void visit(Archive &archive, ParamDeclaration &param) {
  archive.text(param.name);
  archive.value(param.type);
  archive.value(param.defaultValue);
  archive.value(param.hasDefault);
}

template <typename Archive> void visit(Archive &archive, TapeInstruction &instruction) {
  archive.value(instruction.operation);
  archive.value(instruction.operandType);
  archive.value(instruction.resultType);
  for (int32_t &operand : instruction.operands)
    archive.value(operand);
  archive.value(instruction.immediate);
  archive.value(instruction.line);
  archive.value(instruction.column);
}

template <typename Archive> void visit(Archive &archive, Residual &residual) {
  archive.sequence(residual.assumptions, [&](ResidualAssumption &assumption) {
    archive.value(assumption.instruction);
    archive.value(assumption.value);
  });
  archive.value(residual.result);
  archive.value(residual.isNegated);
  archive.text(residual.text);
}

template <typename Archive> void visit(Archive &archive, DeviceFunctions &functions) {
  archive.value(functions.hasMask);
  archive.value(functions.maskReadsBatch);
  archive.value(functions.maskReadsHead);
  archive.value(functions.scoreForm);
  archive.value(functions.numCaptures);
  archive.value(functions.numParams);
  archive.value(functions.numDims);
  archive.sequence(functions.captureNames, [&](std::string &name) { archive.text(name); });
  archive.sequence(functions.gradients, [&](DeviceGradient &gradient) {
    archive.value(gradient.capture);
    archive.value(gradient.isDense);
  });
}

template <typename Archive> void visit(Archive &archive, CudaProgramOptions &options) {
  archive.value(options.element);
  archive.value(options.headDim);
  archive.value(options.vHeadDim);
  archive.value(options.normalization);
  archive.value(options.positions);
  archive.value(options.output);
  archive.value(options.passes);
  archive.value(options.captureGradients);
}

template <typename Archive> void visit(Archive &archive, KernelImage &image) {
  archive.text(image.cubin);
  archive.text(image.functionName);
  archive.text(image.architecture);
  TileConfig &tiles = image.tiles;
  for (int *member :
       {&tiles.tileQ, &tiles.tileKV, &tiles.stages, &tiles.threads, &tiles.sharedBytes, &tiles.blocksPerProcessor,
        &tiles.spillLimit, &image.registers, &image.spillBytes, &image.stackBytes, &image.staticSharedBytes})
    archive.value(*member);
}

template <typename Archive> void visit(Archive &archive, KernelBundle &bundle) {
  auto each = [&](auto &element) { visit(archive, element); };
  archive.text(bundle.entry);
  archive.sequence(bundle.signature.captures, each);
  archive.sequence(bundle.signature.params, each);
  archive.sequence(bundle.signature.dims, [&](std::string &dim) { archive.text(dim); });
  archive.text(bundle.tape.name);
  archive.sequence(bundle.tape.instructions, each);
  archive.value(bundle.tape.result);
  archive.sequence(bundle.residuals, each);
  auto scaleBits = std::bit_cast<uint32_t>(bundle.scale);
  archive.value(scaleBits);
  bundle.scale = std::bit_cast<float>(scaleBits);
  archive.value(bundle.sinkCapture);
  each(bundle.functions);
  each(bundle.options);
  archive.value(bundle.computeCapability);
  archive.sequence(bundle.kernels, each);
}

} // namespace

std::string toBytes(const KernelBundle &bundle) {
  Writer writer;
  KernelBundle members = bundle;
  visit(writer, members);
  return fmt::format("{}{}\n", kFirstLine, sha256(writer.bytes)) + writer.bytes;
}

StatusOr<KernelBundle> kernelBundle(std::string_view bytes) {
  if (!bytes.starts_with(kFirstWords))
    return Status::invalid("this is no bundle; expected what 'cpflexc compile --emit=bundle' writes");
  if (!bytes.starts_with(kFirstLine))
    return Status::invalid(fmt::format("the bundle has version '{}'; expected '1'; compile it again",
                                       bytes.substr(kFirstWords.size(), bytes.find('\n') - kFirstWords.size())));
  bytes.remove_prefix(kFirstLine.size());
  size_t begin = std::min(bytes.size(), kDigestLength + 1);
  std::string_view digest = bytes.substr(0, kDigestLength), rest = bytes.substr(begin);
  KernelBundle bundle;
  Reader reader(rest);
  if (digest == sha256(rest))
    visit(reader, bundle);
  if (digest != sha256(rest) || !reader.isGood())
    return Status::invalid("the bundle is damaged; compile it again");
  return bundle;
}

} // namespace cpflex
