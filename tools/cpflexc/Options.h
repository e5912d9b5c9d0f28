// What do the commands of cpflexc have in common? The options of a program, of an attention call and of a group of
// ranks, and how a failure becomes an exit code.
#pragma once

#include "lib/API/cpflex.h"
#include "tools/cpflexc/CommandLine.h"
#include "tools/cpflexc/Output.h"

#include <map>
#include <string>
#include <vector>

namespace cpflex {

/// What the process returns. Other programs rely on the numbers.
enum ExitCode : int { kDone = 0, kInputWrong = 1, kCommandLineWrong = 2, kMachineFailed = 3 };

/// The options that most commands take; negative sizes were not given.
struct Options {
  std::string file, entry, output;
  std::vector<std::string> defines, binds, includeDirs;
  CallSizes sizes;
  int64_t headDim = -1, vHeadDim = -1;
  std::string dtype, device = "cpu", kernels;
  bool isBshd = false;
  int threads = 0; ///< 0: one per hardware thread

  int ranks = -1; ///< negative: not given; see rankCount
  std::string layout = "auto", rotate = "auto", transport = "threads", rendezvous;
  double deadlineSeconds = 60;
};

/// Adds FILE and the options of design section `common`.
void addCommonOptions(CLI::App &command, Options &options);
/// Adds the choice of a GPU's kernels.
void addKernelOption(CLI::App &command, Options &options);
/// Gives a command a help text of at most a screen.
void fitHelpToScreen(CLI::App &command);
/// Adds the options of a group of ranks.
void addRankOptions(CLI::App &command, Options &options);

/// Prints `error: message` and gives the exit code of the kind of fault.
int reportFailure(const Status &status);

/// A compiled program with the entry point that was asked for.
struct LoadedProgram {
  std::shared_ptr<Program> program;
  const EntryPoint *entry = nullptr;
  double compileMs = 0;
};

/// Which entry point is meant when a file has several and none is named.
enum class EntryChoice {
  Named, ///< an error
  First, ///< the first one, for what concerns the whole file
};

/// Compiles options.file; prints what the compiler says. Returns kDone and fills `loaded`, or the exit code.
int loadProgram(const Options &options, LoadedProgram &loaded, EntryChoice choice = EntryChoice::Named);

/// What is wrong with a file that the user names, as an input that is wrong; other failures stay what they are.
Status asInputFault(const Status &status);

/// Reads the arrays of --bind and the values of -D.
StatusOr<BindRequest> readBindRequest(const Options &options);

/// Binds; messages about what is missing name the option that gives it.
StatusOr<std::shared_ptr<Binding>> bindProgram(const BindRequest &request, const Program &program);

/// Reads and binds.
StatusOr<std::shared_ptr<Binding>> bindProgram(const Options &options, const Program &program);

/// The texts `name=value` of an option by their names. Throws CommandLineFault when one has another form or a name
/// comes twice.
std::map<std::string, std::string> assignments(const std::vector<std::string> &texts, const std::string &option);

/// The file that the value of a --bind names: `array.npy` or `segments(cu.npy)`.
struct BindSource {
  std::string path;
  bool isSegments = false;
};
/// Throws CommandLineFault when the value has neither form.
BindSource bindSource(const std::string &name, const std::string &value);

/// The files that the common options read, for refuseSharedFiles.
std::vector<NamedFile> inputFiles(const Options &options);

/// The size of the group: as asked for, else 1.
int rankCount(const Options &options);

/// Worker threads: as asked for, else one per hardware thread.
int threadCount(const Options &options);

/// Writes to options.output as a whole, or to standard output.
int writeOutput(const Options &options, const std::string &contents);

void addCompileCommand(CLI::App &app, int &exitCode);
void addCheckCommand(CLI::App &app, int &exitCode);
void addMaskCommand(CLI::App &app, int &exitCode);
void addExplainCommand(CLI::App &app, int &exitCode);
void addRunCommand(CLI::App &app, int &exitCode);
void addPlanCommand(CLI::App &app, int &exitCode);
void addBenchCommand(CLI::App &app, int &exitCode);
/// port, devices and cache.
void addSmallCommands(CLI::App &app, int &exitCode);

} // namespace cpflex
