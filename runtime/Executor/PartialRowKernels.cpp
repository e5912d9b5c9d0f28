// Compiles and loads the row kernels of context parallelism: one module, several functions.
#include "runtime/Executor/RankPrograms.h"

#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/KernelAssembly.h"
#include "runtime/Cuda/Sha256.h"

#include <fmt/format.h>

namespace cpflex {

KernelSource PartialRowKernels::source(int computeCapability) {
  KernelSource source;
  source.functionName = "partial_rows";
  source.architecture = fmt::format("sm_{}", computeCapability);
  source.text = "#include \"runtime/kernels/partial_rows.cuh\"\n";
  Sha256 digest;
  for (const KernelHeader &header : kernelHeaders())
    if (header.path.ends_with("partial_rows.cuh") || header.path.ends_with("device.cuh") ||
        header.path.ends_with("Arguments.h")) {
      digest.addField(header.path);
      digest.addField(header.text);
    }
  digest.addField(source.architecture);
  digest.addField(source.text);
  source.key = digest.finish();
  return source;
}

StatusOr<std::shared_ptr<const PartialRowKernels>> PartialRowKernels::create(const CudaMachine &machine) {
  std::shared_ptr<PartialRowKernels> kernels(new PartialRowKernels(machine.device));
  StatusOr<CompiledKernel> compiled =
      cachedKernel(source(machine.device->description().computeCapability), machine.toolchain);
  if (!compiled)
    return compiled.status();
  CurrentContext current(*machine.device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = machine.device->driver();
  CPFLEX_RETURN_IF_ERROR(
      driver.status(driver.moduleLoadData(&kernels->module_, compiled->image.cubin.data()), "cuModuleLoadData"));
  for (auto [function, name] : {std::pair(&kernels->copyRows, "copy_rows"),
                                {&kernels->addRows, "add_rows"},
                                {&kernels->convertRows, "convert_rows"},
                                {&kernels->mergePartials, "merge_partials"},
                                {&kernels->rowTerms, "row_terms"}})
    CPFLEX_RETURN_IF_ERROR(
        driver.status(driver.moduleGetFunction(function, kernels->module_, name), "cuModuleGetFunction"));
  return std::shared_ptr<const PartialRowKernels>(std::move(kernels));
}

PartialRowKernels::~PartialRowKernels() {
  if (!module_)
    return;
  CurrentContext current(*device_);
  if (current.status())
    (void)device_->driver().moduleUnload(module_);
}

} // namespace cpflex
