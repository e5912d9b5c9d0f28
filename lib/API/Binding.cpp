// How arrays and values meet a program's declarations: types are converted, dimensions unified, stated facts verified.
#include "lib/API/cpflex.h"

#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/contract/NarrowCode.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

namespace cpflex {

namespace {

constexpr const char *kBuiltinDimNames[] = {"B", "H", "HKV", "Q_LEN", "KV_LEN"};

// The value of an axis as the importer writes it: ints, names, + - * // % and parentheses. Nothing until every name of
// it is known.
class AxisExpression {
public:
  AxisExpression(std::string_view text, const std::map<std::string, int64_t> &names) : text_(text), names_(names) {}

  std::optional<int64_t> value() {
    std::optional<int64_t> result = sum();
    skipSpaces();
    return position_ == text_.size() ? result : std::nullopt;
  }

private:
  void skipSpaces() {
    while (position_ < text_.size() && text_[position_] == ' ')
      ++position_;
  }
  bool take(std::string_view token) {
    skipSpaces();
    if (text_.substr(position_, token.size()) != token)
      return false;
    position_ += token.size();
    return true;
  }
  std::optional<int64_t> sum() {
    std::optional<int64_t> left = product();
    while (left) {
      const bool isAdded = take("+");
      if (!isAdded && !take("-"))
        break;
      std::optional<int64_t> right = product();
      if (!right)
        return std::nullopt;
      left = isAdded ? *left + *right : *left - *right;
    }
    return left;
  }
  std::optional<int64_t> product() {
    std::optional<int64_t> left = atom();
    while (left) {
      const char operation = take("*") ? '*' : take("//") ? '/' : take("%") ? '%' : 0;
      if (!operation)
        break;
      std::optional<int64_t> right = atom();
      if (!right)
        return std::nullopt;
      const ScalarSlot operands[2] = {*left, *right};
      left = applyOperation(operation == '*'   ? Operation::Mul
                            : operation == '/' ? Operation::FloorDiv
                                               : Operation::Mod,
                            ValueType::Int, operands);
    }
    return left;
  }
  std::optional<int64_t> atom() {
    if (take("(")) {
      std::optional<int64_t> inner = sum();
      return take(")") ? inner : std::nullopt;
    }
    if (take("-")) {
      std::optional<int64_t> inner = atom();
      return inner ? std::optional(-*inner) : std::nullopt;
    }
    skipSpaces();
    const size_t begin = position_;
    while (position_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[position_])) || text_[position_] == '_'))
      ++position_;
    const std::string_view word = text_.substr(begin, position_ - begin);
    if (word.empty())
      return std::nullopt;
    int64_t literal = 0;
    if (auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), literal);
        error == std::errc() && end == word.data() + word.size())
      return literal;
    auto found = names_.find(std::string(word));
    return found == names_.end() ? std::nullopt : std::optional(found->second);
  }

  std::string_view text_;
  const std::map<std::string, int64_t> &names_;
  size_t position_ = 0;
};

bool isName(const std::string &text) {
  return !text.empty() && !std::isdigit(static_cast<unsigned char>(text[0])) &&
         std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '_'; });
}

bool isFloat(ElementType type) {
  return type == ElementType::F16 || type == ElementType::BF16 || type == ElementType::F32;
}

// Smallest and largest value that an integer element type holds; u64 keeps its bits.
std::pair<int64_t, int64_t> boundsOf(ElementType type) {
  switch (type) {
  case ElementType::Bool: return {0, 1};
  case ElementType::I8: return {INT8_MIN, INT8_MAX};
  case ElementType::I16: return {INT16_MIN, INT16_MAX};
  case ElementType::I32: return {INT32_MIN, INT32_MAX};
  case ElementType::U8: return {0, UINT8_MAX};
  case ElementType::U16: return {0, UINT16_MAX};
  case ElementType::U32: return {0, UINT32_MAX};
  default: return {INT64_MIN, INT64_MAX};
  }
}

// The array with the declared element type. Integers convert where every value fits, floats to wider floats.
StatusOr<Array> converted(const CaptureDeclaration &declaration, const Array &array) {
  if (array.type == declaration.type)
    return array;
  if (declaration.type == ElementType::BF16 && array.type == ElementType::U16) {
    Array bits = array;
    bits.type = ElementType::BF16;
    return bits;
  }
  const auto mismatch = [&] {
    return Status::invalid(fmt::format("array for '{}' has elements of type {}; expected {}", declaration.name,
                                       toString(array.type), toString(declaration.type)));
  };
  if (isFloat(array.type) != isFloat(declaration.type) || (isFloat(array.type) && declaration.type != ElementType::F32))
    return mismatch();
  CaptureView view;
  view.data = array.bytes.data();
  view.type = array.type;
  Array result{declaration.type, array.shape, {}};
  const int64_t count = array.numElements(), size = sizeInBytes(declaration.type);
  result.bytes.resize(count * size);
  const ValueType valueType = isFloat(array.type) ? ValueType::Float : ValueType::Int;
  const auto [lowest, highest] = boundsOf(declaration.type);
  for (int64_t i = 0; i < count; ++i) {
    const ScalarSlot value = readElement(view, i, valueType);
    if (valueType == ValueType::Int && (value < lowest || value > highest))
      return Status::invalid(fmt::format("array for '{}' holds {} at element {}, which does not fit {}",
                                         declaration.name, value, i, toString(declaration.type)));
    std::memcpy(&result.bytes[i * size], &value, size);
  }
  return result;
}

StatusOr<ScalarSlot> parseParam(const ParamDeclaration &param, const std::string &text) {
  const auto wrong = [&](const char *expected) {
    return Status::invalid(fmt::format("value of '{}' is '{}'; expected {}", param.name, text, expected));
  };
  const char *begin = text.data(), *end = begin + text.size();
  if (param.type == ValueType::Bool) {
    if (text == "True" || text == "true" || text == "1")
      return ScalarSlot(1);
    if (text == "False" || text == "false" || text == "0")
      return ScalarSlot(0);
    return wrong("True or False");
  }
  if (param.type == ValueType::Float) {
    float value = 0;
    auto [stop, error] = std::from_chars(begin, end, value);
    if (error != std::errc() || stop != end)
      return wrong("a number");
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return ScalarSlot(bits);
  }
  int64_t value = 0;
  auto [stop, error] = std::from_chars(begin, end, value);
  if (error != std::errc() || stop != end)
    return wrong("a whole number");
  if (param.type == ValueType::U32 && (value < 0 || value > int64_t(UINT32_MAX)))
    return wrong("a whole number from 0 to 4294967295");
  return ScalarSlot(value);
}

// Gives `name` the value `size`, or says that it already has another one.
Status unify(std::map<std::string, int64_t> &sizes, std::map<std::string, std::string> &origins,
             const std::string &name, int64_t size, const std::string &origin) {
  auto [found, isAdded] = sizes.emplace(name, size);
  if (isAdded)
    origins[name] = origin;
  if (found->second == size)
    return Status::ok();
  return Status::invalid(fmt::format("dimension '{}' is {} in {} and {} in {}", name, found->second, origins[name],
                                     size, origin));
}

bool isBuiltin(const std::string &name) {
  return std::find(std::begin(kBuiltinDimNames), std::end(kBuiltinDimNames), name) != std::end(kBuiltinDimNames);
}

} // namespace

StatusOr<std::shared_ptr<const Binding>> Binding::create(const Program &program, const BindRequest &request) {
  const Signature &signature = program.signature();
  std::shared_ptr<Binding> binding(new Binding());
  std::map<std::string, int64_t> sizes;
  std::map<std::string, std::string> origins;

  // 1. Params, which axes may name.
  for (const auto &[name, text] : request.params)
    if (!program.hasConstant(name) &&
        std::none_of(signature.params.begin(), signature.params.end(),
                     [&](const ParamDeclaration &param) { return param.name == name; }))
      return Status::invalid(fmt::format("the program declares no param or const '{}'", name));
  for (const ParamDeclaration &param : signature.params) {
    auto given = request.params.find(param.name);
    if (given == request.params.end() && !param.hasDefault)
      return Status::invalid(fmt::format("param '{}' has no value; give one with -D {}=VALUE", param.name, param.name));
    StatusOr<ScalarSlot> value =
        given == request.params.end() ? StatusOr<ScalarSlot>(param.defaultValue) : parseParam(param, given->second);
    if (!value)
      return value.status();
    binding->params_.push_back(*value);
    if (param.type == ValueType::Int) {
      sizes[param.name] = *value;
      origins[param.name] = "its value";
    }
  }

  // 2. Given lengths, then the arrays' axes.
  const int64_t given[] = {request.sizes.batch, request.sizes.heads, request.sizes.kvHeads, request.sizes.qLen,
                           request.sizes.kvLen};
  for (int i = 0; i < kNumBuiltinDims; ++i)
    if (given[i] >= 0)
      CPFLEX_RETURN_IF_ERROR(unify(sizes, origins, kBuiltinDimNames[i], given[i], "the call"));
  for (const auto &[name, array] : request.arrays)
    if (std::none_of(signature.captures.begin(), signature.captures.end(),
                     [&](const CaptureDeclaration &capture) { return capture.name == name; }))
      return Status::invalid(fmt::format("the program declares no array '{}'", name));
  for (const CaptureDeclaration &capture : signature.captures) {
    auto found = request.arrays.find(capture.name);
    if (found == request.arrays.end())
      return Status::invalid(fmt::format("array '{}' is not bound; give one with --bind {}=FILE.npy", capture.name,
                                         capture.name));
    const Array &array = found->second;
    if (array.shape.size() != capture.dims.size())
      return Status::invalid(fmt::format("array for '{}' has {} dimensions; expected {}", capture.name,
                                         array.shape.size(), capture.dims.size()));
    StatusOr<Array> owned = converted(capture, array);
    if (!owned)
      return owned.status();
    binding->arrays_.push_back(std::move(*owned));
    // A size of 1 fits any built-in dimension by broadcasting, so it fixes none.
    for (size_t axis = 0; axis < capture.dims.size(); ++axis)
      if (isName(capture.dims[axis]) && !(array.shape[axis] == 1 && isBuiltin(capture.dims[axis])))
        CPFLEX_RETURN_IF_ERROR(unify(sizes, origins, capture.dims[axis], array.shape[axis],
                                     fmt::format("axis {} of '{}'", axis, capture.name)));
  }

  // 3. Defaults of the built-in sizes.
  const auto orDefault = [&](const char *name, int64_t value) { return sizes.emplace(name, value).first->second; };
  CallSizes &call = binding->sizes_;
  call.batch = orDefault("B", 1);
  call.heads = orDefault("H", sizes.count("HKV") ? sizes["HKV"] : 1);
  call.kvHeads = orDefault("HKV", call.heads);
  if (!sizes.count("Q_LEN") && !sizes.count("KV_LEN"))
    return Status::invalid("the lengths are unknown; give --q-len and, where it differs, --kv-len");
  call.qLen = orDefault("Q_LEN", sizes.count("KV_LEN") ? sizes["KV_LEN"] : 0);
  call.kvLen = orDefault("KV_LEN", call.qLen);
  for (const char *name : {"B", "H", "HKV"})
    if (sizes[name] < 1 || sizes[name] > kMostBatchesOrHeads)
      return Status::invalid(fmt::format("dimension '{}' is {}; expected 1 to {}", name, sizes[name],
                                         kMostBatchesOrHeads));
  for (const char *name : {"Q_LEN", "KV_LEN"})
    if (sizes[name] < 0 || sizes[name] > kLongestDimension)
      return Status::invalid(fmt::format("dimension '{}' is {}; expected 0 to {}", name, sizes[name],
                                         kLongestDimension));
  for (const std::string &name : signature.dims) {
    if (!sizes.count(name))
      return Status::invalid(fmt::format("dimension '{}' is fixed by no bound array", name));
    binding->dims_.push_back(sizes[name]);
  }

  // 4. Views, broadcasting axes of size 1 to built-in dimensions.
  for (size_t slot = 0; slot < signature.captures.size(); ++slot) {
    const CaptureDeclaration &capture = signature.captures[slot];
    const Array &array = binding->arrays_[slot];
    CaptureView view;
    view.data = array.bytes.data();
    view.type = array.type;
    view.rank = int32_t(array.shape.size());
    int64_t stride = 1;
    for (size_t axis = array.shape.size(); axis-- > 0;) {
      const std::string &dim = capture.dims[axis];
      std::optional<int64_t> expected = AxisExpression(dim, sizes).value();
      if (!expected)
        return Status::invalid(fmt::format("axis {} of '{}' is '{}', which no bound array fixes", axis, capture.name, dim));
      const bool isBroadcast = array.shape[axis] == 1 && isBuiltin(dim);
      if (array.shape[axis] != *expected && !isBroadcast)
        return Status::invalid(fmt::format("axis {} of '{}' has size {}; expected {} = {}", axis, capture.name,
                                           array.shape[axis], dim, *expected));
      view.shape[axis] = isBroadcast ? *expected : array.shape[axis];
      view.strides[axis] = isBroadcast ? 0 : stride;
      stride *= array.shape[axis];
    }
    CPFLEX_RETURN_IF_ERROR(verifyFacts(capture, view));
    binding->views_.push_back(view);
  }
  binding->bindings_ = {.captures = binding->views_.data(),
                        .params = binding->params_.data(),
                        .dims = binding->dims_.data()};
  return std::shared_ptr<const Binding>(std::move(binding));
}

BlockMaskOptions blockMaskOptions(const Program &program, const EntryPoint &entry, const Binding &binding,
                                  int64_t tileQ, int64_t tileKV, int threads) {
  BlockMaskOptions options;
  options.batch = binding.sizes().batch;
  options.heads = binding.sizes().heads;
  options.qLen = binding.sizes().qLen;
  options.kvLen = binding.sizes().kvLen;
  options.tileQ = tileQ;
  options.tileKV = tileKV;
  options.threads = threads;
  options.summaries = &binding.summaries();
  options.declarations = program.signature().captures;
  options.residuals = entry.residuals;
  return options;
}

StatusOr<BlockMaskResult> buildBlockMask(const Program &program, const EntryPoint &entry, const Binding &binding,
                                         int64_t tileQ, int64_t tileKV, int threads) {
  return buildBlockMask(entry.hasMask ? &entry.tape : nullptr, binding.bindings(),
                        blockMaskOptions(program, entry, binding, tileQ, tileKV, threads));
}

} // namespace cpflex
