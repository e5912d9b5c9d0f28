// Opens a rank's GPU with the kernels that other ranks of the program have there; see CudaRankDevice.h.
#include "lib/API/CudaRankDevice.h"

#include "lib/API/CudaCalls.h"
#include "lib/API/ExecutableState.h"
#include "lib/API/ProgramState.h"

#include <fmt/format.h>

namespace cpflex {

StatusOr<std::unique_ptr<CudaExecutionDevice>> openRankDevice(const Executable &executable,
                                                              std::shared_ptr<const CudaPort> port) {
  const Executable::State &loaded = executable.state();
  if (loaded.type == ElementType::F32)
    return Status::invalid("the plan's executable computes f32; expected bf16 or f16 for ranks on GPUs");
  const int index = port->device()->description().index;
  CudaPrograms &programs = loaded.program->state().cudaPrograms;
  StatusOr<CudaMachine> machine = programs.machine(index);
  if (!machine)
    return machine.status();
  StatusOr<DeviceFunctions> functions = loaded.program->deviceFunctions(loaded.entry, loaded.binding->bindings());
  if (!functions)
    return functions.status();
  CudaCall call;
  call.programs = programs.rankPrograms(functions->text);
  call.functions = std::move(*functions);
  call.bindings = &loaded.binding->bindings();
  call.onDevice = capturesOnDevice(*loaded.program, *loaded.binding, index);
  call.sink = loaded.problem.sink;
  call.numSinks = int64_t(loaded.sink.size());
  return CudaExecutionDevice::create(*machine, call, std::move(port));
}

} // namespace cpflex
