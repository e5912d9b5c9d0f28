// Can any text crash or hang the compiler? A libFuzzer target from the parser to the classifier: what compiles is also
// classified over a few tokens. Corpus: test/fuzz/corpus, lib/Std, test/catalogue.
#include "lib/API/cpflex.h"

#include <cstdint>
#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  using namespace cpflex;
  constexpr int64_t kLength = 40, kTile = 16;
  const CompileResult compiled = compileText("fuzz.cpf", std::string(reinterpret_cast<const char *>(data), size));
  for (const Diagnostic &diagnostic : compiled.diagnostics)
    if (renderDiagnostic(diagnostic).empty())
      std::abort();
  // Either a program or a reason.
  if (!compiled.program && compiled.diagnostics.empty())
    std::abort();
  if (!compiled.program || !compiled.program->signature().captures.empty())
    return 0;
  BindRequest request;
  request.sizes = {1, 1, 1, kLength, kLength};
  for (const ParamDeclaration &param : compiled.program->signature().params)
    if (!param.hasDefault)
      request.params[param.name] = "3";
  const StatusOr<std::shared_ptr<Binding>> binding = Binding::create(*compiled.program, request);
  if (!binding)
    return 0;
  for (const EntryPoint &entry : compiled.program->entries())
    (void)buildBlockMask(*compiled.program, entry, **binding, kTile, kTile, 1);
  return 0;
}
