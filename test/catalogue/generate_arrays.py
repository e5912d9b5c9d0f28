#!/usr/bin/env python3
"""Writes the captured arrays of the catalogue as .npy files: NAME.npy for masks, score_NAME.npy for score functions.

Usage: generate_arrays.py FOLDER. Every array is a fixed function of its index, so the counts in catalogue.json hold.
"""
import pathlib
import sys

import numpy as np

LENGTH = 8192
DOCUMENT_LENGTHS = [1000, 530, 2100, 333, 97, 1600, 611, 1921]
SPAN_BEGINS = [200, 1500, 3000, 4096, 6500]
SPAN_LENGTHS = [576, 729, 256, 1024, 577]


def hashed(x):
    """24 pseudo-random bits of each element: a multiplicative hash of 32 bits, its upper 24."""
    return ((np.asarray(x, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)) >> np.uint64(8)


def document_ids(lengths):
    return np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)


def spans():
    result = np.full(LENGTH, -1, dtype=np.int32)
    for index, (begin, length) in enumerate(zip(SPAN_BEGINS, SPAN_LENGTHS)):
        result[begin : begin + length] = index
    return result


def random_blocks(num_blocks=64, per_row=3):
    result = np.zeros((num_blocks, num_blocks), dtype=bool)
    rows = np.arange(num_blocks)
    for t in range(per_row):
        result[rows, (hashed(rows * 131 + t * 7919) % np.uint64(num_blocks)).astype(int)] = True
    return result


def ancestors(num_nodes=64):
    """Whether node j is on the path from node i to the root of a binary tree, i itself included."""
    result = np.zeros((num_nodes, num_nodes), dtype=bool)
    for node in range(num_nodes):
        at = node
        while True:
            result[node, at] = True
            if at == 0:
                break
            at = (at - 1) // 2
    return result


def block_gate(block=128, num_blocks=64):
    q = np.arange(LENGTH)[:, None]
    j = np.arange(num_blocks)[None, :]
    own = q // block
    chosen = (own <= 8) | (hashed(q * 64 + j) % np.maximum(own, 1).astype(np.uint64) < 7)
    return np.where(j == own, True, np.where(j > own, False, chosen))


def block_map(num_blocks=128):
    i = np.arange(num_blocks)[:, None]
    j = np.arange(num_blocks)[None, :]
    return (i == j) | (hashed(i * 128 + j) % np.uint64(128) < 15)


def arrays():
    index = np.arange(LENGTH)
    offsets = np.concatenate([[0], np.cumsum(DOCUMENT_LENGTHS)]).astype(np.int32)
    doc = document_ids(DOCUMENT_LENGTHS)
    pages = np.arange(64)
    blocks = np.arange(512)
    return {
        "doc": doc,
        "off": offsets[:-1],
        "off_end": offsets,
        "cu_seqlens": offsets,
        "doc_start": offsets[doc],
        "prefix_of": np.array([0, 0, 0, 3, 3, 3, 3, 3], dtype=np.int32),
        "qdoc": document_ids([100, 300, 50, 574]),
        "kdoc": document_ids([1000, 4000, 500, 2692]),
        "length": np.array([6000], dtype=np.int32),
        "pad": np.array([1500], dtype=np.int32),
        "vert": hashed(index) % np.uint64(64) == 0,
        "slash": (index < 64) | (hashed(index + 77777) % np.uint64(128) == 0),
        "global_tokens": (index < 64) | (index % 1024 == 0),
        "span": spans(),
        "rnd": random_blocks(),
        "anc": ancestors(),
        "anchor": (8 * blocks + (hashed(blocks) % np.uint64(8)).astype(np.int64)).astype(np.int32),
        "gate": block_gate(),
        "block_map": block_map(),
        "bucket": (hashed(index) % np.uint64(64)).astype(np.int32),
        "bs": (index // 128).astype(np.int32),
        "pt": ((pages * 37 + 11) % 64).astype(np.int32),
    }


def score_arrays(heads=4, length=192):
    """The arrays of scores.json, of `heads` heads and `length` tokens: smooth values between -1 and 1."""

    def smooth(*shape):
        count = int(np.prod(shape))
        return np.sin(np.arange(count) * 0.7311 + count).astype(np.float32).reshape(shape)

    def positive(*shape):
        return (1.5 + smooth(*shape)).astype(np.float32)

    return {
        "tab": smooth(32, heads),
        "rel": smooth(heads, 257),
        "win": smooth(225, heads),
        "ls": smooth(heads) * 4,
        "tau": positive(heads),
        "bias": smooth(1, heads, length, length),
        "r1": positive(heads),
        "r2": positive(heads),
        "w1": smooth(32),
        "b1": smooth(32) / 2,
        "w2": smooth(32, heads),
        "c": -np.cumsum(positive(1, heads, length), axis=-1).astype(np.float32) / 16,
        "qr": smooth(heads, length, 64),
        "kr": smooth(length, 64),
        "alpha": smooth(heads, 8),
        "beta": positive(heads, 8) / 256,
        "length": np.array([length], dtype=np.int32),
        "gain": positive(heads),
        "qs": positive(1, heads, 2),
        "ks": positive(1, heads, 2),
        "doc": document_ids([50, 70, 33, 39]),
        "sinks": smooth(heads),
        "w": positive(length),
    }


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: generate_arrays.py FOLDER")
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays().items():
        np.save(folder / f"{name}.npy", array)
    for name, array in score_arrays().items():
        np.save(folder / f"score_{name}.npy", array)


if __name__ == "__main__":
    main()
