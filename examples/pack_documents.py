#!/usr/bin/env python3
"""Writes cumulative lengths of packed documents for the examples.

Usage: pack_documents.py LENGTH OUT.npy [SEED=2]. Lengths are drawn from a mix of many short and few very long documents, the
one that bench/cp/PlanBench.cpp plans with, and cut at a quarter of LENGTH. OUT.npy is int32, begins with 0 and ends with
LENGTH; bind it with `--bind doc=segments(OUT.npy)`.
"""
import sys

import numpy as np

# Cumulative shares of documents up to a length; lengths are uniform in between.
LENGTHS = [1, 200, 500, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 196608]
SHARES = [0.0, 0.186, 0.467, 0.714, 0.870, 0.944, 0.974, 0.987, 0.996, 0.997, 0.9986, 1.0]


def pack(length, seed):
    random = np.random.default_rng(seed)
    offsets = [0]
    while offsets[-1] < length:
        size = int(np.interp(random.random(), SHARES, LENGTHS))
        size = max(1, min(size, length // 4))
        offsets.append(min(length, offsets[-1] + size))
    return np.array(offsets, dtype=np.int32)


def main():
    if len(sys.argv) not in (3, 4) or not sys.argv[1].isdigit():
        print("usage: pack_documents.py LENGTH OUT.npy [SEED]", file=sys.stderr)
        return 2
    seed = int(sys.argv[3]) if len(sys.argv) == 4 else 2
    offsets = pack(int(sys.argv[1]), seed)
    np.save(sys.argv[2], offsets)
    lengths = np.diff(offsets)
    if lengths.size:
        print(f"{lengths.size} documents in {offsets[-1]} tokens; shortest {lengths.min()}, longest {lengths.max()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
