# Runs every test of a built tree and sums them up: GoogleTest binaries, lit tests and the style test. Standard library
# only. Usage: run_tests.py [--full]; the last line is 'N passed, N failed, N skipped'.
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIT = "/usr/lib/llvm-22/bin/lit"
GTEST_TIMEOUT_S = 1200


class Tally:
    def __init__(self):
        self.passed = 0
        self.failures = []
        self.skips = []

    def add_failure(self, name, output=""):
        self.failures.append(name)
        print(f"FAIL: {name}")
        if output:
            print("\n".join("  " + line for line in output.strip().splitlines()[-40:]))


def run_gtest(binary, name, tally, environment):
    """Runs one GoogleTest binary; every test case counts once."""
    with tempfile.TemporaryDirectory() as folder:
        # Of the two kinds of report only XML tells why a case was skipped.
        report = pathlib.Path(folder) / "report.xml"
        try:
            done = subprocess.run([binary, f"--gtest_output=xml:{report}", "--gtest_brief=1"], cwd=folder,
                                  capture_output=True, text=True, errors="replace", timeout=GTEST_TIMEOUT_S,
                                  env=environment, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            tally.add_failure(f"{name}: no end after {GTEST_TIMEOUT_S} s")
            return
        if not report.exists():
            tally.add_failure(f"{name}: ended with {done.returncode} and no report", done.stdout + done.stderr)
            return
        failed = 0
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            case_name = f"{name}: {case.get('classname')}.{case.get('name')}"
            failure, skip = case.find("failure"), case.find("skipped")
            if failure is not None:
                failed += 1
                tally.add_failure(case_name, failure.get("message"))
            elif skip is not None:
                lines = (skip.get("message") or "").strip().splitlines()
                tally.skips.append((case_name, lines[-1] if len(lines) > 1 else "no reason given"))
            elif case.get("status") == "run":
                tally.passed += 1
        if done.returncode != 0 and not failed:
            tally.add_failure(f"{name}: ended with {done.returncode}", done.stdout + done.stderr)


def run_gtests(build, label, tally, environment):
    """Runs the GoogleTest binaries of a build tree, as many at once as there are cores."""
    binaries = sorted(path for path in (build / "test" / "unit").glob("*") if path.is_file() and os.access(path, os.X_OK))
    if not binaries:
        tally.add_failure(f"{label}GoogleTest binaries: none in {build.name}/test/unit")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(run_gtest, path, label + path.name, tally, environment) for path in binaries]:
            future.result()


def run_lit(build, tally, environment):
    """Runs the lit suite of the default build tree."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "lit.json"
        done = subprocess.run([LIT, f"-j{os.cpu_count()}", "-q", "--output", report, build / "test"],
                              capture_output=True, text=True, errors="replace", env=environment, stdin=subprocess.DEVNULL)
        if not report.exists():
            tally.add_failure("lit", done.stdout + done.stderr)
            return
        for test in json.loads(report.read_text())["tests"]:
            code, name = test["code"], test["name"]
            if code in ("PASS", "XFAIL", "FLAKYPASS"):
                tally.passed += 1
            elif code in ("UNSUPPORTED", "SKIPPED", "EXCLUDED"):
                lines = [line for line in test.get("output", "").splitlines() if line.strip()]
                tally.skips.append((name, lines[-1] if lines else code.lower()))
            else:
                tally.add_failure(name, test.get("output", ""))


def run_style(tally, environment):
    done = subprocess.run([sys.executable, ROOT / "scripts" / "check_style.py"], capture_output=True, text=True,
                          env=environment)
    for line in done.stdout.splitlines():
        kind, _, rest = line.partition(": ")
        if kind == "pass":
            tally.passed += 1
        else:
            tally.add_failure(f"style: {rest}")
    if done.returncode not in (0, 1):
        tally.add_failure("style", done.stdout + done.stderr)


def run_demo(tally, environment):
    """The main job as README tells a stranger to run it; each of its commands checks itself."""
    done = subprocess.run(["bash", str(ROOT / "demo")], capture_output=True, text=True, env=environment,
                          stdin=subprocess.DEVNULL)
    if done.returncode == 0 and "== To try next" in done.stdout:
        tally.passed += 1
    else:
        tally.add_failure("./demo", done.stdout + done.stderr)


def main():
    full = "--full" in sys.argv[1:]
    environment = dict(os.environ)
    cache = tempfile.TemporaryDirectory(prefix="cpflex-cache-")
    environment["CPFLEX_CACHE_DIR"] = cache.name
    if full:
        environment["CPFLEX_FULL"] = "1"
    tally = Tally()
    if environment.get("CI") == "true" and not environment.get("CPFLEX_NVRTC"):
        tally.add_failure("NVRTC: not found and not installable, although CI=true")
    run_style(tally, environment)
    run_gtests(ROOT / "build", "", tally, environment)
    run_lit(ROOT / "build", tally, environment)
    if full:
        run_demo(tally, environment)
        # The sanitizers run what ./check runs. That for addresses needs container checks off: GoogleTest and fmt are
        # not built with it.
        del environment["CPFLEX_FULL"]
        environment["ASAN_OPTIONS"] = "detect_container_overflow=0"
        run_gtests(ROOT / "build-asan", "asan ", tally, environment)
        run_gtests(ROOT / "build-tsan", "tsan ", tally, environment)
    for name, reason in tally.skips:
        print(f"SKIP: {name}: {reason}")
    if tally.failures:
        print("failed:")
        for name in tally.failures:
            print(f"  {name}")
    print(f"{tally.passed} passed, {len(tally.failures)} failed, {len(tally.skips)} skipped")
    return 1 if tally.failures or tally.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
