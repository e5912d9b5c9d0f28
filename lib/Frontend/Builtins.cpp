// The built-in functions, also by their names in PyTorch and as methods.
#include "lib/Frontend/ImporterState.h"

#include <fmt/format.h>

#include <limits>
#include <numbers>

#include <algorithm>

namespace cpflex {

using namespace ast;

namespace {

struct UnaryFunction {
  std::string_view name;
  Operation operation;
};
constexpr UnaryFunction kUnaryFunctions[] = {
    {"exp", Operation::Exp},     {"exp2", Operation::Exp2},  {"log", Operation::Log},
    {"log1p", Operation::Log1p}, {"tanh", Operation::Tanh},  {"sqrt", Operation::Sqrt},
    {"rsqrt", Operation::Rsqrt}, {"sin", Operation::Sin},    {"sigmoid", Operation::Sigmoid},
    {"cos", Operation::Cos},     {"floor", Operation::Floor}};

struct OperatorName {
  std::string_view name;
  OpKind op;
};
// Functions of PyTorch that are operators of the language.
constexpr OperatorName kOperatorNames[] = {{"add", OpKind::Add},
                                           {"sub", OpKind::Sub},
                                           {"subtract", OpKind::Sub},
                                           {"mul", OpKind::Mul},
                                           {"multiply", OpKind::Mul},
                                           {"div", OpKind::Div},
                                           {"true_divide", OpKind::Div},
                                           {"floor_divide", OpKind::FloorDiv},
                                           {"remainder", OpKind::Mod},
                                           {"bitwise_and", OpKind::BitAnd},
                                           {"bitwise_or", OpKind::BitOr},
                                           {"bitwise_xor", OpKind::BitXor},
                                           {"bitwise_left_shift", OpKind::Shl},
                                           {"bitwise_right_shift", OpKind::Shr},
                                           {"logical_and", OpKind::BitAnd},
                                           {"logical_or", OpKind::BitOr},
                                           {"logical_xor", OpKind::BitXor},
                                           {"eq", OpKind::Eq},
                                           {"ne", OpKind::Ne},
                                           {"lt", OpKind::Lt},
                                           {"le", OpKind::Le},
                                           {"gt", OpKind::Gt},
                                           {"ge", OpKind::Ge},
                                           {"less", OpKind::Lt},
                                           {"less_equal", OpKind::Le},
                                           {"greater", OpKind::Gt},
                                           {"greater_equal", OpKind::Ge},
                                           {"not_equal", OpKind::Ne}};

// Members of torch and math that are built-in functions, by our name.
constexpr std::pair<std::string_view, std::string_view> kLibraryFunctions[] = {{"abs", "abs"},
                                                                               {"absolute", "abs"},
                                                                               {"fabs", "abs"},
                                                                               {"minimum", "minimum"},
                                                                               {"maximum", "maximum"},
                                                                               {"min", "minimum"},
                                                                               {"max", "maximum"},
                                                                               {"clamp", "clamp"},
                                                                               {"clip", "clamp"},
                                                                               {"where", "where"},
                                                                               {"pow", "pow"},
                                                                               {"exp", "exp"},
                                                                               {"exp2", "exp2"},
                                                                               {"log", "log"},
                                                                               {"log1p", "log1p"},
                                                                               {"tanh", "tanh"},
                                                                               {"sigmoid", "sigmoid"},
                                                                               {"sqrt", "sqrt"},
                                                                               {"rsqrt", "rsqrt"},
                                                                               {"sin", "sin"},
                                                                               {"cos", "cos"},
                                                                               {"floor", "floor"},
                                                                               {"logical_not", "logical_not"},
                                                                               {"bitwise_not", "bitwise_not"},
                                                                               {"neg", "neg"},
                                                                               {"negative", "neg"},
                                                                               {"square", "square"},
                                                                               {"zeros_like", "zeros_like"},
                                                                               {"ones_like", "ones_like"},
                                                                               {"full_like", "full_like"},
                                                                               {"as_tensor", "as_tensor"},
                                                                               {"tensor", "as_tensor"},
                                                                               {"and_masks", "and_masks"},
                                                                               {"or_masks", "or_masks"}};

constexpr std::pair<std::string_view, ValueType> kLibraryTypes[] = {
    {"float32", ValueType::Float}, {"float", ValueType::Float}, {"int32", ValueType::Int}, {"int64", ValueType::Int},
    {"int", ValueType::Int},       {"long", ValueType::Int},    {"bool", ValueType::Bool}, {"uint32", ValueType::U32}};

template <typename List> auto findEntry(const List &list, std::string_view name) {
  return std::find_if(std::begin(list), std::end(list), [&](const auto &entry) { return entry.first == name; });
}

} // namespace

Entity Importer::libraryMember(const std::string &library, const std::string &member, SourceRange range) {
  Entity entity;
  entity.name = member;
  if (member == "inf" || member == "pi") {
    entity.kind = EntityKind::Scalar;
    entity.type = ValueType::Float;
    entity.constant =
        Constant::ofFloat(member == "inf" ? std::numeric_limits<float>::infinity() : std::numbers::pi_v<float>);
    return entity;
  }
  if (auto type = findEntry(kLibraryTypes, member); type != std::end(kLibraryTypes)) {
    entity.kind = EntityKind::Type;
    entity.type = type->second;
    return entity;
  }
  if (member == "float16" || member == "bfloat16" || member == "half" || member == "float64" || member == "double")
    return fail(range, fmt::format("'{}.{}' is not a type of values; floats are 32 bits wide, write float(...)",
                                   library, member));
  entity.kind = EntityKind::Builtin;
  if (auto function = findEntry(kLibraryFunctions, member); function != std::end(kLibraryFunctions)) {
    entity.name = std::string(function->second);
    return entity;
  }
  for (const OperatorName &entry : kOperatorNames)
    if (entry.name == member)
      return entity;
  if (member == "nn" || member == "special" || member == "attention" || member == "flex_attention" ||
      member == "functional") {
    entity.kind = EntityKind::Library;
    entity.name = library;
    return entity;
  }
  if (std::string message = foreignNameMessage(member); !message.empty())
    return fail(range, std::move(message));
  if (member == "any" || member == "all" || member == "sum")
    return fail(range, fmt::format("'{0}.{1}' runs over an array; write {1}(... for i in range(n))", library, member));
  std::vector<std::string> names;
  for (const auto &entry : kLibraryFunctions)
    names.emplace_back(entry.first);
  return fail(range, fmt::format("'{}.{}' is not among the functions that the language knows by that name{}", library,
                                 member, suggestion(member, names)));
}

Entity Importer::callMethod(Entity base, const Expr &expr) {
  const Expr &callee = *expr.operands[0];
  const std::string &name = callee.name;
  std::optional<Arguments> arguments = evaluateArguments(expr, name, 1);
  if (!arguments)
    return {};
  if (base.kind == EntityKind::Tensor && name == "size") {
    const std::vector<size_t> axes = freeAxes(base);
    bool isAxis = arguments->positional.size() == 1 && arguments->positional[0].isConstant() &&
                  arguments->positional[0].constant->bits >= 0 &&
                  size_t(arguments->positional[0].constant->bits) < axes.size();
    return isAxis ? dimensionValue(*base.tensor, axes[size_t(arguments->positional[0].constant->bits)], expr.range)
                  : fail(expr.range, "size(...) takes the number of an axis");
  }
  if (std::string message = foreignNameMessage(name); !message.empty())
    return fail(callee.opRange, std::move(message));
  const bool isNumber = base.isScalar() && base.type != ValueType::Bool;
  if (isNumber && arguments->positional.empty() && (name == "sum" || name == "max" || name == "min"))
    return fail(callee.opRange, rowStatisticMessage(name));
  if (name == "any" || name == "all" || name == "sum")
    return fail(callee.opRange, fmt::format("'.{}()' is not part of the language; write {}(... for "
                                            "i in range(n)), or 'x in array[i, :]'",
                                            name, name));
  if (name.ends_with('_') && !name.ends_with("__"))
    return fail(callee.opRange,
                fmt::format("'.{0}(...)' changes a value in place; values do not change here, bind a name to "
                            "the new one, as in 'x = x.{1}(...)'",
                            name, name.substr(0, name.size() - 1)));
  if (base.kind == EntityKind::Tensor && base.elements.size() < base.tensor->dims.size())
    return fail(callee.opRange,
                fmt::format("array '{}' has no method '{}'; arrays are used as they are bound, index it first",
                            base.tensor->name, name));
  base = toScalar(base, callee.operands[0]->range);
  if (base.isError())
    return {};
  if (name == "item" || name == "contiguous" || name == "detach")
    return base;
  if (name == "to" || name == "type" || name == "type_as") {
    if (arguments->positional.size() == 1 && arguments->named.empty()) {
      const Entity &type = arguments->positional[0];
      if (type.kind == EntityKind::Type || (name == "type_as" && type.isScalar()))
        return callWithArguments(typeName(type.type), expr,
                                 {{base}, {callee.operands[0]->range}, {}, expr.range, typeName(type.type)});
    }
    return fail(expr.range, "'.to(...)' takes a type: torch.float32, torch.int32, torch.int64 or torch.bool");
  }
  auto type = name == "long" ? std::optional(ValueType::Int) : valueTypeNamed(name);
  auto function = findEntry(kLibraryFunctions, name);
  bool isOperator = std::any_of(std::begin(kOperatorNames), std::end(kOperatorNames),
                                [&](const OperatorName &entry) { return entry.name == name; });
  bool isKnown =
      type || isOperator || (function != std::end(kLibraryFunctions) && name != "tensor" && !name.ends_with("_masks"));
  if (!isKnown) {
    std::vector<std::string> names;
    for (const auto &entry : kLibraryFunctions)
      names.emplace_back(entry.first);
    return fail(callee.opRange, fmt::format("{} has no method '{}'{}", describe(base), name, suggestion(name, names)));
  }
  std::string target = type ? typeName(*type) : isOperator ? name : std::string(function->second);
  arguments->positional.insert(arguments->positional.begin(), base);
  arguments->ranges.insert(arguments->ranges.begin(), callee.operands[0]->range);
  if (target == "where" && arguments->positional.size() == 3)
    std::swap(arguments->positional[0], arguments->positional[1]);
  return callWithArguments(target, expr, std::move(*arguments));
}

Entity Importer::foldPairwise(const std::string &name, const std::vector<Entity> &values, SourceRange range) {
  Entity result;
  for (const Entity &element : values) {
    Entity value = toScalar(element, range);
    if (value.isError())
      return {};
    if (name == "any" || name == "all") {
      value = toBool(value, range, fmt::format("'{}'", name));
      if (value.isError())
        return {};
      result = result.isError() ? value : emit(name == "any" ? Operation::Or : Operation::And, {result, value}, range);
      continue;
    }
    if (value.type == ValueType::Bool)
      return fail(range, fmt::format("'{}' works on numbers; this is a bool, write int(...) around it", name));
    if (result.isError()) {
      result = value;
      continue;
    }
    if (!unify(result, value, range, fmt::format("'{}'", name)))
      return {};
    result = emit(name == "sum"   ? Operation::Add
                  : name == "min" ? Operation::Min
                                  : Operation::Max,
                  {result, value}, range);
    if (result.isError())
      return {};
  }
  return result.isError() ? fail(range, fmt::format("'{}' of nothing", name)) : result;
}

Entity Importer::clampTo(const Entity &value, const Entity *lo, const Entity *hi, SourceRange range) {
  Entity result = value;
  if (lo)
    result = foldPairwise("max", {result, *lo}, range);
  if (hi && !result.isError())
    result = foldPairwise("min", {result, *hi}, range);
  return result;
}

// unravel(i, (T, H, W)): the coordinates of the i-th element of a grid, the last axis fastest.
Entity Importer::unravel(const Arguments &given) {
  Arguments arguments = given;
  std::vector<Entity> values;
  if (!takeArguments(arguments, {"index", "shape"}, 2, values))
    return {};
  Entity rest = toInt(values[0], given.range, "an index");
  const Entity &shape = values[1];
  if (rest.isError())
    return {};
  if (shape.kind != EntityKind::Tuple || shape.elements.empty())
    return fail(given.range, "unravel(index, shape) takes a tuple of sizes, as in unravel(q, (T, Hh, Ww))");
  Entity result = shape;
  for (size_t axis = shape.elements.size(); axis-- > 0;) {
    Entity size = toInt(shape.elements[axis], given.range, "a size");
    if (size.isError())
      return {};
    if (size.isConstant() && size.constant->bits <= 0)
      return fail(given.range, fmt::format("size {} of axis {}; expected 1 or more", size.constant->bits, axis));
    result.elements[axis] = axis ? emit(Operation::Mod, {rest, size}, given.range) : rest;
    if (axis)
      rest = emit(Operation::FloorDiv, {rest, size}, given.range);
  }
  return result;
}

Entity Importer::ravel(const Arguments &given) {
  Arguments arguments = given;
  std::vector<Entity> values;
  if (!takeArguments(arguments, {"coordinates", "shape"}, 2, values))
    return {};
  bool isPair = values[0].kind == EntityKind::Tuple && values[1].kind == EntityKind::Tuple &&
                !values[0].elements.empty() && values[0].elements.size() == values[1].elements.size();
  if (!isPair)
    return fail(given.range, "ravel(coordinates, shape) takes two tuples of one length, as in ravel((y, x), (Hh, Ww))");
  Entity result;
  for (size_t axis = 0; axis < values[0].elements.size(); ++axis) {
    Entity coordinate = toInt(values[0].elements[axis], given.range, "a coordinate");
    Entity size = toInt(values[1].elements[axis], given.range, "a size");
    if (coordinate.isError() || size.isError())
      return {};
    result = axis == 0
                 ? coordinate
                 : emit(Operation::Add, {emit(Operation::Mul, {result, size}, given.range), coordinate}, given.range);
  }
  return result;
}

Entity Importer::callWithArguments(const std::string &name, const Expr &expr, Arguments arguments) {
  SourceRange range = expr.range;
  if (name == "remap" || name == "per_head" || name == "per_document" || name.ends_with("_masks"))
    return callMaskCombinator(name, arguments);
  if (name == "unravel")
    return unravel(arguments);
  if (name == "ravel")
    return ravel(arguments);
  std::vector<Entity> values;
  auto scalarAt = [&](size_t i) {
    return values[i] = toScalar(values[i], i < arguments.ranges.size() ? arguments.ranges[i] : range);
  };
  if (name == "min" || name == "max" || name == "any" || name == "all" || name == "sum" || name == "minimum" ||
      name == "maximum") {
    std::string kind = name.substr(0, 3);
    if (arguments.named.contains("dim") || arguments.named.contains("axis"))
      return fail(range, rowStatisticMessage(kind));
    bool isTuple = arguments.positional.size() == 1 && arguments.positional[0].kind == EntityKind::Tuple;
    if (!arguments.named.empty())
      return fail(arguments.named.begin()->second.second,
                  fmt::format("'{}' has no argument '{}'", name, arguments.named.begin()->first));
    bool isVariadic = kind == "min" || kind == "max";
    if (!isTuple && arguments.positional.size() < (isVariadic ? 2 : SIZE_MAX))
      return fail(range, isVariadic ? fmt::format("'{}' takes two or more values, a tuple or a generator", kind)
                                    : fmt::format("'{}' takes a generator or a tuple, as in {}(... for i in range(n))",
                                                  kind, kind));
    return foldPairwise(kind, isTuple ? arguments.positional[0].elements : arguments.positional, range);
  }
  if (name == "clamp") {
    bool hasMinMax = arguments.named.contains("min") || arguments.named.contains("max");
    bool isTaken = hasMinMax ? takeArguments(arguments, {"x", "min", "max"}, 1, values)
                             : takeArguments(arguments, {"x", "lo", "hi"}, 1, values);
    if (!isTaken)
      return {};
    auto given = [&](size_t i) {
      return values[i].isError() || values[i].kind == EntityKind::None ? nullptr : &values[i];
    };
    if (!given(1) && !given(2))
      return fail(range, "'clamp' needs a lower or an upper bound");
    return clampTo(values[0], given(1), given(2), range);
  }
  if (name == "where") {
    if (!takeArguments(arguments, {"condition", "x", "y"}, 3, values))
      return {};
    Entity condition = toBool(values[0], arguments.ranges.empty() ? range : arguments.ranges[0], "'where'");
    if (condition.isError())
      return {};
    return select(condition, values[1], values[2], range);
  }
  if (name == "pow") {
    if (!takeArguments(arguments, {"x", "exponent"}, 2, values))
      return {};
    return binary(OpKind::Pow, values[0], values[1], range, range, range);
  }
  for (const OperatorName &entry : kOperatorNames) {
    if (entry.name != name)
      continue;
    if (!takeArguments(arguments, {"x", "other"}, 2, values))
      return {};
    if (name.starts_with("logical_"))
      for (size_t i = 0; i < 2; ++i)
        if (scalarAt(i); !values[i].isError())
          values[i] = convert(values[i], ValueType::Bool, range);
    return entry.op >= OpKind::Eq ? compare(entry.op, values[0], values[1], range)
                                  : binary(entry.op, values[0], values[1], range, range, range);
  }
  if (name == "full_like") {
    if (!takeArguments(arguments, {"x", "value", "dtype", "device"}, 2, values))
      return {};
    return scalarAt(1);
  }
  if (name == "zeros_like" || name == "ones_like") {
    if (!takeArguments(arguments, {"x", "dtype", "device"}, 1, values) || scalarAt(0).isError())
      return {};
    Entity result;
    result.kind = EntityKind::Scalar;
    result.constant = Constant::ofInt(name == "ones_like");
    return convert(result, values[1].kind == EntityKind::Type ? values[1].type : values[0].type, range);
  }
  // What remains has one argument; conversions of PyTorch may name a type and a device.
  bool isConversion = name == "as_tensor";
  if (!(isConversion ? takeArguments(arguments, {"x", "dtype", "device"}, 1, values)
                     : takeArguments(arguments, {"x"}, 1, values)))
    return {};
  if (name == "float" && values[0].kind == EntityKind::Text) {
    std::string text = values[0].name;
    bool isNegative = text.starts_with('-');
    if (text.starts_with('-') || text.starts_with('+'))
      text.erase(0, 1);
    if (text != "inf" && text != "infinity" && text != "Infinity")
      return fail(range, fmt::format("float(\"{}\") is not part of the language; expected \"inf\" or \"-inf\"",
                                     values[0].name.substr(0, 40)));
    Entity result;
    result.kind = EntityKind::Scalar;
    result.type = ValueType::Float;
    result.constant = Constant::ofFloat(isNegative ? -std::numeric_limits<float>::infinity()
                                                   : std::numeric_limits<float>::infinity());
    return result;
  }
  Entity value = scalarAt(0);
  if (value.isError())
    return {};
  if (isConversion)
    return values[1].kind == EntityKind::Type ? convert(value, values[1].type, range) : value;
  if (std::optional<ValueType> type = valueTypeNamed(name))
    return convert(value, *type, range);
  if (name == "logical_not")
    return emit(Operation::Not, {convert(value, ValueType::Bool, range)}, range);
  if (name == "bitwise_not" && value.type != ValueType::Float)
    return emit(Operation::Not, {value}, range);
  if (value.type == ValueType::Bool)
    return fail(range, fmt::format("'{}' works on numbers; this is a bool, write int(...) around it", name));
  if (name == "square")
    return emit(Operation::Mul, {value, value}, range);
  if (name == "neg")
    return emit(Operation::Neg, {value}, range);
  if (name == "abs")
    return emit(Operation::Abs, {value}, range);
  if (name == "ilog2") {
    if (value.type == ValueType::Float)
      return fail(range, "'ilog2' works on ints; this is a float");
    return emit(Operation::ILog2, {value}, range);
  }
  if (name == "floor" && value.type != ValueType::Float)
    return value;
  for (const UnaryFunction &function : kUnaryFunctions)
    if (function.name == name)
      return emit(function.operation, {convert(value, ValueType::Float, range)}, range);
  return fail(range, fmt::format("'{}' cannot be called here", name));
}

} // namespace cpflex
