"""Loads cubins and launches the attention kernels on torch tensors through the CUDA driver. The structs mirror
runtime/contract/KernelArguments.h."""
import ctypes as C
import math

import kernel_text
import torch

driver = C.CDLL("libcuda.so.1")


def check(result, call):
    if result != 0:
        text = C.c_char_p()
        driver.cuGetErrorString(result, C.byref(text))
        raise RuntimeError(f"{call}: {text.value}")


def structure(name, *fields):
    return type(name, (C.Structure,), {"_fields_": [(n, t) for n, t in fields]})


P, L, I, F = C.c_void_p, C.c_longlong, C.c_int, C.c_float
TensorArgument = structure("TensorArgument", ("data", P), ("b", L), ("h", L), ("s", L))
RowArgument = structure("RowArgument", ("data", P), ("b", L), ("h", L))
PositionArgument = structure("PositionArgument", ("tiles", P), ("rows", P))
MaskArgument = structure("MaskArgument", ("row_begin", P), ("runs", P), ("row_set_of", P), ("num_rows", I),
                         ("row_ratio", I), ("col_ratio", I), ("words", P), ("classes", P), ("words_of", P))
WorkArgument = structure("WorkArgument", ("row_order", P), ("counter", P), ("num_rows", I), ("group_heads", I))
SIZES = [(n, I) for n in ("batch", "q_heads", "kv_heads", "q_len", "kv_len", "batch_offset", "head_offset")]
TAIL = [("scale", F), ("q_positions", PositionArgument), ("kv_positions", PositionArgument), ("mask", MaskArgument),
        ("work", WorkArgument)]
ForwardArguments = structure("ForwardArguments", *[(n, TensorArgument) for n in "qkvo"], ("lse", RowArgument), ("sink", P),
                             *SIZES, *TAIL)
QuerySumsArgument = structure("QuerySumsArgument", ("sums", P), ("turns", P), ("mask", MaskArgument), ("walks_down", I))
BackwardArguments = structure("BackwardArguments", *[(n, TensorArgument) for n in ("q", "k", "v", "o", "d_o", "dq", "dk", "dv")],
                              *[(n, RowArgument) for n in ("lse", "d_lse", "delta", "lse_log2")], ("sink", P), ("d_sink", P),
                              *SIZES, *TAIL, ("query_sums", QuerySumsArgument))


def tensor_argument(t):
    return TensorArgument(t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)) if t is not None else TensorArgument()


def row_argument(t):
    return RowArgument(t.data_ptr(), t.stride(0), t.stride(1)) if t is not None else RowArgument()


def tensor_map(t, rows):
    """A map over [b, h, s, d] with boxes of 64 columns x `rows` rows; see TensorMapArgument."""
    words = (C.c_ulonglong * 16 * 2)()
    address = (C.addressof(words) + 63) // 64 * 64
    dims = (C.c_ulonglong * 4)(t.shape[3], t.shape[2], t.shape[1], t.shape[0])
    strides = (C.c_ulonglong * 3)(t.stride(2) * 2, t.stride(1) * 2, t.stride(0) * 2)
    box = (C.c_uint * 4)(64, rows, 1, 1)
    ones = (C.c_uint * 4)(1, 1, 1, 1)
    dtype = 9 if t.dtype == torch.bfloat16 else 6
    check(driver.cuTensorMapEncodeTiled(C.c_void_p(address), dtype, 4, C.c_void_p(t.data_ptr()), dims, strides, box, ones,
                                        0, 3, 2, 0), "cuTensorMapEncodeTiled")
    return C.string_at(address, 128)


class Kernel:
    def __init__(self, cubin, function, tiles):
        torch.cuda.current_stream()
        torch.zeros(1, device="cuda")
        self.tiles = tiles
        module, self.function = P(), P()
        check(driver.cuModuleLoadData(C.byref(module), cubin), "cuModuleLoadData")
        check(driver.cuModuleGetFunction(C.byref(self.function), module, function.encode()), "cuModuleGetFunction")
        if tiles.shared_bytes:
            check(driver.cuFuncSetAttribute(self.function, 8, tiles.shared_bytes), "cuFuncSetAttribute")
        self.words = None
        if f"{function}_words".encode() in cubin:
            self.words = P()
            check(driver.cuModuleGetFunction(C.byref(self.words), module, f"{function}_words".encode()), "cuModuleGetFunction")

    def launch(self, grid, *parameters):
        self.start(self.function, grid, self.tiles.threads, self.tiles.shared_bytes, parameters)

    def start(self, function, grid, threads, shared_bytes, parameters):
        grid = grid if isinstance(grid, tuple) else (grid, 1, 1)
        array = (P * len(parameters))(*[C.addressof(p) for p in parameters])
        check(driver.cuLaunchKernel(function, *grid, threads, 1, 1, shared_bytes,
                                    C.c_void_p(torch.cuda.current_stream().cuda_stream), array, None), "cuLaunchKernel")


def aligned_buffer(data, alignment=64):
    buffer = C.create_string_buffer(len(data) + alignment)
    offset = -C.addressof(buffer) % alignment
    C.memmove(C.addressof(buffer) + offset, data, len(data))
    view = (C.c_char * len(data)).from_buffer(buffer, offset)
    view._owner = buffer
    return view


class Mask:
    """Runs of tiles of one orientation on the device, made from a dense [sets, rows, columns] bool tensor,
    or from one set whose pairs_in_tiles() counts them (StripMask of sparse.py)."""

    def __init__(self, dense, tile_row, tile_col, row_set_of=None, ratio=(1, 1), runs=None):
        self.ratio = ratio
        self.row_set_of = row_set_of
        sets, rows, cols = dense.shape
        nr, nc = -(-rows // tile_row), -(-cols // tile_col)
        row_begin, out, words_begin = [], [], [0]
        self.counts = [0] * nr
        self.extents = []
        self.longest = self.total = 0  # kernel tiles of the longest row, and of all rows on average over the sets
        for s in range(sets):
            if isinstance(dense, torch.Tensor):
                padded = torch.zeros(nr * tile_row, nc * tile_col, dtype=torch.bool, device=dense.device)
                padded[:rows, :cols] = dense[s]
                hits = padded.view(nr, tile_row, nc, tile_col).sum(dim=(1, 3), dtype=torch.int32)
            else:
                hits = dense.pairs_in_tiles(tile_row, tile_col)
            height = torch.full((nr,), tile_row, device=hits.device)
            height[-1] = rows - (nr - 1) * tile_row
            width = torch.full((nc,), tile_col, device=hits.device)
            width[-1] = cols - (nc - 1) * tile_col
            partial = 0  # kernel tiles of this set
            classes = torch.where(hits == 0, 0, torch.where(hits == height[:, None] * width[None], 1, 2)).cpu().tolist()
            last_row = [max((r for r in range(nr) if classes[r][c]), default=-1) for c in range(nc)]
            for r, row in enumerate(classes):
                visited = [c for c in range(nc) if row[c]]
                self.longest = max(self.longest, len(visited) * ratio[1])
                self.total += len(visited) * ratio[0] * ratio[1] / sets
                self.extents.append((visited[0], visited[-1] + 1) if visited else (0, 0))
                row_begin.append(len(out))
                c = 0
                while c < nc:
                    e = c
                    while e < nc and row[e] == row[c]:
                        e += 1
                    if row[c]:
                        # A run holds tiles of one kind; RunArgument::isLastPart is the second byte of the third word.
                        for first in range(c, e):
                            kind = row[first] | (last_row[first] == r) << 8
                            if first > c and out[-1][2] == kind:
                                out[-1] = (out[-1][0], first + 1, *out[-1][2:])
                            else:
                                out.append((first, first + 1, kind, partial))
                            partial += ratio[0] * ratio[1] if row[first] == 2 else 0
                        self.counts[r] += (e - c) * ratio[1]
                    c = e
            row_begin.append(len(out))
            words_begin.append(words_begin[-1] + partial)
        self.num_rows = nr
        self.row_begin = torch.tensor(row_begin, dtype=torch.int32, device="cuda")
        flat = torch.tensor([x for run in out for x in run] or [0, 0, 0, 0], dtype=torch.int32)
        self.runs = flat.cuda()
        self.words_begin, self.words = words_begin, None

    def argument(self):
        words = (self.words.data_ptr(), self.classes.data_ptr(), self.words_of.data_ptr()) if self.words is not None else ()
        return MaskArgument(self.row_begin.data_ptr(), self.runs.data_ptr(),
                            self.row_set_of.data_ptr() if self.row_set_of is not None else None, self.num_rows, *self.ratio, *words)

    def fill_words(self, kernel, arguments, captures, pairs, kernel_rows, rows_per_tile):
        """Decides the partial tiles; `arguments` are those of the kernel, whose mask becomes this one."""
        total = self.words_begin[-1]
        if not kernel.words or not total:
            return
        sets = [0] * pairs if self.row_set_of is None else self.row_set_of.tolist()
        to_device = lambda values: torch.tensor(values, dtype=torch.int32, device="cuda")
        self.words = torch.full((total, rows_per_tile * 4), 0x5555, dtype=torch.int32, device="cuda")
        self.classes = torch.full((total,), 0xff, dtype=torch.uint8, device="cuda")
        self.words_of = to_device([self.words_begin[s] for s in sets])
        present = sorted(set(sets))
        pair_of = to_device([sets.index(s) for s in present])
        arguments.mask = self.argument()
        kernel.start(kernel.words, (kernel_rows, len(present), 1), 2 * rows_per_tile, 0,
                     [arguments, captures, P(pair_of.data_ptr()), I(len(present))])
        torch.cuda.synchronize()

    def walks_down(self):
        """QuerySumsArgument::walksDown: whichever direction makes a row wait least for the row before it."""
        up = down = 0
        for (begin, end), (next_begin, next_end) in zip(self.extents, self.extents[1:]):
            if next_begin < end and begin < next_end:
                up, down = max(up, next_begin - begin), max(down, end - next_end)
        return int(down <= up)

    def row_order(self, num_rows):
        """Kernel rows, longest first."""
        lengths = [self.counts[min(r // self.ratio[0], len(self.counts) - 1)] for r in range(num_rows)]
        return torch.tensor(sorted(range(num_rows), key=lambda r: (-lengths[r], -r)), dtype=torch.int32, device="cuda")


def group_heads(bytes_per_pair, sharing):
    """(b, h) pairs whose streamed tensors fit in 32 MiB of the L2 cache; `sharing` query heads read the same keys."""
    return max(1, (32 << 20) // max(bytes_per_pair, 1)) * sharing


PROCESSORS = None


def processors():
    global PROCESSORS
    if PROCESSORS is None:
        PROCESSORS = torch.cuda.get_device_properties(0).multi_processor_count
    return PROCESSORS


class Forward:
    """One bound forward call; run() launches it."""

    def __init__(self, kernel, family, captures, q, k, v, o, lse, scale=None, mask=None, sink=None, offsets=(0, 0),
                 q_positions=(None, None), kv_positions=(None, None)):
        t = kernel.tiles
        b, hq, sq, d = q.shape
        hkv, sk, dv = k.shape[1], k.shape[2], v.shape[3]
        self.kernel = kernel
        self.counter = torch.zeros(1, dtype=torch.int32, device="cuda")
        rows = -(-sq // t.tile_q)
        order = mask.row_order(rows) if mask else None
        self.keep = (q, k, v, o, lse, mask, sink, order, q_positions, kv_positions)
        a = ForwardArguments()
        a.q, a.k, a.v, a.o = map(tensor_argument, (q, k, v, o))
        a.lse = row_argument(lse)
        a.sink = sink.data_ptr() if sink is not None else None
        a.batch, a.q_heads, a.kv_heads, a.q_len, a.kv_len = b, hq, hkv, sq, sk
        a.batch_offset, a.head_offset = offsets
        a.scale = scale if scale is not None else 1 / math.sqrt(d)
        a.q_positions = PositionArgument(*[x.data_ptr() if x is not None else None for x in q_positions])
        a.kv_positions = PositionArgument(*[x.data_ptr() if x is not None else None for x in kv_positions])
        if mask:
            a.mask = mask.argument()
        else:
            a.mask.row_ratio = a.mask.col_ratio = 1
        a.work = WorkArgument(order.data_ptr() if mask else None, self.counter.data_ptr(), rows,
                              group_heads(sk * (d + dv) * 2, hq // hkv))
        self.parameters = [a, captures]
        if mask:
            mask.fill_words(kernel, a, captures, b * hq, rows, t.tile_q)
        if family == "wgmma":
            o_map = tensor_map(o, 16) if o.dtype == q.dtype else bytes(128)
            self.parameters.append(aligned_buffer(tensor_map(q, 64) + tensor_map(k, t.tile_kv) + tensor_map(v, t.tile_kv) + o_map))
        self.grid = max(1, min(rows * b * hq, processors() * t.blocks_per_processor))

    def run(self):
        self.counter.zero_()
        self.kernel.launch(self.grid, *self.parameters)


def parts_of(d, dv):
    """Column parts that dK and dV are cut in; see the backward kernels."""
    return -(-max(d, dv) // 128)


class Backward:
    """One bound backward call; run() launches delta, dK/dV, dQ and, with a sink, its gradient."""

    def __init__(self, kernels, families, captures, q, k, v, o, lse, d_o, dq, dk, dv_, scale, mask_q=None, mask_kv=None, sink=None,
                 d_sink=None, d_lse=None, offsets=(0, 0), q_positions=((None, None), (None, None)), kv_positions=((None, None), (None, None))):
        b, hq, sq, d = q.shape
        hkv, sk, dv = k.shape[1], k.shape[2], v.shape[3]
        padded = (sq + 255) // 128 * 128
        self.kernels, self.sink = kernels, sink
        t = kernels["backward_kv"].tiles
        sums = families["backward_kv"] == "wgmma" and kernel_text.sums_dq(d, dv)
        num_tiles = b * hq * -(-sq // t.tile_q) if sums else 0
        self.counters = torch.zeros(2 + num_tiles, dtype=torch.int32, device="cuda")
        query_sums = torch.full((num_tiles * t.tile_q * ((d + 63) // 64 * 64),), math.nan, device="cuda")
        delta = torch.full((b, hq, padded), math.nan, device="cuda")
        lse_log2 = torch.full((b, hq, padded), math.nan, device="cuda")
        self.keep = [query_sums, q, k, v, o, lse, d_o, dq, dk, dv_, mask_q, mask_kv, sink, d_sink, d_lse, delta, lse_log2, q_positions, kv_positions]
        self.empty = captures_struct([])

        def arguments(role):
            a = BackwardArguments()
            a.q, a.k, a.v, a.o, a.d_o, a.dq, a.dk, a.dv = map(tensor_argument, (q, k, v, o, d_o, dq, dk, dv_))
            a.lse, a.d_lse, a.delta, a.lse_log2 = map(row_argument, (lse, d_lse, delta, lse_log2))
            a.sink = sink.data_ptr() if sink is not None else None
            a.d_sink = d_sink.data_ptr() if d_sink is not None else None
            a.batch, a.q_heads, a.kv_heads, a.q_len, a.kv_len = b, hq, hkv, sq, sk
            a.batch_offset, a.head_offset = offsets
            a.scale = scale
            a.mask.row_ratio = a.mask.col_ratio = 1
            a.query_sums.mask.row_ratio = a.query_sums.mask.col_ratio = a.query_sums.walks_down = 1
            if sums:
                a.query_sums.sums, a.query_sums.turns = query_sums.data_ptr(), self.counters.data_ptr() + 8
                if mask_q:
                    a.query_sums.mask = mask_q.argument()
                    a.query_sums.walks_down = mask_kv.walks_down()
            if role not in ("backward_kv", "backward_q"):
                return a
            index = 0 if role == "backward_kv" else 1
            t = kernels[role].tiles
            a.q_positions = PositionArgument(*[x.data_ptr() if x is not None else None for x in q_positions[index]])
            a.kv_positions = PositionArgument(*[x.data_ptr() if x is not None else None for x in kv_positions[index]])
            mask = mask_kv if role == "backward_kv" else mask_q
            rows = -(-sk // t.tile_kv) if role == "backward_kv" else -(-sq // t.tile_q)
            order = None
            if mask:
                a.mask = mask.argument()
                mask.fill_words(kernels[role], a, captures, b * hq, rows, t.tile_kv if role == "backward_kv" else t.tile_q)
                order = mask.row_order(rows)
                self.keep.append(order)
            streamed = (sq if role == "backward_kv" else sk) * ((d + dv) * 2 + (4 * d if sums and role == "backward_kv" else 0))
            parts = parts_of(d, dv) if role == "backward_kv" and families[role] == "mma_sync" else 1
            a.work = WorkArgument(order.data_ptr() if mask else None, self.counters.data_ptr() + 4 * index, rows,
                                  group_heads(streamed * (hq // hkv if index == 0 else 1), parts if index == 0 else hq // hkv))
            if sums and role == "backward_kv":
                tiles_q = -(-sq // t.tile_q)
                longest, total = (mask.longest, mask.total) if mask else (tiles_q, tiles_q * rows)
                enough = max(math.ceil(2 * longest * processors() / max(total, 1)), a.work.group_heads)
                a.work.group_heads = -(-b * hkv // max(b * hkv // enough, 1))
            return a

        self.calls = []
        if lse is not None:
            self.calls.append((kernels["backward_delta"], (padded // 128, hq, b), [arguments("backward_delta"), self.empty]))
        for role in ("backward_kv",) if sums else ("backward_kv", "backward_q"):
            t, a = kernels[role].tiles, arguments(role)
            parameters = [a, captures]
            if families[role] == "wgmma":
                parameters.append(aligned_buffer(tensor_map(q, t.tile_q) + tensor_map(d_o, t.tile_q) + tensor_map(k, t.tile_kv)
                                                 + tensor_map(v, t.tile_kv)))
            items = a.work.num_rows * b * (hkv if role == "backward_kv" else hq)
            self.calls.append((kernels[role], max(1, min(items, processors() * t.blocks_per_processor)), parameters))
        if d_sink is not None:
            self.calls.append((kernels["backward_sink"], hq, [arguments("backward_sink"), self.empty]))

    def run(self):
        self.counters.zero_()
        for kernel, grid, parameters in self.calls:
            kernel.launch(grid, *parameters)


def captures_struct(fields):
    """ctypes struct of (ctype, value) pairs; an empty struct has one byte as in C++."""
    if not fields:
        return C.c_char(0)
    kind = structure("Captures", *[(f"f{i}", t) for i, (t, _) in enumerate(fields)])
    return kind(*[v for _, v in fields])
