#!/usr/bin/env python3
"""How long do block masks take, beside what was asked of them? Prints the table of docs/performance.md in under a minute:

    bench/block_mask/table.py [BUILD]     BUILD is the build folder, `build` when left out

Build the targets cpflexc and bench-block-mask first. On a machine that is busy with something else, read the processor's
time (`cpu ms`) instead of the wall clock.
"""
import json
import pathlib
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parents[2]
tools = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else root / "build").resolve() / "bin"

print(subprocess.run([tools / "bench-block-mask"], check=True, capture_output=True, text=True).stdout)

RUNS = 11
print(f"from text to the first BlockMask, all compilation included: median and least of {RUNS} processes (goal 100 ms)")
for name, arguments in {
    "window": ["examples/sliding_window.cpf", "--entry", "window", "--q-len", "8192"],
    "streaming": ["examples/sliding_window.cpf", "--entry", "streaming", "--q-len", "1048576"],
    "tiled neighbourhood": ["test/catalogue/M38.cpf", "--q-len", "8192"],
}.items():
    times = []
    for _ in range(RUNS):
        command = [tools / "cpflexc", "mask", *arguments, "--format", "json", "--threads", "1"]
        seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)
        times.append((seen["compile_ms"] + seen["build_ms"], seen["compile_ms"]))
    times.sort()
    print(f"{name:<24} {times[RUNS // 2][0]:8.2f} {times[0][0]:8.2f} ms, of it compilation {times[0][1]:.2f} ms")
