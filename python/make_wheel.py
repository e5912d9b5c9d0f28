"""Makes a wheel that carries the library, for one platform: make_wheel.py LIBRARY [-o FOLDER] [--platform TAG].

LIBRARY is libcpflex.so of the portable build, which needs nothing but the C library of the platform's tag."""
import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--platform", default="manylinux_2_36_x86_64")
    options = parser.parse_args()
    if not options.library.is_file():
        parser.error(f"library '{options.library}' is not a file")
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "cpflex"
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        shutil.copyfile(options.library, copy / "cpflex" / "libcpflex.so")
        (copy / "setup.cfg").write_text(f"[bdist_wheel]\nplat_name = {options.platform}\n")
        subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(options.output.resolve()), str(copy)],
                       check=True)


if __name__ == "__main__":
    main()
