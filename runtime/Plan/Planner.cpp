// Checks a request, chooses layouts and rotation, and puts the schedule together; see Planner.h.
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/Certificate.h"
#include "runtime/Plan/Layouts.h"
#include "runtime/Plan/Rotations.h"
#include "runtime/Plan/Simulator.h"
#include "runtime/Plan/SolvedLayout.h"

#include <algorithm>
#include <fmt/format.h>
#include <map>

namespace cpflex {
namespace {

/// Rotations that send to all ranks are tried up to this many ranks only, when the choice is free.
constexpr int32_t kMaxRanksForDenseRotations = 16;

/// A mask in which every pair attends.
BlockMask denseMask(const CallShape &shape) {
  BlockMask mask;
  mask.qLen = shape.qLen;
  mask.kvLen = shape.kvLen;
  mask.rowSetOf = {0};
  TileRows rows;
  rows.rowBegin = {0};
  for (int64_t tile = 0; tile < mask.numQTiles(); ++tile) {
    if (mask.kvLen > 0)
      rows.runs.push_back({0, int32_t(mask.numKVTiles()), TileClass::Full, 0});
    rows.rowBegin.push_back(int32_t(rows.runs.size()));
  }
  mask.rowSets = {std::move(rows)};
  return mask;
}

Status verifyMask(const CallShape &shape, const BlockMask &mask) {
  if (mask.qLen != shape.qLen || mask.kvLen != shape.kvLen)
    return Status::invalid(
        fmt::format("a mask over {} x {} positions for a call over {} x {}; expected the same lengths", mask.qLen,
                    mask.kvLen, shape.qLen, shape.kvLen));
  if ((mask.batch != 1 && mask.batch != shape.batch) || (mask.heads != 1 && mask.heads != shape.qHeads))
    return Status::invalid(
        fmt::format("a mask for {} batch rows and {} heads in a call with {} and {}; expected the same "
                    "or 1",
                    mask.batch, mask.heads, shape.batch, shape.qHeads));
  return Status::ok();
}

Status verifyRequest(const PlanRequest &request) {
  const CallShape &shape = request.shape;
  if (request.worldSize < 1)
    return Status::invalid(fmt::format("world size is {}; expected 1 or more", request.worldSize));
  if (shape.batch < 0 || shape.qLen < 0 || shape.kvLen < 0)
    return Status::invalid(fmt::format("batch {}, q length {} and kv length {}; expected 0 or more", shape.batch,
                                       shape.qLen, shape.kvLen));
  if (shape.qHeads < 1 || shape.kvHeads < 1 || shape.qHeads % shape.kvHeads != 0)
    return Status::invalid(
        fmt::format("{} query heads for {} kv heads; expected a multiple", shape.qHeads, shape.kvHeads));
  if (shape.headDim < 1 || shape.vHeadDim < 1)
    return Status::invalid(fmt::format("head sizes {} and {}; expected 1 or more", shape.headDim, shape.vHeadDim));
  if (shape.type != ElementType::F32 && shape.type != ElementType::BF16 && shape.type != ElementType::F16)
    return Status::invalid(fmt::format("tensors of type '{}'; expected f32, bf16 or f16", toString(shape.type)));
  if (request.needPrecision == NeedPrecision::Token && request.mask &&
      (!request.functions || !request.functions->evaluateTile))
    return Status::invalid("need sets at token precision without 'evaluateTile'; expected the mask's host function");
  if (request.keyOrder == KeyOrder::Ascending && request.rotation == Rotation::Ring)
    return Status::invalid(
        "key order 'ascending' with rotation 'ring'; expected 'all-gather', 'selective' or 'ulysses'");
  if (request.mask)
    CPFLEX_RETURN_IF_ERROR(verifyMask(shape, *request.mask));
  for (const BlockMask *mask : request.otherMasks)
    CPFLEX_RETURN_IF_ERROR(verifyMask(shape, *mask));
  for (const BlockMask *mask : request.otherMasks)
    if (request.mask && mask->tileQ != request.mask->tileQ)
      return Status::invalid(fmt::format("masks with tiles of {} and {} rows share a layout; expected equal tiles",
                                         request.mask->tileQ, mask->tileQ));
  for (auto [layout, length, name] :
       {std::tuple(&request.qLayout, shape.qLen, "q"), std::tuple(&request.kvLayout, shape.kvLen, "kv")})
    if (*layout) {
      if ((*layout)->worldSize != request.worldSize || (*layout)->length != length)
        return Status::invalid(fmt::format("'{}' layout of {} tokens on {} ranks; expected {} tokens on {} ranks", name,
                                           (*layout)->length, (*layout)->worldSize, length, request.worldSize));
      if ((*layout)->rows != 1 && (*layout)->rows != shape.batch)
        return Status::invalid(fmt::format("'{}' layout with {} batch rows for {}; expected as many, or 1", name,
                                           (*layout)->rows, shape.batch));
      CPFLEX_RETURN_IF_ERROR(verifyLayout(**layout));
    }
  return Status::ok();
}

/// Rotations that gather all keys before the one compute, so that ascending order is free.
KeyOrder keyOrderOf(const PlanRequest &request, Rotation rotation) {
  return rotation == Rotation::AllGather || rotation == Rotation::Ulysses ? KeyOrder::Ascending : request.keyOrder;
}

/// One rotation, without its certificate. `needs` are those of its key order.
Schedule planRotation(const PlanRequest &request, const Layout &q, const Layout &kv, Rotation rotation,
                      const std::vector<GroupNeeds> &needs) {
  Schedule blank;
  blank.pass = request.pass;
  blank.rotation = rotation;
  blank.worldSize = request.worldSize;
  blank.shape = request.shape;
  blank.qLayout = q;
  blank.kvLayout = kv;
  blank.keyOrder = request.keyOrder;
  return rotation == Rotation::Ring      ? ringSchedule(request, needs, std::move(blank))
         : rotation == Rotation::Ulysses ? ulyssesSchedule(request, needs, std::move(blank))
                                         : directSchedule(request, needs, std::move(blank));
}

} // namespace

StatusOr<Schedule> planContextParallel(const PlanRequest &request) {
  CPFLEX_RETURN_IF_ERROR(verifyRequest(request));
  const BlockMask dense = request.mask ? BlockMask() : denseMask(request.shape);
  const BlockMask &mask = request.mask ? *request.mask : dense;
  PlanRequest settled = request;
  if (!request.mask) // full tiles need no evaluation
    settled.needPrecision = NeedPrecision::Tile;
  StatusOr<LayoutPair> layouts = chooseLayouts(settled, mask);
  if (!layouts)
    return layouts.status();
  std::vector<Rotation> rotations = {request.rotation.value_or(Rotation::Selective)};
  if (!request.rotation && request.worldSize > 1 && request.worldSize <= kMaxRanksForDenseRotations) {
    if (request.keyOrder == KeyOrder::Arrival)
      rotations.push_back(Rotation::Ring);
    if (request.shape.qHeads >= request.worldSize)
      rotations.push_back(Rotation::Ulysses);
  }
  // Rotations of one key order share their need sets, and only the fastest gets a certificate.
  std::map<KeyOrder, std::vector<GroupNeeds>> needs;
  Schedule best;
  double fastest = 0;
  for (Rotation rotation : rotations) {
    settled.keyOrder = keyOrderOf(request, rotation);
    auto [entry, isMissing] = needs.try_emplace(settled.keyOrder);
    if (isMissing)
      entry->second = groupNeeds(settled, mask, layouts->q, layouts->kv);
    Schedule schedule = planRotation(settled, layouts->q, layouts->kv, rotation, entry->second);
    const double seconds = simulate(schedule, request.cost).seconds;
    if (rotation == rotations.front() || seconds < fastest) {
      best = std::move(schedule);
      fastest = seconds;
    }
  }
  settled.keyOrder = best.keyOrder;
  best.certificate = certify(settled, mask, best, needs.at(best.keyOrder));
  best.certificate.predictedSeconds = fastest;
  return best;
}

StatusOr<Schedule> planBackward(const PlanRequest &request, const Schedule &forward) {
  PlanRequest backward = request;
  backward.pass = Pass::Backward;
  backward.qLayout = forward.qLayout;
  backward.kvLayout = forward.kvLayout;
  backward.rotation = forward.rotation;
  backward.keyOrder = forward.keyOrder;
  return planContextParallel(backward);
}

} // namespace cpflex
