"""Ports functions of a Python file, prints each program with what was said about it, and compiles it.
Usage: port_styles.py CPFLEXC FILE FOLDER NAME..."""
import pathlib
import subprocess
import sys

cpflexc, file, folder, names = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4:]
folder.mkdir(parents=True, exist_ok=True)
for name in names:
    out = folder / f"{name}.cpf"
    for command in ([cpflexc, "port", f"{file}::{name}", "-o", out], [cpflexc, "check", out]):
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if command[1] == "port":
            print(f"==== {name}\n{done.stderr}{out.read_text() if out.exists() else ''}")
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
print(f"{len(names)} ported")
