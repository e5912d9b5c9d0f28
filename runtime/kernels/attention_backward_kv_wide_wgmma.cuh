// dK and dV on Hopper for heads wider than 128, whose two accumulators no warpgroup could hold: of one tile of 64 keys,
// the first consumer owns dV and computes the weights, the second owns dK. What passes between them are the gradient
// factors, through shared memory in accumulator layout. Otherwise as attention_backward_kv_wgmma.cuh.
//
//   first:   [S^T = K Q^T]    P, factors from S^T -> exchange    [dV += P^T dO], which runs on into the next step
//   second:  [dP^T = V dO^T]  dS^T from dP^T and the exchange    [dK += dS^T Q], which runs on into the next step
#pragma once

#include "runtime/kernels/backward_kv_pipeline.cuh"

namespace cpflex::kernels {

/// The first consumer.
template <class Config, class Program>
__device__ __forceinline__ void consumeForDV(const BackwardKVShared<Config> &shared, const BackwardArguments &arguments,
                                             const typename Program::Captures &captures) {
  using Shared = BackwardKVShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ;
  using Columns = TilePositions<Config::kPositions, kTileQ>;
  using TileProduct = WarpgroupProduct<Element, kTileQ>;
  using VProduct = WarpgroupProduct<Element, Shared::kVColumns>;

  auto &rest = *shared.rest;
  int firstRow = threadIdx.x % kWarpgroupSize / kWarpSize * 16, rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
  ScoreScale<Program> scale(arguments.scale, Config::kHasSoftmax);
  uint32 kDescriptor = operandDescriptor(shared.k(), Shared::kKVPanelBytes);
  uint32 qDescriptor = operandDescriptor(shared.q(0), Shared::kQPanelBytes);
  uint32 dODescriptor = operandDescriptor(shared.dO(0), Shared::kQPanelBytes);
  RingPosition<Config::kStages> ring;
  RingPosition<Shared::kExchangeSlots> exchange;
  uint32 kvParity = 0;
  WorkQueue queue;
  float dV[Shared::kVColumns / 2], factors[kTileQ / 2];
  uint32 weights[kTileQ / 4];

  while (true) {
    int item = queue.take(rest.work);
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.kvHeads);
    int b = work.b + arguments.batchOffset;
    TilePositions<Config::kPositions, Config::kTileKV> rows(arguments.kvPositions, work.row, arguments.kvLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
#pragma unroll
    for (int i = 0; i < Shared::kVColumns / 2; ++i)
      dV[i] = 0.0f;
    bool hasTile = queue.hasTile;
    int previousSlot = -1;
    if (hasTile) {
      rest.kvFull.wait(kvParity);
      kvParity ^= 1;
    }
    while (hasTile) {
      // S^T = K Q^T
      rest.qFull[ring.slot].wait(ring.parity);
      TileMessage message = rest.message[ring.slot];
      int h = rest.head[ring.slot] + arguments.headOffset;
      hasTile = !message.isLast;
      StoredWords stored =
          StoredWords::load(arguments.mask, message.words, threadIdx.x % kWarpgroupSize, kWarpgroupSize);
      uint32 q = qDescriptor + ring.slot * descriptorStep(Shared::kQBytes);
      uint32 dO = dODescriptor + ring.slot * descriptorStep(Shared::kDOBytes);
      pinRegisters(factors);
      productFence();
      issueTileProduct<TileProduct, Config::kHeadDim, Shared::kKVPanelBytes, Shared::kQPanelBytes>(factors, kDescriptor,
                                                                                                   q);
      productWait<1>(); // the last step's product
      pinRegisters(dV);
      if (previousSlot >= 0)
        rest.dOEmpty[previousSlot].arriveAsWarp();

      // P and the gradient factors.
      Columns columns(arguments.qPositions, message.tile, arguments.qLen);
      uint32 keep[2];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreKV, kTileQ>(keep, message.isPartial(0), captures, b, h,
                                                                          rows, firstRow, columns, stored);
      productWait<0>();
      pinRegisters(factors);
      if (!hasTile)
        rest.kvEmpty.arriveAsWarp(); // the next item's keys may come while this one ends
      const float *lseLog2 = rest.lseLog2[ring.slot] + 2 * (threadIdx.x % 4);
      weighTile<Element, Program, TileAxes::RowsAreKV, Config::kHasSoftmax, true>(
          factors, weights, keep, isMasked, scale, captures, b, h, rowPosition, columns,
          [&](int i) { return lseLog2[registerColumn(i)]; });

      // dV += P^T dO
      rest.dOFull[ring.slot].wait(ring.parity);
      pinRegisters(dV);
      productFence();
      issueSumProduct<VProduct>(dV, weights, dO);

      rest.exchangeEmpty[exchange.slot].wait(exchange.parity ^ 1);
      float4 *out = reinterpret_cast<float4 *>(shared.exchange(exchange.slot)) + threadIdx.x % kWarpgroupSize;
#pragma unroll
      for (int i = 0; i < kTileQ / 2; i += 4)
        out[i / 4 * kWarpgroupSize] = make_float4(factors[i], factors[i + 1], factors[i + 2], factors[i + 3]);
      __syncwarp();
      rest.exchangeFull[exchange.slot].arriveAsWarp();
      rest.qEmpty[ring.slot].arriveAsWarp();
      exchange.advance();
      previousSlot = ring.slot;
      ring.advance();
    }
    productWait<0>();
    pinRegisters(dV);
    if (previousSlot >= 0)
      rest.dOEmpty[previousSlot].arriveAsWarp();
    const float kOne[2] = {1.0f, 1.0f};
    writeRows<Element, Config::kOutputIsF32, Config::kVHeadDim>(
        dV, kOne, outputSlice<Config::kOutputIsF32>(arguments.dV, work.b, work.h), arguments.dV.strideS,
        work.row * Config::kTileKV + rowInTile, arguments.kvLen);
  }
}

/// The second consumer.
template <class Config>
__device__ __forceinline__ void consumeForDK(const BackwardKVShared<Config> &shared,
                                             const BackwardArguments &arguments) {
  using Shared = BackwardKVShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ;
  using TileProduct = WarpgroupProduct<Element, kTileQ>;
  using KProduct = WarpgroupProduct<Element, Shared::kColumns>;

  auto &rest = *shared.rest;
  int rowInTile = threadIdx.x % kWarpgroupSize / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
  uint32 vDescriptor = operandDescriptor(shared.v(), Shared::kKVPanelBytes);
  uint32 qDescriptor = operandDescriptor(shared.q(0), Shared::kQPanelBytes);
  uint32 dODescriptor = operandDescriptor(shared.dO(0), Shared::kQPanelBytes);
  RingPosition<Config::kStages> ring;
  RingPosition<Shared::kExchangeSlots> exchange;
  uint32 kvParity = 0;
  WorkQueue queue;
  float dK[Shared::kColumns / 2], gradients[kTileQ / 2];
  uint32 operands[kTileQ / 4];

  while (true) {
    int item = queue.take(rest.work);
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.kvHeads);
#pragma unroll
    for (int i = 0; i < Shared::kColumns / 2; ++i)
      dK[i] = 0.0f;
    bool hasTile = queue.hasTile;
    int previousSlot = -1;
    if (hasTile) {
      rest.kvFull.wait(kvParity);
      kvParity ^= 1;
    }
    while (hasTile) {
      // dP^T = V dO^T
      rest.dOFull[ring.slot].wait(ring.parity);
      hasTile = !rest.message[ring.slot].isLast;
      uint32 q = qDescriptor + ring.slot * descriptorStep(Shared::kQBytes);
      uint32 dO = dODescriptor + ring.slot * descriptorStep(Shared::kDOBytes);
      pinRegisters(gradients);
      productFence();
      issueTileProduct<TileProduct, Config::kVHeadDim, Shared::kKVPanelBytes, Shared::kQPanelBytes>(gradients,
                                                                                                    vDescriptor, dO);
      productWait<1>(); // the last step's product
      pinRegisters(dK);
      if (previousSlot >= 0)
        rest.qEmpty[previousSlot].arriveAsWarp();

      // dS^T
      rest.exchangeFull[exchange.slot].wait(exchange.parity);
      productWait<0>();
      pinRegisters(gradients);
      if (!hasTile)
        rest.kvEmpty.arriveAsWarp();
      const float *delta = rest.delta[ring.slot] + 2 * (threadIdx.x % 4);
      const float4 *in =
          reinterpret_cast<const float4 *>(shared.exchange(exchange.slot)) + threadIdx.x % kWarpgroupSize;
#pragma unroll
      for (int i = 0; i < kTileQ / 2; i += 4) {
        float4 packed = in[i / 4 * kWarpgroupSize];
        const float factors[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
          gradients[i + j] =
              factors[j] * (Config::kHasSoftmax ? gradients[i + j] - delta[registerColumn(i + j)] : gradients[i + j]);
      }
      packOperand<Element>(operands, gradients);
      __syncwarp();
      rest.exchangeEmpty[exchange.slot].arriveAsWarp();
      rest.dOEmpty[ring.slot].arriveAsWarp();
      exchange.advance();

      // dK += dS^T Q
      rest.qFull[ring.slot].wait(ring.parity);
      pinRegisters(dK);
      productFence();
      issueSumProduct<KProduct>(dK, operands, q);
      previousSlot = ring.slot;
      ring.advance();
    }
    productWait<0>();
    pinRegisters(dK);
    if (previousSlot >= 0)
      rest.qEmpty[previousSlot].arriveAsWarp();
    const float kScale[2] = {arguments.scale, arguments.scale};
    writeRows<Element, Config::kOutputIsF32, Config::kHeadDim>(
        dK, kScale, outputSlice<Config::kOutputIsF32>(arguments.dK, work.b, work.h), arguments.dK.strideS,
        work.row * Config::kTileKV + rowInTile, arguments.kvLen);
  }
}

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardKVWideWgmma(const BackwardArguments &arguments,
                                                             const typename Program::Captures &captures,
                                                             const BackwardTensorMaps &maps) {
  using Shared = BackwardKVShared<Config>;
  static_assert(Shared::kIsWide);
  Shared shared;
  shared.initialize();

  int warpgroup = threadIdx.x / kWarpgroupSize;
  if (warpgroup == 0) {
    giveRegisters<kProducerRegisters<Shared::kConsumers, /*holdsTwo=*/false>>();
    if (int warp = threadIdx.x / kWarpSize; warp == 0)
      produceBackwardKV<Config>(shared, arguments, maps);
    else if (warp == 1)
      planBackwardKV<Config, Program>(shared, arguments);
  } else {
    takeRegisters<kConsumerRegisters<Shared::kConsumers, /*holdsTwo=*/false>>();
    if (warpgroup == 1)
      consumeForDV<Config, Program>(shared, arguments, captures);
    else
      consumeForDK<Config>(shared, arguments);
  }
}

} // namespace cpflex::kernels
