"""Prints the support matrix of cpflex.torch from what the tests here say that they cover, as a table for
docs/pytorch.md; with --check it compares that page instead."""
import ast
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
DOCUMENT = HERE.parents[1] / "docs" / "pytorch.md"
FILES = {"torch_flex.py": "CPU", "torch_gym.py": "CPU", "torch_ranks.py": "CPU", "torch_cuda.py": "CUDA",
         "torch_cuda_ranks.py": "CUDA"}


def covered(path):
    """Features by the tests of a file: 'Covers: this, that.' in their docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = " ".join((ast.get_docstring(node) or "").split())
            if text.startswith("Covers: "):
                yield from text[len("Covers: "):].rstrip(".").replace("[B, S, H, D]", "[B; S; H; D]").split(", ")


def table():
    tested = {}
    for name, device in FILES.items():
        for feature in covered(HERE / name):
            tested.setdefault(feature.replace("; ", ", "), []).append(device)
    lines = ["| feature | CPU | CUDA |", "|---|---|---|"]
    for feature, devices in tested.items():
        cells = ["tested" if device in devices else "" for device in ("CPU", "CUDA")]
        lines.append(f"| {feature} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main():
    if "--check" not in sys.argv:
        print(table())
    elif table() not in DOCUMENT.read_text():
        sys.exit(f"the table of {DOCUMENT.name} is not what the tests cover; put there what support_matrix.py prints")


if __name__ == "__main__":
    main()
