// How names, literals and types of the `mask` dialect are spelt in CUDA C++.
#pragma once

#include "runtime/contract/Bindings.h"

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/Types.h"
#include "llvm/ADT/StringSet.h"

#include <string>

namespace cpflex {

/// Identifiers of one scope: each name is given out once and is never a word of C++ or CUDA.
class CudaNames {
public:
  CudaNames() = default;
  /// `wanted`, made an identifier, with a number behind it where that is taken.
  std::string unique(llvm::StringRef wanted);

private:
  llvm::StringSet<> taken;
};

/// `bool`, `int`, `long long`, `unsigned` or `float`; empty for types that functors do not compute.
llvm::StringRef cudaType(mlir::Type type);

/// The C++ type of an element in memory: `unsigned short` for f16.
llvm::StringRef cudaStorageType(ElementType type);

/// A constant of a value's type.
std::string cudaLiteral(mlir::TypedAttr value);
std::string cudaLiteral(float value);

} // namespace cpflex
