// The importer's state and its functions, shared by the sources that implement it. Each group of
// functions names its source; what is left to nobody else is in Importer.cpp.
#pragma once

#include "lib/Frontend/Entity.h"
#include "lib/Frontend/Importer.h"
#include "runtime/contract/Tape.h"

#include "mlir/IR/Builders.h"

#include <deque>
#include <functional>
#include <span>

namespace cpflex {

/// Most levels of recursion while expressions, blocks and calls are inlined into each other.
inline constexpr int kMaxInliningDepth = 600;
/// Most operations that one program may inline to.
inline constexpr int kMaxOperations = 200000;
/// Most expressions that one import evaluates, constants included.
inline constexpr int kMaxEvaluations = 4000000;
/// Most files that one program may import.
inline constexpr size_t kMaxModules = 256;

/// The coordinates that a mask is evaluated at.
struct Coordinates {
  Entity b, h, q, kv;
};

/// One function that is being inlined: its local names and where it was called.
struct Frame {
  Module *module = nullptr;
  const FunctionDefinition *function = nullptr;
  std::map<std::string, Entity> locals;
  std::map<std::string, SourceRange> halfBound; ///< names bound in one arm of an 'if' only
  Module *callerModule = nullptr;
  SourceRange callRange;
};

/// One `attention(...)`, or a mask that is an entry point by itself.
struct EntryDeclaration {
  std::string name;
  SourceRange range;
  std::shared_ptr<const MaskValue> mask;
  std::vector<const FunctionDefinition *> scores;
  const TensorDeclaration *sink = nullptr;
  std::optional<float> scale;
  bool hasSoftmax = true;
};

class Importer {
public:
  Importer(mlir::MLIRContext &ctx, const ImportOptions &options, DiagnosticList &diagnostics);
  mlir::OwningOpRef<mlir::ModuleOp> run(const ast::File &file);

private:
  // Files (ModuleLoader.cpp).
  Module *loadMain(const ast::File &file);
  std::optional<ImportedFile> fileAt(const std::string &path) const;
  Module *loadModule(const std::string &name, Module &from, SourceRange range);
  Module *addModule(std::string key, std::string path, std::string text, std::string folder, bool isStandard);
  void collectSymbols(Module &module);
  void collectImport(Module &module, const ast::Stmt &statement);
  void define(Module &module, const std::string &name, Symbol symbol);
  Module *standardModuleWith(const std::string &name);
  std::vector<std::string> standardNames();
  bool isUsableName(Module &module, const std::string &name, SourceRange range);
  FunctionRole roleOf(Module &module, const ast::Stmt &function);
  void noteMissingDecorator(Diagnostic &diagnostic, const FunctionDefinition &function, FunctionRole role);
  bool hasRightParameters(Module &module, const ast::Stmt &function, FunctionRole role);

  // Declarations (Declarations.cpp).
  void resolveDeclarations();
  void reportConflict(Module &module, SourceRange range, Module &otherModule, SourceRange otherRange,
                      std::string message);
  void resolveScalar(Module &module, Symbol &symbol);
  void resolveTensor(Module &module, Symbol &symbol);
  void resolveFacts(Module &module, const ast::Expr &call, TensorDeclaration &tensor);
  std::optional<Constant> constantFromOption(const ScalarDeclaration &declaration, const std::string &text);
  const TensorDeclaration *use(const TensorDeclaration *tensor);
  const ScalarDeclaration *use(const ScalarDeclaration *scalar);

  // Dimensions of arrays (Dimensions.cpp).
  void registerDimensions(Module &module, const ast::Expr &expr);
  bool resolveDimension(Module &module, const ast::Expr &expr, Dimension &dimension);
  /// Where a name is defined: the file, the name there and the symbol, null when there is none.
  struct Definition {
    Module *module;
    std::string name;
    Symbol *symbol;
  };
  /// Follows the imports of `name` as seen in `module`.
  static Definition definitionOf(Module &module, const std::string &name);
  bool checkDimensionNames(Module &module, const ast::Expr &expr);
  std::string dimensionText(Module &module, const ast::Expr &expr);

  // Expressions (Expressions.cpp). The module is that of the frame.
  Entity evaluate(const ast::Expr &expr);
  Entity evaluateUnguarded(const ast::Expr &expr);
  Entity evaluateName(const ast::Expr &expr);
  Entity evaluateSymbol(Module &module, Symbol &symbol, SourceRange range);
  bool isKnownName(const Module &module, const std::string &name) const;
  std::optional<Entity> lookUp(Module &module, const std::string &name, SourceRange range);
  Entity evaluateUnary(const ast::Expr &expr);
  Entity evaluateChain(const ast::Expr &expr);
  Entity evaluateCompare(const ast::Expr &expr);
  Entity evaluateMembership(const Entity &element, const ast::Expr &container, SourceRange range);
  Entity refuseLogicBetweenMasks(const ast::Expr &expr);
  Entity evaluateLogic(const ast::Expr &expr);
  Entity evaluateConditional(const ast::Expr &expr);
  Entity evaluateAttribute(const ast::Expr &expr);
  Entity evaluateSubscript(const ast::Expr &expr);
  /// The axes of an array that no index was given for.
  static std::vector<size_t> freeAxes(const Entity &tensor);
  /// An array of which further axes, the first free ones, have their index. There are at least as many.
  static Entity indexed(Entity tensor, std::span<const Entity> indices);
  Entity load(const Entity &tensor, SourceRange range);
  Entity dimensionValue(const TensorDeclaration &tensor, size_t axis, SourceRange range);
  std::optional<Constant> evaluateConstant(Module &module, const ast::Expr &expr);

  // Values and operations (Arithmetic.cpp).
  Entity toScalar(const Entity &entity, SourceRange range);
  Entity toInt(const Entity &entity, SourceRange range, const std::string &what);
  Entity toBool(const Entity &entity, SourceRange range, const std::string &what);
  Entity convert(const Entity &entity, ValueType type, SourceRange range);
  bool unify(Entity &lhs, Entity &rhs, SourceRange range, const std::string &what);
  Entity binary(ast::OpKind op, Entity lhs, Entity rhs, SourceRange range, SourceRange lhsRange, SourceRange rhsRange);
  Entity compare(ast::OpKind op, Entity lhs, Entity rhs, SourceRange range);
  Entity power(const Entity &base, const Entity &exponent, SourceRange range);
  Entity select(const Entity &condition, const Entity &ifTrue, const Entity &ifFalse, SourceRange range);
  Entity emit(Operation operation, std::span<const Entity> operands, SourceRange range);
  Entity emit(Operation operation, std::initializer_list<Entity> operands, SourceRange range) {
    return emit(operation, std::span<const Entity>(operands.begin(), operands.size()), range);
  }
  Entity emitLeaf(mlir::OperationState &state, ValueType type);
  Entity reduce(int kind, const Entity &count, SourceRange range, const std::function<Entity(Entity)> &element);
  mlir::Value materialize(const Entity &entity, SourceRange range);
  bool isUniform(mlir::Value value) const;
  bool checkMaskFloat(Operation operation, ValueType type, SourceRange range);

  // Calls (Calls.cpp, Builtins.cpp).
  struct Arguments {
    std::vector<Entity> positional;
    std::vector<SourceRange> ranges;
    std::map<std::string, std::pair<Entity, SourceRange>> named;
    SourceRange range;
    std::string callee;
  };
  Entity evaluateCall(const ast::Expr &expr);
  std::optional<Arguments> evaluateArguments(const ast::Expr &expr, const std::string &callee, size_t skip);
  Entity callFunction(const FunctionDefinition &function, const Arguments &arguments);
  Entity callMask(const MaskValue &mask, const Arguments &arguments);
  Entity inlineFunction(const FunctionDefinition &function, std::map<std::string, Entity> locals, SourceRange range);
  Entity callBuiltin(const std::string &name, const ast::Expr &expr);
  Entity callWithArguments(const std::string &name, const ast::Expr &expr, Arguments arguments);
  Entity callMethod(Entity base, const ast::Expr &expr);
  Entity callReduction(const std::string &name, const ast::Expr &expr);
  Entity reduceClauses(const std::string &name, const ast::Expr &generator, size_t clause);
  Entity callMaskCombinator(const std::string &name, const Arguments &arguments);
  Entity foldPairwise(const std::string &name, const std::vector<Entity> &values, SourceRange range);
  Entity clampTo(const Entity &value, const Entity *lo, const Entity *hi, SourceRange range);
  Entity unravel(const Arguments &arguments);
  Entity ravel(const Arguments &arguments);
  bool takeArguments(Arguments &arguments, std::initializer_list<const char *> names, size_t numRequired,
                     std::vector<Entity> &out);
  Entity libraryMember(const std::string &library, const std::string &member, SourceRange range);

  // Function bodies (Statements.cpp).
  struct Continuation {
    std::span<const ast::StmtRef> statements;
    const Continuation *next = nullptr;
  };
  std::optional<Entity> runBlock(std::span<const ast::StmtRef> statements, const Continuation *next);
  std::optional<Entity> runIf(const ast::Stmt &statement, const Continuation &rest);
  Entity toResult(const Entity &entity, SourceRange range);
  void runAssign(const ast::Stmt &statement);
  void bindTarget(const ast::Expr &target, Entity value);
  void mergeArms(const Entity &condition, Frame &ifTrue, Frame &ifFalse, SourceRange range);

  // Masks as values (MaskValues.cpp), entry points (EntryPoints.cpp), the module (Importer.cpp).
  Entity maskEntity(MaskValue value);
  std::shared_ptr<const MaskValue> asMask(const Entity &entity) const;
  Entity evaluateMask(const MaskValue &mask, const Coordinates &at, SourceRange range);
  Entity evaluateMaskUnguarded(const MaskValue &mask, const Coordinates &at, SourceRange range);
  Entity remapped(const Entity &map, const Coordinates &at, const Entity &position, SourceRange range);
  Entity perHeadCondition(const MaskValue &mask, const Coordinates &at, SourceRange range);
  Entity documentBegin(const Entity &offsets, const Coordinates &at, const Entity &position, SourceRange range);
  std::vector<EntryDeclaration> collectEntryPoints(Module &module);
  std::optional<EntryDeclaration> readAttention(Module &module, const ast::Expr &call);
  void reportNoEntryPoint(Module &module);
  bool readScores(const Entity &entity, SourceRange range, EntryDeclaration &entry);
  void checkAliases(Module &module);
  void emitPredicate(const std::string &name, const MaskValue &mask, SourceRange range);
  void emitScore(const std::string &name, const EntryDeclaration &entry);
  void emitEntryPoint(const EntryDeclaration &entry);
  void emitDeclarations();
  void checkUnusedFunctions(Module &module);

  // Lints (ImporterLints.cpp).
  void lintUnused(Module &module, const std::set<const ast::Stmt *> &inlinedByEntries);
  void lintWindow(ast::OpKind op, const ast::Expr &lhs, const ast::Expr &rhs);

  // Locations and messages (ImporterMessages.cpp).
  mlir::Location location(SourceRange range) const;
  mlir::Location location(Module &module, SourceRange range) const;
  void nameValue(const Entity &entity, const std::string &name);
  Diagnostic &error(SourceRange range, std::string message);
  Diagnostic &errorIn(Module &module, SourceRange range, std::string message);
  Entity fail(SourceRange range, std::string message) {
    error(range, std::move(message));
    return {};
  }
  Diagnostic &warning(SourceRange range, std::string message);
  void addCallNotes(Diagnostic &diagnostic);
  std::string suggestion(const std::string &name, const std::vector<std::string> &candidates) const;
  std::vector<std::string> visibleNames() const;
  bool enter(SourceRange range);
  /// The result of `function`, whose errors are dropped.
  template <typename Function> auto quietly(Function function) {
    int before = std::exchange(quiet_, quiet_ + 1);
    auto result = function();
    quiet_ = before;
    return result;
  }
  Frame &frame() { return *frames_.back(); }

  mlir::MLIRContext &ctx_;
  const ImportOptions &options_;
  DiagnosticList &diagnostics_;
  Diagnostic discarded_;
  mlir::OpBuilder builder_;
  mlir::OwningOpRef<mlir::ModuleOp> result_;
  std::map<std::string, std::unique_ptr<Module>> modules_;
  std::vector<Module *> loadOrder_; ///< the main file first
  Module *main_ = nullptr;
  std::deque<ScalarDeclaration> scalars_;
  std::deque<TensorDeclaration> tensors_;
  std::map<std::string, const ScalarDeclaration *> scalarByName_;
  std::map<std::string, const TensorDeclaration *> tensorByName_;
  std::vector<const ScalarDeclaration *> usedScalars_; ///< in the order of emission
  std::vector<const TensorDeclaration *> usedTensors_;
  std::vector<Frame *> frames_;
  std::set<const ast::Stmt *> inlined_;  ///< functions that were type-checked by use
  std::set<const Symbol *> usedSymbols_; ///< of any kind, evaluated at least once
  int depth_ = 0;
  int numOperations_ = 0;
  int numEvaluations_ = 0;
  bool isExhausted_ = false; ///< a limit was reached and reported; nothing more is evaluated
  int quiet_ = 0;            ///< above 0 while errors are dropped
  bool hasBody_ = false;     ///< whether operations can be emitted
  bool isInMask_ = false;
};

/// How messages call a type: 'int', 'bool', 'u32', 'float'.
const char *typeName(ValueType type);
/// What an entity is, for messages: "an int", "a mask", "an array".
std::string describe(const Entity &entity);
/// The dialect's type of a value.
mlir::Type dialectType(mlir::MLIRContext &ctx, ValueType type);
/// The type that an element of an array has inside an expression.
ValueType loadedValueType(ElementType type);
/// The constant result of an operation on constants, nothing when the operation does not exist for
/// their types.
std::optional<Constant> foldConstants(Operation operation, std::span<const Constant> operands);
/// Whether `name` is a built-in dimension: B, H, HKV, Q_LEN or KV_LEN.
bool isBuiltinDimension(std::string_view name);
/// Whether `name` is a built-in function or constant of the language.
bool isBuiltinFunction(std::string_view name);
/// For `name`, which combines what many pairs have.
std::string rowStatisticMessage(std::string_view name);

/// What a function without a decorator would be by the number of its parameters that have no default.
FunctionRole roleByParameters(const ast::Stmt &function);
std::vector<std::string> builtinNames();
/// Why a name that PyTorch or Python has is not part of the language and what to write instead;
/// empty for other names.
std::string foreignNameMessage(std::string_view name);
/// The ValueType that a type's name stands for in param[...], const[...], .to(...): int, i32,
/// torch.float32, ...
std::optional<ValueType> valueTypeNamed(std::string_view name);

} // namespace cpflex
