// The names that the language knows by itself, and what to say about names of Python and PyTorch
// that it leaves out.
#include "lib/Frontend/ImporterState.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

namespace {

constexpr std::string_view kBuiltinDimensions[] = {"B", "H", "HKV", "Q_LEN", "KV_LEN"};

constexpr std::string_view kBuiltinFunctions[] = {
    "abs",   "all",   "any",     "and_masks", "or_masks",     "attention", "bool", "clamp", "cos",     "exp",
    "exp2",  "float", "floor",   "ilog2",     "inf",          "int",       "log",  "log1p", "mask",    "max",
    "min",   "param", "const",   "tensor",    "per_document", "per_head",  "pow",  "range", "ravel",   "remap",
    "rsqrt", "score", "sigmoid", "sin",       "sqrt",         "sum",       "tanh", "u32",   "unravel", "where"};

constexpr std::pair<std::string_view, ValueType> kTypeNames[] = {
    {"int", ValueType::Int},   {"i32", ValueType::Int},   {"i64", ValueType::Int}, {"float", ValueType::Float},
    {"f32", ValueType::Float}, {"bool", ValueType::Bool}, {"u32", ValueType::U32}};
// What needs more than one pair's score.
constexpr std::string_view kRowStatistics[] = {
    "softmax", "log_softmax", "logsumexp", "mean",       "std",    "var",      "norm",
    "topk",    "sort",        "argsort",   "argmax",     "argmin", "amax",     "amin",
    "median",  "kthvalue",    "normalize", "layer_norm", "prod",   "quantile", "flip"};
constexpr std::string_view kScans[] = {"cumsum",       "cumprod", "cummax", "cummin",
                                       "logcumsumexp", "roll",    "diff",   "conv1d"};
constexpr std::string_view kRandom[] = {"rand",      "randn",   "randint",     "rand_like", "randn_like",
                                        "bernoulli", "dropout", "multinomial", "random"};
constexpr std::string_view kPythonModules[] = {
    "os",          "sys",         "random",     "functools",    "typing", "itertools", "time",
    "json",        "re",          "subprocess", "ctypes",       "jax",    "triton",    "einops",
    "collections", "dataclasses", "pathlib",    "transformers", "copy",   "operator",  "abc"};
// Functions of PyTorch and Python that a few words replace.
constexpr std::pair<std::string_view, std::string_view> kWrittenOtherwise[] = {
    {"relu", "max(x, 0.0)"},
    {"leaky_relu", "where(x > 0, x, slope * x)"},
    {"silu", "x * sigmoid(x)"},
    {"gelu", "it with tanh"},
    {"softplus", "log1p(exp(x))"},
    {"logsigmoid", "log(sigmoid(x))"},
    {"sign", "where(x > 0, 1, where(x < 0, -1, 0))"},
    {"ceil", "-floor(-x)"},
    {"trunc", "int(x)"},
    {"round", "floor(x + 0.5)"},
    {"tan", "sin(x) / cos(x)"},
    {"log2", "log(x) * 1.442695, or ilog2(x) of an int"},
    {"log10", "log(x) * 0.4342945"},
    {"expm1", "exp(x) - 1"},
    {"reciprocal", "1 / x"},
    {"fmod", "x - y * int(x / y), or 'x % y' with the sign of y"},
    {"hypot", "sqrt(x * x + y * y)"},
    {"isnan", "x != x"},
    {"isinf", "abs(x) == inf"},
    {"finfo", "-inf for the lowest score"},
    {"iinfo", "the number itself"},
    {"masked_fill", "where(condition, value, x)"},
    {"isin", "'x in array[:]'"},
    {"gather", "array[i]"},
    {"index_select", "array[i]"},
    {"take", "array[i]"},
    {"searchsorted", "sum(int(edges[i] < x) for i in range(n))"},
    {"bucketize", "sum(int(edges[i] < x) for i in range(n))"},
    {"tril", "kv <= q"},
    {"triu", "kv >= q"},
    {"enumerate", "'for i in range(n)' and index the array by i"},
    {"zip", "'for i in range(n)' and index both arrays by i"},
    {"divmod", "'x // y, x % y'"},
    {"isinstance", "what holds for the type that it has; types are known while compiling"},
    {"partial", "a parameter with a default, or a mask that calls the other one"}};
constexpr std::string_view kPythonFunctions[] = {
    "open",  "exec",   "eval",     "compile", "map",     "filter", "list",   "dict", "set",     "tuple",  "str",
    "repr",  "sorted", "reversed", "getattr", "setattr", "type",   "input",  "hash", "id",      "iter",   "next",
    "slice", "super",  "object",   "complex", "chr",     "ord",    "format", "vars", "globals", "locals", "__import__"};

template <typename List> bool contains(const List &list, std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

template <typename List> auto findEntry(const List &list, std::string_view name) {
  return std::find_if(std::begin(list), std::end(list), [&](const auto &entry) { return entry.first == name; });
}

} // namespace

bool isBuiltinDimension(std::string_view name) { return contains(kBuiltinDimensions, name); }
bool isBuiltinFunction(std::string_view name) { return contains(kBuiltinFunctions, name); }

std::vector<std::string> builtinNames() {
  std::vector<std::string> names(std::begin(kBuiltinFunctions), std::end(kBuiltinFunctions));
  names.insert(names.end(), std::begin(kBuiltinDimensions), std::end(kBuiltinDimensions));
  return names;
}

std::optional<ValueType> valueTypeNamed(std::string_view name) {
  auto entry = findEntry(kTypeNames, name);
  return entry == std::end(kTypeNames) ? std::nullopt : std::optional(entry->second);
}

std::string rowStatisticMessage(std::string_view name) {
  return fmt::format("'{}' needs the whole row of scores; a mask or score function sees one (q, kv) pair", name);
}

std::string foreignNameMessage(std::string_view name) {
  if (name.starts_with("import ")) {
    std::string_view module = name.substr(7);
    std::string_view top = module.substr(0, module.find('.'));
    if (!contains(kPythonModules, top))
      return {};
    return fmt::format("'{}' is a module of Python; a file imports other .cpf files, names of "
                       "'cpflex.std', and 'torch' and 'math' for their functions",
                       module);
  }
  if (name == "print")
    return "'print' is not part of the language; 'cpflexc explain --at b,h,q,kv' shows every value "
           "at one pair";
  if (name == "len")
    return "'len' is not part of the language; use the dimension's name, or x.shape[0]";
  if (name == "create_block_mask" || name == "flex_attention" || name == "create_mask")
    return fmt::format("'{}' is not needed; attention(\"name\", mask=..., score=...) declares an entry point", name);
  if (name == "noop_mask")
    return "'noop_mask' is not needed; attention(...) without mask= attends to all pairs";
  if (name == "vmap" || name == "compile")
    return fmt::format("'{}' is not needed; a function is compiled as it stands", name);
  if (contains(kScans, name))
    return fmt::format("'{}' is a scan along the keys; a mask or score function sees one (q, kv) "
                       "pair, so compute it beforehand into a captured array",
                       name);
  if (contains(kRowStatistics, name))
    return rowStatisticMessage(name);
  if (contains(kRandom, name))
    return fmt::format("'{}' has a hidden state; write a hash of b, h, q and kv over u32 instead", name);
  if (name == "matmul" || name == "einsum" || name == "dot" || name == "bmm")
    return fmt::format("'{}' is not part of the language; sum(a[i] * b[i] for i in range(n)) is, for small n", name);
  if (name == "arange" || name == "zeros" || name == "ones" || name == "empty" || name == "full" || name == "stack" ||
      name == "cat")
    return fmt::format("'{}' makes an array; arrays are declared, as in 'doc: tensor[i32, "
                       "KV_LEN]', and bound when the program runs",
                       name);
  if (auto entry = findEntry(kWrittenOtherwise, name); entry != std::end(kWrittenOtherwise))
    return fmt::format("'{}' is not part of the language; write {}", name, entry->second);
  if (contains(kPythonFunctions, name))
    return fmt::format("'{}' of Python is not part of the language", name);
  return {};
}

} // namespace cpflex
