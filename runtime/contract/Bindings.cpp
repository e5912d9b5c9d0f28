// Names of element types, as written in `.cpf` files.
#include "runtime/contract/Bindings.h"

namespace cpflex {

const char *toString(ElementType type) {
  switch (type) {
  case ElementType::Bool: return "bool";
  case ElementType::I8: return "i8";
  case ElementType::I16: return "i16";
  case ElementType::I32: return "i32";
  case ElementType::I64: return "i64";
  case ElementType::U8: return "u8";
  case ElementType::U16: return "u16";
  case ElementType::U32: return "u32";
  case ElementType::U64: return "u64";
  case ElementType::F16: return "f16";
  case ElementType::BF16: return "bf16";
  case ElementType::F32: return "f32";
  }
  return "";
}

} // namespace cpflex
