# Checks what a script can check of the project's style: which way includes point, names of passes and types, layout, forbidden
# calls, first comments, file lengths, paths of one machine, messages without a test. Standard library only. Prints 'pass: NAME' or
# 'fail: NAME: reason' for each check and ends with 1 when one failed. Looks at tracked files.
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = (".h", ".cpp", ".c", ".cuh", ".td", ".def")
MAX_LINES = 500

# Files over MAX_LINES lines, each with the reason why it is one file.
LONG_FILES = {
    "lib/API/cpflex.c.h": "the whole C interface, which is read and installed as one header",
    "lib/CodeGen/Host/ExpressionEmitter.cpp": "one case for each operation of the dialect",
    "runtime/BlockMask/TapeProgram.cpp": "one verification of one instruction set",
    "test/runtime/Cuda/CudaExecutableTest.cpp": "every refusal of one binding, around one fixture",
    "test/oracle/cpf_oracle.py": "an interpreter of the whole language that shares nothing with the compiler",
    "bench/gpu/attention.py": "runs on a GPU machine as one file",
}

# Words that say nothing in the name of a type.
EMPTY_WORDS = ("Manager", "Helper", "Helpers", "Util", "Utils", "Impl", "Meta", "Info", "Data")


def tracked_files():
    """Paths of tracked files that exist, relative to the root, with forward slashes."""
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"fail: tracked files: git ls-files ended with {done.returncode}: {done.stderr.strip()}")
        sys.exit(1)
    return [path for path in done.stdout.split("\0") if path and (ROOT / path).is_file()]


def read(path):
    return (ROOT / path).read_text(errors="replace")


def below(path, *folders):
    return path.startswith(tuple(folder + "/" for folder in folders))


# Raw strings, strings, comments and character literals (not the ' of 1'000), in the order in which a reader meets them.
NOT_CODE = re.compile(r'R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'',
                      re.DOTALL)


def code_of(path):
    """The text of a C++ file with literals and comments blanked; lines keep their numbers."""
    return NOT_CODE.sub(lambda match: "\n" * match.group(0).count("\n") or " ", read(path))


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def includes(path):
    for number, line in enumerate(read(path).splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
        if match:
            yield number, match.group(1)


def check_runtime_includes(files):
    """runtime/ knows neither LLVM nor MLIR nor the compiler."""
    forbidden = ("mlir/", "mlir-c/", "llvm/", "llvm-c/", "lib/", "dialect/", "tools/")
    for path in files:
        if below(path, "runtime") and path.endswith(CODE):
            for number, name in includes(path):
                if name.startswith(forbidden):
                    yield f"{path}:{number} includes '{name}'; expected headers of runtime/ and of the system only"


def check_compiler_includes(files):
    """lib/ and dialect/ see of runtime/ the contracts only; lib/API joins both sides."""
    for path in files:
        if below(path, "lib", "dialect") and not below(path, "lib/API") and path.endswith(CODE):
            for number, name in includes(path):
                if name.startswith(("tools/", "runtime/")) and not name.startswith("runtime/contract/"):
                    yield f"{path}:{number} includes '{name}'; expected 'runtime/contract/' only"


def check_vendor_headers(files):
    """Nothing of CUDA, NCCL or MPI is needed to build; MPI is met in its plugin only."""
    vendor = re.compile(r"(cuda|cuda_\w+|nvrtc|nccl|mpi|dlfcn|cublas\w*|cudnn\w*)\.h$")
    for path in files:
        if not path.endswith(CODE) or not below(path, "lib", "dialect", "runtime", "tools"):
            continue
        allowed = {"runtime/Comm/MpiPlugin.c": "mpi.h"}.get(path)
        for number, name in includes(path):
            if name == allowed or not vendor.match(name):
                continue
            if name != "dlfcn.h" or not below(path, "runtime"):
                yield f"{path}:{number} includes '{name}'"
        if below(path, "lib", "dialect"):
            text = code_of(path)
            for match in re.finditer(r"\bdl(open|sym)\s*\(", text):
                yield f"{path}:{line_of(text, match.start())} loads a library; expected only runtime/ to do so"


def check_contracts(files):
    """contract/ includes nothing of the project but itself."""
    for path in files:
        if below(path, "runtime/contract"):
            for number, name in includes(path):
                if "/" in name and name.startswith("runtime/") and not name.startswith("runtime/contract/"):
                    yield f"{path}:{number} includes '{name}'"


def check_passes(files):
    """A pass has class, file, flag and test of one name."""
    definitions = "lib/Transforms/Passes.td"
    known = set(files)
    passes = re.findall(r'^def (\w+) : Pass<"([^"]+)"', read(definitions), re.MULTILINE)
    if not passes:
        yield f"{definitions} defines no pass"
    for name, flag in passes:
        words = re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
        if flag != f"mask-{words}":
            yield f"pass '{name}' has flag '{flag}'; expected 'mask-{words}'"
        if "-" not in words:
            yield f"pass '{name}' is one word; expected a verb and an object"
        source, test = f"lib/Transforms/{name}.cpp", f"test/lib/Transforms/{words}.mlir"
        if source not in known:
            yield f"pass '{name}' has no file '{source}'"
        if test not in known:
            yield f"pass '{name}' has no test '{test}'"
        elif f"--{flag}" not in read(test):
            yield f"test '{test}' does not run '--{flag}'"


def check_type_names(files):
    pattern = re.compile(r"\b(?:class|struct|union|enum(?:\s+class)?|using)\s+(\w+)\s*(?=[:{=]|final\b)")
    for path in files:
        if path.endswith((".h", ".cpp", ".cuh", ".c")):
            text = code_of(path)
            for match in pattern.finditer(text):
                words = re.findall(r"[A-Z][a-z0-9]*", match.group(1))
                empty = [word for word in words if word in EMPTY_WORDS]
                if empty:
                    yield f"{path}:{line_of(text, match.start())} type '{match.group(1)}' has the word '{empty[0]}'"


def check_calls(files):
    """No exceptions, no exit and no printing below the tools."""
    pattern = re.compile(r"(?<![\w.>])(?:std::)?(?:(?:exit|_exit|quick_exit|printf|fprintf|vprintf|puts|perror)\s*\("
                         r"|throw\b(?!\s*\())|\bstd::(?:abort|terminate|cout|cerr)\b|\bfmt::print(?:ln)?\s*\(")
    for path in files:
        if below(path, "lib", "dialect", "runtime") and path.endswith(CODE) and not below(path, "runtime/kernels"):
            text = code_of(path)
            for match in pattern.finditer(text):
                yield f"{path}:{line_of(text, match.start())} has '{match.group(0).strip()}'; expected a Status or a diagnostic"


def check_first_comments(files):
    for path in files:
        first = read(path).lstrip("\n").split("\n", 1)[0]
        if path.endswith(CODE):
            good = first.startswith(("//", "/*"))
        elif path.endswith((".py", ".cmake")) or below(path, "examples", "lib/Std") and path.endswith(".cpf") \
                or first.startswith("#!"):
            lines = read(path).split("\n", 2)
            line = lines[1] if first.startswith("#!") and len(lines) > 1 else first
            good = line.startswith(("# ", '"""', 'r"""'))
        else:
            continue
        if not good:
            yield f"{path} begins with '{first[:60]}'; expected a comment that says what the file answers"


def check_documents(files):
    for path in files:
        if below(path, "docs") and path.endswith(".md") and "What this answers:" not in read(path)[:600]:
            yield f"{path} does not begin with what it answers"


def check_layout(files):
    sources = [path for path in files if path.endswith((".h", ".cpp", ".cuh", ".cu"))]
    command = ["/usr/lib/llvm-22/bin/clang-format", "--dry-run", *sources]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        yield f"{command[0]} does not run: {error.strerror}; install clang-format-22"
        return
    for path in sorted({line.split(":")[0] for line in done.stderr.splitlines() if "-Wclang-format-violations" in line}):
        yield f"{path} is not laid out as .clang-format says; run {command[0]} -i {path}"
    if done.returncode != 0:
        yield f"{command[0]} ended with {done.returncode}: {done.stderr.strip()}"


def check_lengths(files):
    known = set(files)
    for path in files:
        if path.endswith(CODE + (".py",)):
            lines = read(path).count("\n")
            if lines > MAX_LINES and path not in LONG_FILES:
                yield f"{path} has {lines} lines; expected at most {MAX_LINES} or a reason in LONG_FILES"
    for path in LONG_FILES:
        if path in known and read(path).count("\n") <= MAX_LINES:
            yield f"{path} has at most {MAX_LINES} lines; LONG_FILES need not name it"
        if path not in known:
            yield f"{path} of LONG_FILES does not exist"


def check_machine_paths(files):
    """Text must not depend on where this checkout lies."""
    # A checkout right below the root has a name too short to search for.
    paths = [str(ROOT)] if len(ROOT.parts) > 2 else []
    if not paths:
        return
    # A path may not continue a longer one.
    pattern = re.compile(r"(?<![\w.}/)])(?:" + "|".join(map(re.escape, paths)) + ")")
    for path in files:
        text = read(path)
        for match in pattern.finditer(text):
            yield f"{path}:{line_of(text, match.start())} has '{match.group(0)}'"


# Messages that only a mistake in the compiler itself can print.
OUR_BUGS = ("the program cannot be transformed: ", "this stage cannot be printed: ", "the classifier cannot be derived: ",
            "a lint has no tape: ", "the program cannot be imported: its operations are not valid")

# Messages that no test prints, each with the reason.
UNTESTED_MESSAGES = {
    "'{}' is NCCL {}.{}; expected 2.18 or newer; {}": "needs an NCCL older than the oldest that is used",
    "a tensor whose last stride is not 1 on a GPU; expected rows of adjacent elements": "needs a GPU",
}

# Calls whose texts a user can read.
REPORT = re.compile(r"\b(?:error|errorIn|fail|failAt|warning|warn|lint|emitOpError|emitError|invalid|unsupported|unavailable"
                    r"|failed|reportFailure|messageOf|wrong|push_back)\s*\(")
LITERALS = re.compile(r'"((?:\\.|[^"\\\n])*)"(?:\s*"((?:\\.|[^"\\\n])*)")*')


def arguments_at(text, begin):
    """The text between the parenthesis at `begin` and its partner."""
    depth, at = 0, begin
    for match in re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|[()]').finditer(text, begin):
        if match.group(0) in "()":
            depth += 1 if match.group(0) == "(" else -1
            if depth == 0:
                at = match.end()
                break
    return text[begin:at]


def messages_of(text):
    """(position, message) of each text in a reporting call; `{}` marks what is filled in."""
    for call in REPORT.finditer(text):
        arguments = arguments_at(text, call.end() - 1)
        for literal in LITERALS.finditer(arguments):
            parts = re.findall(r'"((?:\\.|[^"\\\n])*)"', literal.group(0))
            message = "".join(parts).replace('\\"', '"').replace("\\n", " ")
            if len(re.findall(r"[A-Za-z]{2,}", message)) >= 3:
                yield call.end() + literal.start(), message


def check_messages(files):
    """Every message is in a test: three words of it in a row."""
    tested = " ".join(" ".join(read(path).replace('" "', " ").replace('"', " ").split())
                      for path in files if below(path, "test") or path == "docs/language.md")
    for path in files:
        if not below(path, "lib", "dialect", "tools", "runtime") or not path.endswith((".cpp", ".h")):
            continue
        text, seen = read(path), set()
        for position, message in messages_of(text):
            runs = []
            for piece in re.split(r"\{[^{}]*\}", message):
                words = piece.split()
                runs += [" ".join(words[i:i + 3]) for i in range(max(1, len(words) - 2)) if len(words) > 1]
            is_exempt = message in seen or message in OUR_BUGS or message in UNTESTED_MESSAGES
            if runs and not is_exempt and not any(run in tested for run in runs):
                seen.add(message)
                yield f"{path}:{line_of(text, position)} says '{message[:70]}', which no test has"


CHECKS = {
    "runtime includes no compiler": check_runtime_includes,
    "compiler includes contracts only": check_compiler_includes,
    "no vendor headers": check_vendor_headers,
    "contracts stand alone": check_contracts,
    "passes have one name": check_passes,
    "type names say something": check_type_names,
    "no exceptions, exits or printing": check_calls,
    "files begin with a comment": check_first_comments,
    "documents say what they answer": check_documents,
    "layout": check_layout,
    "file lengths": check_lengths,
    "no paths of one machine": check_machine_paths,
    "every message has a test": check_messages,
}


def main():
    files = tracked_files()
    failed = False
    for name, check in CHECKS.items():
        reasons = list(check(files))
        for reason in reasons:
            print(f"fail: {name}: {reason}")
        if not reasons:
            print(f"pass: {name}")
        failed = failed or bool(reasons)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
