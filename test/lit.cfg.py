# lit configuration: which files are tests, which tools they run, and which features this machine has.
import os
import shutil
import subprocess

import lit.formats

config.name = "cpflex"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".cpf", ".test"]
config.excludes = ["Inputs", "catalogue", "CMakeLists.txt"]
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = os.path.join(config.cpflex_build, "test")

tools = os.path.join(config.cpflex_build, "bin")
config.environment["PATH"] = os.pathsep.join([tools, "/usr/lib/llvm-22/bin", config.environment.get("PATH", "")])
for name in ("CPFLEX_NVRTC", "CPFLEX_FULL", "CPFLEX_CACHE_DIR", "CI"):
    if name in os.environ:
        config.environment[name] = os.environ[name]

chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
# Tests of the package for PyTorch run with this Python; they are skipped where it has no PyTorch.
torch_python = os.environ.get("CPFLEX_TORCH_PYTHON", "/usr/bin/python3")

config.substitutions += [
    ("%cpflexc", os.path.join(tools, "cpflexc")),
    ("%cpflex-opt", os.path.join(tools, "cpflex-opt")),
    ("%root", config.cpflex_source),
    ("%build", config.cpflex_build),
    ("%python", "/usr/bin/python3"),
    ("%chromium", chromium or ""),
    ("%torch-python", torch_python),
    ("%examples", os.path.join(config.cpflex_source, "examples")),
    ("%catalogue", os.path.join(config.cpflex_source, "test", "catalogue")),
]
# The longer names must be replaced before their prefixes.
config.substitutions.sort(key=lambda pair: -len(pair[0]))

if os.environ.get("CPFLEX_NVRTC"):
    config.available_features.add("nvrtc")
if os.environ.get("CPFLEX_FULL"):
    config.available_features.add("full")
if os.path.exists(os.path.join(tools, "cpflexc")):
    config.available_features.add("cpflexc")
if chromium:
    config.available_features.add("chromium")
portable = os.path.join(config.cpflex_source, "build-portable", "bin", "cpflexc")
config.substitutions.insert(0, ("%portable-cpflexc", portable))
if os.environ.get("CPFLEX_FULL") and os.path.exists(portable):
    config.available_features.add("portable")
if os.path.exists(os.path.join(config.cpflex_build, "lib", "libcpflex.so")):
    config.available_features.add("libcpflex")
finds_torch = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
if subprocess.run([torch_python, "-c", finds_torch]).returncode == 0:
    config.available_features.add("torch")
if shutil.which("mpirun"):
    config.available_features.add("mpi")
if shutil.which("nvidia-smi"):
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")] if listed.returncode == 0 else []
    if gpus:
        config.available_features.add("gpu")
    if len(gpus) >= 2:
        config.available_features.add("two-gpus")
