// How options become a compiled, bound program.
#include "tools/cpflexc/Options.h"

#include "runtime/BlockMask/MaskImports.h"
#include "runtime/BlockMask/PointEvaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>

namespace cpflex {

namespace {

/// Writes the help of a command in two columns, so that it fits a screen.
class TwoColumnHelp : public CLI::Formatter {
public:
  std::string make_help(const CLI::App *app, std::string name, CLI::AppFormatMode) const override {
    constexpr size_t kColumnWidth = 58, kWidth = 118;
    std::string text = fmt::format("{}\nUsage: {} [OPTIONS] {}\n\n", app->get_description(), name, positionals(*app));
    std::string line;
    for (const CLI::Option *option : app->get_options()) {
      const std::string item = itemOf(*option);
      if (item.size() > kWidth) {
        const size_t space = item.rfind(' ', kWidth);
        text += line + (line.empty() ? "" : "\n") + item.substr(0, space) + "\n      " + item.substr(space + 1) + "\n";
        line.clear();
        continue;
      }
      const bool isFirst = line.empty();
      if (!isFirst && item.size() <= kColumnWidth && line.size() <= kColumnWidth) {
        text += fmt::format("{:<{}}{}\n", line, kColumnWidth + 2, item);
        line.clear();
        continue;
      }
      if (!isFirst)
        text += line + "\n";
      line = item;
    }
    return text + line + (line.empty() ? "" : "\n");
  }

private:
  static std::string positionals(const CLI::App &app) {
    std::string text;
    for (const CLI::Option *option : app.get_options())
      if (option->nonpositional() == false)
        text += fmt::format("{}{}", text.empty() ? "" : " ", option->get_name());
    return text;
  }

  /// `--name VALUE  description`; the choices stand for VALUE where there are some.
  static std::string itemOf(const CLI::Option &option) {
    std::string value = option.get_type_size() == 0 ? "" : option.get_type_name();
    if (const size_t colon = value.find(':'); colon != std::string::npos)
      value =
          value.substr(value[colon + 1] == '{' ? colon + 1 : 0, value[colon + 1] == '{' ? std::string::npos : colon);
    if (value == "INT" || value == "UINT" || value == "FLOAT")
      value = "N";
    return fmt::format("  {}{}{}  {}", option.get_name(false, true), value.empty() ? "" : " ", value,
                       option.get_description());
  }
};

} // namespace

void fitHelpToScreen(CLI::App &command) { command.formatter(std::make_shared<TwoColumnHelp>()); }

void addCommonOptions(CLI::App &command, Options &options) {
  fitHelpToScreen(command);
  command.add_option("file", options.file, "the program (.cpf)")->required();
  command.add_option("--entry", options.entry, "entry point; may be left out when there is one");
  command.add_option("-D", options.defines, "name=value of a const or param")->expected(1)->take_all();
  command.add_option("--bind", options.binds, "name=array.npy or name=segments(cu.npy)")->expected(1)->take_all();
  command.add_option("-I", options.includeDirs, "folder searched for imports")->expected(1)->take_all();
  const auto addNumber = [&](const char *name, int64_t &value, const char *description) {
    command.add_option(name, value, description)->check(wholeNumber(name, 0));
  };
  addNumber("--batch", options.sizes.batch, "batch rows [1]");
  addNumber("--heads", options.sizes.heads, "query heads [1]");
  addNumber("--kv-heads", options.sizes.kvHeads, "heads of keys and values [heads]");
  addNumber("--q-len", options.sizes.qLen, "query rows");
  addNumber("--kv-len", options.sizes.kvLen, "key rows [q-len]");
  addNumber("--head-dim", options.headDim, "size of a head [64]");
  addNumber("--v-head-dim", options.vHeadDim, "size of a value head [head-dim]");
  command.add_option("--dtype", options.dtype, "f32, bf16 or f16 [f32 on cpu, bf16 on cuda]")
      ->check(oneOf("--dtype", {"f32", "bf16", "f16"}));
  command.add_flag("--layout-bshd,!--layout-bhsd", options.isBshd, "order of array axes [bhsd]");
  command.add_option("--device", options.device, "cpu or cuda[:i] [cpu]")->check([](const std::string &text) {
    const bool isIndexed = text.starts_with("cuda:") && text.size() > 5 && text.size() < 9 &&
                           text.find_first_not_of("0123456789", 5) == std::string::npos;
    if (text != "cpu" && text != "cuda" && !isIndexed)
      throw CommandLineFault(fmt::format("--device is '{}'; expected cpu or cuda[:i]", text));
    return std::string();
  });
  command.add_option("--threads", options.threads, "worker threads [all]")->check(wholeNumber("--threads", 0, 1024));
}

void addKernelOption(CLI::App &command, Options &options) {
  command.add_option("--kernels", options.kernels, "wgmma or mma_sync, on a GPU [by its architecture and shapes]")
      ->check(oneOf("--kernels", {"wgmma", "mma_sync"}));
}

void addRankOptions(CLI::App &command, Options &options) {
  command.add_option("--ranks", options.ranks, "size of the group [1]")->check(wholeNumber("--ranks", 1, 4096));
  command.add_option("--layout", options.layout, "who owns which tokens [auto]")
      ->check(oneOf("--layout", {"contiguous", "head-tail", "striped", "per-document", "ptrr", "solved", "auto"}));
  command.add_option("--rotate", options.rotate, "how keys travel [auto]")
      ->check(oneOf("--rotate", {"ring", "all-gather", "selective", "ulysses", "auto"}));
  command.add_option("--transport", options.transport, "what carries messages [threads]")
      ->check(oneOf("--transport", {"threads", "mpi", "nccl"}));
  command.add_option("--rendezvous", options.rendezvous, "where ranks meet (nccl)")->check(fileName("--rendezvous"));
  command.add_option("--deadline", options.deadlineSeconds, "seconds until a step gives up [60]")
      ->check(secondsAboveZero("--deadline"));
}

int reportFailure(const Status &status) {
  std::fprintf(stderr, "error: %s\n", status.message().c_str());
  return status.code() == StatusCode::InvalidArgument ? kInputWrong : kMachineFailed;
}

std::map<std::string, std::string> assignments(const std::vector<std::string> &texts, const std::string &option) {
  std::map<std::string, std::string> values;
  for (const std::string &text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
      throw CommandLineFault(fmt::format("'{}' of {} has no name and value; expected name=value", text, option));
    const std::string name = text.substr(0, equals);
    if (!values.emplace(name, text.substr(equals + 1)).second)
      throw CommandLineFault(fmt::format("{} gives '{}' twice; expected one value", option, name));
  }
  return values;
}

BindSource bindSource(const std::string &name, const std::string &value) {
  constexpr std::string_view kSegments = "segments(";
  if (value.starts_with(kSegments) && value.ends_with(")") && value.size() > kSegments.size() + 1)
    return {value.substr(kSegments.size(), value.size() - kSegments.size() - 1), true};
  const size_t wordEnd = value.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_");
  const bool isCall = wordEnd != std::string::npos && wordEnd > 0 && value[wordEnd] == '(';
  std::error_code error;
  if (isCall && !std::filesystem::exists(value, error))
    throw CommandLineFault(
        fmt::format("'{}={}' of --bind is neither a file nor segments of one; expected name=array.npy or "
                    "name=segments(cu.npy)",
                    name, value));
  return {value};
}

std::vector<NamedFile> inputFiles(const Options &options) {
  std::vector<NamedFile> files = {{"FILE", options.file}};
  for (const auto &[name, value] : assignments(options.binds, "--bind"))
    files.push_back({"--bind", bindSource(name, value).path});
  return files;
}

Status asInputFault(const Status &status) {
  return status.code() == StatusCode::Unavailable ? Status::invalid(status.message()) : status;
}

// What the library misses, with the option of the command line that gives it.
static Status withOption(const Status &status, const std::string &option) {
  return {status.code(), fmt::format("{}; give it with {}", status.message(), option)};
}

int loadProgram(const Options &options, LoadedProgram &loaded, EntryChoice choice) {
  CompileOptions compileOptions{.includeDirs = options.includeDirs};
  compileOptions.log = {.level = LogLevel::Warning, .function = [](LogLevel, const std::string &text) {
                          std::fprintf(stderr, "warning: %s\n", text.c_str());
                        }};
  compileOptions.constants = assignments(options.defines, "-D");
  CompileResult result = compileFile(options.file, compileOptions);
  for (const Diagnostic &diagnostic : result.diagnostics)
    std::fputs(renderDiagnostic(diagnostic).c_str(), stderr);
  if (!result.program)
    return kInputWrong;
  const bool isFirst = choice == EntryChoice::First && options.entry.empty() && !result.program->entries().empty();
  StatusOr<const EntryPoint *> entry =
      result.program->entry(isFirst ? result.program->entries().front().name : options.entry);
  if (!entry)
    return reportFailure(options.entry.empty() ? withOption(entry.status(), "--entry NAME") : entry.status());
  loaded = {result.program, *entry, result.compileMs};
  return kDone;
}

// The document ids of a file of cumulative lengths, for `length` tokens, or as many as the lengths say.
static StatusOr<Array> readSegments(const std::string &path, int64_t length) {
  StatusOr<Array> lengths = readNpy(path);
  if (!lengths)
    return lengths.status();
  if (lengths->shape.size() != 1 || lengths->type == ElementType::F32 || lengths->type == ElementType::F16 ||
      lengths->type == ElementType::Bool || lengths->shape[0] == 0)
    return Status::invalid(
        fmt::format("'{}' holds no cumulative lengths; expected whole numbers in one dimension", path));
  CaptureView view;
  view.data = lengths->bytes.data();
  view.type = lengths->type;
  std::vector<int64_t> cumulative(lengths->shape[0]);
  for (size_t i = 0; i < cumulative.size(); ++i)
    cumulative[i] = readElement(view, int64_t(i), ValueType::Int);
  constexpr int64_t kMostTokens = int64_t(1) << 31;
  const int64_t count = length >= 0 ? length : cumulative.back();
  if (count < 0 || count > kMostTokens)
    return Status::invalid(fmt::format("'{}' ends with {}; expected 0 to {}", path, count, kMostTokens));
  StatusOr<std::vector<int32_t>> ids = documentIds(cumulative, count);
  if (!ids)
    return Status::invalid(fmt::format("'{}': {}", path, ids.status().message()));
  Array array{ElementType::I32, {count}, {}};
  const char *bytes = reinterpret_cast<const char *>(ids->data());
  array.bytes.assign(bytes, bytes + count * sizeof(int32_t));
  return array;
}

StatusOr<BindRequest> readBindRequest(const Options &options) {
  BindRequest request;
  request.sizes = options.sizes;
  request.params = assignments(options.defines, "-D");
  for (const auto &[name, value] : assignments(options.binds, "--bind")) {
    const BindSource source = bindSource(name, value);
    StatusOr<Array> array = source.isSegments
                                ? readSegments(source.path, std::max(options.sizes.qLen, options.sizes.kvLen))
                                : readNpy(source.path);
    if (!array)
      return asInputFault(array.status());
    request.arrays[name] = std::move(*array);
  }
  return request;
}

StatusOr<std::shared_ptr<Binding>> bindProgram(const BindRequest &request, const Program &program) {
  StatusOr<std::shared_ptr<Binding>> binding = Binding::create(program, request);
  if (binding)
    return binding;
  const std::string message = binding.status().message();
  for (const ParamDeclaration &param : program.signature().params)
    if (message.starts_with(fmt::format("param '{}' has no value", param.name)))
      return withOption(binding.status(), fmt::format("-D {}=VALUE", param.name));
  for (const CaptureDeclaration &capture : program.signature().captures)
    if (message.starts_with(fmt::format("array '{}' is not bound", capture.name)))
      return withOption(binding.status(), fmt::format("--bind {}=FILE.npy", capture.name));
  if (message.starts_with("the lengths are unknown"))
    return withOption(binding.status(), "--q-len N, and --kv-len N where it differs");
  return binding;
}

StatusOr<std::shared_ptr<Binding>> bindProgram(const Options &options, const Program &program) {
  StatusOr<BindRequest> request = readBindRequest(options);
  return request ? bindProgram(*request, program) : request.status();
}

int rankCount(const Options &options) { return std::max(1, options.ranks); }

int threadCount(const Options &options) {
  return options.threads > 0 ? options.threads : std::max(1, int(std::thread::hardware_concurrency()));
}

int writeOutput(const Options &options, const std::string &contents) {
  if (options.output.empty()) {
    printText(contents);
    return kDone;
  }
  Status status = writeFile(options.output, contents);
  return status ? int(kDone) : reportFailure(status);
}

} // namespace cpflex
