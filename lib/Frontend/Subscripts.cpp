// Evaluates what reads arrays and tuples: subscripts, loads, sizes and membership.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include <fmt/format.h>

namespace cpflex {

using namespace ast;

Entity Importer::evaluateSubscript(const Expr &expr) {
  Entity base = evaluate(*expr.operands[0]);
  bool hasFailed = base.isError();
  std::vector<Entity> indices;
  for (size_t i = 1; i < expr.operands.size(); ++i) {
    const Expr &operand = *expr.operands[i];
    Entity index;
    if (operand.kind == ExprKind::Slice) {
      index.kind = EntityKind::Slice;
    } else {
      index = evaluate(operand);
      // `x[(i, j)]` and `x[i, j]` are the same in Python.
      if (index.kind == EntityKind::Tuple && expr.operands.size() == 2) {
        for (const Entity &element : index.elements) {
          indices.push_back(toInt(element, operand.range, "an index"));
          hasFailed |= indices.back().isError();
        }
        continue;
      }
      if (!index.isError())
        index = toInt(index, operand.range, "an index");
    }
    hasFailed |= index.isError();
    indices.push_back(std::move(index));
  }
  if (hasFailed)
    return {};
  if (base.kind == EntityKind::Tuple) {
    if (indices.size() != 1 || !indices[0].isConstant())
      return fail(expr.range, "a tuple is indexed by one constant");
    int64_t index = indices[0].constant->bits;
    int64_t size = int64_t(base.elements.size());
    if (index < -size || index >= size)
      return fail(expr.operands[1]->range, fmt::format("index {} is outside a tuple of {}", index, size));
    return Entity(base.elements[size_t(index < 0 ? index + size : index)]);
  }
  if (base.kind != EntityKind::Tensor)
    return fail(expr.range, fmt::format("{} cannot be indexed", describe(base)));
  const size_t rank = base.tensor->dims.size();
  const std::vector<size_t> axes = freeAxes(base);
  if (indices.size() > axes.size()) {
    const size_t given = rank - axes.size() + indices.size();
    Diagnostic &diagnostic =
        error(expr.range, fmt::format("'{}' has {} dimension{}, {} ind{} given", base.tensor->name, rank,
                                      rank == 1 ? "" : "s", given, given == 1 ? "ex" : "ices"));
    addNote(diagnostic, base.tensor->module->file.source, base.tensor->range, "declared here");
    return {};
  }
  for (size_t i = 0; i < indices.size(); ++i) {
    const Dimension &dimension = base.tensor->dims[axes[i]];
    if (!indices[i].isConstant())
      continue;
    int64_t index = indices[i].constant->bits;
    if (index >= 0 && (!dimension.constant || index < *dimension.constant))
      continue;
    SourceRange at = i + 1 < expr.operands.size() ? expr.operands[i + 1]->range : expr.range;
    std::string wanted =
        index < 0 ? fmt::format("; negative indices do not wrap, write {} - {}", dimension.text, -uint64_t(index))
                  : fmt::format("; expected 0 to {}", *dimension.constant - 1);
    Diagnostic &diagnostic = error(at, fmt::format("index {} is outside dimension '{}' of '{}'{}", index,
                                                   dimension.text, base.tensor->name, wanted));
    if (index < 0 && i + 1 < expr.operands.size())
      setFixIt(diagnostic, frame().module->file.source, at, fmt::format("{} - {}", dimension.text, -uint64_t(index)));
    addNote(diagnostic, base.tensor->module->file.source, base.tensor->range, "declared here");
    return {};
  }
  base = indexed(std::move(base), indices);
  return freeAxes(base).empty() ? load(base, expr.range) : base;
}

std::vector<size_t> Importer::freeAxes(const Entity &tensor) {
  std::vector<size_t> axes;
  for (size_t axis = 0; axis < tensor.tensor->dims.size(); ++axis)
    if (axis >= tensor.elements.size() || tensor.elements[axis].kind == EntityKind::Slice)
      axes.push_back(axis);
  return axes;
}

Entity Importer::indexed(Entity tensor, std::span<const Entity> indices) {
  const std::vector<size_t> axes = freeAxes(tensor);
  Entity slice;
  slice.kind = EntityKind::Slice;
  if (!indices.empty())
    tensor.elements.resize(std::max(tensor.elements.size(), axes[indices.size() - 1] + 1), slice);
  for (size_t i = 0; i < indices.size(); ++i)
    tensor.elements[axes[i]] = indices[i];
  return tensor;
}

Entity Importer::load(const Entity &tensor, SourceRange range) {
  if (!hasBody_)
    return fail(range, fmt::format("'{}' is an array that is bound when the program runs; expected a constant",
                                   tensor.tensor->name));
  mlir::OperationState state(location(range), "mask.load");
  state.addAttribute("capture", mlir::FlatSymbolRefAttr::get(&ctx_, tensor.tensor->name));
  for (const Entity &index : tensor.elements)
    state.addOperands(materialize(index, range));
  return emitLeaf(state, loadedValueType(tensor.tensor->type));
}

Entity Importer::dimensionValue(const TensorDeclaration &tensor, size_t axis, SourceRange range) {
  const Dimension &dimension = tensor.dims[axis];
  if (dimension.constant)
    return Entity::ofConstant(Constant::ofInt(*dimension.constant));
  Frame local;
  local.module = tensor.module;
  frames_.push_back(&local);
  Entity value = evaluate(*dimension.expr);
  frames_.pop_back();
  return value;
}

Entity Importer::evaluateMembership(const Entity &element, const Expr &container, SourceRange range) {
  Entity needle = toScalar(element, range);
  if (needle.isError())
    return {};
  if (container.kind == ExprKind::Call && container.operands[0]->kind == ExprKind::Name &&
      container.operands[0]->name == "range" && container.keywords.empty() && container.operands.size() >= 2 &&
      container.operands.size() <= 3) {
    Entity begin =
        container.operands.size() == 3 ? evaluate(*container.operands[1]) : Entity::ofConstant(Constant::ofInt(0));
    Entity end = evaluate(*container.operands.back());
    if (!begin.isError())
      begin = toInt(begin, container.operands[1]->range, "'range'");
    if (!end.isError())
      end = toInt(end, container.operands.back()->range, "'range'");
    if (begin.isError() || end.isError())
      return {};
    Entity isAfter = compare(OpKind::Le, begin, needle, range);
    Entity isBefore = compare(OpKind::Lt, needle, end, range);
    return isAfter.isError() || isBefore.isError() ? Entity{} : emit(Operation::And, {isAfter, isBefore}, range);
  }
  Entity haystack = evaluate(container);
  if (haystack.isError())
    return {};
  if (haystack.kind == EntityKind::Tuple) {
    Entity result = Entity::ofConstant(Constant::ofBool(false));
    for (const Entity &candidate : haystack.elements) {
      Entity isEqual = compare(OpKind::Eq, needle, candidate, range);
      if (isEqual.isError())
        return {};
      result = result.isConstant() && !result.constant->bits ? isEqual : emit(Operation::Or, {result, isEqual}, range);
    }
    return result;
  }
  if (haystack.kind != EntityKind::Tensor)
    return fail(container.range, fmt::format("'in' looks for a value in an array, a tuple or range(...); this is {}",
                                             describe(haystack)));
  Entity slice;
  slice.kind = EntityKind::Slice;
  haystack.elements.resize(haystack.tensor->dims.size(), slice);
  // One reduction per free axis, the first outermost.
  std::function<Entity(size_t)> search = [&](size_t axis) -> Entity {
    while (axis < haystack.elements.size() && haystack.elements[axis].kind != EntityKind::Slice)
      ++axis;
    if (axis == haystack.elements.size())
      return compare(OpKind::Eq, load(haystack, container.range), needle, range);
    Entity count = dimensionValue(*haystack.tensor, axis, container.range);
    if (count.isError())
      return {};
    return reduce(int(mask::ReductionKind::Any), count, range, [&](Entity index) {
      haystack.elements[axis] = index;
      Entity found = search(axis + 1);
      haystack.elements[axis] = slice;
      return found;
    });
  };
  return search(0);
}

} // namespace cpflex
