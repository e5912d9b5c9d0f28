#!/usr/bin/env python3
"""Compares what cpflexc derives for the masks of the catalogue that have no counts, and for the worked examples of the
language (test/catalogue/worked), with brute force by the oracle.

Usage: check_further_masks.py CPFLEXC FOLDER. Arrays are written to FOLDER; the last line is 'N masks agree'.
"""
import json
import pathlib
import subprocess
import sys

import numpy as np

from cpf_oracle import Program, counts

CATALOGUE = pathlib.Path(__file__).resolve().parents[1] / "catalogue"
LENGTH = 384
I32 = np.int32


def cases():
    """(file, entry, q_len, arrays) and, where there are any, values of params"""
    random = np.random.default_rng(20261123)
    positions = np.arange(LENGTH)
    degrees = random.integers(0, 9, LENGTH)
    row_begin = np.concatenate([[0], np.cumsum(degrees)]).astype(I32)
    neighbours = random.integers(0, LENGTH, row_begin[-1]).astype(I32)
    striped = (positions % 8 * (LENGTH // 8) + positions // 8).astype(I32)
    samples = np.repeat(np.arange(4), LENGTH // 16).astype(I32)
    yield "X01", "top_keys", LENGTH, {"chosen": random.integers(0, LENGTH, (1, LENGTH, 12)).astype(I32)}
    yield "X02", "duo", LENGTH, {"full_head": np.array([False])}
    yield "X03", "graph_matrix", LENGTH, {"adjacent": random.random((1, LENGTH, LENGTH)) < 0.02, "row_begin": row_begin,
                                          "neighbour": neighbours}
    yield "X03", "graph_lists", LENGTH, {"adjacent": np.zeros((1, LENGTH, LENGTH), bool), "row_begin": row_begin,
                                         "neighbour": neighbours}
    yield "X04", "same_cluster", LENGTH, {"cluster": random.integers(0, 16, (1, 1, LENGTH)).astype(I32)}
    yield "X05", "parallel_drafts", LENGTH, {"sample": samples, "anchor": random.integers(0, LENGTH // 4, LENGTH // 4).astype(I32)}
    yield "X06", "kept", LENGTH, {}
    yield "X07", "landmarks", LENGTH, {"is_landmark": positions % 32 == 31}
    yield "X08", "interleaved", LENGTH, {}
    yield "X09", "any_variate", LENGTH, {"variate": (positions // 96).astype(I32), "time": (positions % 96).astype(I32)}
    yield "X10", "both_lengths", LENGTH, {"q_length": np.array([300], I32), "kv_length": np.array([211], I32)}
    yield "X11", "latent_queries", 64, {}
    yield "X12", "last_image_only", LENGTH, {"last_image": (positions // 70).astype(I32), "image": (positions // 50).astype(I32)}
    yield "X13", "positions", LENGTH, {"q_position": striped, "kv_position": striped}
    yield "X13", "remapped", LENGTH, {"q_position": striped, "kv_position": striped}
    yield "M21k", "key_padding", LENGTH, {"valid": (positions % 50 < 41)[None]}
    lengths = [100, 37, 200, 47]
    doc = np.repeat(np.arange(4), lengths).astype(I32)[None]
    packed = {"doc": doc, "off": np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(I32)[None], "plen": np.array([50], I32)}
    ancestor = np.tri(64, dtype=bool) & (random.random((64, 64)) < 0.5)
    yield "worked/window", "swa", LENGTH, {}, {"W": 100}
    yield "worked/window", "swa_left", LENGTH, {}, {"W": 100}
    yield "worked/packed", "packed_causal", LENGTH, packed
    yield "worked/packed", "prefix_lm", LENGTH, packed
    yield "worked/cached", "chunked_prefill", 100, {"kvlen": np.array([350], I32), "qlen": np.array([100], I32)}
    yield "worked/natten", "natten", LENGTH, {}
    yield "worked/tree", "tree", 64, {"anc": ancestor}, {"P": LENGTH - 64, "N": 64}
    yield "worked/selected", "block_sel", LENGTH, {"topk": random.integers(0, 6, (1, 1, 6, 2)).astype(I32)}
    yield "worked/shard", "cp_step", LENGTH, {"doc": doc, "qpos": striped, "kpos": striped, "full_head": np.array([False])}


def main():
    cpflexc, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    num_masks = num_wrong = 0
    for file, entry, q_len, arrays, *rest in cases():
        constants = rest[0] if rest else {}
        path = CATALOGUE / f"{file}.cpf"
        line = [cpflexc, "mask", path, "--entry", entry, "--q-len", str(q_len), "--kv-len", str(LENGTH), "--tile", "32x32",
                "--count", "--format", "json"]
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            line += ["--bind", f"{name}={folder / name}.npy"]
        for name, value in constants.items():
            line += ["-D", f"{name}={value}"]
        done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        program = Program(path, constants, arrays, {"Q_LEN": q_len, "KV_LEN": LENGTH})
        expected = counts(program, {"tile": "32x32", "q_len": q_len, "kv_len": LENGTH, "entry": entry})
        found = json.loads(done.stdout) if done.returncode == 0 else {}
        wrong = [f"{key} is {found.get(key)}; expected {value}" for key, value in expected.items() if found.get(key) != value]
        num_masks, num_wrong = num_masks + 1, num_wrong + bool(wrong)
        if wrong:
            print(f"{file} {entry}: {', '.join(wrong)} {done.stderr}")
    if num_wrong:
        sys.exit(f"{num_wrong} of {num_masks} masks differ")
    print(f"{num_masks} masks agree")


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
