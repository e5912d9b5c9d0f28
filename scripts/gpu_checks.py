#!/usr/bin/env python3
"""Checks attention on a GPU: the catalogue, shapes, layouts, both kernel families, messages and times.

Needs a built cpflexc, NumPy and a GPU, nothing else. Values are compared with attention in f32 on the CPU (the catalogue,
gradients of captures included) or with dense attention in double in NumPy (shapes); results must have the same bits in a
second run. A table of times and of the largest errors comes last, then 'N passed, N failed, N skipped'; the exit status
is 0 only when nothing failed.

Usage: gpu_checks.py CPFLEXC [--jobs N] [--only TEXT] [--device cuda:0] [--time-limit SECONDS]
                     [--sanitizer compute-sanitizer] [--output RESULTS.json]
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

CATALOGUE = pathlib.Path(__file__).resolve().parent.parent / "test" / "catalogue"
TIMEOUT_S = 120
# Relative Frobenius errors: inputs are the same on both sides, so what differs is the rounding of weights and results to
# the element type (2^-9 for bf16, 2^-11 for f16 of each) and, in gradients, of the gradients of scores as well.
OUTPUT_TOLERANCE = {"bf16": 6e-3, "f16": 1e-3}
GRADIENT_FACTOR = 2.0
CAPTURE_FACTOR = 4.0
LSE_TOLERANCE = 1e-5
# Below this root mean square a gradient counts as 0, and errors are measured against it.
SMALL = 2e-3
# The same for captures, times the root of the rows: in each row the rounding of O moves the sum of the scores' gradients,
# which is 0, by some tenths of the tolerance.
SMALL_PER_ROW = 0.2
# racecheck follows the mma_sync kernels; of the wgmma kernels it runs over bench/gpu/attention.py --every-lane-arrives.
SANITIZER_TOOLS = {None: ("memcheck", "synccheck"), "mma_sync": ("memcheck", "racecheck", "synccheck")}


def to_bf16(values):
    """f32 to bf16 bits, to nearest even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_element(values, dtype):
    if dtype == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


class Check:
    """One problem: a program with its arrays, the sizes to run it at, and the kernels to run it with."""

    def __init__(self, name, file, entry, q_len, kv_len, binds=None, defines=None, batch=1, heads=2, kv_heads=None,
                 head_dim=64, v_head_dim=None, layout="bhsd", variants=(("bf16", None), ("f16", "mma_sync")), mask=None):
        self.name, self.file, self.entry = name, file, entry
        self.q_len, self.kv_len, self.binds, self.defines = q_len, kv_len, binds or {}, defines or {}
        self.batch, self.heads, self.kv_heads = batch, heads, kv_heads or heads
        self.head_dim, self.v_head_dim = head_dim, v_head_dim or head_dim
        self.layout, self.variants = layout, variants
        self.mask = mask  # of (q, kv) in NumPy: the reference is then dense attention in double
        text = pathlib.Path(file).read_text()
        declaration = re.search(r'attention\(\s*"%s".*?\)\s*$' % re.escape(entry), text, re.S | re.M)
        self.has_softmax = "softmax=False" not in (declaration.group(0) if declaration else "")
        self.captures = [name for name in re.findall(r"^(\w+): tensor\[.*grad=True", text, re.M) if name in self.binds]

    def outputs(self):
        names = ["out"] + (["lse"] if self.has_softmax else []) + ["dq", "dk", "dv"]
        return names + ["d" + name for name in self.captures]


def inputs(check, folder):
    """Writes Q, K, V and dO in every element type, with the same values: those that bf16 and f16 both hold."""
    rng = np.random.default_rng(1)
    shapes = {"q": (check.heads, check.q_len, check.head_dim), "k": (check.kv_heads, check.kv_len, check.head_dim),
              "v": (check.kv_heads, check.kv_len, check.v_head_dim), "dout": (check.heads, check.q_len, check.v_head_dim)}
    arrays = {}
    for name, (heads, length, dim) in shapes.items():
        shape = (check.batch, heads, length, dim) if check.layout == "bhsd" else (check.batch, length, heads, dim)
        bits = to_bf16(rng.standard_normal(shape, dtype=np.float32))
        values = from_element(bits, "bf16")
        bits[np.abs(values) < 2.0**-14] = 0
        values = arrays[name] = from_element(bits, "bf16")
        np.save(folder / f"{name}.bf16.npy", bits)
        np.save(folder / f"{name}.f16.npy", values.astype(np.float16))
        np.save(folder / f"{name}.f32.npy", values)
    return arrays


def command(arguments, check, folder, arrays, device, dtype, label, kernels=None):
    line = [str(arguments.cpflexc), "run", str(check.file), "--entry", check.entry, "--device", device, "--dtype", dtype,
            f"--layout-{check.layout}"]
    line += ["--kernels", kernels] if kernels else []
    line += ["--threads", "2"] if device == "cpu" else []
    line += ["--batch", str(check.batch), "--heads", str(check.heads), "--kv-heads", str(check.kv_heads)]
    line += ["--q-len", str(check.q_len), "--kv-len", str(check.kv_len)]
    line += ["--head-dim", str(check.head_dim), "--v-head-dim", str(check.v_head_dim)]
    for name, value in check.defines.items():
        line += ["-D", f"{name}={value}"]
    for name, file in check.binds.items():
        line += ["--bind", f"{name}={arrays / file}"]
    for name in ("q", "k", "v", "dout"):
        line += [f"--{name}", str(folder / f"{name}.{dtype}.npy")]
    for name in check.outputs():
        file = folder / f"{name}.{label}.npy"
        is_capture = name[1:] in check.captures and name not in ("dq", "dk", "dv")
        line += ["--dcapture", f"{name[1:]}={file}"] if is_capture else [f"--{name}", str(file)]
    return line


def execute(line, expected_code=0):
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    if done.returncode != expected_code:
        raise RuntimeError(f"'{' '.join(line)}' ended with {done.returncode}:\n{(done.stdout + done.stderr).strip()}")
    return done.stdout + done.stderr


def dense_attention(check, arrays):
    """Output, LSE and gradients in double of softmax attention under check.mask, as [b, h, s, d]."""
    axes = (0, 1, 2, 3) if check.layout == "bhsd" else (0, 2, 1, 3)
    q, k, v, dout = (arrays[name].astype(np.float64).transpose(axes) for name in ("q", "k", "v", "dout"))
    group = check.heads // check.kv_heads
    wide_k, wide_v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scale = np.float64(np.float32(1.0) / np.sqrt(np.float32(check.head_dim)))
    allowed = check.mask(np.arange(check.q_len)[:, None], np.arange(check.kv_len)[None, :])
    allowed = np.broadcast_to(allowed, (check.q_len, check.kv_len))
    scores = np.where(allowed, scale * q @ wide_k.swapaxes(2, 3), -np.inf)
    highest = scores.max(axis=3, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(highest), highest, 0.0))
    total = weights.sum(axis=3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (highest + np.log(total))[..., 0]
    weights = weights / np.where(total > 0, total, 1.0)
    out = weights @ wide_v
    gradient = weights * (dout @ wide_v.swapaxes(2, 3) - (dout * out).sum(axis=3, keepdims=True)) * scale
    def over_group(wide):
        return wide.reshape(check.batch, check.kv_heads, group, *wide.shape[2:]).sum(axis=2)

    results = {"out": out, "lse": lse, "dq": gradient @ wide_k, "dk": over_group(gradient.swapaxes(2, 3) @ q),
               "dv": over_group(weights.swapaxes(2, 3) @ dout)}
    return {name: value if name == "lse" else value.transpose(axes) for name, value in results.items()}


def relative_error(actual, expected, small=SMALL):
    """Frobenius norm of the difference over that of what is expected, or of `small` everywhere where that is more; equal
    infinities agree."""
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    if not np.isfinite(np.where(same, 0.0, actual)).all():
        return np.inf
    wide_actual, wide_expected = (np.where(same, 0.0, values).astype(np.float64) for values in (actual, expected))
    difference = wide_actual - wide_expected
    scale = np.linalg.norm(np.where(np.isfinite(expected), expected, 0.0).astype(np.float64))
    return float(np.linalg.norm(difference) / max(scale, small * np.sqrt(expected.size)))


def lse_error(actual, expected):
    """The largest difference of an element: absolute, or relative to its LSE where that is above 1."""
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    difference = np.where(same, 0.0, actual).astype(np.float64) - np.where(same, 0.0, expected)
    size = np.maximum(1.0, np.abs(np.where(np.isfinite(expected), expected, 0.0)))
    return float(np.max(np.where(np.isnan(difference), np.inf, np.abs(difference)) / size, initial=0.0))


def compare(check, folder, reference, dtype, label):
    """The errors of one run, and what is wrong with it."""
    errors, faults = {}, []
    for name in check.outputs():
        actual, expected = np.load(folder / f"{name}.{label}.npy"), reference[name]
        if actual.dtype != np.float32:
            actual = from_element(actual, dtype)
        if actual.shape != expected.shape:
            faults.append(f"{label}: {name}: shape {actual.shape}, expected {expected.shape}")
            continue
        is_capture = name not in ("out", "lse", "dq", "dk", "dv")
        small = SMALL_PER_ROW * np.sqrt(check.batch * check.heads * check.q_len) if is_capture else SMALL
        errors[name] = lse_error(actual, expected) if name == "lse" else relative_error(actual, expected, small)
        tolerance = OUTPUT_TOLERANCE[dtype] * (1.0 if name == "out" else CAPTURE_FACTOR if is_capture else GRADIENT_FACTOR)
        tolerance = LSE_TOLERANCE if name == "lse" else tolerance
        if not errors[name] <= tolerance:
            kind = "largest" if name == "lse" else "relative"
            faults.append(f"{label}: {name}: {kind} error {errors[name]:.2e}, expected at most {tolerance:.1e}")
    return errors, faults


def run_check(arguments, check, arrays):
    errors, faults = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        try:
            values = inputs(check, folder)
            if check.mask:
                reference = dense_attention(check, values)
            else:
                execute(command(arguments, check, folder, arrays, "cpu", "f32", "cpu"))
                reference = {name: np.load(folder / f"{name}.cpu.npy") for name in check.outputs()}
            for number, (dtype, kernels) in enumerate(check.variants):
                label = f"{dtype}-{kernels or 'table'}"
                execute(command(arguments, check, folder, arrays, arguments.device, dtype, label, kernels))
                errors[label], wrong = compare(check, folder, reference, dtype, label)
                faults += wrong
                if number > 0:
                    continue
                execute(command(arguments, check, folder, arrays, arguments.device, dtype, "again", kernels))
                for name in check.outputs():
                    first, second = (folder / f"{name}.{run}.npy" for run in (label, "again"))
                    if first.read_bytes() != second.read_bytes():
                        faults.append(f"{label}: {name}: two runs differ in bits")
        except (RuntimeError, subprocess.TimeoutExpired, OSError, ValueError) as error:
            faults.append(str(error))
    return check.name, errors, faults


def run_sanitizer(arguments, check, arrays, kernels, tool):
    """One run under compute-sanitizer; a fault is an exit status other than 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        faults = []
        try:
            inputs(check, folder)
            line = command(arguments, check, folder, arrays, arguments.device, "bf16", "gpu", kernels)
            execute([arguments.sanitizer, "--tool", tool, "--error-exitcode", "9"] + line)
        except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
            faults.append(str(error))
    return f"{check.name}-{kernels or 'wgmma'}-{tool}", {}, faults


def catalogue_checks():
    """Scores first, of which some take long to compile; every second mask with one element type and family only."""
    checks = []
    for file in ("scores.json", "catalogue.json"):
        for number, case in enumerate(json.loads((CATALOGUE / file).read_text())["cases"]):
            check = Check(case["case"], CATALOGUE / case["file"], case["entry"], case["q_len"], case["kv_len"],
                          case["binds"], case["defines"], case.get("batch", 1), case.get("heads", 1))
            if file == "catalogue.json" and number % 2 == 1:
                check.variants = check.variants[:1]
            checks.append(check)
    return checks


def shape_checks():
    """Head sizes, grouped heads, lengths and layouts, with every element type and family, over masks known here."""
    causal, window = CATALOGUE / "M02.cpf", CATALOGUE / "M06.cpf"
    everywhere = [(dtype, kernels) for dtype in ("bf16", "f16") for kernels in (None, "mma_sync")]

    def is_causal(q, kv):
        return kv <= q

    def in_window(q, kv):
        return (kv <= q) & (q - kv < 100)

    checks = []
    for head_dim, v_head_dim in ((8, 8), (40, 72), (64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)):
        checks.append(Check(f"causal-d{head_dim}x{v_head_dim}", causal, "causal", 517, 517, head_dim=head_dim,
                            v_head_dim=v_head_dim, heads=6, kv_heads=2, variants=everywhere, mask=is_causal))
    for q_len, kv_len in ((1, 1), (1, 300), (300, 1), (127, 129), (1024, 1000)):
        checks.append(Check(f"causal-{q_len}x{kv_len}", causal, "causal", q_len, kv_len, batch=2, heads=4, kv_heads=1,
                            mask=is_causal))
    for layout in ("bhsd", "bshd"):
        checks.append(Check(f"window-{layout}", window, "window", 700, 700, {}, {"W": 100}, batch=3, heads=4,
                            layout=layout, variants=everywhere, mask=in_window))
    return checks


def sanitizer_checks():
    causal = CATALOGUE / "M02.cpf"
    return [Check(f"sanitizer-d{d}", causal, "causal", 300, 300, head_dim=d, heads=2, kv_heads=1) for d in (64, 128, 256)]


def message_checks(arguments):
    """Requests that no GPU serves: one sentence each, and an exit status."""
    causal = ["run", str(CATALOGUE / "M02.cpf"), "--entry", "causal", "--q-len", "64", "--device"]
    cases = (("head-size", causal + [arguments.device, "--head-dim", "20"],
              "head size is 20; GPU kernels serve multiples of 8 up to 256"),
             ("wide-head", causal + [arguments.device, "--head-dim", "264"],
              "head size is 264; GPU kernels serve multiples of 8 up to 256"),
             ("element-type", causal + [arguments.device, "--dtype", "f32"],
              "element type is 'f32'; GPU kernels exist for 'bf16' and 'f16'"),
             ("device-index", causal + ["cuda:99"], "99"))
    for name, line, expected in cases:
        faults = []
        done = subprocess.run([str(arguments.cpflexc)] + line, capture_output=True, text=True, errors="replace",
                              timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        if done.returncode not in (1, 3) or "error: " not in done.stderr or expected not in done.stderr:
            faults.append(f"ended with {done.returncode} and '{done.stderr.strip()}'; expected '{expected}'")
        yield f"message-{name}", {}, faults


def timings(arguments, arrays):
    """Rows of (name, value, unit) of one process at a time: compiling with an empty cache and from the disk, calls. NVRTC
    keeps compiled text in the driver's cache too, which is switched off."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for head_dim in (64, 128, 256):
            line = [str(arguments.cpflexc), "bench", str(CATALOGUE / "M02.cpf"), "--entry", "causal", "--q-len", "8192",
                    "--heads", "8", "--head-dim", str(head_dim), "--device", arguments.device]
            done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
                                  env=dict(os.environ, CPFLEX_CACHE_DIR=cache, CUDA_CACHE_DISABLE="1"))
            if done.returncode:
                return rows, [done.stderr.strip()]
            seen = json.loads(done.stdout)
            if seen["kernels_were_cached"] or seen["disk_cache_ms"] is None:
                return rows, ["a new cache held kernels, or kept none"]
            if head_dim == 64:
                rows.append(("context of the driver", seen["context_ms"], "ms"))
                rows.append(("loading NVRTC", seen["nvrtc_load_ms"], "ms"))
            cold = seen["compile_ms"] + seen["functor_ms"] + seen["kernel_compile_ms"]
            rows.append((f"causal 8192 d{head_dim}: source to loaded kernel, empty cache", cold, "ms"))
            rows.append((f"causal 8192 d{head_dim}: source to loaded kernel, disk cache", seen["disk_cache_ms"], "ms"))
            rows.append((f"causal 8192 d{head_dim}: the same kernel again in the process", seen["in_process_us"], "us"))
            rows.append((f"causal 8192 d{head_dim}: forward", seen["forward_ms"], "ms"))
            rows.append((f"causal 8192 d{head_dim}: host time of a forward call", seen["forward_call_us"], "us"))
        document = np.repeat(np.arange(64), 2048).astype(np.int32)
        np.save(arrays / "long_documents.npy", document)
        line = [str(arguments.cpflexc), "bench", str(CATALOGUE / "M17.cpf"), "--entry", "causal_document", "--q-len",
                str(document.size), "--bind", f"doc={arrays / 'long_documents.npy'}", "--device", arguments.device]
        done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        if done.returncode:
            return rows, [done.stderr.strip()]
        seen = json.loads(done.stdout)
        rows.append(("documents 131072: block mask", seen["mask_ms"], "ms"))
        rows.append(("documents 131072: binding another mask", seen["update_ms"], "ms"))
        rows.append(("documents 131072: host time of a forward call", seen["forward_call_us"], "us"))
        rows.append(("documents 131072: host time of a step, ids on the GPU", seen["new_arrays_ms"], "ms"))
        if not seen["new_arrays_overlapped"]:
            return rows, ["binding arrays on the GPU waited for the kernels before it"]
    return rows, []


def report(name, errors, faults):
    worst = {}
    for run in errors.values():
        for output, error in run.items():
            worst[output] = max(worst.get(output, 0.0), error)
    summary = ", ".join(f"{output} {error:.1e}" for output, error in worst.items())
    print(f"{'FAIL' if faults else 'pass'}: {name}: {summary}", flush=True)
    for fault in faults:
        print("  " + fault.replace("\n", "\n  ")[-1500:], flush=True)


def summarize(results, rows):
    """The largest error of each output over all checks by element type and family, and the times."""
    largest = {}
    for name, errors, _ in results:
        for label, run in errors.items():
            for output, error in run.items():
                output = output if output in ("out", "lse", "dq", "dk", "dv") else "captures"
                if error >= largest.get((label, output), (-1.0, ""))[0]:
                    largest[label, output] = (error, name)
    for (label, output), (error, name) in sorted(largest.items()):
        print(f"{label:16} {output:9} largest relative error {error:.1e} in {name}")
    for name, value, unit in rows:
        print(f"{name:64} {value:10.3f} {unit}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cpflexc", type=pathlib.Path, help="the built program")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="checks that run at once")
    parser.add_argument("--only", default="", help="run the checks whose name contains this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds after which no check is begun")
    parser.add_argument("--sanitizer", help="path of compute-sanitizer; runs a sample of each kernel under its tools")
    parser.add_argument("--output", type=pathlib.Path, help="file for all errors and times (.json)")
    arguments = parser.parse_args()
    arguments.cpflexc = arguments.cpflexc.resolve()

    begin = time.monotonic()
    print(subprocess.run([str(arguments.cpflexc), "devices"], capture_output=True, text=True).stdout.strip(), flush=True)
    results, rows, num_skipped = [], [], 0
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        arrays = pathlib.Path(name)
        subprocess.run([sys.executable, str(CATALOGUE / "generate_arrays.py"), str(arrays)], check=True,
                       stdout=subprocess.DEVNULL)
        if arguments.only in "messages":
            results += message_checks(arguments)
        if arguments.only in "times":
            rows, faults = timings(arguments, arrays)
            results.append(("times", {}, faults))
        for outcome in results:
            report(*outcome)

        def begun(function, check, *more):
            if time.monotonic() - begin > arguments.time_limit:
                return None
            return function(arguments, check, arrays, *more)

        jobs = [pool.submit(begun, run_check, check) for check in catalogue_checks() + shape_checks()
                if arguments.only in check.name]
        if arguments.sanitizer:
            jobs += [pool.submit(begun, run_sanitizer, check, kernels, tool) for check in sanitizer_checks()
                     for kernels, tools in SANITIZER_TOOLS.items() for tool in tools if arguments.only in check.name]
        for job in concurrent.futures.as_completed(jobs):
            outcome = job.result()
            if outcome is None:
                num_skipped += 1
                continue
            results.append(outcome)
            report(*outcome)
    summarize(results, rows)
    if arguments.output:
        arguments.output.write_text(json.dumps({"results": results, "times": rows}, indent=1))
    num_failed = sum(bool(faults) for _, _, faults in results)
    print(f"{time.monotonic() - begin:.0f} s")
    print(f"{len(results) - num_failed} passed, {num_failed} failed, {num_skipped} skipped")
    return 1 if num_failed or num_failed == len(results) else 0


if __name__ == "__main__":
    sys.exit(main())
