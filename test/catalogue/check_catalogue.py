#!/usr/bin/env python3
"""Compares what cpflexc derives and counts with what catalogue.json expects of every mask.

Usage: check_catalogue.py CPFLEXC FOLDER. Arrays are written to FOLDER; the last line is 'N cases agree'.
"""
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def observed(cpflexc, folder, case):
    line = [cpflexc, "mask", str(HERE / case["file"]), "--entry", case["entry"], "--q-len", str(case["q_len"]),
            "--kv-len", str(case["kv_len"]), "--tile", case["tile"], "--count", "--format", "json"]
    for option in ("batch", "heads"):
        if option in case:
            line += [f"--{option}", str(case[option])]
    for name, value in case["defines"].items():
        line += ["-D", f"{name}={value}"]
    for name, file in case["binds"].items():
        line += ["--bind", f"{name}={folder / file}"]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        return None, f"exit code {done.returncode}: {done.stderr.strip()}"
    return json.loads(done.stdout), ""


def main():
    cpflexc, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "generate_arrays.py"), str(folder)], check=True, stdout=subprocess.DEVNULL)
    cases = json.loads((HERE / "catalogue.json").read_text())["cases"]
    num_wrong = 0
    for case in cases:
        seen, problem = observed(cpflexc, folder, case)
        if seen is not None:
            problem = ", ".join(f"{key} is {seen.get(key)}; expected {value}" for key, value in case["expected"].items()
                                if seen.get(key) != value)
        if problem:
            num_wrong += 1
            print(f"{case['case']}: {problem}")
    if num_wrong:
        sys.exit(f"{num_wrong} of {len(cases)} cases differ")
    print(f"{len(cases)} cases agree")


if __name__ == "__main__":
    main()
