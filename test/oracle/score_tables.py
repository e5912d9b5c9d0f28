"""Tables of the scores that cpflexc's CPU kernels use, one for each score function of the standard library.

A table comes out of attention itself: with softmax=False, scale 1, values the identity and q k^T a given s, O[q, kv] is what
the score function makes of s at (q, kv). For a sink the softmax's weights come out, without softmax=False.
"""
import ast
import pathlib
import subprocess

import numpy as np

from cpf_oracle import STANDARD_LIBRARY

SCORES = STANDARD_LIBRARY / "scores.cpf"
LENGTH, HEADS = 64, 4

# Smaller sizes than the library's, so that each effect shows within LENGTH tokens.
CONSTANTS = {"relative_bias": {"REACH": 16}, "log_n_scale": {"TRAINED_LENGTH": 16}, "soft_cap": {"CAP": 4.0}}
# Functions that only scale or bend the score are shown over scores that rise with the key.
OF_THE_SCORE = {"soft_cap", "log_n_scale", "head_temperature"}


def captures():
    """The arrays of all score functions, each fixed and of plain shape."""
    bucket, offset = np.arange(32.0), np.arange(15.0) - 7
    distance, head = np.arange(33.0) - 16, np.arange(float(HEADS))
    arrays = {
        "t5_table": -bucket[:, None] / 8 * (1 + head), "relative_table": np.cos(distance / 5)[None, :] * (1 + head[:, None]),
        "window_table": -np.hypot(offset[:, None], offset[None, :]).reshape(-1, 1) / (1 + head),
        "temperature": 0.5 + head / 2, "log_decay": np.log(1 - 2.0 ** (-2 - head)), "kerple_scale": 1 + head / 4,
        "kerple_rate": 0.5 + head / 4, "sinks": 1 - head / 2,
        "forget": -np.cumsum(np.where(np.arange(LENGTH) % 16 == 15, 2.0, 0.05))[None, None, :] * (1 + head[None, :, None]),
        "pair_bias": np.where((np.arange(LENGTH)[:, None] // 16 + np.arange(LENGTH) // 16) % 2 == 0, 1.0, -1.0)[None, None]
        * (1 + head[None, :, None, None])}
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}


def functions():
    """(name, docstring) of the score functions in order."""
    for node in ast.parse(SCORES.read_text()).body:
        if isinstance(node, ast.FunctionDef) and any(isinstance(d, ast.Name) and d.id == "score" for d in node.decorator_list):
            yield node.name, " ".join(ast.get_docstring(node).split())


def scores_before(name):
    """s, [LENGTH, LENGTH] in f32: exact products of one channel of q and k."""
    rising = (np.arange(LENGTH) - LENGTH // 2) / 4.0
    return np.broadcast_to(rising if name in OF_THE_SCORE else 0.0, (LENGTH, LENGTH)).astype(np.float32)


def attention(cpflexc, folder, text, scores, arrays, constants):
    """O, [HEADS, LENGTH, LENGTH], of an entry point with the identity as values and `scores` as q k^T; equal in all rows."""
    program = folder / "program.cpf"
    program.write_text(text)
    q = np.zeros((1, HEADS, LENGTH, LENGTH), np.float32)
    k, v = q.copy(), np.broadcast_to(np.eye(LENGTH, dtype=np.float32), q.shape).copy()
    q[..., 0] = 1
    k[..., 0] = scores[0]
    line = [cpflexc, "run", program, "--heads", str(HEADS), "--q-len", str(LENGTH), "--head-dim", str(LENGTH), "--threads", "1"]
    for name, array in {"q": q, "k": k, "v": v}.items():
        np.save(folder / f"{name}.npy", array)
        line += [f"--{name}", folder / f"{name}.npy"]
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        line += ["--bind", f"{name}={folder / name}.npy"]
    for name, value in constants.items():
        line += ["-D", f"{name}={value}"]
    done = subprocess.run(line + ["--out", folder / "out.npy"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{text}: {done.stderr}")
    return np.load(folder / "out.npy")[0]


def arrays_of(name):
    """The captures that a score function reads, in the order of their declarations."""
    source = ast.parse(SCORES.read_text()).body
    function = next(node for node in source if isinstance(node, ast.FunctionDef) and node.name == name)
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    return {key: value for key, value in captures().items() if key in used}


def table(cpflexc, folder, name):
    """What score function `name` gives, [HEADS, LENGTH, LENGTH]."""
    text = f'from cpflex.std import {name}\n\nattention("{name}", score={name}, scale=1.0, softmax=False)\n'
    return attention(cpflexc, folder, text, scores_before(name), arrays_of(name), CONSTANTS.get(name, {}))


def sink_weights(cpflexc, folder):
    """The weights of causal attention with equal scores and the sinks, [HEADS, LENGTH, LENGTH]."""
    text = 'from cpflex.std import causal, sinks\n\nattention("weights", mask=causal, sink=sinks, scale=1.0)\n'
    return attention(cpflexc, folder, text, scores_before("sinks"), {"sinks": captures()["sinks"]}, {})
