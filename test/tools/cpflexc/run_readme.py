#!/usr/bin/env python3
"""Runs every command of README.md's lines of use over its own program. Usage: run_readme.py README CPFLEXC FOLDER.

The last line is 'N commands ran'.
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np

LENGTH = 4096
MODEL = '''def my_mask_mod(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 256)
'''


def main():
    readme, cpflexc, folder = pathlib.Path(sys.argv[1]).read_text(), sys.argv[2], pathlib.Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.cpf").write_text(re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1))
    (folder / "model.py").write_text(MODEL)
    boundaries = np.array([0, 700, 1500, 2000, 3500, LENGTH], dtype=np.int32)
    np.save(folder / "cu_seqlens.npy", boundaries)
    np.save(folder / "doc.npy", np.repeat(np.arange(5, dtype=np.int32), np.diff(boundaries)))
    generator = np.random.default_rng(1)
    for name in "qkv":
        np.save(folder / f"{name}.npy", generator.standard_normal((1, 8, LENGTH, 64), dtype=np.float32))
    lines = [line.strip() for line in readme.splitlines() if line.startswith("    cpflexc ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        done = subprocess.run([cpflexc, *words[1:]], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"{line}\nended with {done.returncode}: {done.stderr or done.stdout}")
    print(f"{len(lines)} commands ran")


if __name__ == "__main__":
    main()
