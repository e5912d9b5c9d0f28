"""How does time follow what a mask leaves to do? Ours beside compiled flex_attention, forward and backward, on documents of
uneven lengths: 1,000 of them in 131,072 tokens, and a curve of time against density. Prints tables in Markdown; needs torch.

  python3 bench/gpu/sparse.py [short-documents] [density] [--out DIR]
"""
import argparse
import json
import math
import os
import random

import attention

HEADS, HEAD_SIZE = 16, 128
SHORT_LENGTH, SHORT_COUNT = 131072, 1000
CURVE_LENGTH, CURVE_COUNTS = 16384, (1, 2, 4, 8, 16, 32, 64, 128, 256)


def uneven_lengths(total, count, seed=0):
    """`count` lengths of at least 1 that sum up to `total`; log-normal before they are scaled (sigma 1), the same every time."""
    generator = random.Random(seed)
    weights = [math.exp(generator.gauss(0, 1)) for _ in range(count)]
    bounds, seen = [0], 0.0
    for i, weight in enumerate(weights):
        seen += weight
        left = count - 1 - i
        bounds.append(min(max(bounds[-1] + 1, round(total * seen / sum(weights))), total - left))
    bounds[-1] = total
    return [end - begin for begin, end in zip(bounds, bounds[1:])]


def document_of(torch, lengths, device="cuda"):
    """The document of each token, [1, tokens] int32."""
    return torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths)).to(device)[None]


class StripMask:
    """A mask of one set that is evaluated strip by strip, so that the pairs of long sequences are never all in memory. Stands
    for a dense [1, rows, columns] tensor where only its tiles are asked for."""

    def __init__(self, torch, program, x, length, rows_are_keys=False):
        self.torch, self.program, self.x, self.length, self.rows_are_keys = torch, program, x, length, rows_are_keys
        self.shape = (1, length, length)

    def transpose(self, first, second):
        return StripMask(self.torch, self.program, self.x, self.length, not self.rows_are_keys)

    def pairs_in_tiles(self, tile_row, tile_col):
        """Allowed pairs of each tile, [rows of tiles, columns of tiles] int32 on the device of the documents."""
        torch, length = self.torch, self.length
        num_rows, num_columns = -(-length // tile_row), -(-length // tile_col)
        device = self.x["doc"].device
        strip = max(1, (1 << 28) // (num_columns * tile_col * tile_row))
        columns = torch.arange(num_columns * tile_col, device=device)[None]
        counts = []
        for begin in range(0, num_rows, strip):
            tiles = min(strip, num_rows - begin)
            rows = torch.arange(begin * tile_row, (begin + tiles) * tile_row, device=device)[:, None]
            pair = [positions.clamp(max=length - 1) for positions in (rows, columns)]
            q, kv = reversed(pair) if self.rows_are_keys else pair
            keep = attention.SEMANTICS[self.program][0](0, 0, q, kv, self.x) & (rows < length) & (columns < length)
            counts.append(keep.view(tiles, tile_row, num_columns, tile_col).sum(dim=(1, 3), dtype=torch.int32))
        return torch.cat(counts)


def block_mask(torch, mask, mask_mod):
    """flex_attention's block mask of a StripMask: what create_block_mask gives, without all pairs in memory."""
    from torch.nn.attention.flex_attention import BlockMask
    size = 128
    pairs = mask.pairs_in_tiles(size, size)
    is_full = pairs == size * size
    listed = []
    for kind in ((pairs > 0) & ~is_full, is_full):
        order = torch.argsort(kind.int(), dim=1, descending=True, stable=True).int()
        listed += [kind.sum(1, dtype=torch.int32)[None, None], order[None, None].contiguous()]
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=size, mask_mod=mask_mod, seq_lengths=(mask.length, mask.length))


class DocumentsShape(attention.Shape):
    """Batch 1 of documents: tensors, and the mask as a StripMask. `doc` None is dense attention."""

    def __init__(self, torch, program, length, doc=None):
        self.program, self.b, self.h, self.hkv, self.s, self.d, self.dv, self.dtype = program, 1, HEADS, HEADS, length, HEAD_SIZE, HEAD_SIZE, "bf16"
        make = lambda: torch.randn(1, HEADS, length, HEAD_SIZE, device="cuda", dtype=torch.bfloat16)
        self.q, self.k, self.v, self.d_o = make(), make(), make(), make()
        self.x, self.row_set_of = {"doc": doc}, None
        self.dense = None if doc is None else StripMask(torch, program, self.x, length)
        pairs, self.visited = length * length, 1.0
        if doc is not None:
            counts = self.dense.pairs_in_tiles(128, 128)
            pairs, self.visited = counts.sum(dtype=torch.int64).item(), (counts > 0).double().mean().item()
        self.density = pairs / length**2
        self.flop = 4.0 * HEADS * HEAD_SIZE * pairs
        self.backward_flop = 2.5 * self.flop


def beside_flex(torch, shape, compiled, mask_mod, **about):
    """One row of results; `difference` is of O, dQ, dK, dV from flex_attention's, relative."""
    blocks = None if mask_mod is None else block_mask(torch, shape.dense, mask_mod)
    ours, theirs, _, times = attention.run_beside(torch, shape, lambda q, k, v: compiled(q, k, v, block_mask=blocks))
    difference = [attention.relative_error(a, b.double()) for a, b in zip(ours, theirs)]
    return about | {"shape": str(shape), "density": shape.density, "visited": shape.visited, "times": times, "difference": difference,
                    "tflops": [flop / t * 1e-9 for flop, t in zip(2 * [shape.flop] + 2 * [shape.backward_flop], times)]}


HEADER = ("| work | density | tiles | fwd flex ms | fwd ours ms | ratio | over density x dense: flex, ours | bwd flex ms | bwd ours ms | ratio "
          "| over density x dense: flex, ours | difference O, dQ, dK, dV |\n|---|---|---|---|---|---|---|---|---|---|---|---|")


def printed(row, dense=None):
    """A line of the table; `dense` holds the four times of dense attention of the same length."""
    cells = [row["work"], f"{row['density']:.4f}", f"{row['visited']:.4f}"]
    for peer, own in ((0, 1), (2, 3)):
        t, rate = row["times"], row["tflops"]
        over = " ".join(f"{t[i] / (row['density'] * dense[i]):.2f}" for i in (peer, own)) if dense else "-"
        cells += [f"{t[peer]:.3f} ({rate[peer]:.0f})", f"{t[own]:.3f} ({rate[own]:.0f})", f"{t[peer] / t[own]:.2f}", over]
    return "| " + " | ".join(cells + [" ".join(f"{d:.0e}" for d in row["difference"])]) + " |"


def compiled_flex(torch):
    from torch.nn.attention.flex_attention import flex_attention
    torch._dynamo.reset()
    return torch.compile(flex_attention, dynamic=False)


def mask_mod_of(program, x):
    return lambda b, h, q, kv: attention.SEMANTICS[program][0](b, h, q, kv, x)


def short_documents(torch, results):
    lengths = uneven_lengths(SHORT_LENGTH, SHORT_COUNT)
    print(f"\n{SHORT_COUNT} documents in {SHORT_LENGTH} tokens: {min(lengths)} to {max(lengths)}, median {sorted(lengths)[SHORT_COUNT // 2]}")
    print(HEADER)
    for program in ("documents", "doc_causal"):
        shape = DocumentsShape(torch, program, SHORT_LENGTH, document_of(torch, lengths))
        row = beside_flex(torch, shape, compiled_flex(torch), mask_mod_of(program, shape.x), work=f"{program}, {SHORT_COUNT}")
        results.append(row)
        print(printed(row), flush=True)
        del shape


def density_curve(torch, results):
    print(f"\ndocuments, B=1 H={HEADS} S={CURVE_LENGTH} D={HEAD_SIZE}; TFLOP/s on allowed pairs in brackets")
    print(HEADER)
    compiled = compiled_flex(torch)
    dense = beside_flex(torch, DocumentsShape(torch, "dense", CURVE_LENGTH), compiled, None, work="dense")
    results.append(dense)
    print(printed(dense, dense["times"]), flush=True)
    # One tensor for the documents of all densities, so that flex_attention is compiled once.
    doc = document_of(torch, [CURVE_LENGTH])
    mask_mod = mask_mod_of("documents", {"doc": doc})
    for count in CURVE_COUNTS:
        doc.copy_(document_of(torch, uneven_lengths(CURVE_LENGTH, count)))
        shape = DocumentsShape(torch, "documents", CURVE_LENGTH, doc)
        row = beside_flex(torch, shape, compiled, mask_mod, work=f"{count} document" + "s" * (count > 1))
        results.append(row)
        print(printed(row, dense["times"]), flush=True)
        del shape


STEPS = {"short-documents": short_documents, "density": density_curve}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", nargs="+", choices=STEPS)
    parser.add_argument("--out", default=os.environ.get("OUT", "."), help="folder of sparse.json")
    options = parser.parse_args()
    import torch
    print(torch.cuda.get_device_name(0), torch.__version__, flush=True)
    torch._dynamo.config.cache_size_limit = 64
    programs = (["dense", "documents"] if "density" in options.steps else []) + (
        ["documents", "doc_causal"] if "short-documents" in options.steps else [])
    attention.compile_all([spec for p in programs for spec in attention.Shape.of(p, 1, HEADS, HEADS, 0, HEAD_SIZE).specs()])
    results = []
    for step in options.steps:
        STEPS[step](torch, results)
        with open(os.path.join(options.out, "sparse.json"), "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
