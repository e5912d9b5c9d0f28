// Copies rows between global arrays and shards; see ShardArrays.h.
#include "runtime/Plan/ShardArrays.h"

#include <cstring>
#include <fmt/format.h>

namespace cpflex {
namespace {

enum class Direction { ToLocal, ToGlobal };

Status copyRows(const Layout &layout, int32_t rank, const SequenceArrayShape &shape, const uint8_t *from, uint8_t *to,
                Direction direction) {
  if (rank < 0 || rank >= layout.worldSize)
    return Status::invalid(fmt::format("rank {} of a layout of {} ranks; expected a rank in [0, {})", rank,
                                       layout.worldSize, layout.worldSize));
  if (layout.rows != 1 && layout.rows != shape.batch)
    return Status::invalid(fmt::format("an array with {} batch rows for a layout with {}; expected equally many",
                                       shape.batch, layout.rows));
  const int64_t rowBytes = shape.inner * shape.elementSizeInBytes;
  const int64_t localLength = layout.shardSize(rank);
  for (int64_t b = 0; b < shape.batch; ++b)
    for (int64_t outer = 0; outer < shape.outer; ++outer) {
      const int64_t plane = b * shape.outer + outer;
      int64_t local = plane * localLength;
      for (const AffinePiece &piece : layout.shard(b, rank).pieces) {
        int64_t global = plane * layout.length + piece.begin;
        const int64_t numCopies = piece.step == 1 ? 1 : piece.count;
        const int64_t rowsPerCopy = piece.step == 1 ? piece.count : 1;
        for (int64_t i = 0; i < numCopies; ++i, global += piece.step, local += rowsPerCopy) {
          const int64_t source = direction == Direction::ToLocal ? global : local;
          const int64_t target = direction == Direction::ToLocal ? local : global;
          std::memcpy(to + target * rowBytes, from + source * rowBytes, size_t(rowsPerCopy * rowBytes));
        }
      }
    }
  return Status::ok();
}

} // namespace

Status shard(const Layout &layout, int32_t rank, const SequenceArrayShape &shape, const void *global, void *local) {
  return copyRows(layout, rank, shape, static_cast<const uint8_t *>(global), static_cast<uint8_t *>(local),
                  Direction::ToLocal);
}

Status unshard(const Layout &layout, int32_t rank, const SequenceArrayShape &shape, const void *local, void *global) {
  return copyRows(layout, rank, shape, static_cast<const uint8_t *>(local), static_cast<uint8_t *>(global),
                  Direction::ToGlobal);
}

std::vector<int64_t> permutation(const Layout &layout) {
  std::vector<int64_t> result;
  result.reserve(size_t(layout.rows * layout.length));
  for (const PositionMap &map : layout.shards)
    for (const AffinePiece &piece : map.pieces)
      for (int64_t i = 0; i < piece.count; ++i)
        result.push_back(piece.begin + i * piece.step);
  return result;
}

std::vector<int64_t> inversePermutation(const Layout &layout) {
  std::vector<int64_t> forward = permutation(layout), result(forward.size());
  for (int64_t row = 0; row < layout.rows; ++row)
    for (int64_t i = 0; i < layout.length; ++i)
      result[size_t(row * layout.length + forward[size_t(row * layout.length + i)])] = i;
  return result;
}

} // namespace cpflex
