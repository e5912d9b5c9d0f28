#!/usr/bin/env python3
"""Checks that masks of the standard library are those of the catalogue, whose counts are known.

Usage: check_standard_library.py ARRAYS, the folder that test/catalogue/generate_arrays.py wrote. Every 37th row of 8192.
"""
import pathlib
import sys

import numpy as np

from cpf_oracle import STANDARD_LIBRARY, Program

CATALOGUE = pathlib.Path(__file__).resolve().parents[1] / "catalogue"
LENGTH = 8192
IMAGE = {"GRID_HEIGHT": 64, "GRID_WIDTH": 128}

# (file of lib/Std, mask, constants, arrays, catalogue's file, entry, arrays); `[name]` is an array with a batch axis.
PAIRS = [
    ("causal", "causal", {}, {}, "M02", "causal", {}),
    ("causal", "strictly_causal", {}, {}, "M04", "strictly_causal", {}),
    ("causal", "anticausal", {}, {}, "M05", "anticausal", {}),
    ("windows", "sliding_window", {}, {}, "M06", "window", {}),
    ("windows", "sliding_window_left", {}, {}, "M06c", "window_left", {}),
    ("windows", "symmetric_window", {"WINDOW": 512}, {}, "M07", "symmetric_window", {}),
    ("windows", "dilated_window", {"DILATION": 4}, {}, "M09", "dilated_window", {}),
    ("windows", "sink_window", {"WINDOW": 2044}, {}, "M11", "sink_window", {}),
    ("prefixes", "prefix_lm", {}, {}, "M15", "prefix_lm", {}),
    ("prefixes", "sequence_to_sequence", {}, {}, "M77", "unified", {}),
    ("documents", "document", {}, {"doc": ["doc"]}, "M16", "same_document", {"doc": "doc"}),
    ("documents", "document_causal", {}, {"doc": ["doc"]}, "M17", "causal_document", {"doc": "doc"}),
    ("documents", "document_causal_interval", {}, {"doc_begin": ["doc_start"]}, "M17", "causal_document", {"doc": "doc"}),
    ("documents", "document_window", {}, {"doc": ["doc"]}, "M19", "document_window", {"doc": "doc"}),
    ("documents", "shared_prefix", {}, {"doc": ["doc"], "shared_with": "prefix_of", "doc_offsets": "off_end"}, "M25",
     "shared_prefix", {"doc": "doc", "off": "off_end", "prefix_of": "prefix_of"}),
    ("blocks", "longformer", {}, {"is_global": ["global_tokens"]}, "M27", "longformer", {"g": "global_tokens"}),
    ("blocks", "fixed_sparse", {}, {}, "M30", "fixed_sparse", {}),
    ("blocks", "strided_sparse", {}, {}, "M31", "strided_sparse", {}),
    ("blocks", "chunked", {}, {}, "M48", "chunked", {}),
    ("blocks", "block_diffusion", {}, {}, "M49", "block_diffusion", {}),
    ("blocks", "block_causal", {"BLOCK": 32}, {}, "M50", "block_causal", {}),
    ("grids", "axial", IMAGE, {}, "M32", "axial", {}),
    ("grids", "natten_2d", {**IMAGE, "KERNEL": 13}, {}, "M34", "natten_2d", {}),
    ("grids", "natten_3d", {}, {}, "M35", "natten_3d", {}),
    ("grids", "sliding_tile", {}, {}, "M40", "sliding_tile", {}),
    ("grids", "swin", IMAGE, {}, "M41", "swin", {}),
    ("generation", "transfusion", {}, {"span": ["span"]}, "M57", "mixed_modality", {"span": "span"}),
]


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check_standard_library.py ARRAYS")

    def load(names):
        loaded = {}
        for name, file in names.items():
            array = np.load(pathlib.Path(sys.argv[1]) / f"{file[0] if isinstance(file, list) else file}.npy")
            loaded[name] = array[None] if isinstance(file, list) else array
        return loaded

    q, kv = np.arange(0, LENGTH, 37)[:, None], np.arange(LENGTH)[None, :]
    sizes = {"Q_LEN": LENGTH, "KV_LEN": LENGTH}
    num_failed = 0
    for file, mask, constants, arrays, other_file, other_mask, other_arrays in PAIRS:
        found = Program(STANDARD_LIBRARY / f"{file}.cpf", constants, load(arrays), sizes).mask(mask, 0, 0, q, kv)
        expected = Program(CATALOGUE / f"{other_file}.cpf", {}, load(other_arrays), sizes).mask(other_mask, 0, 0, q, kv)
        if not np.array_equal(found, expected):
            num_failed += 1
            print(f"{mask} differs from {other_file}")
    print(f"{len(PAIRS) - num_failed} passed, {num_failed} failed")
    return num_failed > 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
