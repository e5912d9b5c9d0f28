// Masks as values: what `m1 & m2`, `~m`, remap, per_head and per_document mean at one pair.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include <fmt/format.h>

namespace cpflex {

using namespace ast;

Entity Importer::maskEntity(MaskValue value) {
  Entity entity;
  entity.kind = EntityKind::Mask;
  entity.mask = std::make_shared<const MaskValue>(std::move(value));
  return entity;
}

// Null when the entity is no mask.
std::shared_ptr<const MaskValue> Importer::asMask(const Entity &entity) const {
  if (entity.kind == EntityKind::Mask)
    return entity.mask;
  if (entity.kind != EntityKind::Function || entity.function->role != FunctionRole::Mask)
    return nullptr;
  MaskValue value;
  value.kind = MaskValueKind::Definition;
  value.definition = entity.function;
  value.module = entity.function->module;
  value.range = entity.function->statement->nameRange;
  return std::make_shared<const MaskValue>(std::move(value));
}

Entity Importer::evaluateMask(const MaskValue &mask, const Coordinates &at, SourceRange range) {
  if (!enter(range))
    return {};
  Entity result = evaluateMaskUnguarded(mask, at, range);
  --depth_;
  return result;
}

Entity Importer::evaluateMaskUnguarded(const MaskValue &mask, const Coordinates &at, SourceRange range) {
  switch (mask.kind) {
  case MaskValueKind::All: {
    return Entity::ofConstant(Constant::ofBool(true));
  }
  case MaskValueKind::Definition: {
    Arguments arguments;
    arguments.positional = {at.b, at.h, at.q, at.kv};
    arguments.ranges.assign(4, range);
    arguments.range = range;
    arguments.callee = mask.definition->statement->name;
    return callFunction(*mask.definition, arguments);
  }
  case MaskValueKind::Not: {
    Entity operand = evaluateMask(*mask.operands[0], at, range);
    return operand.isError() ? operand : emit(Operation::Not, {operand}, range);
  }
  case MaskValueKind::And:
  case MaskValueKind::Or:
  case MaskValueKind::Xor: {
    Entity lhs = evaluateMask(*mask.operands[0], at, range);
    Entity rhs = evaluateMask(*mask.operands[1], at, range);
    if (lhs.isError() || rhs.isError())
      return {};
    return emit(mask.kind == MaskValueKind::And  ? Operation::And
                : mask.kind == MaskValueKind::Or ? Operation::Or
                                                 : Operation::Xor,
                {lhs, rhs}, range);
  }
  case MaskValueKind::Remap: {
    Coordinates moved = at;
    moved.q = remapped(mask.q, at, at.q, range);
    moved.kv = remapped(mask.kv, at, at.kv, range);
    return moved.q.isError() || moved.kv.isError() ? Entity{} : evaluateMask(*mask.operands[0], moved, range);
  }
  case MaskValueKind::PerHead: {
    Entity condition = perHeadCondition(mask, at, range);
    if (condition.isError())
      return {};
    Entity ifTrue = evaluateMask(*mask.operands[0], at, range);
    Entity ifFalse = evaluateMask(*mask.operands[1], at, range);
    if (ifTrue.isError() || ifFalse.isError())
      return {};
    return condition.isConstant() ? (condition.constant->bits ? ifTrue : ifFalse)
                                  : select(condition, ifTrue, ifFalse, range);
  }
  case MaskValueKind::PerDocument: {
    // A document begins at the largest offset that is not after the position; documents are equal
    // when they begin alike.
    Entity qBegin = documentBegin(mask.condition, at, at.q, range);
    Entity kvBegin = documentBegin(mask.condition, at, at.kv, range);
    if (qBegin.isError() || kvBegin.isError())
      return {};
    Entity isSame = emit(Operation::Eq, {qBegin, kvBegin}, range);
    Coordinates inside = at;
    inside.q = emit(Operation::Sub, {at.q, qBegin}, range);
    inside.kv = emit(Operation::Sub, {at.kv, kvBegin}, range);
    Entity value = evaluateMask(*mask.operands[0], inside, range);
    return value.isError() ? value : emit(Operation::And, {isSame, value}, range);
  }
  }
  return {};
}

// `map` is an array over positions, (batch, position) or (batch, head, position), or a helper of
// the same arguments.
Entity Importer::remapped(const Entity &map, const Coordinates &at, const Entity &position, SourceRange range) {
  if (map.isError())
    return position;
  const Entity *all[] = {&at.b, &at.h, &position};
  if (map.kind == EntityKind::Tensor) {
    const size_t numFree = freeAxes(map).size();
    if (numFree < 1 || numFree > 3)
      return fail(range, fmt::format("'{}' has {} dimensions; remap takes an array over positions, "
                                     "(batch, position) or (batch, head, position)",
                                     map.tensor->name, map.tensor->dims.size()));
    const Entity given[] = {at.b, at.h, position};
    const Entity indices[] = {at.b, position};
    const Entity element = numFree == 3 ? indexed(map, given) : indexed(map, std::span(indices).last(numFree));
    return toInt(load(element, range), range, "a position");
  }
  size_t numParameters = map.function->statement->parameters.size();
  if (numParameters < 1 || numParameters > 3)
    return fail(range, fmt::format("'{}' has {} parameters; remap takes a helper of the position, "
                                   "(batch, position) or (batch, head, position)",
                                   map.function->statement->name, numParameters));
  Arguments arguments;
  arguments.range = range;
  arguments.callee = map.function->statement->name;
  if (numParameters == 2)
    arguments.positional = {at.b, position};
  else
    for (size_t i = 3 - numParameters; i < 3; ++i)
      arguments.positional.push_back(*all[i]);
  arguments.ranges.assign(arguments.positional.size(), range);
  Entity result = callFunction(*map.function, arguments);
  return result.isError() ? result : toInt(result, range, "a position");
}

Entity Importer::perHeadCondition(const MaskValue &mask, const Coordinates &at, SourceRange range) {
  const Entity &condition = mask.condition;
  if (condition.kind == EntityKind::Tensor) {
    const Entity element = freeAxes(condition).size() == 1 ? indexed(condition, {&at.h, 1}) : condition;
    return toBool(toScalar(element, range), range, "per_head");
  }
  Arguments arguments;
  arguments.range = range;
  arguments.callee = condition.function->statement->name;
  arguments.positional = {at.h};
  arguments.ranges = {range};
  Entity result = callFunction(*condition.function, arguments);
  return result.isError() ? result : toBool(result, range, "per_head");
}

Entity Importer::documentBegin(const Entity &offsets, const Coordinates &at, const Entity &position,
                               SourceRange range) {
  const std::vector<size_t> axes = freeAxes(offsets);
  if (axes.size() != 1 && axes.size() != 2)
    return fail(range, fmt::format("'{}' has {} dimensions; per_document takes offsets of shape [D] or [B, D]",
                                   offsets.tensor->name, offsets.tensor->dims.size()));
  const Entity row = axes.size() == 2 ? indexed(offsets, {&at.b, 1}) : offsets;
  Entity count = dimensionValue(*offsets.tensor, axes.back(), range);
  Entity zero = Entity::ofConstant(Constant::ofInt(0));
  if (count.isError())
    return {};
  return reduce(int(mask::ReductionKind::Max), count, range, [&](Entity index) {
    Entity offset = toInt(load(indexed(row, {&index, 1}), range), range, "an offset");
    if (offset.isError())
      return offset;
    Entity isBefore = emit(Operation::Le, {offset, position}, range);
    return select(isBefore, offset, zero, range);
  });
}

Entity Importer::callMaskCombinator(const std::string &name, const Arguments &given) {
  Arguments arguments = given;
  std::vector<Entity> values;
  MaskValue value;
  value.module = frame().module;
  value.range = given.range;
  auto isMapping = [](const Entity &entity) {
    return entity.kind == EntityKind::Tensor ||
           (entity.kind == EntityKind::Function && entity.function->role == FunctionRole::Plain);
  };
  auto addOperand = [&](const Entity &entity) {
    value.operands.push_back(asMask(entity));
    if (!value.operands.back())
      error(given.range, fmt::format("'{}' combines masks; this is {}", name, describe(entity)));
    return value.operands.back() != nullptr;
  };
  if (name == "and_masks" || name == "or_masks") {
    if (!given.named.empty())
      return fail(given.named.begin()->second.second,
                  fmt::format("'{}' has no argument '{}'; expected masks", name, given.named.begin()->first));
    Entity result;
    for (const Entity &entity : given.positional)
      result = result.isError() ? entity
                                : binary(name == "and_masks" ? OpKind::BitAnd : OpKind::BitOr, result, entity,
                                         given.range, given.range, given.range);
    return asMask(result) ? result : fail(given.range, fmt::format("'{}' combines masks; expected one or more", name));
  }
  if (name == "remap") {
    value.kind = MaskValueKind::Remap;
    if (!takeArguments(arguments, {"mask", "q", "kv"}, 1, values) || !addOperand(values[0]))
      return {};
    for (size_t i = 1; i < 3; ++i)
      if (!values[i].isError() && !isMapping(values[i]))
        return fail(given.range, fmt::format("remap moves positions by an array or a helper function; '{}' is {}",
                                             i == 1 ? "q" : "kv", describe(values[i])));
    if (values[1].isError() && values[2].isError())
      return fail(given.range, "remap moves nothing; expected q= or kv=");
    value.q = values[1];
    value.kv = values[2];
    return maskEntity(std::move(value));
  }
  if (name == "per_head") {
    value.kind = MaskValueKind::PerHead;
    if (!takeArguments(arguments, {"condition", "mask_if_true", "mask_if_false"}, 3, values) ||
        !addOperand(values[1]) || !addOperand(values[2]))
      return {};
    if (!isMapping(values[0]))
      return fail(given.range, fmt::format("per_head chooses by an array of bools over heads or a "
                                           "helper of the head; this is {}",
                                           describe(values[0])));
    value.condition = values[0];
    return maskEntity(std::move(value));
  }
  value.kind = MaskValueKind::PerDocument;
  if (!takeArguments(arguments, {"mask", "offsets"}, 2, values) || !addOperand(values[0]))
    return {};
  if (values[1].kind != EntityKind::Tensor)
    return fail(given.range,
                fmt::format("per_document takes the array of the documents' offsets; this is {}", describe(values[1])));
  value.condition = values[1];
  return maskEntity(std::move(value));
}

} // namespace cpflex
