// Implements merging of partials row by row: weights in double, outputs in f32, parts in the order given.
#include "runtime/Host/PartialAttention.h"

#include "runtime/Host/TileTensors.h"

#include <cmath>
#include <fmt/format.h>
#include <limits>
#include <string>
#include <vector>

namespace cpflex {
namespace {

constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

/// Rows of one batch row and head that a task treats.
constexpr int64_t kRowsPerTask = 128;

/// Calls visitRow(b, h, row) for every row of a [batch, heads, rows] problem, in parallel.
template <typename Visitor>
void forEachRow(const int64_t (&sizes)[4], const HostAttentionOptions &options, Visitor visitRow) {
  const int64_t blocksPerHead = ceilDivide(sizes[2], kRowsPerTask);
  const int64_t numTasks = sizes[0] * sizes[1] * blocksPerHead;
  CallThreads threads(options, numTasks);
  threads->run(numTasks, [&](int64_t task, int) {
    const int64_t head = task / blocksPerHead, begin = task % blocksPerHead * kRowsPerTask;
    for (int64_t row = begin; row < std::min(begin + kRowsPerTask, sizes[2]); ++row)
      visitRow(head / sizes[1], head % sizes[1], row);
  });
}

/// Calls visit(column, count) for the columns of a row, at most a block at a time.
template <typename Visitor> void forEachColumnBlock(int64_t numColumns, Visitor visit) {
  for (int64_t begin = 0; begin < numColumns; begin += kBlockSize)
    visit(begin, int(std::min<int64_t>(kBlockSize, numColumns - begin)));
}

MatrixView columnsOf(const TensorView &tensor, int64_t b, int64_t h, int64_t row, int64_t column) {
  MatrixView matrix = matrixOf(tensor, b, h, row);
  matrix.data = static_cast<char *>(matrix.data) + column * tensor.strides[3] * sizeInBytes(tensor.type);
  return matrix;
}

/// Fills weights[p] with exp(lse of part p - LSE) and returns LSE, the sink included:
///   LSE = m + log(sum of exp(lse_p - m) + exp(sink - m)), m the largest; an empty part weighs 0.
double mergeWeights(std::span<const PartialAttention> parts, double sink, int64_t b, int64_t h, int64_t row,
                    float *weights) {
  double largest = sink;
  for (const PartialAttention &part : parts)
    largest = std::max(largest, double(floatAt(part.lse, b, h, row)));
  double sum = sink == kNegativeInfinity ? 0.0 : std::exp(sink - largest);
  for (const PartialAttention &part : parts) {
    const double lse = floatAt(part.lse, b, h, row);
    sum += lse == kNegativeInfinity ? 0.0 : std::exp(lse - largest);
  }
  for (size_t p = 0; p < parts.size(); ++p) {
    const double lse = floatAt(parts[p].lse, b, h, row);
    weights[p] = lse == kNegativeInfinity ? 0.0f : float(std::exp(lse - largest) / sum);
  }
  return sum == 0.0 ? kNegativeInfinity : largest + std::log(sum);
}

} // namespace

Status mergePartials(const AttentionProblem &problem, std::span<const PartialAttention> parts, const float *sink,
                     const TensorView &out, const TensorView &lse, const HostAttentionOptions &options) {
  const bool isSoftmax = problem.normalization == AttentionProblem::Normalization::Softmax;
  CPFLEX_RETURN_IF_ERROR(checkOptions(options));
  const AttentionShapes shapes(problem);
  using Argument = CheckedTensor;
  std::vector<std::string> names;
  for (size_t p = 0; p < parts.size(); ++p) {
    names.push_back(fmt::format("parts[{}].out", p));
    names.push_back(fmt::format("parts[{}].lse", p));
  }
  std::vector<Argument> arguments = {
      tensorArgument("out", out, shapes.out, Argument::Types::Any, Argument::Role::Output),
      tensorArgument("lse", lse, shapes.row, Argument::Types::F32, Argument::Role::Output, /*isOptional=*/true)};
  for (size_t p = 0; p < parts.size(); ++p) {
    arguments.push_back(tensorArgument(names[2 * p].c_str(), parts[p].out, shapes.out, Argument::Types::F32,
                                       out.type == ElementType::F32 ? Argument::Role::InPlace : Argument::Role::Input));
    arguments.push_back(tensorArgument(names[2 * p + 1].c_str(), parts[p].lse, shapes.row, Argument::Types::F32,
                                       Argument::Role::InPlace, /*isOptional=*/!isSoftmax));
  }
  CPFLEX_RETURN_IF_ERROR(checkTensors(arguments));

  const HostKernels &kernels = *hostKernels(options.instructionSet);
  forEachRow(shapes.out, options, [&](int64_t b, int64_t h, int64_t row) {
    std::vector<float> weights(parts.size(), 1.0f);
    if (isSoftmax) {
      const double sinkLogit = sink ? double(sink[h + problem.headOffset]) : kNegativeInfinity;
      const double merged = mergeWeights(parts, sinkLogit, b, h, row, weights.data());
      if (lse.data)
        floatAt(lse, b, h, row) = float(merged);
    }
    forEachColumnBlock(problem.vHeadDim, [&](int64_t column, int count) {
      float sums[kBlockSize] = {};
      for (size_t p = 0; p < parts.size(); ++p) {
        // An empty part weighs 0 whatever it holds.
        if (isSoftmax && weights[p] == 0.0f)
          continue;
        const MatrixView from = columnsOf(parts[p].out, b, h, row, column);
        const float *values = static_cast<const float *>(from.data);
        for (int c = 0; c < count; ++c)
          sums[c] += weights[p] * values[c * from.columnStride];
      }
      kernels.unpackRows(sums, kBlockSize, kBlockSize, nullptr, 1, count, /*isAdding=*/false,
                         columnsOf(out, b, h, row, column));
    });
  });
  return Status::ok();
}

Status clearPartial(const AttentionProblem &problem, const PartialAttention &partial) {
  const AttentionShapes shapes(problem);
  using Argument = CheckedTensor;
  const Argument arguments[] = {
      tensorArgument("partial.out", partial.out, shapes.out, Argument::Types::F32, Argument::Role::Output),
      tensorArgument("partial.lse", partial.lse, shapes.row, Argument::Types::F32, Argument::Role::Output,
                     /*isOptional=*/problem.normalization == AttentionProblem::Normalization::None)};
  CPFLEX_RETURN_IF_ERROR(checkTensors(arguments));
  forEachRow(shapes.out, {.numThreads = 1}, [&](int64_t b, int64_t h, int64_t row) {
    const MatrixView to = matrixOf(partial.out, b, h, row);
    for (int64_t c = 0; c < problem.vHeadDim; ++c)
      static_cast<float *>(to.data)[c * to.columnStride] = 0.0f;
    if (partial.lse.data)
      floatAt(partial.lse, b, h, row) = float(kNegativeInfinity);
  });
  return Status::ok();
}

Status convertTensor(const TensorView &from, const TensorView &to, const int64_t (&sizes)[4]) {
  using Argument = CheckedTensor;
  const Argument arguments[] = {tensorArgument("from", from, sizes),
                                tensorArgument("to", to, sizes, Argument::Types::Any, Argument::Role::Output)};
  CPFLEX_RETURN_IF_ERROR(checkTensors(arguments));
  const HostKernels &kernels = *hostKernels(InstructionSet::Native);
  forEachRow(sizes, {.numThreads = 1}, [&](int64_t b, int64_t h, int64_t row) {
    forEachColumnBlock(sizes[3], [&](int64_t column, int count) {
      float values[kBlockStride];
      kernels.packRows(columnsOf(from, b, h, row, column), 1, count, values);
      kernels.unpackRows(values, kBlockStride, kBlockStride, nullptr, 1, count, /*isAdding=*/false,
                         columnsOf(to, b, h, row, column));
    });
  });
  return Status::ok();
}

} // namespace cpflex
