// The words of layouts, rotations and payloads on the command line and in the text form, and the bytes that a row of
// each payload takes.
#include "runtime/Plan/Planner.h"

#include <array>
#include <utility>

namespace cpflex {
namespace {

template <typename Enumeration> struct Word {
  Enumeration value;
  std::string_view word;
};

constexpr std::array<Word<LayoutKind>, 7> kLayoutWords = {{{LayoutKind::Contiguous, "contiguous"},
                                                           {LayoutKind::HeadTail, "head-tail"},
                                                           {LayoutKind::Striped, "striped"},
                                                           {LayoutKind::PerDocument, "per-document"},
                                                           {LayoutKind::Ptrr, "ptrr"},
                                                           {LayoutKind::Solved, "solved"},
                                                           {LayoutKind::Custom, "custom"}}};
constexpr std::array<Word<Rotation>, 4> kRotationWords = {{{Rotation::Ring, "ring"},
                                                           {Rotation::AllGather, "all-gather"},
                                                           {Rotation::Selective, "selective"},
                                                           {Rotation::Ulysses, "ulysses"}}};
constexpr std::array<Word<Pass>, 2> kPassWords = {{{Pass::Forward, "forward"}, {Pass::Backward, "backward"}}};
constexpr std::array<Word<KeyOrder>, 2> kKeyOrderWords = {
    {{KeyOrder::Arrival, "arrival"}, {KeyOrder::Ascending, "ascending"}}};
constexpr std::array<Word<Payload>, kNumPayloads> kPayloadWords = {{{Payload::KV, "kv"},
                                                                    {Payload::Q, "q"},
                                                                    {Payload::Out, "out"},
                                                                    {Payload::QGradient, "q-gradient"},
                                                                    {Payload::DQ, "dq"},
                                                                    {Payload::DKV, "dkv"}}};

template <typename Table, typename Enumeration> std::string_view wordOf(const Table &table, Enumeration value) {
  for (const auto &entry : table)
    if (entry.value == value)
      return entry.word;
  return "";
}

template <typename Enumeration, size_t size>
std::optional<Enumeration> valueOf(const std::array<Word<Enumeration>, size> &table, std::string_view word) {
  for (const auto &entry : table)
    if (entry.word == word)
      return entry.value;
  return std::nullopt;
}

} // namespace

std::string_view toString(LayoutKind kind) { return wordOf(kLayoutWords, kind); }
std::string_view toString(Rotation rotation) { return wordOf(kRotationWords, rotation); }
std::string_view toString(Pass pass) { return wordOf(kPassWords, pass); }
std::string_view toString(KeyOrder order) { return wordOf(kKeyOrderWords, order); }
std::string_view toString(Payload payload) { return wordOf(kPayloadWords, payload); }
std::optional<LayoutKind> layoutKindFromString(std::string_view word) { return valueOf(kLayoutWords, word); }
std::optional<Rotation> rotationFromString(std::string_view word) { return valueOf(kRotationWords, word); }
std::optional<Pass> passFromString(std::string_view word) { return valueOf(kPassWords, word); }
std::optional<KeyOrder> keyOrderFromString(std::string_view word) { return valueOf(kKeyOrderWords, word); }
std::optional<Payload> payloadFromString(std::string_view word) { return valueOf(kPayloadWords, word); }

int64_t bytesPerRow(Payload payload, const CallShape &shape) {
  const int64_t element = sizeInBytes(shape.type), single = sizeInBytes(ElementType::F32);
  switch (payload) {
  case Payload::KV: return (shape.headDim + shape.vHeadDim) * element;
  case Payload::Q: return shape.headDim * element;
  case Payload::Out: return shape.vHeadDim * element + single;
  case Payload::QGradient: return (shape.headDim + shape.vHeadDim) * element + 2 * single;
  case Payload::DQ: return shape.headDim * single;
  case Payload::DKV: return (shape.headDim + shape.vHeadDim) * single;
  }
  return 0;
}

} // namespace cpflex
