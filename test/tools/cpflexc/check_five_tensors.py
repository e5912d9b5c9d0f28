#!/usr/bin/env python3
"""The five-tensor grid of PyTorch's context-parallel tests for FlexAttention, on one device: O, LSE, dQ, dK and dV of
`cpflexc run` in f32 against dense attention in double, each element within atol 2e-6 and rtol 1e-5. Causal masks of 8 batch
rows, and causal masks of 28 documents cut at other places in each batch row; 8 heads of size 32.

Usage: check_five_tensors.py CPFLEXC FOLDER CASE...; a CASE is causal-LENGTH or documents-BATCH-LENGTH. The last line
is 'N cases agree'.
"""
import pathlib
import subprocess
import sys

import numpy as np

HEADS, HEAD_DIM, DOCUMENTS = 8, 32, 28
ATOL, RTOL = 2e-6, 1e-5


def document_ids(generator, batch, length):
    """Ids [batch, length] of DOCUMENTS documents of at least one token, of random lengths."""
    cuts = [np.sort(generator.choice(np.arange(1, length), DOCUMENTS - 1, replace=False)) for _ in range(batch)]
    return np.stack([np.searchsorted(row, np.arange(length), side="right") for row in cuts]).astype(np.int32)


def dense(q, k, v, d_out, allowed):
    """O, LSE, dQ, dK and dV of one head, in double."""
    scale = HEAD_DIM ** -0.5
    scores = np.where(allowed, q @ k.T * scale, -np.inf)
    largest = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - largest)
    sums = weights.sum(axis=1, keepdims=True)
    weights /= sums
    out = weights @ v
    d_scores = weights * (d_out @ v.T - (out * d_out).sum(axis=1, keepdims=True)) * scale
    return out, (largest + np.log(sums))[:, 0], d_scores @ k, d_scores.T @ q, weights.T @ d_out


def problems_of(cpflexc, folder, case):
    kind, *numbers = case.split("-")
    batch, length = (8, int(numbers[0])) if kind == "causal" else (int(numbers[0]), int(numbers[1]))
    generator = np.random.default_rng(10)
    tensors = {name: generator.random((batch, HEADS, length, HEAD_DIM), dtype=np.float32) for name in ("q", "k", "v", "dout")}
    line = [cpflexc, "run", "--batch", str(batch), "--heads", str(HEADS), "--q-len", str(length)]
    allowed = np.tril(np.ones((length, length), bool))[None]
    if kind == "causal":
        (folder / "causal.cpf").write_text("@mask\ndef causal(b, h, q, kv):\n    return kv <= q\n")
        line += [str(folder / "causal.cpf")]
    else:
        ids = document_ids(generator, batch, length)
        np.save(folder / "doc.npy", ids)
        (folder / "documents.cpf").write_text(
            "doc: tensor[i32, B, KV_LEN](sorted)\n@mask\ndef documents(b, h, q, kv):\n"
            "    return (doc[b, q] == doc[b, kv]) & (kv <= q)\n")
        line += [str(folder / "documents.cpf"), "--bind", f"doc={folder / 'doc.npy'}"]
        allowed = allowed & (ids[:, :, None] == ids[:, None, :])
    for name, tensor in tensors.items():
        np.save(folder / f"{name}.npy", tensor)
        line += [f"--{name}", str(folder / f"{name}.npy")]
    outputs = ("out", "lse", "dq", "dk", "dv")
    for name in outputs:
        line += [f"--{name}", str(folder / f"{name}.npy")]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    actual = {name: np.load(folder / f"{name}.npy") for name in outputs}
    problems = []
    for b in range(batch):
        for h in range(HEADS):
            inputs = [tensors[name][b, h].astype(np.float64) for name in ("q", "k", "v", "dout")]
            for name, expected in zip(outputs, dense(*inputs, allowed[b % len(allowed)])):
                excess = np.max(np.abs(actual[name][b, h] - expected) - RTOL * np.abs(expected))
                if not excess <= ATOL:
                    problems.append(f"{case}: {name} of batch {b}, head {h} is off by {excess:.2e} beyond rtol; expected {ATOL}")
    return problems


def main():
    cpflexc, folder, cases = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    problems = [problem for case in cases for problem in problems_of(cpflexc, folder, case)]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(cases)} cases agree")


if __name__ == "__main__":
    main()
