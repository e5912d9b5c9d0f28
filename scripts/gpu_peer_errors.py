#!/usr/bin/env python3
"""Compares rounding errors with flex_attention's or cuDNN's: every mask of the catalogue, forward and backward in bf16 on
the same inputs, against dense attention in float64 under the mask that test/oracle evaluates. Asked: a relative Frobenius
error of at most 1.1 times the peer's for the output and each gradient, no row's above 4 times its worst row, and LSE
within 1e-5, absolute and relative. The peer is flex_attention and, where that is more exact (of up to 64 queries it splits
the keys, as for decoding), cuDNN's attention under a dense mask; its name is printed then.

Needs a built cpflexc, NumPy, PyTorch and a GPU. `--device cpu` tries the script out: PyTorch's own dense attention takes the
place of flex_attention, which has no backward there.

Usage: gpu_peer_errors.py CPFLEXC [--only TEXT] [--jobs N] [--device cuda] [--time-limit SECONDS]
"""
import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import gpu_checks

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "test" / "oracle"))
import cpf_oracle  # noqa: E402

FROBENIUS_FACTOR, ROW_FACTOR = 1.1, 4.0
NAMES = ("out", "dq", "dk", "dv")


def dense_mask(check, arrays):
    """[q_len, kv_len], by the oracle."""
    values = {name: np.load(arrays / file) for name, file in check.binds.items()}
    sizes = {"Q_LEN": check.q_len, "KV_LEN": check.kv_len}
    program = cpf_oracle.Program(check.file, check.defines, values, sizes)
    kv = np.arange(check.kv_len)[None, :]
    rows = [program.mask(check.entry, 0, 0, np.arange(begin, min(begin + 512, check.q_len))[:, None], kv)
            for begin in range(0, check.q_len, 512)]
    return np.concatenate(rows)


def prepare(arguments, check, arrays, folder):
    """Fills `folder` with the inputs, the mask and what cpflexc computes."""
    np.seterr(all="ignore")
    folder.mkdir()
    gpu_checks.inputs(check, folder)
    np.save(folder / "mask.npy", dense_mask(check, arrays))
    gpu_checks.execute(gpu_checks.command(arguments, check, folder, arrays, arguments.device, "bf16", "ours"))


def load(arguments, file):
    values = np.load(file)
    return torch.from_numpy(gpu_checks.from_element(values, "bf16") if values.dtype == np.uint16 else values).to(arguments.device)


def flex_attention_output(arguments, q, k, v, mask):
    if arguments.device == "cpu":
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    block_mask = create_block_mask(lambda b, h, q, kv: mask[q, kv], None, None, *mask.shape, device=arguments.device)
    return torch.compile(flex_attention, dynamic=False)(q, k, v, block_mask=block_mask)


def cudnn_output(arguments, q, k, v, mask):
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION if arguments.device != "cpu" else SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask.expand(*q.shape[:2], *mask.shape))


PEERS = {"flex_attention": flex_attention_output, "cuDNN": cudnn_output}


def peer(arguments, output, inputs, mask):
    """(out, dq, dk, dv) of one of PEERS."""
    q, k, v = (t.bfloat16().requires_grad_() for t in inputs[:3])
    out = output(arguments, q, k, v, mask)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3].bfloat16())]


def reference(inputs, mask):
    """(out, dq, dk, dv, lse) in float64."""
    q, k, v = (t.double().requires_grad_() for t in inputs[:3])
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None]).exp()
    out = weights @ v
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3].double()), lse.detach()]


def worst_row(difference):
    return difference.norm(dim=-1).max().item()


def compare_with(other, own, exact):
    """Figures of (out, dq, dk, dv) and what is wrong with them."""
    figures, faults = [], []
    for name, a, b, expected in zip(NAMES, own, other, exact):
        differences = a - expected, b.double() - expected
        whole, row = (measure(differences[0]) / max(measure(differences[1]), 1e-30) for measure in (torch.norm, worst_row))
        figures.append(f"{name} {whole:.2f} {row:.2f}")
        if not whole <= FROBENIUS_FACTOR:
            faults.append(f"{name}: the error is {whole:.2f} times the peer's; expected at most {FROBENIUS_FACTOR}")
        if not row <= ROW_FACTOR:
            faults.append(f"{name}: a row's error is {row:.2f} times the peer's worst; expected at most {ROW_FACTOR}")
    return ", ".join(figures), faults


def compare(arguments, folder):
    """One line of figures for each peer that is needed and what is wrong."""
    inputs = [load(arguments, folder / f"{name}.bf16.npy") for name in ("q", "k", "v", "dout")]
    own = [load(arguments, folder / f"{name}.ours.npy").double() for name in (*NAMES, "lse")]
    mask = load(arguments, folder / "mask.npy")
    exact = reference(inputs, mask)
    figures = []
    for name, output in PEERS.items():
        line, faults = compare_with(peer(arguments, output, inputs, mask), own, exact)
        figures.append(f"{name}: {line}" if name != "flex_attention" else line)
        if not faults:
            break
    error = gpu_checks.lse_error(own[4].cpu().numpy(), exact[4].cpu().numpy())
    if not error <= gpu_checks.LSE_TOLERANCE:
        faults.append(f"lse: error {error:.1e}; expected at most {gpu_checks.LSE_TOLERANCE:.0e}, and -inf for rows without keys")
    return ", ".join(figures) + f", lse {error:.1e}", faults


def main():
    parser = argparse.ArgumentParser(description="Rounding errors beside flex_attention's or cuDNN's")
    parser.add_argument("cpflexc", type=pathlib.Path, help="the built program")
    parser.add_argument("--only", default="", help="run the masks whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs of cpflexc at once")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds after which no mask is begun")
    arguments = parser.parse_args()
    arguments.cpflexc = arguments.cpflexc.resolve()
    torch._dynamo.config.recompile_limit = 64
    begin, num_passed, num_failed, num_skipped = time.monotonic(), 0, 0, 0
    masks = {case["case"] for case in json.loads((gpu_checks.CATALOGUE / "catalogue.json").read_text())["cases"]}
    checks = [check for check in gpu_checks.catalogue_checks() if check.name in masks and arguments.only in check.name]
    with (tempfile.TemporaryDirectory() as name,
          concurrent.futures.ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool):
        folder = pathlib.Path(name)
        arrays = folder / "arrays"
        arrays.mkdir()
        subprocess.run([sys.executable, str(gpu_checks.CATALOGUE / "generate_arrays.py"), str(arrays)], check=True,
                       stdout=subprocess.DEVNULL)
        jobs = {pool.submit(prepare, arguments, check, arrays, folder / check.name): check for check in checks}
        for job in concurrent.futures.as_completed(jobs):
            check = jobs[job]
            if time.monotonic() - begin > arguments.time_limit:
                pool.shutdown(wait=False, cancel_futures=True)
                num_skipped += 1
                continue
            try:
                job.result()
                figures, faults = compare(arguments, folder / check.name)
            except (RuntimeError, OSError) as error:
                figures, faults = "did not run", [str(error)]
            shutil.rmtree(folder / check.name)
            print(f"{'FAIL' if faults else 'pass'}: {check.name}: {figures}", *faults, sep="\n      ", flush=True)
            num_failed += bool(faults)
            num_passed += not faults
    print(f"{num_passed} passed, {num_failed} failed, {num_skipped} skipped")
    return 1 if num_failed or not num_passed else 0


if __name__ == "__main__":
    sys.exit(main())
