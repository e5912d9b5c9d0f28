"""Where does the time of the attention kernels go? Runs single launches of forward and backward under Nsight Compute and
prints a table in Markdown: tensor pipe, exponentials, issue slots, memory, and what warps wait for. Needs torch and ncu.

  python3 bench/gpu/counters.py [--out DIR]
"""
import argparse
import csv
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile

import attention

SHAPES = [("dense", 2, 16, 16, 8192, 128), ("causal", 2, 16, 16, 8192, 128), ("window", 2, 16, 16, 8192, 128),
          ("window", 2, 32, 32, 8192, 64), ("doc_causal", 2, 16, 16, 8192, 128)]
KERNELS = ("forward", "backward_kv")  # of each shape, in this order; backward up to D=128 is one kernel
BUSY = ".avg.pct_of_peak_sustained_active"
# Title of a column -> metrics, of which the first that ncu knows is shown.
COLUMNS = {
    "tensor %": ["sm__pipe_tensor_cycles_active" + BUSY, "sm__pipe_tensor_op_hmma_cycles_active" + BUSY],
    "exp (XU) %": ["sm__inst_executed_pipe_xu" + BUSY],
    "issue slots %": ["sm__inst_issued" + BUSY, "smsp__issue_active" + BUSY],
    "FMA %": ["sm__pipe_fma_cycles_active" + BUSY, "sm__inst_executed_pipe_fma" + BUSY],
    "ALU %": ["sm__pipe_alu_cycles_active" + BUSY, "sm__inst_executed_pipe_alu" + BUSY],
    "L1/shared %": ["l1tex__throughput" + BUSY],
    "L2 %": ["lts__throughput.avg.pct_of_peak_sustained_elapsed"],
    "DRAM %": ["dram__throughput.avg.pct_of_peak_sustained_elapsed", "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed"],
}
DURATION = "gpu__time_duration.sum"
REASONS = ("barrier branch_resolving dispatch_stall drain gmma imc_miss lg_throttle long_scoreboard math_pipe_throttle membar mio_throttle "
           "misc no_instruction not_selected selected short_scoreboard sleeping tex_throttle wait").split()
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
MILLISECONDS = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0, "s": 1e3, "second": 1e3}


def all_metrics():
    return [DURATION] + [m for names in COLUMNS.values() for m in names] + [STALL.format(r) for r in REASONS]


def split_known(metrics, listing):
    """(known, unknown) by what `ncu --query-metrics` lists, which are names without suffixes; all known where it lists nothing."""
    listed = set(re.findall(r"^(\w+__\w+)", listing, re.MULTILINE))
    known = [m for m in metrics if not listed or m.split(".")[0] in listed]
    return known, [m for m in metrics if m not in known]


def launches_of(output):
    """Of each profiled launch, in order: metric -> (value, unit) and "Kernel Name" -> (name, ""). Reads `--csv` with one line a
    launch (`--page raw`) or one line a metric; other lines of the output are passed by."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.reader(lines[start:]))
    if not rows:
        return []
    header, body = rows[0], [dict(zip(rows[0], row)) for row in rows[1:]]
    if "Metric Name" in header:
        by_id = {}
        for row in body:
            launch = by_id.setdefault(row["ID"], {"Kernel Name": (row["Kernel Name"], "")})
            launch[row["Metric Name"]] = (row["Metric Value"], row["Metric Unit"])
        return list(by_id.values())
    units = body[0] if body and not body[0]["ID"] else {}
    return [{name: (value, units.get(name, "")) for name, value in row.items()} for row in body if row["ID"]]


def number(launch, metric):
    """The value of a metric, or None where there is none."""
    try:
        return float(launch[metric][0].replace(",", ""))
    except (KeyError, ValueError):
        return None


def table(launches, labels):
    """The lines of the table; `labels` name the launches, whose kernels' names stand where there are not as many."""
    if len(labels) != len(launches):
        labels = [launch["Kernel Name"][0] for launch in launches]
    lines = ["| kernel | ms | " + " | ".join(COLUMNS) + " | what warps do or wait for |", "|---" * (len(COLUMNS) + 3) + "|"]
    for label, launch in zip(labels, launches):
        duration = number(launch, DURATION)
        cells = [label, "-" if duration is None else f"{duration * MILLISECONDS.get(launch[DURATION][1], 1e-6):.3f}"]
        for names in COLUMNS.values():
            value = next((v for v in (number(launch, m) for m in names) if v is not None), None)
            cells.append("-" if value is None else f"{value:.0f}")
        stalls = {reason: number(launch, STALL.format(reason)) or 0.0 for reason in REASONS}
        total = sum(stalls.values())
        top = sorted(stalls, key=stalls.get, reverse=True)[:4] if total else []
        cells.append(", ".join(f"{reason} {100 * stalls[reason] / total:.0f} %" for reason in top) or "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def profiled(ncu, metrics, images):
    command = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--target-processes", "application-only",
               "--kernel-name", f"regex:^attention_({'|'.join(KERNELS)})$", "--launch-count", str(len(SHAPES) * len(KERNELS)),
               "--metrics", ",".join(metrics), sys.executable, os.path.abspath(__file__), "--images", images]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def run_kernels(images):
    """What ncu follows: each kernel once, from compiled images."""
    import launch
    import torch
    with open(images, "rb") as file:
        attention.IMAGES.update(pickle.load(file))
    for arguments in SHAPES:
        shape = attention.Shape(torch, *arguments)
        shape.d_o = torch.randn_like(shape.q)
        forward, o, lse = shape.forward(torch, launch, shape.spec("forward"))
        forward.run()
        attention.bind_backward(torch, launch, shape, o, lse)[0].run()
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.environ.get("OUT", "."), help="folder of counters.txt, what ncu printed")
    parser.add_argument("--images", help="run the kernels from this file, without ncu")
    options = parser.parse_args()
    if options.images:
        run_kernels(options.images)
        return
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not os.path.exists(ncu):
        sys.exit("ncu is neither on the PATH nor in /usr/local/cuda/bin")
    attention.compile_all([spec for arguments in SHAPES for spec in attention.Shape.of(*arguments).specs()])
    query = subprocess.run([ncu, "--query-metrics", "--chips", "gh100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    metrics, unknown = split_known(all_metrics(), query.stdout)
    with tempfile.NamedTemporaryFile(suffix=".pickle") as images:
        pickle.dump(attention.IMAGES, images)
        images.flush()
        code, output = profiled(ncu, metrics, images.name)
        if not launches_of(output) and "ERR_NVGPUCTRPERM" not in output:
            refused = [m for m in metrics if any(m.split(".")[0] in line for line in output.splitlines() if line.startswith("=="))]
            if refused:
                unknown += refused
                code, output = profiled(ncu, [m for m in metrics if m not in refused], images.name)
    with open(os.path.join(options.out, "counters.txt"), "w") as file:
        file.write(output)
    if "ERR_NVGPUCTRPERM" in output:
        sys.exit("ncu may not read the counters of this GPU (ERR_NVGPUCTRPERM)")
    launches = launches_of(output)
    if not launches:
        sys.exit(f"ncu ended with {code} and profiled nothing; the end of what it printed:\n{output[-3000:]}")
    print(*table(launches, [f"{shape[0]} D={shape[5]} {role.split('_')[0]}" for shape in SHAPES for role in KERNELS]), sep="\n")
    if unknown:
        print("\nncu does not know:", *unknown)


if __name__ == "__main__":
    main()
