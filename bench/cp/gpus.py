#!/usr/bin/env python3
"""Context parallelism on the GPUs of this machine beside PyTorch's, in one run: a causal mask, packed documents and a sliding
window, B=1 H=16 D=128, bf16. Ours is `cpflexc bench --ranks`, over copy engines and over NCCL; PyTorch's are ring attention
over cuDNN and flex_attention after an all-gather (peers.py). Prints a table: milliseconds of the slowest rank, medians; the
ratio of the peer's time over ours; efficiency against our own kernel on one GPU with the rank's share of the work; and what
of a pass was no attention call, the largest of any rank. Ours with ranks are wall times of the host; PyTorch's and our own on
one GPU are events of the GPU, so ratios and efficiency are on the low side.

Usage: gpus.py CPFLEXC [--length 65536] [--ranks N] [--out FILE]

--ranks defaults to the number of GPUs and is 2 or more; with fewer GPUs than ranks these share them, which times nothing but
the price of cutting a call, and the peers are left out.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
MEAN_DOCUMENT, DOCUMENT_STEP, SEED = 2048, 16, 7
WINDOW = 1024
TIMEOUT_S = 300

MASKS = {
    "causal": "@mask\ndef seen(b, h, q, kv):\n    return kv <= q\n",
    "doc_causal_2k": "doc: tensor[i32, KV_LEN](sorted)\n\n\n@mask\ndef seen(b, h, q, kv):\n    return doc[q] == doc[kv] and kv <= q\n",
    f"swa_{WINDOW}": f"@mask\ndef seen(b, h, q, kv):\n    return kv <= q and q - kv <= {WINDOW}\n",
}
PEERS = {"causal": "causal: ring SDPA cuDNN", "doc_causal_2k": "doc_causal_2k: flex all-gather",
         f"swa_{WINDOW}": f"swa_{WINDOW}: flex all-gather"}


def documents(length):
    """Ids of documents that are cut at random multiples of 16 and are 2,048 tokens long on average."""
    random = np.random.default_rng(SEED)
    count = max(length // MEAN_DOCUMENT, 1)
    cuts = random.choice(np.arange(1, length // DOCUMENT_STEP), count - 1, replace=False) * DOCUMENT_STEP
    ids = np.zeros(length, np.int32)
    np.add.at(ids, cuts, 1)
    return np.cumsum(ids, dtype=np.int32)


def run(line):
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.exit(str(error))
    if done.returncode:
        sys.exit(f"{' '.join(map(str, line))}\n{done.stderr.strip()}")
    return done.stdout


def ours(arguments, folder, name, length, extra):
    line = [arguments.cpflexc, "bench", folder / f"{name}.cpf", "--q-len", str(length), "--heads", "16", "--head-dim", "128",
            "--device", "cuda", "--backward", *extra]
    if name.startswith("doc"):
        line += ["--bind", f"doc={folder / 'doc.npy'}"]
    return json.loads(run([str(part) for part in line]))


def pair(values):
    return " / ".join(f"{value:.2f}" for value in values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cpflexc", type=pathlib.Path)
    parser.add_argument("--length", type=int, default=65536)
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="also write everything here, as JSON")
    arguments = parser.parse_args()
    gpus = run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).split("\n")[:-1]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = gpus if visible is None else gpus[:len(visible.split(","))]
    ranks = arguments.ranks or len(gpus)
    if ranks < 2:
        parser.error(f"{len(gpus)} GPU and no --ranks; expected --ranks 2 or more")
    results = {"gpus": gpus, "ranks": ranks, "length": arguments.length}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.save(folder / "doc.npy", documents(arguments.length))
        for mask, text in MASKS.items():
            (folder / f"{mask}.cpf").write_text(text)
        results["peers"] = {}
        if len(gpus) >= ranks > 1:
            run(["torchrun", "--nproc-per-node", str(ranks), str(FOLDER / "peers.py"), "--documents", str(folder / "doc.npy"),
                 "--length", str(arguments.length), "--out", str(folder / "peers.json")])
            results["peers"] = json.loads((folder / "peers.json").read_text())
        print(f"{ranks} ranks on {len(gpus)} {gpus[0]}, S={arguments.length}; forward / forward + backward\n")
        print(f"{'work':14} {'transport':10} {'layout, rotation':24} {'ms':>15} {'peer ms':>15} {'ratio':>11} {'efficiency':>11} "
              f"{'exposed ms':>11}")
        transports = ("threads", "nccl") if len(gpus) >= ranks else ("threads",)
        for mask in MASKS:
            single = ours(arguments, folder, mask, arguments.length, [])
            alone = (single["forward_ms"], single["forward_ms"] + single["backward_ms"])
            results[mask] = {"single": single}
            for transport in transports:
                seen = ours(arguments, folder, mask, arguments.length, ["--ranks", str(ranks), "--transport", transport])
                results[mask][transport] = seen
                times = (seen["forward_ms"], seen["forward_ms"] + seen["backward_ms"])
                peer = results["peers"].get(PEERS[mask])
                peers = (peer["forward_ms"], peer["forward_and_backward_ms"]) if peer else None
                print(f"{mask:14} {transport:10} {seen['layout'] + ', ' + seen['rotation']:24} {pair(times):>15} "
                      f"{pair(peers) if peers else '-':>15} "
                      f"{pair([p / t for p, t in zip(peers, times)]) if peers else '-':>11} "
                      f"{pair([a / ranks / t for a, t in zip(alone, times)]):>11} "
                      f"{pair([seen['forward_exposed_ms'], seen['backward_exposed_ms']]):>11}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
