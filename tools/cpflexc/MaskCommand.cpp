// `cpflexc mask`: the exact block mask of a program over bound arrays, drawn, counted, compared or written.
#include "tools/cpflexc/AttentionCall.h"
#include "tools/cpflexc/ProgramKernels.h"

#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "runtime/BlockMask/IndexLists.h"

#include <fmt/format.h>
#include <llvm/ADT/StringRef.h>

#include <charconv>
#include <chrono>

namespace cpflex {

namespace {

struct MaskCommandOptions : Options {
  std::string tile, format = "text", rows, columns, other;
  bool isCounted = false;
};

// Two whole numbers with `separator` between them.
bool parsePair(const std::string &text, char separator, int64_t &first, int64_t &second) {
  const char *end = text.data() + text.size();
  auto [middle, error] = std::from_chars(text.data(), end, first);
  if (error != std::errc() || middle == end || *middle != separator)
    return false;
  auto [stop, secondError] = std::from_chars(middle + 1, end, second);
  return secondError == std::errc() && stop == end;
}

// The tile of --tile; where there is none, that of the kernels of the GPU which --device names, or 128 x 128.
StatusOr<MaskTile> tileOf(const MaskCommandOptions &options) {
  MaskTile tile;
  int index = 0;
  StatusOr<int> capability = isCuda(options, index) ? computeCapability(options) : StatusOr<int>(0);
  if (!capability)
    return capability.status();
  if (parsePair(options.tile, 'x', tile.q, tile.kv) || *capability == 0)
    return tile;
  return preferredMaskTile(kernelOptions(options), *capability);
}

struct BuiltMask {
  LoadedProgram loaded;
  std::shared_ptr<const Binding> binding;
  MaskTile tile;
  BlockMaskResult result;
  BuildTimes times;
};

int build(const MaskCommandOptions &options, BuiltMask &built) {
  if (int code = loadProgram(options, built.loaded))
    return code;
  StatusOr<BindRequest> request = readBindRequest(options);
  if (!request)
    return reportFailure(request.status());
  StatusOr<MaskTile> tile = tileOf(options);
  if (!tile)
    return reportFailure(tile.status());
  built.tile = *tile;
  const auto begin = std::chrono::steady_clock::now();
  StatusOr<std::shared_ptr<Binding>> binding = bindProgram(*request, *built.loaded.program);
  if (!binding)
    return reportFailure(binding.status());
  built.binding = *binding;
  auto result =
      buildBlockMask(*built.loaded.program, *built.loaded.entry, **binding, tile->q, tile->kv, threadCount(options));
  built.times.buildMs = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  built.times.compileMs = built.loaded.compileMs;
  if (!result)
    return reportFailure(result.status());
  built.result = std::move(*result);
  return kDone;
}

// The mask of --diff: that of another program, or index lists of FlexAttention.
int loadOther(const MaskCommandOptions &options, MaskTile tile, BlockMask &other) {
  // What is wrong with a file that the user names is an input that is wrong.
  const auto fault = [&](const Status &status) {
    return reportFailure(Status::invalid(fmt::format("'{}': {}", options.other, status.message())));
  };
  if (llvm::StringRef(options.other).ends_with_insensitive(".npz")) {
    StatusOr<std::string> bytes = readFile(options.other);
    if (!bytes)
      return reportFailure(asInputFault(bytes.status()));
    StatusOr<IndexLists> lists = indexListsFromNpz(*bytes);
    if (!lists)
      return fault(lists.status());
    StatusOr<BlockMask> read = fromIndexLists(*lists);
    if (!read)
      return fault(read.status());
    other = std::move(*read);
    return kDone;
  }
  MaskCommandOptions otherOptions = options;
  otherOptions.file = options.other;
  otherOptions.tile = fmt::format("{}x{}", tile.q, tile.kv);
  BuiltMask built;
  if (int code = build(otherOptions, built))
    return code;
  other = std::move(built.result.mask);
  return kDone;
}

int mask(const MaskCommandOptions &options) {
  if (!options.other.empty() && (options.format == "json" || options.format == "npz"))
    throw CommandLineFault(fmt::format("--diff draws text, svg or png; --format is '{}'", options.format));
  std::vector<NamedFile> inputs = inputFiles(options);
  inputs.push_back({"--diff", options.other});
  refuseSharedFiles(inputs, {{"-o", options.output}});
  PictureOptions picture;
  parsePair(options.rows, ':', picture.rows.begin, picture.rows.end);
  parsePair(options.columns, ':', picture.columns.begin, picture.columns.end);
  BuiltMask built;
  if (int code = build(options, built))
    return code;
  const auto [tileQ, tileKV] = built.tile;
  picture.title = built.loaded.entry->name;
  picture.heads = PictureHeads::Distinct;
  const BlockMask &blockMask = built.result.mask;
  if (options.format == "svg") {
    picture.documentBounds =
        documentBoundsOf(built.loaded.program->signature().captures, built.binding->bindings(), blockMask);
    picture.residuals.push_back("the whole mask");
    for (const Residual &residual : built.loaded.entry->residuals)
      picture.residuals.push_back(residual.text);
  }
  if (!options.other.empty()) {
    BlockMask other;
    if (int code = loadOther(options, built.tile, other))
      return code;
    const auto draw = options.format == "svg"   ? drawDifferenceSvg
                      : options.format == "png" ? drawDifferencePng
                                                : drawDifferenceText;
    StatusOr<MaskDifference> difference = draw(blockMask, other, picture);
    return difference ? writeOutput(options, difference->picture) : reportFailure(difference.status());
  }
  std::optional<PairCounts> pairs;
  if (options.isCounted) {
    auto counted = countAllowed(blockMask, built.loaded.entry->hasMask ? &built.loaded.entry->tape : nullptr,
                                built.binding->bindings(),
                                blockMaskOptions(*built.loaded.program, *built.loaded.entry, *built.binding, tileQ,
                                                 tileKV, threadCount(options)));
    if (!counted)
      return reportFailure(counted.status());
    pairs = std::move(*counted);
  }
  if (options.format == "json")
    return writeOutput(options, toJson(built.result, built.times, pairs ? &*pairs : nullptr) + "\n");
  if (options.format == "svg")
    return writeOutput(options, drawSvg(blockMask, picture));
  if (options.format == "png") {
    StatusOr<std::string> png = drawPng(blockMask, picture);
    return png ? writeOutput(options, *png) : reportFailure(png.status());
  }
  if (options.format == "npz") {
    StatusOr<IndexLists> lists = toIndexLists(blockMask);
    return lists ? writeOutput(options, toNpz(*lists)) : reportFailure(lists.status());
  }
  const TileCounts counts = countTiles(blockMask);
  std::string text = drawText(blockMask, picture);
  text +=
      fmt::format("{} x {} tokens in tiles of {} x {}: {} empty, {} full, {} partial; {} distinct (b, h); {} bytes\n",
                  blockMask.qLen, blockMask.kvLen, tileQ, tileKV, counts.empty, counts.full, counts.partial,
                  blockMask.rowSets.size(), sizeInBytes(blockMask));
  if (pairs)
    text += fmt::format("{} pairs allowed ({:.2f} %); {} rows without keys; {} columns without queries\n",
                        pairs->allowed, 100 * pairs->density, pairs->rowsWithoutKeys, pairs->columnsWithoutQueries);
  text += fmt::format("derived in {:.2f} ms, {} points evaluated\n", built.times.buildMs, built.result.pointsEvaluated);
  return writeOutput(options, text);
}

} // namespace

void addMaskCommand(CLI::App &app, int &exitCode) {
  auto options = std::make_shared<MaskCommandOptions>();
  CLI::App *command = app.add_subcommand("mask", "derive, draw and count the block mask");
  addCommonOptions(*command, *options);
  const auto rangeOf = [](const char *option) {
    return [option](const std::string &text) {
      int64_t begin = 0, end = 0;
      if (!parsePair(text, ':', begin, end) || begin < 0 || begin >= end)
        throw CommandLineFault(fmt::format("{} is '{}'; expected A:B with 0 <= A < B", option, text));
      return std::string();
    };
  };
  command->add_option("--tile", options->tile, "QxKV [128x128, that of its kernels on cuda]")
      ->check([](const std::string &text) {
        int64_t q = 0, kv = 0;
        if (!parsePair(text, 'x', q, kv) || q < 1 || kv < 1)
          throw CommandLineFault(fmt::format("--tile is '{}'; expected QxKV, two whole numbers of at least 1", text));
        return std::string();
      });
  command->add_flag("--count", options->isCounted, "count allowed pairs exactly");
  command->add_option("--format", options->format, "text, json, svg, png or npz")
      ->check(oneOf("--format", {"text", "json", "svg", "png", "npz"}));
  command->add_option("--rows", options->rows, "A:B, query rows to draw")->check(rangeOf("--rows"));
  command->add_option("--cols", options->columns, "A:B, key columns to draw")->check(rangeOf("--cols"));
  command->add_option("--diff", options->other, "another program, or index lists (.npz): draw where the masks differ")
      ->check(fileName("--diff"));
  addOutputOption(*command, options->output);
  command->callback([options, &exitCode] { exitCode = mask(*options); });
}

} // namespace cpflex
