#!/usr/bin/env python3
"""Checks attention on a GPU against the CPU: every case of the catalogue, shapes, layouts and repeated runs.

Needs a built cpflexc, NumPy and a GPU, nothing else. Each check makes inputs, runs `cpflexc run` on the CPU in f32 and
twice on the GPU in bf16 or f16 over the same values, and compares outputs, LSE and gradients. The last line is
'N passed, N failed, N skipped'; the exit status is 0 only when nothing failed.

Usage: gpu_checks.py CPFLEXC [--jobs N] [--only TEXT] [--device cuda:0] [--sanitizer compute-sanitizer] [--keep FOLDER]
"""
import argparse
import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

CATALOGUE = pathlib.Path(__file__).resolve().parent.parent / "test" / "catalogue"
TIMEOUT_S = 300
# Relative Frobenius errors: inputs are the same on both sides, so what differs is the rounding of weights and results to
# the element type (2^-9 for bf16, 2^-11 for f16 of each) and, in gradients, of the gradients of scores as well.
OUTPUT_TOLERANCE = {"bf16": 6e-3, "f16": 1e-3}
GRADIENT_FACTOR = 2.0
LSE_TOLERANCE = 1e-4
SMALL = 1e-3
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")


def to_bf16(values):
    """f32 to bf16 bits, to nearest even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_element(values, dtype):
    if dtype == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


class Check:
    """One problem: a program with its arrays, and the sizes to run it at."""

    def __init__(self, name, file, entry, q_len, kv_len, binds=None, defines=None, batch=1, heads=2, kv_heads=None,
                 head_dim=64, v_head_dim=None, dtype="bf16", layout="bhsd", backward=True):
        self.name, self.file, self.entry = name, file, entry
        self.q_len, self.kv_len, self.binds, self.defines = q_len, kv_len, binds or {}, defines or {}
        self.batch, self.heads, self.kv_heads = batch, heads, kv_heads or heads
        self.head_dim, self.v_head_dim = head_dim, v_head_dim or head_dim
        self.dtype, self.layout, self.backward = dtype, layout, backward
        text = pathlib.Path(file).read_text()
        declaration = re.search(r'attention\(\s*"%s".*?\)\s*$' % re.escape(entry), text, re.S | re.M)
        self.has_softmax = "softmax=False" not in (declaration.group(0) if declaration else "")


def inputs(check, folder):
    """Writes the inputs in the element type and, with the same values, in f32."""
    rng = np.random.default_rng(1)
    shapes = {"q": (check.heads, check.q_len, check.head_dim), "k": (check.kv_heads, check.kv_len, check.head_dim),
              "v": (check.kv_heads, check.kv_len, check.v_head_dim)}
    if check.backward:
        shapes["dout"] = (check.heads, check.q_len, check.v_head_dim)
    for name, (heads, length, dim) in shapes.items():
        shape = (check.batch, heads, length, dim) if check.layout == "bhsd" else (check.batch, length, heads, dim)
        values = rng.standard_normal(shape, dtype=np.float32)
        element = to_bf16(values) if check.dtype == "bf16" else values.astype(np.float16)
        np.save(folder / f"{name}.{check.dtype}.npy", element)
        np.save(folder / f"{name}.f32.npy", from_element(element, check.dtype))


def command(arguments, check, folder, arrays, device, dtype, label):
    line = [str(arguments.cpflexc), "run", str(check.file), "--entry", check.entry, "--device", device, "--dtype", dtype,
            f"--layout-{check.layout}"]
    line += ["--batch", str(check.batch), "--heads", str(check.heads), "--kv-heads", str(check.kv_heads)]
    line += ["--q-len", str(check.q_len), "--kv-len", str(check.kv_len)]
    line += ["--head-dim", str(check.head_dim), "--v-head-dim", str(check.v_head_dim)]
    for name, value in check.defines.items():
        line += ["-D", f"{name}={value}"]
    for name, file in check.binds.items():
        line += ["--bind", f"{name}={arrays / file}"]
    for name in ("q", "k", "v") + (("dout",) if check.backward else ()):
        line += [f"--{name}", str(folder / f"{name}.{dtype}.npy")]
    outputs = ["out"] + (["lse"] if check.has_softmax else []) + (["dq", "dk", "dv"] if check.backward else [])
    for name in outputs:
        line += [f"--{name}", str(folder / f"{name}.{label}.npy")]
    return line, outputs


def execute(line):
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"'{' '.join(line)}' ended with {done.returncode}:\n{(done.stdout + done.stderr).strip()}")


def relative_error(actual, expected):
    """Frobenius norm of the difference over that of what is expected, or of SMALL everywhere where that is more (gradients
    may be 0); equal infinities agree."""
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    if not np.isfinite(np.where(same, 0.0, actual)).all():
        return np.inf
    difference = np.where(same, 0.0, actual.astype(np.float64) - np.where(same, actual, expected).astype(np.float64))
    scale = np.linalg.norm(np.where(np.isfinite(expected), expected, 0.0).astype(np.float64))
    return float(np.linalg.norm(difference) / max(scale, SMALL * np.sqrt(expected.size)))


def compare(check, folder, outputs):
    """The largest errors, and a list of what is wrong."""
    errors, faults = {}, []
    for name in outputs:
        expected = np.load(folder / f"{name}.cpu.npy")
        first, second = (np.load(folder / f"{name}.{label}.npy") for label in ("gpu", "again"))
        if first.tobytes() != second.tobytes():
            faults.append(f"{name}: two runs differ in bits")
        actual = first if name == "lse" else from_element(first, check.dtype)
        if actual.shape != expected.shape:
            faults.append(f"{name}: shape {actual.shape}, expected {expected.shape}")
            continue
        errors[name] = relative_error(actual, expected)
        tolerance = OUTPUT_TOLERANCE[check.dtype] * (1.0 if name == "out" else GRADIENT_FACTOR)
        tolerance = LSE_TOLERANCE if name == "lse" else tolerance
        if not errors[name] <= tolerance:
            faults.append(f"{name}: relative error {errors[name]:.2e}, expected at most {tolerance:.1e}")
    return errors, faults


def run_check(arguments, check, arrays):
    with tempfile.TemporaryDirectory(dir=arguments.keep) as name:
        folder = pathlib.Path(name)
        try:
            inputs(check, folder)
            execute(command(arguments, check, folder, arrays, "cpu", "f32", "cpu")[0])
            for label in ("gpu", "again"):
                line, outputs = command(arguments, check, folder, arrays, arguments.device, check.dtype, label)
                execute(line)
            errors, faults = compare(check, folder, outputs)
            return check, errors, faults
        except (RuntimeError, subprocess.TimeoutExpired, OSError, ValueError) as error:
            return check, {}, [str(error)]


def run_sanitizer(arguments, check, arrays, tool):
    """One run under compute-sanitizer; a fault is an exit status other than 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        try:
            inputs(check, folder)
            line, _ = command(arguments, check, folder, arrays, arguments.device, check.dtype, "gpu")
            execute([arguments.sanitizer, "--tool", tool, "--error-exitcode", "9"] + line)
            return check, {}, []
        except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
            return check, {}, [str(error)]


def catalogue_checks():
    checks = []
    for file in ("catalogue.json", "scores.json"):
        for case in json.loads((CATALOGUE / file).read_text())["cases"]:
            checks.append(Check(case["case"], CATALOGUE / case["file"], case["entry"], case["q_len"], case["kv_len"],
                                case["binds"], case["defines"], case.get("batch", 1), case.get("heads", 1)))
    return checks


def shape_checks():
    """Head sizes, grouped heads, lengths, element types and layouts, over masks that need no arrays."""
    causal, window = CATALOGUE / "M02.cpf", CATALOGUE / "M06.cpf"
    checks = []
    for head_dim, v_head_dim in ((8, 8), (40, 72), (64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)):
        for dtype in ("bf16", "f16"):
            checks.append(Check(f"causal-d{head_dim}x{v_head_dim}-{dtype}", causal, "causal", 517, 517, head_dim=head_dim,
                                v_head_dim=v_head_dim, dtype=dtype, heads=6, kv_heads=2))
    for q_len, kv_len in ((1, 1), (1, 300), (300, 1), (127, 129), (1024, 1000)):
        checks.append(Check(f"causal-{q_len}x{kv_len}", causal, "causal", q_len, kv_len, batch=2, heads=4, kv_heads=1))
    checks.append(Check("window-bshd", window, "window", 700, 700, {}, {"W": 100}, batch=3, heads=4, layout="bshd"))
    return checks


def sanitizer_checks():
    causal = CATALOGUE / "M02.cpf"
    return [Check(f"sanitizer-d{d}", causal, "causal", 300, 300, head_dim=d, heads=2, kv_heads=1) for d in (64, 128, 256)]


def report(check, errors, faults, label=""):
    summary = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"{'FAIL' if faults else 'pass'}: {check.name}{label}: {summary}", flush=True)
    for fault in faults:
        print("  " + fault.replace("\n", "\n  "), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cpflexc", type=pathlib.Path, help="the built program")
    parser.add_argument("--jobs", type=int, default=4, help="checks that run at once")
    parser.add_argument("--only", default="", help="run the checks whose name contains this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sanitizer", help="path of compute-sanitizer; runs a sample of each kernel under its tools")
    parser.add_argument("--keep", help="folder for temporary arrays")
    arguments = parser.parse_args()

    devices = subprocess.run([str(arguments.cpflexc), "devices"], capture_output=True, text=True, errors="replace")
    print(devices.stdout.strip())
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        arrays = pathlib.Path(name)
        subprocess.run([sys.executable, str(CATALOGUE / "generate_arrays.py"), str(arrays)], check=True)
        jobs = [pool.submit(run_check, arguments, check, arrays) for check in catalogue_checks() + shape_checks()
                if arguments.only in check.name]
        if arguments.sanitizer:
            jobs += [pool.submit(run_sanitizer, arguments, check, arrays, tool) for check in sanitizer_checks()
                     for tool in SANITIZER_TOOLS if arguments.only in check.name]
        for job in concurrent.futures.as_completed(jobs):
            check, errors, faults = job.result()
            report(check, errors, faults)
            passed, failed = passed + (not faults), failed + bool(faults)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
