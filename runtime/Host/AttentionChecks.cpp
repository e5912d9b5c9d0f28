// Implements the argument checks of CPU attention: every message says what was seen and what was expected.
#include "runtime/Host/AttentionChecks.h"

#include <algorithm>
#include <cstdlib>
#include <fmt/format.h>
#include <numeric>
#include <optional>

namespace cpflex {

static std::string shapeText(const int64_t (&sizes)[4]) {
  return fmt::format("{}x{}x{}x{}", sizes[0], sizes[1], sizes[2], sizes[3]);
}

static int64_t numElements(const int64_t (&sizes)[4]) { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }

static Status checkPositions(const char *name, const PositionMap &map, int64_t length) {
  if (map.pieces.empty())
    return Status::ok();
  for (size_t i = 0; i < map.pieces.size(); ++i) {
    const AffinePiece &piece = map.pieces[i];
    if (piece.step < 1)
      return Status::invalid(fmt::format("step of piece {} of '{}' is {}; expected 1 or more", i, name, piece.step));
    if (piece.count < 0)
      return Status::invalid(fmt::format("count of piece {} of '{}' is {}; expected 0 or more", i, name, piece.count));
  }
  if (map.size() != length)
    return Status::invalid(fmt::format("'{}' covers {} rows; expected {}", name, map.size(), length));
  return Status::ok();
}

static bool isWellFormed(const BlockMask &mask) {
  if (mask.tileQ < 1 || mask.tileKV < 1 || int64_t(mask.rowSetOf.size()) != mask.batch * mask.heads)
    return false;
  for (int32_t rowSet : mask.rowSetOf)
    if (rowSet < 0 || rowSet >= int64_t(mask.rowSets.size()))
      return false;
  for (const TileRows &rows : mask.rowSets) {
    if (int64_t(rows.rowBegin.size()) != mask.numQTiles() + 1 || rows.rowBegin.front() != 0 ||
        rows.rowBegin.back() != int64_t(rows.runs.size()) ||
        !std::is_sorted(rows.rowBegin.begin(), rows.rowBegin.end()))
      return false;
    for (size_t row = 0; row + 1 < rows.rowBegin.size(); ++row) {
      int32_t previousEnd = 0;
      for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i) {
        const TileRun &run = rows.runs[i];
        if (run.begin < previousEnd || run.end <= run.begin || run.end > mask.numKVTiles() ||
            run.tileClass == TileClass::Empty)
          return false;
        previousEnd = run.end;
      }
    }
  }
  return true;
}

static Status checkMask(const AttentionProblem &problem) {
  if (!problem.mask)
    return Status::ok();
  const BlockMask &mask = *problem.mask;
  if (mask.batch != problem.batch || mask.heads != problem.qHeads || mask.qLen != problem.qLen ||
      mask.kvLen != problem.kvLen)
    return Status::invalid(fmt::format(
        "'mask' is for {} batch rows, {} heads, {} queries and {} keys; expected {}, {}, "
        "{} and {}",
        mask.batch, mask.heads, mask.qLen, mask.kvLen, problem.batch, problem.qHeads, problem.qLen, problem.kvLen));
  if (!isWellFormed(mask))
    return Status::invalid("'mask' has runs that are out of order or outside its tiles; expected a BlockMask as built");
  if (problem.functions && problem.functions->evaluateTile)
    return Status::ok();
  for (const TileRows &rows : mask.rowSets)
    for (const TileRun &run : rows.runs)
      if (run.tileClass == TileClass::Partial)
        return Status::invalid("'mask' has partial tiles, but 'functions' has no evaluateTile; expected the functions "
                               "that the mask was built from");
  return Status::ok();
}

Status checkProblem(const AttentionProblem &problem) {
  const std::pair<const char *, int64_t> counts[] = {{"batch", problem.batch},
                                                     {"qHeads", problem.qHeads},
                                                     {"kvHeads", problem.kvHeads},
                                                     {"qLen", problem.qLen},
                                                     {"kvLen", problem.kvLen}};
  for (auto [name, count] : counts)
    if (count < 0)
      return Status::invalid(fmt::format("'{}' is {}; expected 0 or more", name, count));
  const std::pair<const char *, int64_t> headSizes[] = {{"headDim", problem.headDim}, {"vHeadDim", problem.vHeadDim}};
  for (auto [name, size] : headSizes)
    if (size < 1)
      return Status::invalid(fmt::format("'{}' is {}; expected 1 or more", name, size));
  if (problem.qHeads > 0 && (problem.kvHeads == 0 || problem.qHeads % problem.kvHeads != 0))
    return Status::invalid(fmt::format("'qHeads' is {} and 'kvHeads' is {}; expected 'qHeads' to be a multiple of "
                                       "'kvHeads'",
                                       problem.qHeads, problem.kvHeads));
  if (problem.sink && problem.normalization == AttentionProblem::Normalization::None)
    return Status::invalid("'sink' is given without softmax; expected null, since a sink is part of the softmax");
  CPFLEX_RETURN_IF_ERROR(checkPositions("qPositions", problem.qPositions, problem.qLen));
  CPFLEX_RETURN_IF_ERROR(checkPositions("kvPositions", problem.kvPositions, problem.kvLen));
  return checkMask(problem);
}

static bool isFloat(ElementType type) {
  return type == ElementType::F32 || type == ElementType::F16 || type == ElementType::BF16;
}

/// The bytes between the first and past the last element, and whether the elements fill them.
struct Extent {
  const char *begin, *end;
  bool isFilled;
};

static Extent extentOf(const CheckedTensor &argument) {
  int64_t low = 0, high = 0, distinct = 1;
  for (int axis = 0; axis < 4; ++axis) {
    int64_t reach = argument.view.strides[axis] * (argument.sizes[axis] - 1);
    (reach < 0 ? low : high) += reach;
    if (argument.view.strides[axis] != 0)
      distinct *= argument.sizes[axis];
  }
  int64_t size = sizeInBytes(argument.view.type);
  const char *data = static_cast<const char *>(argument.view.data);
  return {data + low * size, data + (high + 1) * size, high - low + 1 == distinct};
}

/// Interleaved tensors, such as q, k and v of one projection, share a range of bytes without sharing elements; so only
/// equal addresses, or two ranges of which one is filled, count as overlapping.
static bool isOverlapping(const CheckedTensor &a, const CheckedTensor &b) {
  Extent first = extentOf(a), second = extentOf(b);
  if (first.end <= second.begin || second.end <= first.begin)
    return false;
  return a.view.data == b.view.data || first.isFilled || second.isFilled;
}

static bool isUsed(const CheckedTensor &argument) {
  return argument.view.data != nullptr && numElements(argument.sizes) > 0;
}

/// Two axes of which a step along one is a step along the other, within their sizes.
static std::optional<std::pair<int, int>> coincidingAxes(const CheckedTensor &argument) {
  for (int i = 0; i < 4; ++i)
    for (int j = i + 1; j < 4; ++j) {
      const int64_t first = std::abs(argument.view.strides[i]), second = std::abs(argument.view.strides[j]);
      const int64_t common = std::gcd(first, second);
      if (common > 0 && second / common < argument.sizes[i] && first / common < argument.sizes[j])
        return std::pair(i, j);
    }
  return std::nullopt;
}

static Status checkTensor(const CheckedTensor &argument, const CheckedTensor &first) {
  if (numElements(argument.sizes) == 0)
    return Status::ok();
  if (!argument.view.data) {
    if (argument.isOptional)
      return Status::ok();
    return Status::invalid(fmt::format("data of '{}' is null; expected an array of {} elements", argument.name,
                                       shapeText(argument.sizes)));
  }
  const ElementType type = argument.view.type;
  if (argument.types == CheckedTensor::Types::F32 && type != ElementType::F32)
    return Status::invalid(fmt::format("'{}' has element type {}; expected f32", argument.name, toString(type)));
  if (!isFloat(type))
    return Status::invalid(
        fmt::format("'{}' has element type {}; expected f32, bf16 or f16", argument.name, toString(type)));
  if (argument.types == CheckedTensor::Types::LikeFirst && type != first.view.type)
    return Status::invalid(fmt::format("'{}' has element type {}; expected {}, the type of '{}'", argument.name,
                                       toString(type), toString(first.view.type), first.name));
  if (argument.role == CheckedTensor::Role::Output)
    for (int axis = 0; axis < 4; ++axis)
      if (argument.view.strides[axis] == 0 && argument.sizes[axis] > 1)
        return Status::invalid(
            fmt::format("'{}' has stride 0 along axis {} of size {}; expected an output whose elements "
                        "are distinct",
                        argument.name, axis, argument.sizes[axis]));
  if (const auto axes = coincidingAxes(argument); argument.role == CheckedTensor::Role::Output && axes)
    return Status::invalid(fmt::format("'{}' has strides {} and {} along axes {} and {}, with which elements coincide; "
                                       "expected an output whose elements are distinct",
                                       argument.name, argument.view.strides[axes->first],
                                       argument.view.strides[axes->second], axes->first, axes->second));
  return Status::ok();
}

Status checkTensors(std::span<const CheckedTensor> arguments) {
  for (const CheckedTensor &argument : arguments)
    CPFLEX_RETURN_IF_ERROR(checkTensor(argument, arguments.front()));
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].role != CheckedTensor::Role::Output || !isUsed(arguments[i]))
      continue;
    for (size_t j = 0; j < arguments.size(); ++j) {
      const CheckedTensor &other = arguments[j];
      bool isChecked = other.role == CheckedTensor::Role::Input || (other.role == CheckedTensor::Role::Output && j > i);
      if (isChecked && isUsed(other) && isOverlapping(arguments[i], other))
        return Status::invalid(
            fmt::format("'{}' overlaps '{}'; expected separate memory", arguments[i].name, other.name));
    }
  }
  return Status::ok();
}

Status checkOptions(const HostAttentionOptions &options) {
  if (options.numThreads < 0 || options.numThreads > kMaxThreads)
    return Status::invalid(fmt::format("'numThreads' is {}; expected 0 to {}", options.numThreads, kMaxThreads));
  if (!isSupported(options.instructionSet))
    return Status::unsupported(
        fmt::format("'instructionSet' is {}, which this processor or build lacks; expected native",
                    toString(options.instructionSet)));
  return Status::ok();
}

Status checkWorkspace(const HostAttentionOptions &options, int64_t neededInBytes) {
  if (options.workspace && options.workspaceInBytes < neededInBytes)
    return Status::invalid(
        fmt::format("'workspace' holds {} bytes; expected at least {}", options.workspaceInBytes, neededInBytes));
  return Status::ok();
}

} // namespace cpflex
