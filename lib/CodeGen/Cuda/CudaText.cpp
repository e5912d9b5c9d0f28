// Spelling of names, literals and types.
#include "lib/CodeGen/Cuda/CudaText.h"

#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>

using namespace mlir;

namespace cpflex {

/// Words that a functor's own names must not be: those of C++, of CUDA, and those that the text itself uses.
static bool isReserved(llvm::StringRef name) {
  static constexpr llvm::StringLiteral kWords[] = {"alignas",       "alignof",     "and",
                                                   "and_eq",        "asm",         "auto",
                                                   "bitand",        "bitor",       "bool",
                                                   "break",         "case",        "catch",
                                                   "char",          "char8_t",     "char16_t",
                                                   "char32_t",      "class",       "compl",
                                                   "concept",       "const",       "consteval",
                                                   "constexpr",     "constinit",   "const_cast",
                                                   "continue",      "co_await",    "co_return",
                                                   "co_yield",      "decltype",    "default",
                                                   "delete",        "do",          "double",
                                                   "dynamic_cast",  "else",        "enum",
                                                   "explicit",      "export",      "extern",
                                                   "false",         "float",       "for",
                                                   "friend",        "goto",        "if",
                                                   "inline",        "int",         "long",
                                                   "mutable",       "namespace",   "new",
                                                   "noexcept",      "not",         "not_eq",
                                                   "nullptr",       "operator",    "or",
                                                   "or_eq",         "private",     "protected",
                                                   "public",        "register",    "reinterpret_cast",
                                                   "requires",      "return",      "short",
                                                   "signed",        "sizeof",      "static",
                                                   "static_assert", "static_cast", "struct",
                                                   "switch",        "template",    "this",
                                                   "thread_local",  "throw",       "true",
                                                   "try",           "typedef",     "typeid",
                                                   "typename",      "union",       "unsigned",
                                                   "using",         "virtual",     "void",
                                                   "volatile",      "wchar_t",     "while",
                                                   "xor",           "xor_eq",      "threadIdx",
                                                   "blockIdx",      "blockDim",    "gridDim",
                                                   "warpSize",      "NULL",        "INFINITY",
                                                   "NAN",           "assert",      "captures",
                                                   "cpflex",        "ops",         "Program",
                                                   "Captures",      "mask",        "score",
                                                   "scoreGradient", "kHasMask",    "kScoreForm",
                                                   "linux",         "unix",        "errno",
                                                   "stdin",         "stdout",      "stderr",
                                                   "signals",       "main"};
  return llvm::is_contained(kWords, name) || name.starts_with("__") || name.starts_with("CPFLEX_");
}

std::string CudaNames::unique(llvm::StringRef wanted) {
  std::string name;
  for (char c : wanted)
    name += llvm::isAlnum(c) ? c : '_';
  if (name.empty() || llvm::isDigit(name[0]))
    name.insert(0, "v");
  if (isReserved(name) || (name.size() > 1 && name[0] == '_'))
    name.insert(0, "user_");
  std::string candidate = name;
  for (int number = 2; !taken.insert(candidate).second; ++number)
    candidate = fmt::format("{}_{}", name, number);
  return candidate;
}

llvm::StringRef cudaType(mlir::Type type) {
  if (type.isSignlessInteger(1))
    return "bool";
  if (type.isSignlessInteger(32))
    return "int";
  if (type.isSignlessInteger(64))
    return "long long";
  if (type.isUnsignedInteger(32))
    return "unsigned";
  return type.isF32() ? "float" : "";
}

llvm::StringRef cudaStorageType(ElementType type) {
  switch (type) {
  case ElementType::Bool:
  case ElementType::U8: return "unsigned char";
  case ElementType::I8: return "signed char";
  case ElementType::I16: return "short";
  case ElementType::I32: return "int";
  case ElementType::I64: return "long long";
  case ElementType::U16:
  case ElementType::F16:
  case ElementType::BF16: return "unsigned short";
  case ElementType::U32: return "unsigned";
  case ElementType::U64: return "unsigned long long";
  case ElementType::F32: return "float";
  }
  return "";
}

std::string cudaLiteral(float value) {
  if (!std::isfinite(value))
    return fmt::format("ops::floatFromBits(0x{:08x}u)", std::bit_cast<uint32_t>(value));
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos)
    text += ".0";
  text += "f";
  return std::signbit(value) ? "(" + text + ")" : text;
}

std::string cudaLiteral(TypedAttr value) {
  mlir::Type type = value.getType();
  if (auto number = dyn_cast<FloatAttr>(value))
    return cudaLiteral(number.getValue().convertToFloat());
  llvm::APInt bits = cast<IntegerAttr>(value).getValue();
  if (type.isInteger(1))
    return bits.isZero() ? "false" : "true";
  if (type.isUnsignedInteger(32))
    return fmt::format("{}u", bits.getZExtValue());
  llvm::StringRef suffix = type.isInteger(64) ? "ll" : "";
  // The least number has no literal: its digits without the sign are out of range.
  if (bits.isMinSignedValue())
    return fmt::format("({}{} - 1)", bits.getSExtValue() + 1, suffix.str());
  std::string text = fmt::format("{}{}", bits.getSExtValue(), suffix.str());
  return bits.isNegative() ? "(" + text + ")" : text;
}

} // namespace cpflex
