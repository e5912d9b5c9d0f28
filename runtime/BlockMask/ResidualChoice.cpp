// Proves assumptions as if each were a mask of its own: true for all pairs is full, false for all
// is empty.
#include "runtime/BlockMask/ResidualChoice.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

std::vector<int32_t> assumedInstructions(std::span<const Residual> residuals) {
  std::vector<int32_t> instructions;
  for (const Residual &residual : residuals)
    for (const ResidualAssumption &assumption : residual.assumptions)
      instructions.push_back(assumption.instruction);
  std::sort(instructions.begin(), instructions.end());
  instructions.erase(std::unique(instructions.begin(), instructions.end()), instructions.end());
  return instructions;
}

Status verifyResiduals(std::span<const Residual> residuals, const Tape &tape) {
  if (residuals.size() >= kMostResiduals)
    return Status::invalid(fmt::format("the mask has {} residuals besides itself; expected at most {}",
                                       residuals.size(), kMostResiduals - 1));
  int32_t size = static_cast<int32_t>(tape.instructions.size());
  std::vector<bool> isOutside(size, false);
  for (int32_t i = 0; i < size; ++i) {
    isOutside[i] = true;
    if (tape.instructions[i].operation >= Operation::ReduceAny)
      i = tape.instructions[i].operands[1] - 1;
  }
  auto isPredicate = [&](int32_t index) {
    return index >= 0 && index < size && isOutside[index] && tape.instructions[index].resultType == ValueType::Bool;
  };
  for (size_t i = 0; i < residuals.size(); ++i) {
    bool isValid = isPredicate(residuals[i].result);
    for (const ResidualAssumption &assumption : residuals[i].assumptions)
      isValid &= isPredicate(assumption.instruction);
    if (!isValid)
      return Status::invalid(fmt::format("residual {} names values that are not Bool values of tape '{}'; "
                                         "expected values outside of reductions",
                                         i + 1, tape.name));
  }
  return Status::ok();
}

uint64_t residualKeyOf(const Tape &tape, std::span<const Residual> residuals) {
  if (residuals.empty())
    return 0;
  // FNV-1a over numbers of 64 bits.
  uint64_t key = 0xcbf29ce484222325u;
  auto add = [&](int64_t number) {
    key = (key ^ static_cast<uint64_t>(number)) * 0x100000001b3u;
    key ^= key >> 32;
  };
  for (const TapeInstruction &instruction : tape.instructions) {
    add(static_cast<int64_t>(instruction.operation) << 16 | static_cast<int64_t>(instruction.operandType) << 8 |
        static_cast<int64_t>(instruction.resultType));
    for (int32_t operand : instruction.operands)
      add(operand);
    add(static_cast<int64_t>(instruction.immediate));
  }
  add(tape.result);
  for (const Residual &residual : residuals) {
    add(static_cast<int64_t>(residual.assumptions.size()));
    for (const ResidualAssumption &assumption : residual.assumptions)
      add(2 * int64_t(assumption.instruction) + int64_t(assumption.value));
    add(2 * int64_t(residual.result) + int64_t(residual.isNegated));
  }
  return key == 0 ? 1 : key;
}

ResidualChoice::ResidualChoice(std::span<const Residual> residuals, std::span<const TapeProgram> programs)
    : classes_(programs.size()), isKnown_(programs.size()) {
  for (const TapeProgram &program : programs)
    evaluators_.emplace_back(program);
  std::vector<int32_t> instructions = assumedInstructions(residuals);
  for (const Residual &residual : residuals) {
    std::vector<Assumed> &assumed = residuals_.emplace_back();
    for (const ResidualAssumption &assumption : residual.assumptions) {
      auto place = std::lower_bound(instructions.begin(), instructions.end(), assumption.instruction);
      assumed.push_back(
          {static_cast<int32_t>(place - instructions.begin()), assumption.value ? TileClass::Full : TileClass::Empty});
    }
  }
}

uint8_t ResidualChoice::numberFor(const PositionBounds &tile) {
  std::fill(isKnown_.begin(), isKnown_.end(), false);
  auto holds = [&](const Assumed &assumed) {
    if (!isKnown_[assumed.place]) {
      classes_[assumed.place] = evaluators_[assumed.place].classify(tile);
      isKnown_[assumed.place] = true;
    }
    return classes_[assumed.place] == assumed.needed;
  };
  for (size_t i = 0; i < residuals_.size(); ++i)
    if (std::all_of(residuals_[i].begin(), residuals_[i].end(), holds))
      return static_cast<uint8_t>(i + 1);
  return 0;
}

} // namespace cpflex
