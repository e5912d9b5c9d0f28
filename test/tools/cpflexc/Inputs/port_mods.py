"""Ports every mask and score function of a Python file and compiles the results. Usage: port_mods.py CPFLEXC FILE FOLDER."""
import ast
import pathlib
import subprocess
import sys

cpflexc, file, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
num_ported = 0
for node in ast.walk(ast.parse(file.read_text())):
    names = [a.arg for a in node.args.args] if isinstance(node, ast.FunctionDef) else []
    if names[-4:] != ["b", "h", "q_idx", "kv_idx"] or node.name == "prefix_mask":
        continue
    out = folder / f"{node.name}.cpf"
    for command in ([cpflexc, "port", f"{file}::{node.name}", "-o", out], [cpflexc, "compile", out, "--emit=mask-opt"]):
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"{node.name}: {done.stderr}\n{out.read_text() if out.exists() else ''}")
    num_ported += 1
print(f"{num_ported} functions ported")
