#!/usr/bin/env python3
"""Compares random masks on a GPU with the CPU: test/oracle/random_programs.py writes them for 40 x 60 pairs, and in
processes side by side forward over each runs in bf16 on the GPU and, on the same values, in f32 on the CPU. The LSE of every
row must agree within 1e-4; a pair weighs about 1e-2 of its row.

Needs a built libcpflex (CPFLEX_LIBRARY), PyTorch, NumPy and a GPU.

Usage: gpu_random_programs.py [NUM_MASKS] [--seed N] [--jobs N] [--device cuda:0] [--time-limit SECONDS]
"""
import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))
HEAD_DIM = 64
OUT_TOLERANCE, LSE_TOLERANCE = 6e-3, 1e-4
# A fifth of the programs are masks over positions that attention can have.
PROGRAMS_PER_MASK = 5.1


def attention(lib, binding, entry, q, k, v, device):
    """(out, lse) of one entry point, as tensors on `device`."""
    import torch
    from cpflex import _library, _program
    from cpflex.torch import _calls
    options = _library.LoadOptions(device=device.encode(), dtype=_calls.CODES[q.dtype], head_dim=HEAD_DIM,
                                   v_head_dim=HEAD_DIM, stream=_calls.stream_of(q))
    executable = _library.Handle(lib, _program._new(lib.load, binding._handle.address, entry.encode(), None, options),
                                 lib.executable_free)
    # Poisoned, so that whatever is not written is seen.
    out, lse = torch.full_like(q, float("nan")), torch.full(q.shape[:3], float("nan"), device=q.device)
    tensors = _library.ForwardTensors()
    for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)):
        setattr(tensors, name, _library.Array.from_buffer_copy(_calls.array_bytes(tensor)))
    num_bytes = 0 if device == "cpu" else lib.executable_workspace_bytes(executable.address, 0)
    workspace = torch.empty(max(num_bytes, 1), dtype=torch.uint8, device=q.device) if num_bytes else None
    lib.forward(executable.address, tensors, workspace.data_ptr() if num_bytes else None, num_bytes, _calls.stream_of(q))
    if q.device.type == "cuda":
        torch.cuda.synchronize()
    return out, lse


def error(actual, expected, worst=False):
    """Relative Frobenius norm of the difference, or the largest; equal infinities agree."""
    import torch
    actual, expected = actual.double().cpu(), expected.double()
    same = actual == expected
    if not torch.isfinite(torch.where(same, 0.0, actual)).all():
        return float("inf")
    difference = torch.where(same, 0.0, actual - expected)
    if worst:
        return difference.abs().max().item()
    finite = torch.where(torch.isfinite(expected), expected, 0.0)
    return (difference.norm() / finite.norm().clamp_min(1e-6)).item()


def run_group(folder, group, device, end):
    """(entry, error of out, error of lse, message) of each mask of one file."""
    import numpy
    import torch
    import cpflex
    from cpflex import _program
    torch.set_num_threads(1)
    results = []
    stem = pathlib.Path(group["file"]).stem
    program = cpflex.compile(pathlib.Path(folder) / group["file"])
    arrays = {name: numpy.load(f"{folder}/{stem}_{name}.npy") for name in group["arrays"]}
    params = {name: int(value) if value.lstrip("-").isdigit() else value for name, value in group["params"].items()}
    binding = program.bind(arrays, params, batch=2, heads=3, q_len=group["q_len"], kv_len=group["kv_len"])
    generator = torch.Generator().manual_seed(1)
    wide = [torch.randn(2, 3, length, HEAD_DIM, generator=generator).bfloat16()
            for length in (group["q_len"], group["kv_len"], group["kv_len"])]
    for entry in group["entries"]:
        if entry["kind"] != "mask" or time.time() > end:
            continue
        try:
            expected = attention(_program.library(), binding, entry["name"], *[t.float() for t in wide], "cpu")
            actual = attention(_program.library(), binding, entry["name"], *[t.to(device) for t in wide], device)
            results.append((f"{group['file']}:{entry['name']}", error(actual[0], expected[0]), error(actual[1], expected[1], worst=True), ""))
        except Exception as failure:  # every fault of one mask is its result
            results.append((f"{group['file']}:{entry['name']}", float("inf"), float("inf"), str(failure)))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("num_masks", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds after which no mask is begun")
    arguments = parser.parse_args()
    begin = time.time()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(ROOT / "test/oracle/random_programs.py"), folder,
                        str(int(arguments.num_masks * PROGRAMS_PER_MASK)), str(arguments.seed)], check=True)
        groups = [group for group in json.loads((pathlib.Path(folder) / "programs.json").read_text()) if group["q_len"] < 1000]
        written = sum(entry["kind"] == "mask" for group in groups for entry in group["entries"])
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            jobs = [pool.submit(run_group, folder, group, arguments.device, begin + arguments.time_limit) for group in groups]
            results = [result for job in jobs for result in job.result()]
    failed = [result for result in results if result[3] or not (result[1] <= OUT_TOLERANCE and result[2] <= LSE_TOLERANCE)]
    for name, out, lse, message in failed:
        print(f"FAIL: {name}: out {out:.1e}, lse {lse:.1e} {message}")
    good = [result for result in results if result not in failed]
    if good:
        print(f"largest relative error of out {max(r[1] for r in good):.1e}, error of lse {max(r[2] for r in good):.1e}")
    print(f"{time.time() - begin:.0f} s")
    print(f"{len(good)} passed, {len(failed)} failed, {written - len(results)} skipped")
    return 1 if failed or not good else 0


if __name__ == "__main__":
    sys.exit(main())
