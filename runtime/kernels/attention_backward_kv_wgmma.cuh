// dK and dV on Hopper: a producer copies tiles of Q and dO, two consumer warpgroups of 64 keys each compute transposed
// tiles. A block owns one tile of keys and loops over the query heads that read them and over the query tiles of the
// transposed mask, in order: no atomics, the same bits in every run. Serves keys of up to 64 beside values of 65 to
// 128: other heads have attention_backward_fused_wgmma.cuh or, wider than 128, attention_backward_kv_wide_wgmma.cuh.
//
// One step of a consumer, products in flight in brackets:
//   1. [S^T = K Q^T] [dP^T = V dO^T]   2. P and the gradient factors from S^T   3. [dV += P^T dO]
//   4. dS^T from dP^T                  5. [dK += dS^T Q], which runs on into the next step's 1
//      where registers suffice
#pragma once

#include "runtime/kernels/backward_kv_pipeline.cuh"

namespace cpflex::kernels {

/// One consumer warpgroup.
template <class Config, class Program>
__device__ __forceinline__ void consumeBackwardKV(const BackwardKVShared<Config> &shared,
                                                  const BackwardArguments &arguments,
                                                  const typename Program::Captures &captures, int consumer) {
  using Shared = BackwardKVShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ;
  constexpr bool kHasSoftmax = Config::kHasSoftmax;
  using Columns = TilePositions<Config::kPositions, kTileQ>;
  using TileProduct = WarpgroupProduct<Element, kTileQ>;
  using KProduct = WarpgroupProduct<Element, Shared::kColumns>;
  using VProduct = WarpgroupProduct<Element, Shared::kVColumns>;

  auto &rest = *shared.rest;
  int firstRow = consumer * kConsumerRows + threadIdx.x % kWarpgroupSize / kWarpSize * 16;
  int rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
  int ownColumn = 2 * (threadIdx.x % 4);
  ScoreScale<Program> scale(arguments.scale, kHasSoftmax);
  constexpr int kConsumerBytes = kConsumerRows * 128;
  uint32 kDescriptor = operandDescriptor(shared.k() + consumer * kConsumerBytes, Shared::kKVPanelBytes);
  uint32 vDescriptor = operandDescriptor(shared.v() + consumer * kConsumerBytes, Shared::kKVPanelBytes);
  uint32 qDescriptor = operandDescriptor(shared.q(0), Shared::kQPanelBytes);
  uint32 dODescriptor = operandDescriptor(shared.dO(0), Shared::kQPanelBytes);

  RingPosition<Config::kStages> ring;
  uint32 kvParity = 0;
  WorkQueue queue;
  float dK[Shared::kColumns / 2], dV[Shared::kVColumns / 2];
  float factors[kTileQ / 2], gradients[kTileQ / 2];
  uint32 weights[kTileQ / 4], operands[kTileQ / 4];

  // Accumulators, operands in flight and what a step computes must fit the registers for product 5 to run on.
  constexpr bool kOverlapsSteps = Shared::kColumns / 2 + Shared::kVColumns / 2 + kTileQ + kTileQ / 4 <= 192;
  auto releaseTiles = [&](int slot) {
    rest.qEmpty[slot].arriveAsWarp();
    rest.dOEmpty[slot].arriveAsWarp();
  };

  while (true) {
    int item = queue.take(rest.work);
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.kvHeads);
    int b = work.b + arguments.batchOffset;
    TilePositions<Config::kPositions, Config::kTileKV> rows(arguments.kvPositions, work.row, arguments.kvLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
#pragma unroll
    for (int i = 0; i < Shared::kColumns / 2; ++i)
      dK[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < Shared::kVColumns / 2; ++i)
      dV[i] = 0.0f;
    bool hasTile = queue.hasTile;
    int previousSlot = -1; // of the last step
    if (hasTile) {
      rest.kvFull.wait(kvParity);
      kvParity ^= 1;
    }
    while (hasTile) {
      // 1. S^T = K Q^T and dP^T = V dO^T
      rest.qFull[ring.slot].wait(ring.parity);
      TileMessage message = rest.message[ring.slot];
      int h = rest.head[ring.slot] + arguments.headOffset;
      hasTile = !message.isLast;
      StoredWords stored =
          StoredWords::load(arguments.mask, message.words, consumer * kWarpgroupSize + threadIdx.x % kWarpgroupSize,
                            Shared::kConsumers * kWarpgroupSize);
      uint32 q = qDescriptor + ring.slot * descriptorStep(Shared::kQBytes);
      uint32 dO = dODescriptor + ring.slot * descriptorStep(Shared::kDOBytes);
      pinRegisters(factors);
      productFence();
      issueTileProduct<TileProduct, Config::kHeadDim, Shared::kKVPanelBytes, Shared::kQPanelBytes>(factors, kDescriptor,
                                                                                                   q);
      rest.dOFull[ring.slot].wait(ring.parity);
      pinRegisters(gradients);
      issueTileProduct<TileProduct, Config::kVHeadDim, Shared::kKVPanelBytes, Shared::kQPanelBytes>(gradients,
                                                                                                    vDescriptor, dO);

      if constexpr (kOverlapsSteps) {
        productWait<2>(); // product 5 of the last step
        pinRegisters(dK);
        if (previousSlot >= 0)
          releaseTiles(previousSlot);
      }

      // 2. P and the gradient factors; the mask is decided while the products run.
      Columns columns(arguments.qPositions, message.tile, arguments.qLen);
      uint32 keep[2];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreKV, kTileQ>(keep, message.isPartial(consumer), captures,
                                                                          b, h, rows, firstRow, columns, stored);
      productWait<1>();
      pinRegisters(factors);
      const float *lseLog2 = rest.lseLog2[ring.slot] + ownColumn, *delta = rest.delta[ring.slot] + ownColumn;
      weighTile<Element, Program, TileAxes::RowsAreKV, kHasSoftmax, true>(
          factors, weights, keep, isMasked, scale, captures, b, h, rowPosition, columns,
          [&](int i) { return lseLog2[registerColumn(i)]; });

      // 3. dV += P^T dO
      pinRegisters(dV);
      productFence();
      issueSumProduct<VProduct>(dV, weights, dO);
      productWait<1>();
      pinRegisters(gradients);
      if (!hasTile)
        rest.kvEmpty.arriveAsWarp(); // the next item's keys may come while this one ends

      // 4. dS^T
#pragma unroll
      for (int i = 0; i < kTileQ / 2; ++i)
        gradients[i] = factors[i] * (kHasSoftmax ? gradients[i] - delta[registerColumn(i)] : gradients[i]);
      packOperand<Element>(operands, gradients);

      // 5. dK += dS^T Q
      pinRegisters(dK);
      productFence();
      issueSumProduct<KProduct>(dK, operands, q);
      if constexpr (kOverlapsSteps) {
        productWait<1>(); // product 3
      } else {
        productWait<0>();
        pinRegisters(dK);
        releaseTiles(ring.slot);
      }
      pinRegisters(dV);
      previousSlot = ring.slot;
      ring.advance();
    }
    productWait<0>();
    pinRegisters(dK);
    if constexpr (kOverlapsSteps)
      if (previousSlot >= 0)
        releaseTiles(previousSlot);

    const float kScale[2] = {arguments.scale, arguments.scale}, kOne[2] = {1.0f, 1.0f};
    int row = work.row * Config::kTileKV + rowInTile;
    writeRows<Element, Config::kOutputIsF32, Config::kHeadDim>(
        dK, kScale, outputSlice<Config::kOutputIsF32>(arguments.dK, work.b, work.h), arguments.dK.strideS, row,
        arguments.kvLen);
    writeRows<Element, Config::kOutputIsF32, Config::kVHeadDim>(
        dV, kOne, outputSlice<Config::kOutputIsF32>(arguments.dV, work.b, work.h), arguments.dV.strideS, row,
        arguments.kvLen);
  }
}

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardKVWgmma(const BackwardArguments &arguments,
                                                         const typename Program::Captures &captures,
                                                         const BackwardTensorMaps &maps) {
  using Shared = BackwardKVShared<Config>;
  static_assert(!Shared::kIsWide);
  Shared shared;
  shared.initialize();

  int warpgroup = threadIdx.x / kWarpgroupSize;
  if (warpgroup == 0) {
    giveRegisters<kProducerRegisters<Shared::kConsumers, /*holdsTwo=*/true>>();
    if (int warp = threadIdx.x / kWarpSize; warp == 0)
      produceBackwardKV<Config>(shared, arguments, maps);
    else if (warp == 1)
      planBackwardKV<Config, Program>(shared, arguments);
  } else {
    takeRegisters<kConsumerRegisters<Shared::kConsumers, /*holdsTwo=*/true>>();
    consumeBackwardKV<Config, Program>(shared, arguments, captures, __shfl_sync(0xffffffffu, warpgroup, 0) - 1);
  }
}

} // namespace cpflex::kernels
