// What a name or an expression of a `.cpf` program can stand for while it is imported, and the
// declarations behind it.
#pragma once

#include "lib/Frontend/ast.h"
#include "runtime/contract/Bindings.h"

#include "mlir/IR/Value.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

struct Module;
struct MaskValue;

/// A number or bool that is known at compile time: Int, U32 and Bool as is, Float as its f32 bits.
struct Constant {
  ValueType type = ValueType::Int;
  ScalarSlot bits = 0;

  static Constant ofInt(int64_t value) { return {ValueType::Int, value}; }
  static Constant ofBool(bool value) { return {ValueType::Bool, value}; }
  static Constant ofFloat(float value);
  float asFloat() const;
};

/// `name: param[type]` or `name: const[type]`.
struct ScalarDeclaration {
  std::string name;
  ValueType type = ValueType::Int;
  bool isConst = false;
  std::optional<Constant> value; ///< the default of a param, the value of a const
  Module *module = nullptr;
  SourceRange range;
};

/// The size of one axis of an array: a constant, or an expression over dimensions and params.
struct Dimension {
  std::optional<int64_t> constant;
  std::string text; ///< as the `mask` dialect spells it
  const ast::Expr *expr = nullptr;
};

/// `name: tensor[type, dims](facts)`.
struct TensorDeclaration {
  std::string name;
  ElementType type = ElementType::I32;
  std::vector<Dimension> dims;
  bool isSorted = false, needsGradient = false;
  std::optional<int64_t> lo, hi;
  Module *module = nullptr;
  SourceRange range;
};

enum class FunctionRole : uint8_t { Plain, Mask, Score };

struct FunctionDefinition {
  const ast::Stmt *statement = nullptr;
  Module *module = nullptr;
  FunctionRole role = FunctionRole::Plain;
};

enum class EntityKind : uint8_t {
  Error,    ///< was reported; silences what uses it
  Scalar,   ///< a number or bool
  Tuple,    ///< elements
  Tensor,   ///< tensor with elements as the indices given so far
  Slice,    ///< `:` among the indices of a tensor
  Mask,     ///< mask
  Function, ///< function, also a `@score`
  Builtin,  ///< name: a function of the language
  Library,  ///< name: `torch`, `math` or `numpy`
  Module,   ///< module: another `.cpf` file
  Type,     ///< type: `float`, `torch.float32`, ...
  Text,     ///< name: a string
  None,
};

struct Entity {
  EntityKind kind = EntityKind::Error;
  ValueType type = ValueType::Int;
  std::optional<Constant> constant; ///< of a Scalar known at compile time
  mlir::Value value;                ///< of any other Scalar
  std::vector<Entity> elements;
  const TensorDeclaration *tensor = nullptr;
  std::shared_ptr<const MaskValue> mask;
  const FunctionDefinition *function = nullptr;
  Module *module = nullptr;
  std::string name;

  static Entity ofConstant(Constant constant);

  bool isError() const { return kind == EntityKind::Error; }
  bool isScalar() const { return kind == EntityKind::Scalar; }
  bool isConstant() const { return isScalar() && constant.has_value(); }
};

enum class MaskValueKind : uint8_t { Definition, All, And, Or, Xor, Not, Remap, PerHead, PerDocument };

/// A mask as a value: a definition or masks combined.
struct MaskValue {
  MaskValueKind kind = MaskValueKind::All;
  std::vector<std::shared_ptr<const MaskValue>> operands;
  const FunctionDefinition *definition = nullptr;
  Entity q, kv;     ///< Remap: array or helper, Error when not given
  Entity condition; ///< PerHead: array or helper; PerDocument: the array of offsets
  Module *module = nullptr;
  SourceRange range;
};

enum class SymbolKind : uint8_t { Function, Scalar, Tensor, Dimension, Alias, Imported, Library, Module };

/// What a name at the top level of a file stands for.
struct Symbol {
  SymbolKind kind = SymbolKind::Alias;
  std::string name;                          ///< Dimension: its name; Library: `torch` or `torch.where`
  SourceRange range;                         ///< where it was defined
  const ast::Expr *expr = nullptr;           ///< Alias
  int element = -1;                          ///< Alias: element of the tuple that expr gives, -1 for all of it
  const ast::Stmt *statement = nullptr;      ///< Scalar and Tensor: the declaration
  FunctionDefinition function;               ///< Function
  const ScalarDeclaration *scalar = nullptr; ///< Scalar, once resolved
  const TensorDeclaration *tensor = nullptr; ///< Tensor, once resolved
  Module *module = nullptr;                  ///< Imported and Module: the other file
  bool isBroken = false;                     ///< its declaration was reported
  bool isOpen = false;                       ///< its declaration is being evaluated; a use meanwhile is a cycle
};

/// One loaded file.
struct Module {
  ast::File file;
  std::string folder; ///< where its imports are looked for first
  std::map<std::string, Symbol> symbols;
  bool isLoading = true;
  bool isStandard = false; ///< part of `cpflex.std`
};

} // namespace cpflex
