// The C interface's layouts: made by rule or from positions, told as data, applied to arrays.
#include "lib/API/ArrayViews.h"
#include "lib/API/CHandles.h"
#include "runtime/Plan/Layouts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

using namespace cpflex;

namespace {

StatusOr<std::vector<int64_t>> integersOf(const cpflex_array &array, const char *name) {
  StatusOr<ArrayView> view = fromC(array, name);
  if (!view)
    return view.status();
  if ((view->type != ElementType::I32 && view->type != ElementType::I64) || view->shape.size() != 1)
    return Status::invalid(fmt::format("'{}' is {} with {} axes; expected i32 or i64 with one", name,
                                       toString(view->type), view->shape.size()));
  StatusOr<Array> dense = denseCopy(*view);
  if (!dense)
    return dense.status();
  std::vector<int64_t> values;
  for (int64_t i = 0; i < dense->numElements(); ++i)
    values.push_back(view->type == ElementType::I32 ? reinterpret_cast<const int32_t *>(dense->bytes.data())[i]
                                                    : reinterpret_cast<const int64_t *>(dense->bytes.data())[i]);
  return values;
}

Status checkWorld(int64_t length, int32_t worldSize) {
  if (length < 0 || worldSize < 1)
    return Status::invalid(fmt::format(
        "a layout of {} tokens for {} ranks; expected 0 or more tokens and 1 or more ranks", length, worldSize));
  return Status::ok();
}

StatusOr<Layout> layoutByRule(const char *kind, int64_t length, int32_t worldSize, const cpflex_array *cuSeqlens) {
  CPFLEX_RETURN_IF_ERROR(checkWorld(length, worldSize));
  const std::optional<LayoutKind> rule = layoutKindFromString(kind);
  if (rule == LayoutKind::PerDocument) {
    CPFLEX_RETURN_IF_ERROR(required(cuSeqlens, "cu_seqlens"));
    StatusOr<std::vector<int64_t>> offsets = integersOf(*cuSeqlens, "cu_seqlens");
    if (!offsets)
      return offsets.status();
    return perDocumentLayout({&*offsets, 1}, length, worldSize);
  }
  if (rule == LayoutKind::Contiguous)
    return contiguousLayout(length, worldSize);
  if (rule == LayoutKind::HeadTail)
    return headTailLayout(length, worldSize);
  if (rule == LayoutKind::Striped)
    return stripedLayout(length, worldSize);
  return Status::invalid(
      fmt::format("kind of layout is '{}'; expected contiguous, head-tail, striped or per-document", kind));
}

StatusOr<Layout> layoutOfPositions(const cpflex_array &permutation, const int64_t *shardSizes, int32_t worldSize) {
  StatusOr<ArrayView> view = fromC(permutation, "permutation");
  if (!view)
    return view.status();
  const size_t rank = view->shape.size();
  if (view->type != ElementType::I64 || rank < 1 || rank > 2)
    return Status::invalid(
        fmt::format("'permutation' is {} with {} axes; expected i64 with one or two", toString(view->type), rank));
  Layout layout;
  layout.kind = LayoutKind::Custom;
  layout.length = view->shape[rank - 1];
  layout.worldSize = worldSize;
  layout.rows = rank == 2 ? view->shape[0] : 1;
  CPFLEX_RETURN_IF_ERROR(checkWorld(layout.length, worldSize));
  int64_t total = 0;
  for (int32_t each = 0; each < worldSize; ++each) {
    if (shardSizes[each] < 0 || shardSizes[each] > layout.length)
      return Status::invalid(
          fmt::format("shard size of rank {} is {}; expected 0 to {}", each, shardSizes[each], layout.length));
    total += shardSizes[each];
  }
  if (total != layout.length)
    return Status::invalid(fmt::format("the shards have {} tokens together; expected {}, the length of 'permutation'",
                                       total, layout.length));
  StatusOr<Array> dense = denseCopy(*view);
  if (!dense)
    return dense.status();
  const int64_t *position = reinterpret_cast<const int64_t *>(dense->bytes.data());
  for (int64_t row = 0; row < layout.rows; ++row)
    for (int32_t each = 0; each < worldSize; ++each) {
      PositionMap map;
      for (int64_t i = 0; i < shardSizes[each]; ++i)
        map.pieces.push_back({*position++, 1, 1});
      layout.shards.push_back(compacted(std::move(map)));
    }
  CPFLEX_RETURN_IF_ERROR(verifyLayout(layout));
  return layout;
}

bool isDense(const ArrayView &view) {
  int64_t expected = 1;
  for (size_t axis = view.shape.size(); axis-- > 0; expected *= view.shape[axis])
    if (view.shape[axis] > 1 && view.strides[axis] != expected)
      return false;
  return true;
}

/// The shape of a whole array and its shard, which have to fit together.
StatusOr<SequenceArrayShape> sequenceShape(const Layout &layout, int32_t rank, int32_t axis, const ArrayView &whole,
                                           const ArrayView &part) {
  if (rank < 0 || rank >= layout.worldSize)
    return Status::invalid(fmt::format("rank is {}; expected 0 to {}", rank, layout.worldSize - 1));
  if (axis < 0 || axis >= int32_t(whole.shape.size()))
    return Status::invalid(
        fmt::format("'axis' is {}; expected one of the {} axes of 'whole'", axis, whole.shape.size()));
  std::vector<int64_t> expected = whole.shape;
  expected[size_t(axis)] = layout.shardSize(rank);
  if (whole.shape[size_t(axis)] != layout.length || part.shape != expected || whole.type != part.type)
    return Status::invalid(
        fmt::format("'whole' is {} [{}] and 'shard' is {} [{}]; expected one dtype, {} tokens along axis "
                    "{} of 'whole' and {} of 'shard'",
                    toString(whole.type), fmt::join(whole.shape, ", "), toString(part.type),
                    fmt::join(part.shape, ", "), layout.length, axis, layout.shardSize(rank)));
  if (!isDense(whole) || !isDense(part) || !isOnHost(whole) || !isOnHost(part))
    return Status::invalid("'whole' or 'shard' is not dense in host memory; expected both to be");
  SequenceArrayShape shape;
  shape.elementSizeInBytes = sizeInBytes(whole.type);
  for (int32_t each = 0; each < int32_t(whole.shape.size()); ++each)
    if (each != axis)
      (each > axis ? shape.inner : each == 0 ? shape.batch : shape.outer) *= whole.shape[size_t(each)];
  return shape;
}

enum class Direction { ToShard, ToWhole };

cpflex_error *copyBetween(const cpflex_layout *layout, int32_t rank, int32_t axis, const cpflex_array *whole,
                          const cpflex_array *part, Direction direction) {
  return guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {{layout, "layout"}, {whole, "whole"}, {part, "shard"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    StatusOr<ArrayView> wholeView = fromC(*whole, "whole"), partView = fromC(*part, "shard");
    for (const Status &status : {wholeView.status(), partView.status()})
      CPFLEX_RETURN_IF_ERROR(status);
    StatusOr<SequenceArrayShape> shape = sequenceShape(layout->layout, rank, axis, *wholeView, *partView);
    if (!shape)
      return shape.status();
    return direction == Direction::ToShard ? cpflex::shard(layout->layout, rank, *shape, whole->data, part->data)
                                           : cpflex::unshard(layout->layout, rank, *shape, part->data, whole->data);
  });
}

} // namespace

extern "C" {

cpflex_error *cpflex_layout_create(const char *kind, int64_t length, int32_t world_size, const cpflex_array *cu_seqlens,
                                   cpflex_layout **layout) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(kind, "kind"));
    CPFLEX_RETURN_IF_ERROR(required(layout, "layout"));
    StatusOr<Layout> made = layoutByRule(kind, length, world_size, cu_seqlens);
    if (made)
      *layout = new cpflex_layout{std::move(*made)};
    return made.status();
  });
}

cpflex_error *cpflex_layout_from_permutation(const cpflex_array *permutation, const int64_t *shard_sizes,
                                             int32_t world_size, cpflex_layout **layout) {
  return guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {
        {permutation, "permutation"}, {shard_sizes, "shard_sizes"}, {layout, "layout"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    StatusOr<Layout> made = layoutOfPositions(*permutation, shard_sizes, world_size);
    if (made)
      *layout = new cpflex_layout{std::move(*made)};
    return made.status();
  });
}

void cpflex_layout_free(cpflex_layout *layout) { delete layout; }

cpflex_layout_shape cpflex_layout_shape_of(const cpflex_layout *layout) {
  if (!layout)
    return {"", 0, 0, 0};
  // The words are literals, so they end with a 0 byte.
  return {toString(layout->layout.kind).data(), layout->layout.length, layout->layout.worldSize, layout->layout.rows};
}

int64_t cpflex_layout_shard_size(const cpflex_layout *layout, int32_t rank) {
  return layout && rank >= 0 && rank < layout->layout.worldSize ? layout->layout.shardSize(rank) : 0;
}

cpflex_error *cpflex_layout_permutation(const cpflex_layout *layout, int64_t *permutation, int64_t *inverse) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(layout, "layout"));
    if (permutation)
      std::ranges::copy(cpflex::permutation(layout->layout), permutation);
    if (inverse)
      std::ranges::copy(inversePermutation(layout->layout), inverse);
    return Status::ok();
  });
}

cpflex_error *cpflex_layout_shard(const cpflex_layout *layout, int32_t rank, int32_t axis, const cpflex_array *whole,
                                  const cpflex_array *shard) {
  return copyBetween(layout, rank, axis, whole, shard, Direction::ToShard);
}

cpflex_error *cpflex_layout_unshard(const cpflex_layout *layout, int32_t rank, int32_t axis, const cpflex_array *shard,
                                    const cpflex_array *whole) {
  return copyBetween(layout, rank, axis, whole, shard, Direction::ToWhole);
}

} // extern "C"
