"""Runs the fuzzer for 10 seconds, or 3 minutes when CPFLEX_FULL is set. Usage: run_fuzzer.py FUZZER FOUND CORPUS..."""
import os
import pathlib
import subprocess
import sys

SECONDS = 180 if os.environ.get("CPFLEX_FULL") else 10
# One input must end within 20 s of a slow machine and need less than 4 GiB.
done = subprocess.run([sys.argv[1], f"-max_total_time={SECONDS}", "-seed=1", "-timeout=20", "-rss_limit_mb=4096", "-max_len=4096",
                       "-print_final_stats=1", f"-artifact_prefix={sys.argv[2]}/", *sys.argv[2:]],
                      capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
report = done.stderr.splitlines()
print("\n".join(report[-25:]))
if done.returncode:
    for found in sorted(pathlib.Path(sys.argv[2]).glob("*-*")):
        print(f"{found.name}: {found.read_bytes()!r}")
    sys.exit(f"the fuzzer ended with {done.returncode}")
print("no crash, no hang")
