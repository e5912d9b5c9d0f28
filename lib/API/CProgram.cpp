// The C interface's programs: compiling, porting and what a program declares.
#include "lib/API/CHandles.h"

#include <fmt/format.h>

#include <bit>

using namespace cpflex;

namespace {

Status checkOptions(const cpflex_compile_options *options) {
  CPFLEX_RETURN_IF_ERROR(required(options, "options"));
  if (options->abi_version != CPFLEX_ABI_VERSION)
    return Status::invalid(fmt::format("'abi_version' is {}; expected {}, the version of this library",
                                       options->abi_version, CPFLEX_ABI_VERSION));
  if (options->num_include_dirs > 0)
    CPFLEX_RETURN_IF_ERROR(required(options->include_dirs, "include_dirs"));
  if (options->num_constants > 0)
    CPFLEX_RETURN_IF_ERROR(required(options->constants, "constants"));
  return Status::ok();
}

StatusOr<CompileOptions> fromC(const cpflex_compile_options *options) {
  CPFLEX_RETURN_IF_ERROR(checkOptions(options));
  CompileOptions result;
  for (size_t i = 0; i < options->num_include_dirs; ++i) {
    CPFLEX_RETURN_IF_ERROR(required(options->include_dirs[i], "include_dirs"));
    result.includeDirs.emplace_back(options->include_dirs[i]);
  }
  for (size_t i = 0; i < options->num_constants; ++i) {
    const cpflex_named_text &constant = options->constants[i];
    CPFLEX_RETURN_IF_ERROR(required(constant.name, "constants"));
    CPFLEX_RETURN_IF_ERROR(required(constant.value, constant.name));
    result.constants[constant.name] = constant.value;
  }
  if (options->log_level < CPFLEX_LOG_NONE || options->log_level > CPFLEX_LOG_DEBUG)
    return Status::invalid(fmt::format("'log_level' is {}; expected {} to {}", options->log_level, int(CPFLEX_LOG_NONE),
                                       int(CPFLEX_LOG_DEBUG)));
  result.log.level = LogLevel(options->log_level);
  if (options->log)
    result.log.function = [log = options->log, userData = options->log_user_data](LogLevel level,
                                                                                  const std::string &text) {
      log(userData, cpflex_log_level(level), text.c_str());
    };
  if (options->cache_dir)
    result.cacheDir = options->cache_dir;
  return result;
}

/// Compiles with `compile(options)`; errors of the program carry its diagnostics.
template <typename Compile>
cpflex_error *compiled(const cpflex_compile_options *options, cpflex_program **program, Compile compile) {
  std::vector<Diagnostic> errors;
  cpflex_error *error = guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(program, "program"));
    StatusOr<CompileOptions> given = fromC(options);
    if (!given)
      return given.status();
    CompileResult result = compile(*given);
    if (!result.program)
      errors = std::move(result.diagnostics);
    else
      *program = new cpflex_program{result.program, withNotes(result.diagnostics), result.compileMs};
    return Status::ok();
  });
  return error || errors.empty() ? error : toError(errors);
}

template <typename Declared>
StatusOr<const Declared *> at(const std::vector<Declared> &declared, size_t index, const char *what) {
  if (index < declared.size())
    return &declared[index];
  return Status::invalid(fmt::format("there is no {} {}; the program has {}", what, index, declared.size()));
}

} // namespace

extern "C" {

cpflex_error *cpflex_compile_text(const char *path, const char *text, size_t size,
                                  const cpflex_compile_options *options, cpflex_program **program) {
  if (!path || !text)
    return guarded([&] { return required(nullptr, path ? "text" : "path"); });
  return compiled(options, program,
                  [&](const CompileOptions &given) { return compileText(path, std::string(text, size), given); });
}

cpflex_error *cpflex_compile_file(const char *path, const cpflex_compile_options *options, cpflex_program **program) {
  if (!path)
    return guarded([] { return required(nullptr, "path"); });
  return compiled(options, program, [&](const CompileOptions &given) { return compileFile(path, given); });
}

cpflex_error *cpflex_port(const char *path, const char *text, size_t size, const char *function,
                          const cpflex_compile_options *options, cpflex_buffer **cpf, cpflex_buffer **warnings) {
  std::vector<Diagnostic> errors;
  cpflex_error *error = guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {
        {path, "path"}, {text, "text"}, {function, "function"}, {cpf, "cpf"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    CPFLEX_RETURN_IF_ERROR(checkOptions(options));
    std::vector<Diagnostic> diagnostics;
    std::string ported = portToCpf(path, std::string(text, size), function, diagnostics);
    std::string warned;
    bool hasErrors = false;
    for (const Diagnostic &diagnostic : diagnostics) {
      warned += renderDiagnostic(diagnostic);
      hasErrors |= diagnostic.severity == Severity::Error;
    }
    if (hasErrors) {
      errors = std::move(diagnostics);
      return Status::ok();
    }
    if (ported.empty())
      return Status::invalid(fmt::format("'{}' has no function '{}'", path, function));
    giveBytes(std::move(ported), cpf);
    if (warnings)
      giveBytes(std::move(warned), warnings);
    return Status::ok();
  });
  return error || errors.empty() ? error : toError(errors);
}

void cpflex_program_free(cpflex_program *program) { delete program; }

size_t cpflex_program_num_warnings(const cpflex_program *program) { return program ? program->warnings.size() : 0; }
cpflex_diagnostic cpflex_program_warning(const cpflex_program *program, size_t index) {
  return program ? toC(program->warnings, index) : toC(std::vector<Diagnostic>(), 0);
}
double cpflex_program_compile_ms(const cpflex_program *program) { return program ? program->compileMs : 0; }

size_t cpflex_program_num_entries(const cpflex_program *program) {
  return program ? program->program->entries().size() : 0;
}
cpflex_error *cpflex_program_entry(const cpflex_program *program, size_t index, cpflex_entry *entry) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(program, "program"));
    CPFLEX_RETURN_IF_ERROR(required(entry, "entry"));
    auto found = at(program->program->entries(), index, "entry point");
    if (!found)
      return found.status();
    const EntryPoint &point = **found;
    *entry = {point.name.c_str(),      point.hasMask,           point.hasScore,   point.hasSoftmax,
              point.scale.has_value(), point.scale.value_or(0), point.sinkCapture};
    return Status::ok();
  });
}

size_t cpflex_program_num_captures(const cpflex_program *program) {
  return program ? program->program->signature().captures.size() : 0;
}
cpflex_error *cpflex_program_capture(const cpflex_program *program, size_t index, cpflex_capture *capture) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(program, "program"));
    CPFLEX_RETURN_IF_ERROR(required(capture, "capture"));
    auto found = at(program->program->signature().captures, index, "capture");
    if (!found)
      return found.status();
    const CaptureDeclaration &declared = **found;
    *capture = {declared.name.c_str(),
                cpflex_dtype(declared.type),
                int32_t(declared.dims.size()),
                {},
                declared.isSorted,
                declared.hasLo,
                declared.hasHi,
                declared.lo,
                declared.hi,
                declared.needsGradient};
    for (size_t axis = 0; axis < declared.dims.size(); ++axis)
      capture->dims[axis] = declared.dims[axis].c_str();
    return Status::ok();
  });
}

size_t cpflex_program_num_params(const cpflex_program *program) {
  return program ? program->program->signature().params.size() : 0;
}
cpflex_error *cpflex_program_param(const cpflex_program *program, size_t index, cpflex_param *param) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(program, "program"));
    CPFLEX_RETURN_IF_ERROR(required(param, "param"));
    auto found = at(program->program->signature().params, index, "param");
    if (!found)
      return found.status();
    const ParamDeclaration &declared = **found;
    const bool isFloat = declared.type == ValueType::Float;
    *param = {declared.name.c_str(), cpflex_value_type(declared.type), declared.hasDefault,
              isFloat ? 0 : declared.defaultValue,
              isFloat ? double(std::bit_cast<float>(uint32_t(declared.defaultValue))) : 0};
    return Status::ok();
  });
}

int32_t cpflex_program_has_constant(const cpflex_program *program, const char *name) {
  return program && name && program->program->hasConstant(name) ? 1 : 0;
}

cpflex_error *cpflex_program_emit(const cpflex_program *program, const char *stage, const char *entry,
                                  cpflex_buffer **text) {
  return guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {{program, "program"}, {stage, "stage"}, {text, "text"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    constexpr std::pair<const char *, Stage> kStages[] = {{"ast", Stage::Ast},
                                                          {"mask", Stage::Mask},
                                                          {"mask-opt", Stage::MaskOpt},
                                                          {"mask-grad", Stage::MaskGrad},
                                                          {"classifier", Stage::Classifier},
                                                          {"llvm", Stage::Llvm},
                                                          {"assembly", Stage::Assembly},
                                                          {"cuda", Stage::Cuda}};
    std::string names;
    for (auto [name, number] : kStages) {
      names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
      if (std::string(stage) != name)
        continue;
      const bool isOfOneEntry = number == Stage::Llvm || number == Stage::Assembly || number == Stage::Cuda;
      const EntryPoint none;
      StatusOr<const EntryPoint *> point = isOfOneEntry ? findEntry(*program->program, entry) : &none;
      if (!point)
        return point.status();
      StatusOr<std::string> emitted = program->program->emit(number, **point);
      if (emitted)
        giveBytes(std::move(*emitted), text);
      return emitted.status();
    }
    return Status::invalid(fmt::format("'stage' is '{}'; expected one of {}", stage, names));
  });
}

} // extern "C"
