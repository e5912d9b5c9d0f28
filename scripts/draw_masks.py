# Writes docs/masks.md: every mask of the standard library with its docstring, a picture that cpflexc draws, and a count of
# its pairs that test/oracle/cpf_oracle.py must confirm; every score function with a picture of the scores that cpflexc's CPU
# kernels use. Usage: draw_masks.py CPFLEXC [--check]; with --check it writes nothing and ends with 1 when the document is
# not current.
import ast
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "test" / "oracle"))
import score_tables  # noqa: E402
from cpf_oracle import Program  # noqa: E402

DOCUMENT = ROOT / "docs" / "masks.md"
LENGTH, TILE = 128, 8
IMAGE = {"GRID_HEIGHT": 8, "GRID_WIDTH": 16}
BLOCKS = LENGTH // TILE

# Small sizes, so that the pictures show the shape; masks that are not named use what the library declares.
CONSTANTS = {
    "sliding_window": {"WINDOW": 32}, "sliding_window_left": {"WINDOW": 32}, "symmetric_window": {"WINDOW": 24},
    "asymmetric_window": {"WINDOW_BEFORE": 40, "WINDOW_AFTER": 16}, "sink_window": {"SINK": 8, "WINDOW": 32},
    "dilated_window": {"WINDOW": 32, "DILATION": 4}, "causal_dilated_window": {"WINDOW": 64, "DILATION": 16},
    "document_window": {"DOCUMENT_WINDOW": 16}, "prefix_lm": {"PREFIX": 40}, "sequence_to_sequence": {"SOURCE": 64},
    "in_context_rows": {"TRAINING_ROWS": 88}, "block_causal": {"BLOCK": 32}, "chunked": {"CHUNK": 32},
    "chunked_left_padded": {"CHUNK": 32}, "rolling_blocks": {"BLOCK": 16}, "strided_sparse": {"STRIDE": 24},
    "fixed_sparse": {"STRIDE": 32, "SUMMARY": 8}, "longformer": {"LOCAL_RADIUS": 12}, "bigbird": {"BLOCK": 8, "GLOBAL_BLOCKS": 1},
    "selected_blocks": {"BLOCK": 8}, "mapped_blocks": {"BLOCK": 8}, "block_diffusion": {"DIFFUSION_BLOCK": 16},
    "natten_1d": {"KERNEL": 31}, "natten_2d": {**IMAGE, "KERNEL": 5},
    "natten_3d": {"FRAMES": 8, "GRID_HEIGHT": 4, "GRID_WIDTH": 4, "KERNEL": 3, "KERNEL_FRAMES": 3}, "axial": {"GRID_WIDTH": 16},
    "swin": {**IMAGE, "SQUARE": 4}, "swin_shifted": {**IMAGE, "SQUARE": 4, "SHIFT": 2},
    "sliding_tile": {"TILE_TOKENS": 8, "TILES_T": 1, "TILES_H": 4, "TILES_W": 4}, "tree": {"TREE_PREFIX": 64},
    "full_or_streaming_heads": {"FULL_HEAD_WINDOW": 32, "FULL_HEAD_SINK": 8}, "paged_causal": {"PAGE": 16},
}

LENGTHS = {"tree": (64, 128), "causal_bottom_right": (64, 128), "cached_causal": (64, 128), "paged_causal": (64, 128),
           "document_cross": (64, 128)}


def arrays():
    """The captures of all masks, each a fixed array."""
    lengths = [37, 21, 44, 26]
    doc = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    span = np.full(LENGTH, -1, np.int32)
    span[20:44], span[80:104] = 0, 1
    nodes = LENGTH - 64
    ancestor = np.zeros((nodes, nodes), bool)
    for node in range(nodes):
        at = node
        while at >= 0:
            ancestor[node, at] = True
            at = (at - 1) // 2 if at > 0 else -1
    row, column = np.arange(BLOCKS)[:, None], np.arange(BLOCKS)[None, :]
    is_global = np.zeros((1, LENGTH), bool)
    is_global[0, :4] = is_global[0, 72:76] = True
    shuffled = np.arange(LENGTH) % 2 * (LENGTH // 2) + np.arange(LENGTH) // 2
    return {
        "doc": doc[None], "doc_begin": offsets[doc][None], "doc_prefix": np.array([[10, 8, 16, 4]], np.int32),
        "query_doc": np.repeat(np.arange(4), 16).astype(np.int32)[None], "shared_with": np.array([0, 0, 0, 3], np.int32),
        "doc_offsets": offsets, "prefix_length": np.array([40], np.int32), "kv_length": np.array([100], np.int32),
        "q_length": np.array([36], np.int32), "left_padding": np.array([28], np.int32), "left_pad": np.array([12], np.int32),
        "is_valid": (np.arange(LENGTH) % 48 < 36)[None], "is_global": is_global,
        "random_blocks": ((row * 5 + np.array([[3, 11]])) % BLOCKS).astype(np.int32)[None],
        "chosen_blocks": ((row + np.array([[0, 5, 9]])) % BLOCKS).astype(np.int32)[None, None],
        "block_map": ((row * 7 + column * 3) % 5 == 0)[None, None], "ancestor": ancestor, "span": span[None],
        "q_position": shuffled.astype(np.int32), "kv_position": shuffled.astype(np.int32), "is_full_head": np.array([False]),
        "page_table": np.array([[3, 0, 5, 1, 7, 2, 6, 4]], np.int32),
    }


def masks(path):
    """(name, docstring) of each mask of a file in order."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and any(isinstance(d, ast.Name) and d.id == "mask" for d in node.decorator_list):
            yield node.name, " ".join(ast.get_docstring(node).split())


def captures_of(cpflexc, program):
    """Names of the arrays that a program binds."""
    text = subprocess.run([cpflexc, "compile", program, "--emit=mask"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"mask\.capture @(\w+)", text)


def section(cpflexc, folder, path, name, docstring, known):
    program = folder / f"{name}.cpf"
    program.write_text(f'from cpflex.std import {name}\n\nattention("{name}", mask={name})\n')
    q_len, kv_len = LENGTHS.get(name, (LENGTH, LENGTH))
    constants = CONSTANTS.get(name, {})
    captures = {capture: known[capture] for capture in captures_of(cpflexc, program)}
    line = [cpflexc, "mask", program, "--q-len", str(q_len), "--kv-len", str(kv_len), "--tile", f"{TILE}x{TILE}", "--count"]
    for constant, value in constants.items():
        line += ["-D", f"{constant}={value}"]
    for capture in captures:
        line += ["--bind", f"{capture}={folder / capture}.npy"]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    picture = done.stdout[done.stdout.index("\n") + 1:done.stdout.index("██ full")].rstrip()
    counted = int(re.search(r"(\d+) pairs allowed", done.stdout).group(1))
    oracle = Program(path, constants, captures, {"Q_LEN": q_len, "KV_LEN": kv_len})
    expected = int(oracle.mask(name, 0, 0, np.arange(q_len)[:, None], np.arange(kv_len)[None, :]).sum())
    if counted != expected:
        sys.exit(f"{name}: cpflexc counts {counted} pairs, the oracle {expected}")
    settings = ", ".join([f"`{constant}={value}`" for constant, value in constants.items()] + [f"`{c}`" for c in captures])
    return (f"### {name}\n\n{docstring}\n\n```text\n{picture}\n```\n\n{counted} of {q_len} x {kv_len} pairs"
            f"{'; with ' if settings else ''}{settings}.\n\n")


SHADES = ["··", "░░", "▒▒", "▓▓", "██"]
SCORE_STEP = 4


def number(value):
    return f"{value:.3g}" if abs(value) >= 5e-4 else "0"


def shaded(table):
    """A table [LENGTH, LENGTH] as text, every SCORE_STEP-th row and column, shaded from its smallest to its largest value."""
    shown = table[::SCORE_STEP, ::SCORE_STEP].astype(np.float64)
    low, high = shown.min(), shown.max()
    # A hair above the boundary counts to the upper shade, so that rounding of the last bit changes no picture.
    level = np.floor((shown - low) / max(high - low, 1e-30) * len(SHADES) + 1e-4).astype(int).clip(0, len(SHADES) - 1)
    lines = [f"      kv 0 .. {table.shape[1]}"]
    for at, row in enumerate(level):
        label = f"{at * SCORE_STEP:3}" if at % 8 == 0 or at == len(level) - 1 else "   "
        lines.append(f"{label} │ " + "".join(SHADES[shade] for shade in row))
    return "\n".join(lines), f"From {number(low)} (`{SHADES[0]}`) to {number(high)} (`{SHADES[-1]}`)"


def score_section(cpflexc, folder, name, docstring):
    picture, range_text = shaded(score_tables.table(cpflexc, folder, name)[0])
    before = "scores that rise from -8 to 7.75 along the keys" if name in score_tables.OF_THE_SCORE else "scores of 0"
    settings = [f"`{constant}={value}`" for constant, value in score_tables.CONSTANTS.get(name, {}).items()]
    settings += [f"`{array}`" for array in score_tables.arrays_of(name)]
    return (f"### {name}\n\n{docstring}\n\n```text\n{picture}\n```\n\n{range_text}, over {before}"
            f"{'; with ' if settings else ''}{', '.join(settings)}.\n\n")


def score_sections(cpflexc, folder):
    text = (f"## scores\n\nScore functions of head 0 of {score_tables.HEADS}, {score_tables.LENGTH} tokens, every "
            f"{SCORE_STEP}th query and key: what attention adds up, taken\nout of the CPU kernels with `softmax=False` and the "
            "identity as values. `test/oracle/check_standard_scores.py` compares them\nwith formulas and has the arrays.\n\n")
    for name, docstring in score_tables.functions():
        text += score_section(cpflexc, folder, name, docstring)
    picture, range_text = shaded(score_tables.sink_weights(cpflexc, folder)[0])
    return text + ("### sinks\n\nNot a function but an array of one learned score per head that takes part in each row's softmax "
                   "and has no value: `attention(\"name\", mask=causal, sink=sinks)` (gpt-oss; 0 is softmax with 1 added to its "
                   f"sum). Shown are the weights of equal scores.\n\n```text\n{picture}\n```\n\n{range_text}; with `sinks`.\n\n")


def document(cpflexc):
    known = arrays()
    text = ("# Pictures of the standard library\n\n"
            "What this answers: what each mask and score function of `cpflex.std` looks like. Written by `scripts/draw_masks.py`; do not edit. "
            f"Rows are queries,\ncolumns are keys, a cell is a tile of {TILE} x {TILE} tokens: `██` full, `▒▒` partial, `··` "
            "empty. The counts are\nchecked against a brute-force oracle. Arrays are named where a mask binds some; the script "
            "has their values.\n\n")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for array_name, array in known.items():
            np.save(folder / f"{array_name}.npy", array)
        for path in sorted((ROOT / "lib" / "Std").glob("*.cpf")):
            found = list(masks(path))
            if found:
                text += f"## {path.stem}\n\n"
            for mask, docstring in found:
                text += section(cpflexc, folder, path, mask, docstring, known)
            if path == score_tables.SCORES:
                text += score_sections(cpflexc, folder)
    return text.rstrip() + "\n"


def main():
    text = document(sys.argv[1])
    if "--check" not in sys.argv[2:]:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        sys.exit("docs/masks.md is not current; run scripts/draw_masks.py CPFLEXC")
    print(f"{text.count(chr(10) + '### ')} masks and scores drawn")


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
