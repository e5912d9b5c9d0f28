#!/usr/bin/env python3
"""Runs the portable cpflexc where nothing is installed: in a root directory that holds it, the C library and a program.

Usage: run_portable.py CPFLEXC PROGRAM FOLDER. Prints the libraries it needs, its size and what it printed there. Changing
the root directory needs root; without, an empty environment and folder must do.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys

LARGEST = 58_000_000
# The C library and its kin, which any Linux has.
EXPECTED = {"linux-vdso.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def main():
    binary, program, folder = map(pathlib.Path, sys.argv[1:])
    listing = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    names = {pathlib.Path(line.split()[0]).name for line in listing.splitlines() if line.strip()}
    if names - EXPECTED:
        sys.exit(f"needs {', '.join(sorted(names - EXPECTED))}; expected the C library only")
    size = binary.stat().st_size
    if size > LARGEST:
        sys.exit(f"has {size} bytes; expected at most {LARGEST}")
    print(f"needs the C library only, {size / 1e6:.1f} MB")

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in re.findall(r"(/\S+) \(0x", listing):
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (folder / "tmp").mkdir()
    shutil.copy(binary, folder / "cpflexc")
    shutil.copy(program, folder / "program.cpf")
    for words in (["mask", "program.cpf", "--entry", "window", "-D", "W=100", "--q-len", "1000", "--count"],
                  ["run", "program.cpf", "--entry", "window", "-D", "W=100", "--q-len", "500", "--random", "1", "--check"],
                  ["compile", "program.cpf", "--entry", "window", "--emit=cuda"]):
        done = subprocess.run(["./cpflexc", *words], cwd=folder, env={}, capture_output=True, text=True,
                              preexec_fn=(lambda: os.chroot(".")) if os.geteuid() == 0 else None)
        if done.returncode:
            sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
        print(done.stdout)


if __name__ == "__main__":
    main()
