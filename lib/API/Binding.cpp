// How arrays and values meet a program's declarations: types are converted, dimensions unified, stated facts verified.
#include "lib/API/cpflex.h"

#include "lib/API/ArrayViews.h"
#include "lib/API/CallParts.h"
#include "runtime/BlockMask/MaskImports.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/contract/NarrowCode.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <thread>

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
    while (position_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[position_])) || text_[position_] == '_'))
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
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; });
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
  return Status::invalid(
      fmt::format("dimension '{}' is {} in {} and {} in {}", name, found->second, origins[name], size, origin));
}

bool isBuiltin(const std::string &name) {
  return std::find(std::begin(kBuiltinDimNames), std::end(kBuiltinDimNames), name) != std::end(kBuiltinDimNames);
}

} // namespace

Binding::Binding() : summaries_(std::make_unique<CaptureSummaries>()) {}

StatusOr<std::shared_ptr<Binding>> Binding::create(const Program &program, const BindRequest &request) {
  const Signature &signature = program.signature();
  std::shared_ptr<Binding> binding(new Binding());
  binding->signature_ = signature;
  binding->stream_ = request.stream;
  std::map<std::string, int64_t> sizes;
  std::map<std::string, std::string> origins;

  // 1. Params, which axes may name.
  for (const auto &[name, text] : request.params)
    if (!program.hasConstant(name) && std::none_of(signature.params.begin(), signature.params.end(),
                                                   [&](const ParamDeclaration &param) { return param.name == name; }))
      return Status::invalid(fmt::format("the program declares no param or const '{}'", name));
  for (const ParamDeclaration &param : signature.params) {
    auto given = request.params.find(param.name);
    if (given == request.params.end() && !param.hasDefault)
      return Status::invalid(fmt::format("param '{}' has no value; expected one, since it has no default", param.name));
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
  const auto isDeclared = [&](const std::string &name) {
    return std::any_of(signature.captures.begin(), signature.captures.end(),
                       [&](const CaptureDeclaration &capture) { return capture.name == name; });
  };
  for (const auto &[name, array] : request.arrays)
    if (!isDeclared(name))
      return Status::invalid(fmt::format("the program declares no array '{}'", name));
  for (const auto &[name, view] : request.views)
    if (!isDeclared(name))
      return Status::invalid(fmt::format("the program declares no array '{}'", name));
  for (const CaptureDeclaration &capture : signature.captures) {
    auto array = request.arrays.find(capture.name);
    auto view = request.views.find(capture.name);
    if (array == request.arrays.end() && view == request.views.end())
      return Status::invalid(fmt::format("array '{}' is not bound; expected one of {} with axes [{}]", capture.name,
                                         toString(capture.type), fmt::join(capture.dims, ", ")));
    const std::vector<int64_t> &shape = view != request.views.end() ? view->second.shape : array->second.shape;
    if (shape.size() != capture.dims.size())
      return Status::invalid(fmt::format("array for '{}' has {} dimensions; expected {}", capture.name, shape.size(),
                                         capture.dims.size()));
    CPFLEX_RETURN_IF_ERROR(
        binding->addSlot(capture, view != request.views.end() ? view->second : viewOfArray(array->second)));
    // A size of 1 fits any built-in dimension by broadcasting, so it fixes none.
    for (size_t axis = 0; axis < capture.dims.size(); ++axis)
      if (isName(capture.dims[axis]) && !(shape[axis] == 1 && isBuiltin(capture.dims[axis])))
        CPFLEX_RETURN_IF_ERROR(
            unify(sizes, origins, capture.dims[axis], shape[axis], fmt::format("axis {} of '{}'", axis, capture.name)));
  }

  // 3. Defaults of the built-in sizes.
  const auto orDefault = [&](const char *name, int64_t value) { return sizes.emplace(name, value).first->second; };
  CallSizes &call = binding->sizes_;
  call.batch = orDefault("B", 1);
  call.heads = orDefault("H", sizes.count("HKV") ? sizes["HKV"] : 1);
  call.kvHeads = orDefault("HKV", call.heads);
  if (!sizes.count("Q_LEN") && !sizes.count("KV_LEN"))
    return Status::invalid(
        "the lengths are unknown; expected that of the queries, or an array with an axis Q_LEN or KV_LEN");
  call.qLen = orDefault("Q_LEN", sizes.count("KV_LEN") ? sizes["KV_LEN"] : 0);
  call.kvLen = orDefault("KV_LEN", call.qLen);
  for (const char *name : {"B", "H", "HKV"})
    if (sizes[name] < 1 || sizes[name] > kMostBatchesOrHeads)
      return Status::invalid(
          fmt::format("dimension '{}' is {}; expected 1 to {}", name, sizes[name], kMostBatchesOrHeads));
  for (const char *name : {"Q_LEN", "KV_LEN"})
    if (sizes[name] < 0 || sizes[name] > kLongestDimension)
      return Status::invalid(
          fmt::format("dimension '{}' is {}; expected 0 to {}", name, sizes[name], kLongestDimension));
  for (const std::string &name : signature.dims) {
    if (!sizes.count(name))
      return Status::invalid(fmt::format("dimension '{}' is fixed by no bound array", name));
    binding->dims_.push_back(sizes[name]);
  }

  // 4. Axes of size 1 are broadcast to built-in dimensions.
  for (size_t slot = 0; slot < signature.captures.size(); ++slot) {
    const CaptureDeclaration &capture = signature.captures[slot];
    CaptureView &view = binding->views_[slot];
    for (int axis = 0; axis < view.rank; ++axis) {
      const std::string &dim = capture.dims[axis];
      std::optional<int64_t> expected = AxisExpression(dim, sizes).value();
      if (!expected)
        return Status::invalid(
            fmt::format("axis {} of '{}' is '{}', which no bound array fixes", axis, capture.name, dim));
      const bool isBroadcast = view.shape[axis] == 1 && isBuiltin(dim);
      if (view.shape[axis] != *expected && !isBroadcast)
        return Status::invalid(fmt::format("axis {} of '{}' has size {}; expected {} = {}", axis, capture.name,
                                           view.shape[axis], dim, *expected));
      if (isBroadcast) {
        view.shape[axis] = *expected;
        view.strides[axis] = 0;
      }
    }
    CPFLEX_RETURN_IF_ERROR(verifyFacts(capture, view));
  }
  binding->bindings_ = {
      .captures = binding->views_.data(), .params = binding->params_.data(), .dims = binding->dims_.data()};
  return binding;
}

Status Binding::addSlot(const CaptureDeclaration &capture, ArrayView source) {
  CPFLEX_RETURN_IF_ERROR(checkView(capture.name, source));
  slots_.push_back({.source = std::move(source), .copy = {}, .shape = {}});
  views_.emplace_back();
  const int slot = int(slots_.size()) - 1;
  CPFLEX_RETURN_IF_ERROR(refresh(slot));
  const Slot &added = slots_.back();
  CaptureView &view = views_.back();
  view.type = capture.type;
  view.rank = int32_t(added.source.shape.size());
  int64_t dense = 1;
  for (int axis = view.rank; axis-- > 0;) {
    view.shape[axis] = added.source.shape[axis];
    view.strides[axis] = added.copy ? dense : added.source.strides[axis];
    dense *= view.shape[axis];
  }
  for (int axis = 0; axis < view.rank; ++axis)
    slots_.back().shape.push_back(view.strides[axis] == 0 ? std::min<int64_t>(view.shape[axis], 1) : view.shape[axis]);
  return Status::ok();
}

Status Binding::refresh(int slot) {
  const CaptureDeclaration &capture = signature_.captures[slot];
  Slot &bound = slots_[slot];
  const ArrayView &source = bound.source;
  const bool isDeclaredType =
      source.type == capture.type || (capture.type == ElementType::BF16 && source.type == ElementType::U16);
  if (isOnHost(source) && isDeclaredType) {
    views_[slot].data = source.data;
    return Status::ok();
  }
  StatusOr<Array> dense = denseCopy(source, stream_);
  if (!dense)
    return dense.status();
  StatusOr<Array> owned = converted(capture, *dense);
  if (!owned)
    return owned.status();
  bound.copy = std::move(*owned);
  views_[slot].data = bound.copy->bytes.data();
  return Status::ok();
}

Status Binding::setVersion(uint64_t version) {
  // Executables of the old version are refused even when a fact does not hold any more.
  version_.store(version, std::memory_order_release);
  summaries_ = std::make_unique<CaptureSummaries>();
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    CPFLEX_RETURN_IF_ERROR(refresh(int(slot)));
    CPFLEX_RETURN_IF_ERROR(verifyFacts(signature_.captures[slot], views_[slot]));
  }
  return Status::ok();
}

ArrayView Binding::hostArray(int slot) const {
  const Slot &bound = slots_[slot];
  ArrayView view = bound.source;
  view.data = views_[slot].data;
  view.type = signature_.captures[slot].type;
  view.device = {DeviceType::Cpu, 0};
  view.owner = nullptr;
  int64_t dense = 1;
  for (size_t axis = view.shape.size(); bound.copy && axis-- > 0;) {
    view.strides[axis] = dense;
    dense *= view.shape[axis];
  }
  return view;
}

StatusOr<int64_t> Binding::dimension(const std::string &name) const {
  for (size_t i = 0; i < signature_.dims.size(); ++i)
    if (signature_.dims[i] == name)
      return dims_[i];
  return Status::invalid(
      fmt::format("the program has no dimension '{}'; expected one of {}", name, fmt::join(signature_.dims, ", ")));
}

StatusOr<Array> documentIdArray(const Program &program, const std::string &capture,
                                const std::vector<int64_t> &cumulativeLengths, int64_t length) {
  const int64_t count = length >= 0 || cumulativeLengths.empty() ? length : cumulativeLengths.back();
  if (count < 0 || count > kLongestDimension)
    return Status::invalid(
        fmt::format("cumulative lengths for '{}' end with {}; expected 0 to {}", capture, count, kLongestDimension));
  StatusOr<std::vector<int32_t>> ids = documentIds(cumulativeLengths, count);
  if (!ids)
    return Status::invalid(fmt::format("cumulative lengths for '{}': {}", capture, ids.status().message()));
  Array array{ElementType::I32, {count}, {}};
  for (const CaptureDeclaration &declared : program.signature().captures)
    if (declared.name == capture && declared.dims.size() > 1)
      array.shape.insert(array.shape.begin(), declared.dims.size() - 1, 1);
  const char *bytes = reinterpret_cast<const char *>(ids->data());
  array.bytes.assign(bytes, bytes + count * int64_t(sizeof(int32_t)));
  return array;
}

BlockMaskOptions blockMaskOptions(const Program &program, const EntryPoint &entry, const Binding &binding,
                                  int64_t tileQ, int64_t tileKV, int threads, const CallPart &part) {
  const CallSizes &sizes = binding.sizes();
  const CallPart whole = withEnds(part, sizes);
  BlockMaskOptions options;
  options.batch = whole.batch.size();
  options.heads = whole.heads.size();
  options.batchOffset = whole.batch.begin;
  options.headOffset = whole.heads.begin;
  options.qLen = whole.q.size();
  options.kvLen = whole.kv.size();
  options.qPositions = positionsOf(whole.q, sizes.qLen);
  options.kvPositions = positionsOf(whole.kv, sizes.kvLen);
  options.tileQ = tileQ;
  options.tileKV = tileKV;
  options.threads = threads > 0 ? threads : std::max(1, int(std::thread::hardware_concurrency()));
  options.summaries = &binding.summaries();
  options.declarations = program.signature().captures;
  options.residuals = entry.residuals;
  return options;
}

StatusOr<BlockMaskResult> buildBlockMask(const Program &program, const EntryPoint &entry, const Binding &binding,
                                         int64_t tileQ, int64_t tileKV, int threads, const CallPart &part) {
  CPFLEX_RETURN_IF_ERROR(checkPart(part, binding.sizes()));
  return buildBlockMask(entry.hasMask ? &entry.tape : nullptr, binding.bindings(),
                        blockMaskOptions(program, entry, binding, tileQ, tileKV, threads, part));
}

} // namespace cpflex
