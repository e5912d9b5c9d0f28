// The C interface's block masks: building, counting, drawing, keeping and exchanging them.
#include "lib/API/ArrayViews.h"
#include "lib/API/CHandles.h"
#include "runtime/BlockMask/BlockMaskFile.h"
#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

using namespace cpflex;

namespace {

constexpr int64_t kDefaultTile = 128;

Status bothRequired(const void *first, const char *firstName, const void *second, const char *secondName) {
  CPFLEX_RETURN_IF_ERROR(required(first, firstName));
  return required(second, secondName);
}

void giveMask(BlockMask mask, cpflex_block_mask **out) {
  auto handle = std::make_unique<cpflex_block_mask>();
  auto result = std::make_shared<BlockMaskResult>();
  result->mask = std::move(mask);
  handle->result = std::move(result);
  *out = handle.release();
}

StatusOr<PairCounts> countPairs(const cpflex_block_mask &mask) {
  if (!mask.binding)
    return Status::invalid("the mask was read or imported and has no program; expected one built from a binding");
  if (mask.version != mask.binding->version())
    return Status::invalid(
        fmt::format("the mask was built for version {} of the binding, which has version {}; build it "
                    "again",
                    mask.version, mask.binding->version()));
  const BlockMask &blocks = mask.result->mask;
  return countAllowed(blocks, mask.entry->hasMask ? &mask.entry->tape : nullptr, mask.binding->bindings(),
                      blockMaskOptions(*mask.program, *mask.entry, *mask.binding, blocks.tileQ, blocks.tileKV,
                                       mask.numThreads, mask.part));
}

// Where documents begin: what the caller says, or what the captures of the mask say.
StatusOr<std::vector<std::vector<int64_t>>> documentBounds(const cpflex_block_mask &mask,
                                                           const cpflex_picture_options &options) {
  std::vector<std::vector<int64_t>> bounds;
  if (!options.document_bounds) {
    if (mask.binding && mask.version == mask.binding->version())
      bounds = documentBoundsOf(mask.program->signature().captures, mask.binding->bindings(), mask.result->mask);
    return bounds;
  }
  std::vector<int64_t> &given =
      bounds.emplace_back(options.document_bounds, options.document_bounds + options.num_document_bounds);
  if (!std::is_sorted(given.begin(), given.end()))
    return Status::invalid("'document_bounds' do not ascend; expected the positions where documents begin, in order");
  return bounds;
}

StatusOr<PictureOptions> pictureOf(const cpflex_block_mask &mask, const cpflex_picture_options &options) {
  const BlockMask &blocks = mask.result->mask;
  PictureOptions picture;
  picture.batch = options.batch;
  picture.head = options.head;
  if (options.heads != CPFLEX_PICTURE_ONE && options.heads != CPFLEX_PICTURE_DISTINCT)
    return Status::invalid(fmt::format("'heads' is {}; expected {} or {}", options.heads, int(CPFLEX_PICTURE_ONE),
                                       int(CPFLEX_PICTURE_DISTINCT)));
  picture.heads = options.heads == CPFLEX_PICTURE_DISTINCT ? PictureHeads::Distinct : PictureHeads::One;
  if (options.batch < 0 || options.batch >= blocks.batch || options.head < 0 || options.head >= blocks.heads)
    return Status::invalid(fmt::format("the picture shows batch row {} and head {}; expected them below {} and {}",
                                       options.batch, options.head, blocks.batch, blocks.heads));
  picture.rows = {options.row_begin, options.row_end};
  picture.columns = {options.column_begin, options.column_end};
  picture.maxCells = options.max_cells > 0 ? options.max_cells : picture.maxCells;
  picture.cellPixels = std::max<int64_t>(options.cell_pixels, 0);
  picture.title = textOr(options.title, mask.entry ? mask.entry->name.c_str() : "");
  picture.residuals.push_back("the whole mask");
  if (mask.entry)
    for (const Residual &residual : mask.entry->residuals)
      picture.residuals.push_back(residual.text);
  StatusOr<std::vector<std::vector<int64_t>>> bounds = documentBounds(mask, options);
  if (!bounds)
    return bounds.status();
  picture.documentBounds = std::move(*bounds);
  return picture;
}

StatusOr<std::string> draw(const cpflex_block_mask &mask, const std::string &format,
                           const cpflex_picture_options &options) {
  const BlockMask &blocks = mask.result->mask;
  if (format == "text" || format == "svg" || format == "png") {
    StatusOr<PictureOptions> picture = pictureOf(mask, options);
    if (!picture)
      return picture.status();
    return format == "png"   ? drawPng(blocks, *picture)
           : format == "svg" ? StatusOr<std::string>(drawSvg(blocks, *picture))
                             : StatusOr<std::string>(drawText(blocks, *picture));
  }
  if (format == "json")
    return toJson(*mask.result, {.compileMs = 0, .buildMs = mask.buildMs}, /*pairs=*/nullptr);
  if (format == "npz") {
    StatusOr<IndexLists> lists = toIndexLists(blocks);
    return lists ? StatusOr<std::string>(toNpz(*lists)) : lists.status();
  }
  return Status::invalid(fmt::format("'format' is '{}'; expected text, svg, png, json or npz", format));
}

const std::vector<int32_t> *listOf(const IndexLists &lists, cpflex_index_list list) {
  const std::vector<int32_t> *all[] = {&lists.byQ.partialCounts, &lists.byQ.partialIndices, &lists.byQ.fullCounts,
                                       &lists.byQ.fullIndices,   &lists.byKV.partialCounts, &lists.byKV.partialIndices,
                                       &lists.byKV.fullCounts,   &lists.byKV.fullIndices};
  return list >= CPFLEX_KV_NUM_BLOCKS && list <= CPFLEX_FULL_Q_INDICES ? all[list] : nullptr;
}

// An i32 array on the host as a vector, its shape checked.
Status readList(const char *name, const cpflex_array *array, const std::vector<int64_t> &shape,
                std::vector<int32_t> &list) {
  CPFLEX_RETURN_IF_ERROR(required(array, name));
  StatusOr<ArrayView> view = fromC(*array, name);
  if (!view)
    return view.status();
  if (view->type != ElementType::I32 || view->shape != shape)
    return Status::invalid(fmt::format("'{}' has elements of type {} and shape {}; expected i32 and {}", name,
                                       toString(view->type), fmt::join(view->shape, "x"), fmt::join(shape, "x")));
  CPFLEX_RETURN_IF_ERROR(checkView(name, *view));
  StatusOr<Array> dense = denseCopy(*view);
  if (!dense)
    return dense.status();
  list.resize(size_t(dense->numElements()));
  std::memcpy(list.data(), dense->bytes.data(), dense->bytes.size());
  return Status::ok();
}

} // namespace

extern "C" {

cpflex_error *cpflex_block_mask_build(const cpflex_binding *binding, const char *entry,
                                      const cpflex_block_mask_options *options, cpflex_block_mask **mask) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(binding, "binding", mask, "mask"));
    StatusOr<const EntryPoint *> point = findEntry(*binding->program, entry);
    if (!point)
      return point.status();
    const cpflex_block_mask_options given = options ? *options : cpflex_block_mask_options{};
    auto handle = std::make_unique<cpflex_block_mask>();
    handle->program = binding->program;
    handle->binding = binding->binding;
    handle->entry = *point;
    handle->version = binding->binding->version();
    handle->part = fromC(given.part);
    handle->numThreads = given.num_threads;
    const auto begin = std::chrono::steady_clock::now();
    auto built =
        buildBlockMask(*binding->program, **point, *binding->binding, given.tile_q ? given.tile_q : kDefaultTile,
                       given.tile_kv ? given.tile_kv : kDefaultTile, given.num_threads, handle->part);
    if (!built)
      return built.status();
    handle->buildMs = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    handle->result = std::make_shared<const BlockMaskResult>(std::move(*built));
    *mask = handle.release();
    return Status::ok();
  });
}
void cpflex_block_mask_free(cpflex_block_mask *mask) { delete mask; }

cpflex_block_mask_statistics cpflex_block_mask_statistics_of(const cpflex_block_mask *mask) {
  if (!mask)
    return {};
  const BlockMask &blocks = mask->result->mask;
  const TileCounts counts = countTiles(blocks);
  return {blocks.qLen,
          blocks.kvLen,
          blocks.tileQ,
          blocks.tileKV,
          blocks.batch,
          blocks.heads,
          int64_t(blocks.rowSets.size()),
          counts.empty,
          counts.full,
          counts.partial,
          sizeInBytes(blocks),
          mask->result->pointsEvaluated,
          mask->buildMs};
}

cpflex_error *cpflex_block_mask_count_pairs(const cpflex_block_mask *mask, cpflex_pair_counts *counts) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(mask, "mask", counts, "counts"));
    StatusOr<PairCounts> pairs = countPairs(*mask);
    if (pairs)
      *counts = {pairs->allowed, pairs->rowsWithoutKeys, pairs->columnsWithoutQueries, pairs->density};
    return pairs.status();
  });
}

cpflex_error *cpflex_block_mask_classes(const cpflex_block_mask *mask, int64_t b, int64_t h, uint8_t *classes,
                                        size_t size) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(mask, "mask", classes, "classes"));
    const BlockMask &blocks = mask->result->mask;
    if (b < 0 || b >= blocks.batch || h < 0 || h >= blocks.heads)
      return Status::invalid(
          fmt::format("'b' is {} and 'h' is {}; expected them below {} and {}", b, h, blocks.batch, blocks.heads));
    const int64_t numRows = blocks.numQTiles(), numColumns = blocks.numKVTiles();
    if (size < size_t(numRows * numColumns))
      return Status::invalid(fmt::format("'classes' holds {} bytes; expected at least {}", size, numRows * numColumns));
    std::memset(classes, CPFLEX_TILE_EMPTY, size_t(numRows * numColumns));
    const TileRows &rows = blocks.rows(b, h);
    for (int64_t row = 0; row < numRows; ++row)
      for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
        std::memset(classes + row * numColumns + rows.runs[i].begin, int(rows.runs[i].tileClass),
                    size_t(rows.runs[i].end - rows.runs[i].begin));
    return Status::ok();
  });
}

cpflex_error *cpflex_block_mask_draw(const cpflex_block_mask *mask, const char *format,
                                     const cpflex_picture_options *options, cpflex_buffer **picture) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(mask, "mask", format, "format"));
    CPFLEX_RETURN_IF_ERROR(required(picture, "picture"));
    StatusOr<std::string> drawn = draw(*mask, format, options ? *options : cpflex_picture_options{});
    if (drawn)
      giveBytes(std::move(*drawn), picture);
    return drawn.status();
  });
}

cpflex_error *cpflex_block_mask_draw_difference(const cpflex_block_mask *left, const cpflex_block_mask *right,
                                                const char *format, const cpflex_picture_options *options,
                                                int64_t *differing_tiles, cpflex_buffer **picture) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(left, "left", right, "right"));
    CPFLEX_RETURN_IF_ERROR(bothRequired(format, "format", picture, "picture"));
    const std::string wanted = format;
    if (wanted != "text" && wanted != "svg" && wanted != "png")
      return Status::invalid(fmt::format("'format' is '{}'; expected text, svg or png", wanted));
    StatusOr<PictureOptions> shown = pictureOf(*left, options ? *options : cpflex_picture_options{});
    if (!shown)
      return shown.status();
    const auto drawDifference = wanted == "svg"   ? drawDifferenceSvg
                                : wanted == "png" ? drawDifferencePng
                                                  : drawDifferenceText;
    StatusOr<MaskDifference> drawn = drawDifference(left->result->mask, right->result->mask, *shown);
    if (!drawn)
      return drawn.status();
    if (differing_tiles)
      *differing_tiles = drawn->differingTiles;
    giveBytes(std::move(drawn->picture), picture);
    return Status::ok();
  });
}

cpflex_error *cpflex_block_mask_save(const cpflex_block_mask *mask, const char *path) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(mask, "mask", path, "path"));
    return saveBlockMask(mask->result->mask, path);
  });
}
cpflex_error *cpflex_block_mask_read(const char *path, cpflex_block_mask **mask) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(path, "path", mask, "mask"));
    StatusOr<BlockMask> read = loadBlockMask(path);
    if (read)
      giveMask(std::move(*read), mask);
    return read.status();
  });
}

cpflex_error *cpflex_block_mask_to_index_lists(const cpflex_block_mask *mask, cpflex_index_lists **lists) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(mask, "mask", lists, "lists"));
    StatusOr<IndexLists> made = toIndexLists(mask->result->mask);
    if (made)
      *lists = new cpflex_index_lists{std::move(*made)};
    return made.status();
  });
}

cpflex_error *cpflex_index_lists_array(const cpflex_index_lists *lists, cpflex_index_list list, cpflex_array *array) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(lists, "lists", array, "array"));
    const IndexLists &held = lists->lists;
    const std::vector<int32_t> *values = listOf(held, list);
    if (!values)
      return Status::invalid(
          fmt::format("'list' is {}; expected {} to {}", list, int(CPFLEX_KV_NUM_BLOCKS), int(CPFLEX_FULL_Q_INDICES)));
    const bool isByQ = list <= CPFLEX_FULL_KV_INDICES, isIndices = list % 2 == 1;
    const int64_t shape[4] = {held.batch, held.heads, isByQ ? held.numQTiles() : held.numKVTiles(),
                              isByQ ? held.numKVTiles() : held.numQTiles()};
    *array = cpflex_dense_array(const_cast<int32_t *>(values->data()), CPFLEX_I32, isIndices ? 4 : 3, shape);
    return Status::ok();
  });
}
void cpflex_index_lists_free(cpflex_index_lists *lists) { delete lists; }

cpflex_error *cpflex_block_mask_from_index_lists(const cpflex_array *num_blocks, const cpflex_array *indices,
                                                 const cpflex_array *full_num_blocks, const cpflex_array *full_indices,
                                                 const cpflex_block_mask_statistics *shape, cpflex_block_mask **mask) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(bothRequired(num_blocks, "num_blocks", indices, "indices"));
    CPFLEX_RETURN_IF_ERROR(bothRequired(shape, "shape", mask, "mask"));
    if ((full_num_blocks == nullptr) != (full_indices == nullptr))
      return Status::invalid("only one of 'full_num_blocks' and 'full_indices' is null; expected both or none");
    if (num_blocks->rank != 3)
      return Status::invalid(fmt::format("'num_blocks' has {} axes; expected 3", num_blocks->rank));
    if (shape->q_len < 0 || shape->kv_len < 0 || shape->tile_q < 1 || shape->tile_kv < 1)
      return Status::invalid(fmt::format("'shape' has lengths {} and {} and tiles {} x {}; expected lengths from 0 and "
                                         "tiles from 1",
                                         shape->q_len, shape->kv_len, shape->tile_q, shape->tile_kv));
    IndexLists lists;
    lists.batch = num_blocks->shape[0];
    lists.heads = num_blocks->shape[1];
    lists.qLen = shape->q_len;
    lists.kvLen = shape->kv_len;
    lists.tileQ = shape->tile_q;
    lists.tileKV = shape->tile_kv;
    const std::vector<int64_t> countShape = {lists.batch, lists.heads, lists.numQTiles()};
    const std::vector<int64_t> indexShape = {lists.batch, lists.heads, lists.numQTiles(), lists.numKVTiles()};
    CPFLEX_RETURN_IF_ERROR(readList("num_blocks", num_blocks, countShape, lists.byQ.partialCounts));
    CPFLEX_RETURN_IF_ERROR(readList("indices", indices, indexShape, lists.byQ.partialIndices));
    if (full_num_blocks) {
      CPFLEX_RETURN_IF_ERROR(readList("full_num_blocks", full_num_blocks, countShape, lists.byQ.fullCounts));
      CPFLEX_RETURN_IF_ERROR(readList("full_indices", full_indices, indexShape, lists.byQ.fullIndices));
    } else {
      lists.byQ.fullCounts.assign(lists.byQ.partialCounts.size(), 0);
      lists.byQ.fullIndices.assign(lists.byQ.partialIndices.size(), 0);
    }
    StatusOr<BlockMask> imported = fromIndexLists(lists);
    if (imported)
      giveMask(std::move(*imported), mask);
    return imported.status();
  });
}

} // extern "C"
