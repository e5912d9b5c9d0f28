#!/usr/bin/env python3
"""Compares the score functions of the standard library, as the CPU kernels compute them, with formulas written down here in
double precision and with the oracle's reading of their source.

Usage: check_standard_scores.py CPFLEXC FOLDER. The last line is 'N score functions agree'.
"""
import pathlib
import sys

import numpy as np

import score_tables
from cpf_oracle import Program
from score_tables import HEADS, LENGTH

# Relative to the largest value of a table: a few operations in f32.
TOLERANCE = 2e-6


def t5_buckets(distance, bidirectional):
    """T5's rule, with 32 buckets and distances up to 128: half of a side's buckets for one distance each, the others in
    geometric steps."""
    d, result = distance, np.zeros(distance.shape, int)
    if bidirectional:
        result, size = 16 * (d > 0), 16
        d = np.abs(d)
    else:
        size = 32
        d = np.maximum(-d, 0)
    exact = size // 2
    # Steps of a power of two are computed exactly in base 2.
    far = exact + np.floor(np.log2(np.maximum(d, 1) / exact) / np.log2(128 / exact) * exact + 1e-9).astype(int)
    return result + np.where(d < exact, d, np.minimum(far, size - 1))


def formulas():
    """What each score function gives, by its definition: [HEADS, LENGTH, LENGTH] in double."""
    a = {name: array.astype(np.float64) for name, array in score_tables.captures().items()}
    h, q, kv = np.arange(HEADS)[:, None, None], np.arange(LENGTH)[None, :, None], np.arange(LENGTH)[None, None, :]
    s = score_tables.scores_before("soft_cap").astype(np.float64)[None]
    slope = 2.0 ** (-8 * (h + 1) / HEADS)
    near = np.clip(q - kv, -16, 16) + 16
    offset = (q // 8 - kv // 8 + 7) * 15 + q % 8 - kv % 8 + 7
    row = lambda name: a[name][:, None, None]
    return {
        "alibi": slope * (kv - q), "alibi_symmetric": -slope * np.abs(q - kv), "soft_cap": 4 * np.tanh(s / 4) + 0 * h,
        "t5_bias": a["t5_table"][t5_buckets(kv - q, True)[0]].transpose(2, 0, 1),
        "t5_bias_causal": a["t5_table"][t5_buckets(kv - q, False)[0]].transpose(2, 0, 1),
        "relative_bias": a["relative_table"][:, near[0]], "relative_bias_2d": a["window_table"][offset[0]].transpose(2, 0, 1),
        "log_n_scale": s * np.maximum(1, np.log(q + 1) / np.log(16)) + 0 * h, "head_temperature": s * row("temperature"),
        "distance_decay": (q - kv) * row("log_decay"),
        "kerple_log": -row("kerple_scale") * np.log(1 + row("kerple_rate") * np.abs(q - kv)),
        "forget_gate": a["forget"][0][:, :, None] - a["forget"][0][:, None, :], "additive_bias": a["pair_bias"][0]}


def known_buckets():
    """Values of the catalogue (S02)."""
    both = {-200: 15, -128: 15, -64: 14, -16: 10, -8: 8, -1: 1, 0: 0, 1: 17, 7: 23, 8: 24, 16: 26, 64: 30, 127: 31, 300: 31}
    causal = {-15: 15, -16: 16, -20: 17, -32: 21, -64: 26, -127: 31, 5: 0}
    for expected, bidirectional in ((both, True), (causal, False)):
        found = t5_buckets(np.array(list(expected)), bidirectional)
        if list(found) != list(expected.values()):
            yield f"buckets {found} of {list(expected)}"
        library = Program(score_tables.SCORES, {}, {}, {})
        for distance, bucket in expected.items():
            given = int(library.call(library.name("t5_bucket", {}, library.main), [np.int64(distance), np.bool_(not bidirectional)]))
            if given != bucket:
                yield f"t5_bucket({distance}) is {given}; expected {bucket}"


def difference(found, expected):
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1)


def main():
    cpflexc, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    problems, expected = list(known_buckets()), formulas()
    names = [name for name, _ in score_tables.functions()]
    if set(names) != set(expected):
        problems.append(f"no formula for {set(names) ^ set(expected)}")
    h, q, kv = np.arange(HEADS)[:, None, None], np.arange(LENGTH)[None, :, None], np.arange(LENGTH)[None, None, :]
    for name in names:
        found = score_tables.table(cpflexc, folder, name)
        oracle = Program(score_tables.SCORES, score_tables.CONSTANTS.get(name, {}), score_tables.arrays_of(name),
                         {"Q_LEN": LENGTH, "KV_LEN": LENGTH, "H": HEADS})
        for source, values in (("its formula", expected[name]), ("the oracle", oracle.score(name, score_tables.scores_before(name), 0, h, q, kv))):
            if difference(found, values) > TOLERANCE:
                problems.append(f"{name} differs from {source} by {difference(found, values):.2e}")
    weights = score_tables.sink_weights(cpflexc, folder)
    sinks = np.exp(score_tables.captures()["sinks"].astype(np.float64))[:, None, None]
    if difference(weights, np.where(kv <= q, 1 / (q + 1 + sinks), 0)) > TOLERANCE:
        problems.append("the sink's weights differ from 1 / (number of keys + exp(sink))")
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{len(names)} score functions agree")
    return len(problems) > 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
