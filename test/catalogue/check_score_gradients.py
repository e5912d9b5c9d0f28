#!/usr/bin/env python3
"""Compares the gradients of every score function of the catalogue, as `cpflexc run` computes them in f32, with dense attention in
double whose scores come from the oracle and whose derivatives are differences of those: nothing of the compiler takes part.
dQ, dK and dV within 2e-6 (relative Frobenius error); gradients of captured arrays and sinks along random directions.

Usage: check_score_gradients.py CPFLEXC FOLDER. The last line is 'N score functions agree'.
"""
import json
import pathlib
import re
import subprocess
import sys
import types

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
HEAD_DIM = 16
LONGEST = 512  # queries; all of them, but in one case
TOLERANCE = 2e-6
STEP = 1e-7  # of differences in double: what they leave out is below 1e-12, rounding about 1e-9


def oracle_in_double():
    """The oracle with double in the place of f32, since differences need its digits."""
    path = HERE.parent / "oracle" / "cpf_oracle.py"
    module = types.ModuleType("oracle_in_double")
    module.__file__ = str(path)
    exec(compile(path.read_text().replace("np.float32", "np.float64"), str(path), "exec"), module.__dict__)
    return module


class Case:
    def __init__(self, oracle, case, folder):
        self.oracle, self.case = oracle, case
        self.heads, self.q_len, self.kv_len = case["heads"], min(case["q_len"], LONGEST), case["kv_len"]
        self.arrays = {name: np.load(folder / file) for name, file in case["binds"].items()}
        text = (HERE / case["file"]).read_text()
        self.with_gradient = [name for name in self.arrays if re.search(rf"^{name}:.*grad=True", text, re.MULTILINE)]
        declaration = re.search(rf'attention\("{case["entry"]}".*\)', text)
        self.declaration = declaration.group(0) if declaration else ""
        self.has_softmax = "softmax=False" not in self.declaration
        sink = re.search(r"sink=(\w+)", self.declaration)
        self.sink = sink.group(1) if sink else None
        random = np.random.default_rng(7)  # no score lies within rounding of a place where a derivative jumps
        normal = lambda length: random.standard_normal((1, self.heads, length, HEAD_DIM)).astype(np.float32)
        self.tensors = {"q": normal(self.q_len), "k": normal(self.kv_len), "v": normal(self.kv_len), "dout": normal(self.q_len)}

    def program(self, arrays):
        sizes = {"Q_LEN": self.q_len, "KV_LEN": self.kv_len, "H": self.heads, "HKV": self.heads}
        return self.oracle.Program(HERE / self.case["file"], self.case["defines"], arrays, sizes)

    def coordinates(self):
        return 0, np.arange(self.heads)[:, None, None], np.arange(self.q_len)[None, :, None], np.arange(self.kv_len)[None, None, :]

    def scores(self, arrays, s):
        return np.broadcast_to(self.program(arrays).score(self.case["entry"], s, *self.coordinates()), s.shape)

    def forward(self, arrays):
        """O, the weights and the plain scores, [heads, q, ...]."""
        q, k, v = (self.tensors[name][0].astype(np.float64) for name in ("q", "k", "v"))
        plain = q @ k.swapaxes(1, 2) * HEAD_DIM ** -0.5
        s = self.scores(arrays, plain)
        program = self.program(arrays)
        has_mask = self.case["entry"] in program.entries  # otherwise the entry point is the score function itself
        allowed = np.broadcast_to(program.mask(self.case["entry"], *self.coordinates()) if has_mask else True, s.shape)
        if not self.has_softmax:
            weights = np.where(allowed, s, 0)
            return weights @ v, weights, plain, allowed
        s = np.where(allowed, s, -np.inf)
        sink = arrays[self.sink].astype(np.float64)[:, None, None] if self.sink else -np.inf
        largest = np.maximum(s.max(axis=2, keepdims=True), sink)
        largest = np.where(np.isfinite(largest), largest, 0)
        weights = np.exp(s - largest)
        sums = weights.sum(axis=2, keepdims=True) + np.exp(sink - largest)
        weights = np.where(sums > 0, weights / np.where(sums > 0, sums, 1), 0)
        return weights @ v, weights, plain, allowed

    def gradients(self):
        """dQ, dK, dV, and the gradient of the loss by each score."""
        q, k, v, d_out = (self.tensors[name][0].astype(np.float64) for name in ("q", "k", "v", "dout"))
        out, weights, plain, allowed = self.forward(self.arrays)
        d_weights = d_out @ v.swapaxes(1, 2)
        row = (out * d_out).sum(axis=2, keepdims=True)
        d_scores = weights * (d_weights - row) if self.has_softmax else np.where(allowed, d_weights, 0)
        above, below = self.scores(self.arrays, plain + STEP), self.scores(self.arrays, plain - STEP)
        d_plain = np.where(d_scores == 0, 0, d_scores * np.nan_to_num((above - below) / (2 * STEP))) * HEAD_DIM ** -0.5
        return {"dq": d_plain @ k, "dk": d_plain.swapaxes(1, 2) @ q, "dv": weights.swapaxes(1, 2) @ d_out}, d_scores

    def derivative(self, name, direction, d_scores):
        """That of the loss along a direction of an array, and what its terms add up to without their signs."""
        above, below = ({**self.arrays, name: self.arrays[name].astype(np.float64) + step * direction} for step in (STEP, -STEP))
        if name == self.sink:
            losses = [(self.forward(arrays)[0] * self.tensors["dout"][0]).sum() for arrays in (above, below)]
            return (losses[0] - losses[1]) / (2 * STEP), np.abs(d_scores).sum()
        plain = self.forward(self.arrays)[2]
        terms = d_scores * np.nan_to_num((self.scores(above, plain) - self.scores(below, plain)) / (2 * STEP))
        return terms.sum(), np.abs(terms).sum()


def run(cpflexc, folder, case):
    line = [cpflexc, "run", str(HERE / case.case["file"]), "--entry", case.case["entry"], "--heads", str(case.heads),
            "--q-len", str(case.q_len), "--kv-len", str(case.kv_len)]
    for name, value in case.case["defines"].items():
        line += ["-D", f"{name}={value}"]
    for name, file in case.case["binds"].items():
        line += ["--bind", f"{name}={folder / file}"]
    for name, tensor in case.tensors.items():
        np.save(folder / f"{name}.npy", tensor)
        line += [f"--{name}", str(folder / f"{name}.npy")]
    for name in ("dq", "dk", "dv"):
        line += [f"--{name}", str(folder / f"{name}.npy")]
    for name in case.with_gradient:
        line += ["--dcapture", f"{name}={folder / f'gradient_{name}.npy'}"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def problems_of(cpflexc, folder, case):
    run(cpflexc, folder, case)
    gradients, d_scores = case.gradients()
    for name, expected in gradients.items():
        found = np.load(folder / f"{name}.npy")[0].astype(np.float64)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        if not error <= TOLERANCE:
            yield f"{name} has a relative error of {error:.1e}; expected at most {TOLERANCE:.0e}"
    random = np.random.default_rng(6)
    for name in case.with_gradient:
        found = np.load(folder / f"gradient_{name}.npy").astype(np.float64)
        if not np.any(found):
            yield f"the gradient of '{name}' is 0"
        direction = random.standard_normal(found.shape)
        expected, size = case.derivative(name, direction, d_scores)
        error = abs((found * direction).sum() - expected) / size
        if not error <= TOLERANCE:
            yield f"the gradient of '{name}' is off by {error:.1e} along a direction; expected at most {TOLERANCE:.0e}"


def main():
    cpflexc, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "generate_arrays.py"), str(folder)], check=True, stdout=subprocess.DEVNULL)
    oracle, problems = oracle_in_double(), []
    cases = json.loads((HERE / "scores.json").read_text())["cases"]
    for case in cases:
        problems += [f"{case['case']}: {problem}" for problem in problems_of(cpflexc, folder, Case(oracle, case, folder))]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(cases)} score functions agree")


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
