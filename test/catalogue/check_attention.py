#!/usr/bin/env python3
"""Runs attention on the CPU over every mask and score function of the catalogue and lets cpflexc compare O and LSE with
its reference in double (f32: relative Frobenius error at most 2e-6 per tensor), all gradients too of score functions, and of
masks of at most LONGEST_BACKWARD queries and keys.

Usage: check_attention.py CPFLEXC FOLDER MAIN_LENGTH OTHER_LENGTH. Masks M01 to M17c are cut to MAIN_LENGTH queries and keys,
the others to OTHER_LENGTH; score functions keep their own size. Shorter arrays are written to FOLDER. The last line is
'N masks and N scores agree'.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
LONGEST_BACKWARD = 1024  # up to here 2e-6 is promised for gradients


def cut_array(path, lengths, folder):
    """A copy of an array with every axis as long as the whole mask cut to the new length."""
    array = np.load(path)
    for axis, size in enumerate(array.shape):
        if size in lengths:
            array = np.take(array, np.arange(lengths[size]), axis=axis)
    short = folder / f"{path.stem}-{'x'.join(str(size) for size in array.shape)}.npy"
    np.save(short, array)
    return short


def command_of(cpflexc, folder, case, q_len, kv_len, cut):
    line = [cpflexc, "run", str(HERE / case["file"]), "--entry", case["entry"], "--q-len", str(q_len), "--kv-len",
            str(kv_len), "--head-dim", "32", "--threads", "1", "--random", "1", "--check"]
    for option in ("batch", "heads"):
        if option in case:
            line += [f"--{option}", str(case[option])]
    for name, value in case["defines"].items():
        line += ["-D", f"{name}={value}"]
    for name, file in case["binds"].items():
        path = folder / file
        if cut and max(case["q_len"], case["kv_len"]) > kv_len:
            path = cut_array(path, {case["q_len"]: q_len, case["kv_len"]: kv_len}, folder)
        line += ["--bind", f"{name}={path}"]
    return line + (["--backward"] if not cut or max(q_len, kv_len) <= LONGEST_BACKWARD else [])


def problem_of(line):
    """Why the case that a command line runs failed, or nothing."""
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    has_softmax = "softmax=False" not in pathlib.Path(line[2]).read_text()
    good = re.findall(r"^(\w+) .* ok$", done.stdout, re.MULTILINE)
    expected = ["out", "lse"] if has_softmax else ["out"]
    if "--backward" in line:
        expected += ["dq", "dk", "dv"]
    if done.returncode or good[: len(expected)] != expected:
        return f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()}\n  {' '.join(line)}"
    return ""


def main():
    cpflexc, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    main_length, other_length = int(sys.argv[3]), int(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "generate_arrays.py"), str(folder)], check=True, stdout=subprocess.DEVNULL)
    masks = json.loads((HERE / "catalogue.json").read_text())["cases"]
    scores = json.loads((HERE / "scores.json").read_text())["cases"]
    lines = {}
    for case in masks:
        length = main_length if int(re.match(r"M(\d+)", case["case"]).group(1)) <= 17 else other_length
        lines[case["case"]] = command_of(cpflexc, folder, case, min(length, case["q_len"]), min(length, case["kv_len"]), True)
    for case in scores:
        lines[case["case"]] = command_of(cpflexc, folder, case, case["q_len"], case["kv_len"], False)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = dict(zip(lines, pool.map(problem_of, lines.values())))
    wrong = {name: problem for name, problem in problems.items() if problem}
    for name, problem in wrong.items():
        print(f"{name}: {problem}")
    if wrong:
        sys.exit(f"{len(wrong)} of {len(lines)} cases differ")
    print(f"{len(masks)} masks and {len(scores)} scores agree")


if __name__ == "__main__":
    main()
