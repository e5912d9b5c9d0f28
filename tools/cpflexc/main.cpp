// Which command was asked for? Parses the command line and hands it to the command.
#include "tools/cpflexc/CommandLine.h"
#include "tools/cpflexc/Options.h"
#include "tools/cpflexc/Output.h"

#include <fmt/format.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <sstream>
#include <string_view>

#include <unistd.h>

// Where memory ends that checkHostMemory was not asked for. The text is a constant and the process ends at once, since
// neither needs memory.
static void endOnTerminate() {
  try {
    if (std::exception_ptr thrown = std::current_exception())
      std::rethrow_exception(thrown);
  } catch (const std::bad_alloc &) {
    constexpr std::string_view kText = "cpflexc: not enough memory\n";
    [[maybe_unused]] const ssize_t count = ::write(STDERR_FILENO, kText.data(), kText.size());
    ::_exit(cpflex::kMachineFailed);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "cpflexc: %s\n", error.what());
  } catch (...) {
  }
  std::abort();
}

int main(int argc, char **argv) {
  std::set_terminate(endOnTerminate);
  cpflex::reserveStandardStreams();
  CLI::App app("cpflexc: attention masks and scores compiled exactly, for CPUs, GPUs and groups of them", "cpflexc");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("cpflexc ") + CPFLEX_VERSION);
  app.failure_message([](const CLI::App *, const CLI::Error &error) {
    std::string text = error.what();
    if (text.size() > 1 && std::islower(text[1])) // as all messages, whoever wrote it
      text[0] = char(std::tolower(text[0]));
    return fmt::format("error: {}\n", text);
  });
  int exitCode = cpflex::kDone;
  cpflex::addCompileCommand(app, exitCode);
  cpflex::addCheckCommand(app, exitCode);
  cpflex::addMaskCommand(app, exitCode);
  cpflex::addExplainCommand(app, exitCode);
  cpflex::addRunCommand(app, exitCode);
  cpflex::addPlanCommand(app, exitCode);
  cpflex::addBenchCommand(app, exitCode);
  cpflex::addSmallCommands(app, exitCode);
  try {
    cpflex::checkCommandWords(app, argc, argv);
    app.parse(argc, argv);
  } catch (const CLI::ParseError &error) {
    std::ostringstream help;
    exitCode = app.exit(error, help) == 0 ? cpflex::kDone : cpflex::kCommandLineWrong;
    cpflex::printText(help.str());
  }
  return cpflex::closeOutput(exitCode);
}
