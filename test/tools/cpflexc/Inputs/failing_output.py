# Runs commands whose standard output is full or closed and expects code 3 and a message of each.
import os
import subprocess
import sys

CPFLEXC, EXAMPLES, TEMPORARY = sys.argv[1:]
os.environ["CPFLEX_CACHE_DIR"] = TEMPORARY + ".cache"
PYTHON = TEMPORARY + ".py"
with open(PYTHON, "w") as file:
    file.write("def causal(b, h, q_idx, kv_idx):\n    return q_idx >= kv_idx\n")
WINDOW = f"{EXAMPLES}/sliding_window.cpf"
SMALL = [WINDOW, "--entry", "window", "--q-len", "16", "--head-dim", "8"]
COMMANDS = [["mask", *SMALL], ["plan", *SMALL, "--ranks", "2"], ["run", *SMALL], ["check", WINDOW],
            ["check", WINDOW, "--format", "json"], ["explain", *SMALL, "--at", "0,0,1,1"],
            ["port", PYTHON + "::causal"], ["compile", WINDOW], ["bench", *SMALL], ["cache", "list"], ["--help"],
            ["--version"]]


def expect(arguments, closed):
    shell = 'exec "$@" >&-' if closed else 'exec "$@" >/dev/full'
    done = subprocess.run(["sh", "-c", shell, "sh", CPFLEXC, *arguments], capture_output=True, text=True)
    reason = "Bad file descriptor" if closed else "No space left on device"
    if done.returncode != 3 or f"error: standard output cannot be written ({reason})" not in done.stderr:
        sys.exit(f"{arguments} ended with {done.returncode}: {done.stderr}")


for command in COMMANDS:
    expect(command, closed=False)
    expect(command, closed=True)
print(2 * len(COMMANDS), "failures reported")
