// Which command was asked for? Parses the command line and hands it to the command.
#include "tools/cpflexc/Options.h"

int main(int argc, char **argv) {
  CLI::App app("cpflexc: attention masks and scores compiled exactly, for CPUs, GPUs and groups of them", "cpflexc");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("cpflexc ") + CPFLEX_VERSION);
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
    app.parse(argc, argv);
  } catch (const CLI::ParseError &error) {
    return app.exit(error) == 0 ? cpflex::kDone : cpflex::kCommandLineWrong;
  }
  return exitCode;
}
