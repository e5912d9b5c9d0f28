# Which index lists might another program hand over? Writes variants of FOLDER/lists.npz beside it, one fault in each.
import io
import pathlib
import sys
import zipfile

import numpy

folder = pathlib.Path(sys.argv[1])
good = dict(numpy.load(folder / "lists.npz"))


def write(name, **changes):
    numpy.savez(folder / f"{name}.npz", **{**good, **changes})


numpy.savez_compressed(folder / "packed.npz", **{key: array.astype(numpy.int64) for key, array in good.items()})
numpy.savez(folder / "without_full.npz", **{key: array for key, array in good.items() if not key.startswith("full_")})
write("float", kv_indices=good["kv_indices"].astype(numpy.float32))
write("rank", kv_num_blocks=good["kv_num_blocks"][0, 0])
write("pair", seq_lengths=numpy.array([1, 2, 3]))
write("shape", full_kv_num_blocks=good["full_kv_num_blocks"][:, :, 1:])
write("columns", full_kv_indices=numpy.zeros([1, 1, 8, 9], numpy.int32))
write("beyond", kv_indices=numpy.full([1, 1, 8, 8], 2**32))
write("twice", kv_num_blocks=good["kv_num_blocks"] * 0 + 2, kv_indices=good["kv_indices"] * 0)

# The 64-bit form of archives beyond 4 GiB, which Python uses above this size.
zipfile.ZIP64_LIMIT = 100
write("large")
assert b"PK\x06\x06" in (folder / "large.npz").read_bytes()
zipfile.ZIP64_LIMIT = (1 << 31) - 1

# What NumPy itself does not write.
for name, change in {
    "version": lambda array: array.replace(b"NUMPY\x01", b"NUMPY\x03"),
    "short": lambda array: array[:-4],
    "cut": lambda array: array[:40],
    "shapeless": lambda array: array.replace(b"'shape'", b"'shade'"),
    "wild": lambda array: array.replace(b"(1, 1, 8, 8)", b"(1, x, 8, 8)"),
}.items():
    with zipfile.ZipFile(folder / f"{name}.npz", "w") as archive:
        for key, array in good.items():
            stream = io.BytesIO()
            numpy.save(stream, array)
            contents = stream.getvalue()
            archive.writestr(f"{key}.npy", change(contents) if key == "kv_indices" else contents)
