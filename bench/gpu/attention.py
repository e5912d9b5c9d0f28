"""Checks and times the attention kernels on one GPU: small odd shapes against a float64 reference, the shapes of the
performance tables against cuDNN (through PyTorch) and compiled flex_attention. Prints tables; needs torch.

  python3 bench/gpu/attention.py [check-forward] [check-backward] [table] [time-forward] [time-backward] [--out DIR]
"""
import argparse
import concurrent.futures
import ctypes as C
import hashlib
import json
import math
import multiprocessing
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kernel_text as text  # noqa: E402

# name -> (program, torch mask(b, h, q, kv, x) or None, torch score(s, b, h, q, kv, x) or None); x holds sizes and arrays.
SEMANTICS = {
    "dense": (None, None),
    "causal": (lambda b, h, q, kv, x: kv <= q, None),
    "window": (lambda b, h, q, kv, x: (q >= kv) & (q - kv <= x["width"]), None),
    "prefix_lm": (lambda b, h, q, kv, x: (kv < x["prefix"]) | (q >= kv), None),
    "documents": (lambda b, h, q, kv, x: x["doc"][b, q] == x["doc"][b, kv], None),
    "doc_causal": (lambda b, h, q, kv, x: (q >= kv) & (x["doc"][b, q] == x["doc"][b, kv]), None),
    "sink_window": (lambda b, h, q, kv, x: (q >= kv) & ((q - kv <= x["width"]) | (kv < x["sink"])), None),
    "dilated": (lambda b, h, q, kv, x: (q >= kv) & ((q - kv) % 4 == 0) & (q - kv <= x["width"]), None),
    "alibi_causal": (lambda b, h, q, kv, x: kv <= q, lambda s, b, h, q, kv, x: s + 2.0 ** (-8.0 * (h + 1) / x["heads"]) * (kv - q)),
    "softcap_causal": (lambda b, h, q, kv, x: kv <= q, lambda s, b, h, q, kv, x: x["cap"] * (s / x["cap"]).tanh()),
    "relpos": (None, lambda s, b, h, q, kv, x: s + (q - kv)),
    "per_head": (lambda b, h, q, kv, x: (kv <= q) & ((h % 2 == 0) | (q - kv <= x["width"])), None),
}
BATCH_DEPENDENT = {"documents", "doc_causal"}
HEAD_DEPENDENT = {"per_head"}


def captures(name, x, launch):
    P, L, I, F = C.c_void_p, C.c_longlong, C.c_int, C.c_float
    return launch.captures_struct({
        "window": lambda: [(I, x["width"])], "prefix_lm": lambda: [(I, x["prefix"])],
        "documents": lambda: [(P, x["doc"].data_ptr()), (L, x["doc"].shape[1])],
        "doc_causal": lambda: [(P, x["doc"].data_ptr()), (L, x["doc"].shape[1])],
        "sink_window": lambda: [(I, x["width"]), (I, x["sink"])], "dilated": lambda: [(I, x["width"])],
        "alibi_causal": lambda: [(I, x["heads"])], "softcap_causal": lambda: [(F, x["cap"]), (F, 1.0 / x["cap"])],
        "per_head": lambda: [(I, x["width"])],
    }.get(name, lambda: [])())


# ---- compiling, in parallel and once per text -------------------------------------------------------------------------

PROLOGUE = ""  # of every kernel's text
ELEMENTS = {"bf16": "BFloat16", "f16": "Float16"}


class Spec:
    """One kernel to compile; hashable description of its text."""

    def __init__(self, role, family, program, d, dv, patches=(), tiles=None, **options):
        self.role, self.family, self.program, self.d, self.dv = role, family, program, d, dv
        self.patches, self.options = tuple(patches), options
        self.tiles = tiles or text.tile_config(role, family, d, dv)
        functor = text.PROGRAMS[program] if isinstance(program, str) else program
        self.text = PROLOGUE + text.kernel_text(role, family, functor, text.instantiation(role, family, d, dv, self.tiles, has_mask='kHasMask = true' in functor, **options), d, dv)
        self.arch = "sm_90a" if family == "wgmma" else "sm_90"
        self.key = hashlib.sha256((self.text + repr(self.patches) + self.arch).encode()).hexdigest()


def compile_one(job):
    key, source, arch, patches = job
    try:
        return key, text.compile_text(source, arch, patches), None
    except text.CompileError as error:
        return key, None, str(error)


IMAGES, KERNELS = {}, {}


def compile_all(specs):
    jobs = {s.key: (s.key, s.text, s.arch, s.patches) for s in specs if s.key not in IMAGES}
    if not jobs:
        return
    begin = time.time()
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for key, image, error in pool.map(compile_one, jobs.values()):
            if error:
                print("COMPILE ERROR", error[:3000])
            else:
                IMAGES[key] = image
    for s in specs:
        if s.key in IMAGES:
            r = IMAGES[s.key][1]
            bad = [w for w in r["warnings"] if "C7519" not in w]
            if r["spill"] > 0 or r["stack"] > 0 or bad:
                print(f"  report {s.role}/{s.family} {s.program if isinstance(s.program, str) else 'custom'} D={s.d}: {r['registers']} regs, spill {r['spill']}, stack {r['stack']}", *bad)
    print(f"compiled {len(jobs)} kernels in {time.time() - begin:.1f} s", flush=True)


def kernel_of(spec):
    import launch
    if spec.key not in KERNELS:
        KERNELS[spec.key] = launch.Kernel(IMAGES[spec.key][0], text.ROLES[spec.role, spec.family][1], spec.tiles)
    return KERNELS[spec.key]


# ---- problems ---------------------------------------------------------------------------------------------------------

def documents(torch, b, s, count, seed=0, multiple=1):
    generator = torch.Generator().manual_seed(seed)
    out = torch.zeros(b, s, dtype=torch.int32)
    for i in range(b):
        cuts = torch.randperm(max(1, s // multiple - 1), generator=generator)[: count - 1].add(1).mul(multiple)
        out[i, cuts[cuts < s]] = 1
    return out.cumsum(1).int().cuda()


def dense_mask(torch, name, x, b, h, qpos, kvpos, offsets=(0, 0)):
    """[sets, sq, sk] bool and row_set_of, or (None, None)."""
    mask = SEMANTICS[name][0]
    if mask is None:
        return None, None
    nb = b if name in BATCH_DEPENDENT else 1
    nh = h if name in HEAD_DEPENDENT else 1
    sets = [mask(i + offsets[0], j + offsets[1], qpos[:, None].long(), kvpos[None].long(), x) for i in range(nb) for j in range(nh)]
    row_set_of = None
    if len(sets) > 1:
        row_set_of = torch.tensor([(i if nb > 1 else 0) * nh + (j if nh > 1 else 0) for i in range(b) for j in range(h)],
                                  dtype=torch.int32, device="cuda")
    return torch.stack(sets), row_set_of


def reference(torch, q, k, v, name, x, scale, qpos, kvpos, softmax=True, sink=None, offsets=(0, 0)):
    """float64 O and LSE; differentiable in q, k, v, sink."""
    b, hq, sq, _ = q.shape
    group = hq // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = scale * (q @ k.transpose(-1, -2))
    mask, score = SEMANTICS[name]
    bi = torch.arange(b, device="cuda")[:, None, None, None] + offsets[0]
    hi = torch.arange(hq, device="cuda")[None, :, None, None] + offsets[1]
    qi, ki = qpos[None, None, :, None].long(), kvpos[None, None, None, :].long()
    if score:
        s = score(s, bi, hi, qi, ki, x)
    keep = mask(bi, hi, qi, ki, x).expand_as(s) if mask else torch.ones_like(s, dtype=torch.bool)
    if not softmax:
        return torch.where(keep, s, 0.0) @ v, None
    s = torch.where(keep, s, -math.inf)
    m = s.detach().amax(-1, keepdim=True)
    if sink is not None:
        m = torch.maximum(m, sink.detach()[None, hi[0, :, 0, 0], None, None])
    m = torch.where(m == -math.inf, 0.0, m)
    p = (s - m).exp()
    total = p.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink[None, hi[0, :, 0, 0], None, None] - m).exp()
    lse = torch.where(total > 0, m + total.clamp_min(1e-300).log(), -math.inf)[..., 0]
    return (p / torch.where(total > 0, total, 1.0)) @ v, lse


def relative_error(out, ref):
    difference = (out.double() - ref).norm().item()
    return difference / max(ref.norm().item(), 1e-30)


class Case:
    def __init__(self, program, d, dv=None, b=2, h=4, hkv=None, sq=257, sk=None, dtype="bf16", family=None, bshd=False, softmax=True,
                 sink=False, f32=False, positions="Identity", offsets=(0, 0), scale=None, nan_key=None, mask_tile=None, width=70,
                 count=5, prefix=100, sinks=8, d_lse=False):
        self.__dict__.update(locals())
        self.dv, self.hkv, self.sk = dv or d, hkv or h, sk or sq

    def spec(self, role, family, **more):
        return Spec(role, family, self.program, self.d, self.dv, element=ELEMENTS[self.dtype],
                    softmax=self.softmax, f32=self.f32, positions=self.positions, **more)

    def __str__(self):
        extra = [n for n in ("bshd", "sink", "f32", "nan_key", "mask_tile", "d_lse") if getattr(self, n)]
        extra += [] if self.softmax else ["no softmax"]
        extra += [self.positions] if self.positions != "Identity" else []
        return (f"{self.program} {self.dtype} D={self.d}/{self.dv} B{self.b} H{self.h}:{self.hkv} S{self.sq}x{self.sk} "
                + " ".join(extra))

    def tensors(self, torch):
        generator = torch.Generator("cuda").manual_seed(hash(str(self)) % 2**31)
        kind = torch.bfloat16 if self.dtype == "bf16" else torch.float16

        def make(heads, s, d):
            shape = (self.b, s, heads, d) if self.bshd else (self.b, heads, s, d)
            t = torch.randn(shape, device="cuda", generator=generator).to(kind)
            return t.transpose(1, 2) if self.bshd else t

        q, k, v = make(self.h, self.sq, self.d), make(self.hkv, self.sk, self.d), make(self.hkv, self.sk, self.dv)
        self.total = max(self.sq, self.sk) * 2 + 7
        x = {"width": self.width, "prefix": self.prefix, "sink": self.sinks, "cap": 2.0, "heads": self.h,
             "doc": documents(torch, self.b + self.offsets[0], self.total, self.count)}
        ar = lambda n: torch.arange(n, device="cuda", dtype=torch.int32)
        qpos, kvpos = ar(self.sq), ar(self.sk)
        if self.positions == "Array":
            qpos = torch.randperm(self.total, device="cuda", generator=generator)[: self.sq].sort().values.int()
            kvpos = torch.randperm(self.total, device="cuda", generator=generator)[: self.sk].sort().values.int()
        sink = torch.randn(self.h + self.offsets[1], device="cuda", generator=generator) if self.sink else None
        return q, k, v, x, qpos, kvpos, sink


def affine_positions(torch, tile, length, step):
    """Tiles alternately near and far, as a head-tail layout gives."""
    n = -(-length // tile)
    begins = [(t * tile * step) if t % 2 == 0 else (t * tile * step + 3) for t in range(n)]
    table = torch.tensor([[begin, step] for begin in begins], dtype=torch.int32, device="cuda")
    i = torch.arange(length, device="cuda")
    return table, (table[i // tile, 0] + step * (i % tile)).int()


FORWARD_CASES = [
    Case("dense", 128), Case("causal", 128, sq=1, sk=300), Case("causal", 128, sq=384), Case("causal", 64, sq=333, h=6, hkv=2),
    Case("causal", 256, sq=300), Case("doc_causal", 128, sq=500, h=4, hkv=1), Case("documents", 64, sq=513, dtype="f16"),
    Case("window", 128, sq=700, bshd=True), Case("window", 192, 128, sq=400), Case("sink_window", 96, sq=450, sink=True),
    Case("dilated", 128, sq=300, width=90), Case("prefix_lm", 192, sq=390), Case("per_head", 128, sq=400, h=3, hkv=3),
    Case("alibi_causal", 128, sq=350, offsets=(1, 2)), Case("softcap_causal", 128, sq=350), Case("relpos", 64, sq=200, sk=150),
    Case("causal", 40, 24, sq=200), Case("causal", 72, 80, sq=260, h=8, hkv=2), Case("dense", 256, 64, sq=129, sk=1000),
    Case("causal", 8, 8, sq=100), Case("doc_causal", 128, sq=400, softmax=False), Case("causal", 128, sq=300, f32=True, sink=True),
    Case("doc_causal", 128, sq=400, positions="Array"), Case("window", 64, sq=400, positions="AffinePerTile"),
    Case("causal", 128, sq=300, nan_key=299), Case("window", 128, sq=600, sk=200, width=50), Case("causal", 128, sq=200, scale=-0.1),
    Case("causal", 128, sq=500, mask_tile=(256, 256)), Case("dense", 64, sq=130, sk=70, scale=0.0),
    Case("causal", 248, 248, sq=200, dtype="f16"), Case("softcap_causal", 256, sq=200), Case("causal", 160, sq=500),
]


def bind_forward(torch, launch, case, family):
    q, k, v, x, qpos, kvpos, sink = case.tensors(torch)
    spec = case.spec("forward", family)
    tiles = spec.tiles
    kernel = kernel_of(spec)
    q_arg = kv_arg = (None, None)
    if case.positions == "Array":
        q_arg, kv_arg = (None, qpos), (None, kvpos)
    elif case.positions == "AffinePerTile":
        qt, qpos = affine_positions(torch, tiles.tile_q, case.sq, 1)
        kt, kvpos = affine_positions(torch, tiles.tile_kv, case.sk, 2)
        q_arg, kv_arg = (qt, None), (kt, None)
    if case.nan_key is not None:
        k[:, :, case.nan_key] = math.nan
        qpos_limit = case.nan_key
        q = q[:, :, :qpos_limit]
        qpos = qpos[:qpos_limit]
    dense, row_set_of = dense_mask(torch, case.program, x, case.b, case.h, qpos, kvpos, case.offsets)
    mask = None
    if dense is not None:
        tq, tk = case.mask_tile or (tiles.tile_q, tiles.tile_kv)
        mask = launch.Mask(dense, tq, tk, row_set_of, (tq // tiles.tile_q, tk // tiles.tile_kv))
    o_type = torch.float32 if case.f32 else q.dtype
    shape = (case.b, q.shape[2], case.h, case.dv) if case.bshd else (case.b, case.h, q.shape[2], case.dv)
    o = torch.full(shape, math.nan, device="cuda", dtype=o_type)
    o = o.transpose(1, 2) if case.bshd else o
    lse = torch.full((case.b, case.h, q.shape[2]), math.nan, device="cuda")
    scale = case.scale if case.scale is not None else 1 / math.sqrt(case.d)
    forward = launch.Forward(kernel, family, captures(case.program, x, launch), q, k, v, o, lse if case.softmax else None, scale, mask,
                             sink, case.offsets, q_arg, kv_arg)
    return forward, (q, k, v, o, lse, x, qpos, kvpos, sink, scale)


def check_forward(torch, families):
    import launch
    compile_all([c.spec("forward", f) for c in FORWARD_CASES for f in families])
    failures = 0
    for case in FORWARD_CASES:
        for family in families:
            if case.spec("forward", family).key not in IMAGES:
                failures += 1
                continue
            forward, (q, k, v, o, lse, x, qpos, kvpos, sink, scale) = bind_forward(torch, launch, case, family)
            forward.run()
            torch.cuda.synchronize()
            first = o.clone(), lse.clone()
            o.fill_(math.nan), lse.fill_(math.nan)
            forward.run()
            torch.cuda.synchronize()
            same = torch.equal(first[0].nan_to_num(7), o.nan_to_num(7)) and torch.equal(first[1].nan_to_num(7), lse.nan_to_num(7))
            kd = k.double()
            if case.nan_key is not None:
                kd[:, :, case.nan_key] = 0
            ref, ref_lse = reference(torch, q.double(), kd, v.double(), case.program, x, scale, qpos, kvpos, case.softmax,
                                     sink.double() if sink is not None else None, case.offsets)
            error = relative_error(o, ref)
            row = ((o.double() - ref).norm(dim=-1) / ref.norm(dim=-1).clamp_min(1e-6)).max().item()
            error_of_lse = 0.0
            if case.softmax:
                empty = ref_lse == -math.inf
                error_of_lse = lse_error(lse, ref_lse)
                if not torch.equal(lse == -math.inf, empty) or (o[empty] != 0).any():
                    error = math.inf
            limit = 6e-3 if case.dtype == "bf16" else 1e-3
            ok = error < limit and error_of_lse < 1e-5 and same
            failures += not ok
            print(f"{'ok  ' if ok else 'FAIL'} {family:8} {case} error {error:.2e} worst row {row:.1e} lse {error_of_lse:.1e}{'' if same else ' NOT REPEATABLE'}", flush=True)
    print(f"check-forward: {failures} failures")


def row_spec(role, case_or_none, d, dv, element="BFloat16"):
    return Spec(role, "mma_sync", "dense", d, dv, element=element)


def backward_roles(family, d, dv):
    """Of the kernels that walk tiles; one of them may compute everything."""
    return ("backward_kv",) if family == "wgmma" and text.sums_dq(d, dv) else ("backward_kv", "backward_q")


def backward_specs(case, family):
    element = ELEMENTS[case.dtype]
    return {"backward_delta": row_spec("backward_delta", case, case.d, case.dv, element),
            "backward_sink": row_spec("backward_sink", case, case.d, case.dv, element)} | {
                role: case.spec(role, family) for role in backward_roles(family, case.d, case.dv)}


BACKWARD_CASES = FORWARD_CASES + [
    Case("causal", 128, sq=300, d_lse=True), Case("window", 64, sq=500, sink=True, d_lse=True, h=6, hkv=2), Case("softcap_causal", 64, sq=300),
    Case("softcap_causal", 128, sq=300, softmax=False), Case("causal", 256, sq=1000, h=8, hkv=2), Case("doc_causal", 192, 128, sq=700),
    # More rows of tiles than a GPU has processors, so that blocks that sum dQ wait for each other; both directions of their walk.
    Case("causal", 128, h=8, sq=2100), Case("dense", 64, h=8, sq=1000, sk=2000), Case("doc_causal", 64, h=8, hkv=2, sq=2900, count=20),
    Case("sink_window", 128, h=8, sq=2300), Case("sink_window", 64, h=8, hkv=4, sq=2300, sink=True), Case("window", 64, h=8, sq=2500),
    Case("per_head", 64, sq=700, h=6), Case("prefix_lm", 128, 64, sq=900), Case("prefix_lm", 64, 128, sq=500), Case("softcap_causal", 64, sq=500, softmax=False)]


def check_backward(torch, families):
    import launch
    compile_all([s for c in BACKWARD_CASES for f in families for s in backward_specs(c, f).values()]
                + [c.spec("forward", f) for c in BACKWARD_CASES for f in families])
    failures = 0
    for case in BACKWARD_CASES:
        for family in families:
            specs = backward_specs(case, family)
            if any(s.key not in IMAGES for s in specs.values()):
                failures += 1
                continue
            kernels = {role: kernel_of(s) for role, s in specs.items()}
            generator = torch.Generator("cuda").manual_seed(5)
            forward, (q, k, v, o, lse, x, qpos, kvpos, sink, scale) = bind_forward(torch, launch, case, family)
            forward.run()
            if case.positions == "AffinePerTile":
                # The same affine map cut in the tiles of each kernel; only maps that both tilings cut alike are the same.
                continue
            q_args, kv_args = [(None, None)] * 2, [(None, None)] * 2
            if case.positions == "Array":
                q_args, kv_args = [(None, qpos)] * 2, [(None, kvpos)] * 2
            ref_inputs = [t.double().detach().requires_grad_() for t in (q, k, v)]
            if case.nan_key is not None:
                with torch.no_grad():
                    ref_inputs[1][:, :, case.nan_key] = 0
                    k[:, :, case.nan_key] = 0
            ref_sink = sink.double().requires_grad_() if sink is not None else None
            ref, ref_lse = reference(torch, *ref_inputs, case.program, x, scale, qpos, kvpos, case.softmax, ref_sink, case.offsets)
            d_o = torch.randn(ref.shape, device="cuda", generator=generator).to(q.dtype)
            if case.bshd:
                d_o = d_o.transpose(1, 2).contiguous().transpose(1, 2)
            loss = (ref * d_o.double()).sum()
            d_lse = None
            if case.d_lse:
                d_lse = torch.randn(lse.shape, device="cuda", generator=generator)
                loss = loss + (torch.where(ref_lse == -math.inf, 0.0, ref_lse) * d_lse.double()).sum()
            expected = list(torch.autograd.grad(loss, ref_inputs + ([ref_sink] if sink is not None else [])))
            if sink is not None:
                expected[3] = expected[3][case.offsets[1]: case.offsets[1] + case.h]
            dense, row_set_of = dense_mask(torch, case.program, x, case.b, case.h, qpos, kvpos, case.offsets)
            mask_q = mask_kv = None
            if dense is not None:
                tkv = kernels["backward_kv"].tiles
                tq = kernels["backward_q"].tiles if "backward_q" in kernels else tkv
                (rq, rkv), (kq, kkv) = case.mask_tile or (tq.tile_q, tq.tile_kv), case.mask_tile or (tkv.tile_q, tkv.tile_kv)
                mask_q = launch.Mask(dense, rq, rkv, row_set_of, (rq // tq.tile_q, rkv // tq.tile_kv))
                mask_kv = launch.Mask(dense.transpose(1, 2), kkv, kq, row_set_of, (kkv // tkv.tile_kv, kq // tkv.tile_q))
            out_type = torch.float32 if case.f32 else q.dtype
            outs = [torch.full(t.shape, math.nan, device="cuda", dtype=out_type) for t in (q, k, v)]
            d_sink = torch.full((case.h,), math.nan, device="cuda") if sink is not None else None
            o_element = o if o.dtype == q.dtype else o.to(q.dtype)
            backward = launch.Backward(kernels, {"backward_kv": family, "backward_q": family}, captures(case.program, x, launch), q, k, v,
                                       o_element, lse if case.softmax else None, d_o, *outs, scale, mask_q, mask_kv, sink, d_sink, d_lse,
                                       case.offsets, q_args, kv_args)
            backward.run()
            torch.cuda.synchronize()
            first = [t.clone() for t in outs]
            for t in outs:
                t.fill_(math.nan)
            backward.run()
            torch.cuda.synchronize()
            same = all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(first, outs))
            errors = [relative_error(a, e) if e.norm() > 1e-9 else a.double().norm().item() for a, e in zip(outs + ([d_sink] if sink is not None else []), expected)]
            limit = 1e-2 if case.dtype == "bf16" else 2e-3
            ok = all(e < limit for e in errors) and same
            failures += not ok
            print(f"{'ok  ' if ok else 'FAIL'} {family:8} {case} dQ {errors[0]:.1e} dK {errors[1]:.1e} dV {errors[2]:.1e}"
                  + (f" dSink {errors[3]:.1e}" if sink is not None else "") + ("" if same else " NOT REPEATABLE"), flush=True)
    print(f"check-backward: {failures} failures")


# ---- timing -----------------------------------------------------------------------------------------------------------

def milliseconds(torch, calls, repeats=15, warmup=3):
    """Medians of each call; the calls take turns, so that a slower clock meets all of them."""
    events = [[] for _ in calls]
    for i in range(warmup + repeats):
        for call, times in zip(calls, events):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            if i >= warmup:
                times.append((begin, end))
    torch.cuda.synchronize()
    return [sorted(b.elapsed_time(e) for b, e in times)[len(times) // 2] for times in events]


# program, B, H, Hkv, S, D and, where they differ, the size of value heads and the element type: the shapes of the
# performance table, and those shown beside it.
DENSE_SHAPES = [(p, b, h, h, s, d) for d, h in ((128, 16), (64, 32), (256, 8)) for b, s in ((8, 2048), (2, 8192), (1, 16384))
                for p in ("dense", "causal")]
FLEX_SHAPES = [(p, 2, 16, 16, 8192, 128) for p in ("window", "prefix_lm", "documents", "doc_causal", "sink_window", "dilated",
                                                   "alibi_causal", "softcap_causal", "relpos")]
FLEX_SHAPES += [("window", 2, 32, 32, 8192, 64), ("causal", 2, 32, 8, 8192, 128), ("doc_causal", 2, 32, 8, 8192, 128)]

FURTHER_SHAPES = [("causal", 2, 16, 16, 8192, 128, 128, "f16"), ("causal", 2, 16, 16, 8192, 192, 128), ("per_head", 2, 16, 16, 8192, 128),
                  ("causal", 1, 16, 16, 65536, 128)]


class Shape:
    def __init__(self, torch, program, b, h, hkv, s, d, dv=None, dtype="bf16"):
        self.program, self.b, self.h, self.hkv, self.s, self.d, self.dv, self.dtype = program, b, h, hkv, s, d, dv or d, dtype
        make = lambda heads, size: torch.randn(b, heads, s, size, device="cuda", dtype=torch.bfloat16 if dtype == "bf16" else torch.float16)
        self.q, self.k, self.v = make(h, d), make(hkv, d), make(hkv, self.dv)
        self.x = {"width": 4096 if program == "dilated" else 1024, "prefix": s // 4, "sink": 64, "cap": 30.0, "heads": h,
                  "doc": documents(torch, b, s, 12, multiple=16)}
        position = torch.arange(s, device="cuda", dtype=torch.int32)
        self.dense, self.row_set_of = dense_mask(torch, program, self.x, b, h, position, position)
        pairs = s * s if self.dense is None else self.dense.sum().item() / self.dense.shape[0]
        self.density = pairs / (s * s)
        self.flop = 2.0 * b * h * (d + self.dv) * pairs
        self.backward_flop = 2.0 * b * h * (3 * d + 2 * self.dv) * pairs

    @classmethod
    def of(cls, program, b, h, hkv, s, d, dv=None, dtype="bf16"):
        """Without tensors: what kernels are compiled from."""
        shape = cls.__new__(cls)
        shape.program, shape.d, shape.dv, shape.dtype = program, d, dv or d, dtype
        return shape

    def spec(self, role, family="wgmma", **more):
        return Spec(role, family, self.program, self.d, self.dv, element=ELEMENTS[self.dtype], **more)

    def specs(self):
        """Of ours: forward, delta, and the kernels of backward."""
        return ([self.spec("forward"), row_spec("backward_delta", None, self.d, self.dv, ELEMENTS[self.dtype])]
                + [self.spec(role) for role in backward_roles("wgmma", self.d, self.dv)])

    def forward(self, torch, launch, spec):
        t = spec.tiles
        mask = None if self.dense is None else launch.Mask(self.dense, t.tile_q, t.tile_kv, self.row_set_of)
        o = torch.empty(self.b, self.h, self.s, spec.dv, device="cuda", dtype=self.q.dtype)
        lse = torch.empty(self.b, self.h, self.s, device="cuda")
        return launch.Forward(kernel_of(spec), spec.family, captures(self.program, self.x, launch), self.q, self.k, self.v, o, lse,
                              mask=mask), o, lse

    def __str__(self):
        values = f"/{self.dv}" if self.dv != self.d else ""
        return f"{self.program} B{self.b} H{self.h}:{self.hkv} S{self.s} D{self.d}{values}" + (f" {self.dtype}" if self.dtype != "bf16" else "")


def cudnn(torch, shape, backend="CUDNN_ATTENTION"):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    with sdpa_kernel(getattr(SDPBackend, backend)):
        return torch.nn.functional.scaled_dot_product_attention(shape.q, shape.k, shape.v, is_causal=shape.program == "causal",
                                                                enable_gqa=shape.h != shape.hkv)


# The forward and backward milliseconds of flex_attention in the project's baseline table, for runs without peers.
BASELINE_FLEX = {("window", 128): 0.428, ("prefix_lm", 128): 1.459, ("documents", 128): 0.485, ("doc_causal", 128): 0.322,
                 ("sink_window", 128): 0.459, ("dilated", 128): 1.409, ("alibi_causal", 128): 1.556, ("softcap_causal", 128): 2.866,
                 ("relpos", 128): 2.296, ("window", 64): 0.453}


def time_forward(torch, variants, shapes, results, peers=True):
    """variants: name -> (family, patches, tiles by (d) or None)."""
    import launch
    specs = {}
    for program, b, h, hkv, s, d in shapes:
        for name, (family, patches, tiles) in variants.items():
            specs[name, program, d] = Spec("forward", family, program, d, d, patches=patches, tiles=(tiles or {}).get(d))
    compile_all(specs.values())
    for arguments in shapes:
        shape = Shape(torch, *arguments)
        row = {"shape": str(shape), "density": shape.density}
        calls = {}
        if peers and shape.program in ("dense", "causal"):
            calls["cudnn"] = lambda: cudnn(torch, shape)
            if all(v[0] == "mma_sync" for v in variants.values()):
                calls["FlashAttention-2"] = lambda: cudnn(torch, shape, "FLASH_ATTENTION")
        for name in variants:
            spec = specs[name, shape.program, shape.d]
            if spec.key in IMAGES:
                calls[name] = shape.forward(torch, launch, spec)[0].run
        times = dict(zip(calls, milliseconds(torch, list(calls.values()))))
        row.update(times)
        peer_ms = times.get("cudnn") or (BASELINE_FLEX.get((shape.program, shape.d)) if shape.h == shape.hkv else None)
        line = f"{str(shape):44}" + ("" if "cudnn" in times or not peer_ms else f" flex(table) {peer_ms:.3f}")
        for name, ms in times.items():
            line += f" | {name} {ms:.3f} ms {shape.flop / ms * 1e-9:.0f}" + (f" x{peer_ms / ms:.2f}" if peer_ms and name != "cudnn" else "")
        results.append(row)
        print(line, flush=True)
        del shape


def cudnn_backward(torch, shape):
    """Returns a call that runs only the backward of cuDNN attention."""
    q, k, v = (t.detach().requires_grad_() for t in (shape.q, shape.k, shape.v))
    with torch.enable_grad():
        out = cudnn(torch, with_inputs(shape, q, k, v))
    d_o = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (q, k, v), d_o, retain_graph=True)


BASELINE_FLEX_BACKWARD = {("window", 128): 1.091, ("prefix_lm", 128): 3.933, ("documents", 128): 1.305, ("doc_causal", 128): 0.826,
                          ("sink_window", 128): 1.439, ("dilated", 128): 3.280, ("alibi_causal", 128): 3.747,
                          ("softcap_causal", 128): 7.099, ("relpos", 128): 6.037, ("window", 64): 1.511}


def time_backward(torch, variants, shapes, results, peers=True):
    """variants: name -> (families by role, patches, tiles by (role, d)). Prints each kernel's time too."""
    import launch
    specs = {}
    for program, b, h, hkv, s, d in shapes:
        specs["forward", program, d] = Spec("forward", "wgmma", program, d, d)
        for name, (families, patches, tiles) in variants.items():
            for role in backward_roles(families["backward_kv"], d, d):
                specs[name, role, program, d] = Spec(role, families[role], program, d, d, tiles=(tiles or {}).get((role, d)), patches=patches)
        specs["delta", d] = row_spec("backward_delta", None, d, d)
    compile_all(specs.values())
    for arguments in shapes:
        shape = Shape(torch, *arguments)
        d = shape.d
        forward, o, lse = shape.forward(torch, launch, specs["forward", shape.program, d])
        forward.run()
        d_o = torch.randn_like(o)
        outs = [torch.empty_like(t) for t in (shape.q, shape.k, shape.v)]
        flop = 2.5 * shape.flop
        row = {"shape": str(shape), "density": shape.density}
        calls, pieces = {}, {}
        if peers and shape.program in ("dense", "causal"):
            calls["cudnn"] = cudnn_backward(torch, shape)
        for name, (families, patches, tiles) in variants.items():
            own = {role: specs[name, role, shape.program, d] for role in backward_roles(families["backward_kv"], d, d)}
            if any(s.key not in IMAGES for s in own.values()):
                continue
            kernels = {"backward_delta": kernel_of(specs["delta", d])} | {role: kernel_of(s) for role, s in own.items()}
            kv = own["backward_kv"]
            q = own.get("backward_q", kv)
            mask_q = mask_kv = None
            if shape.dense is not None:
                mask_q = launch.Mask(shape.dense, q.tiles.tile_q, q.tiles.tile_kv, shape.row_set_of)
                mask_kv = launch.Mask(shape.dense.transpose(1, 2), kv.tiles.tile_kv, kv.tiles.tile_q, shape.row_set_of)
            backward = launch.Backward(kernels, families, captures(shape.program, shape.x, launch), shape.q, shape.k, shape.v, o, lse, d_o,
                                       *outs, 1 / math.sqrt(d), mask_q, mask_kv)
            calls[name] = backward.run
            pieces[name] = [(lambda call=call, backward=backward: (backward.counters.zero_(), call[0].launch(call[1], *call[2])))
                            for call in backward.calls]
        times = dict(zip(calls, milliseconds(torch, list(calls.values()), 8, 2)))
        row.update(times)
        peer_ms = times.get("cudnn") or (BASELINE_FLEX_BACKWARD.get((shape.program, d)) if shape.h == shape.hkv else None)
        line = f"{str(shape):42}" + ("" if "cudnn" in times or not peer_ms else f" flex(table) {peer_ms:.3f}")
        for name, ms in times.items():
            line += f" | {name} {ms:.3f} ms {flop / ms * 1e-9:.0f}" + (f" x{peer_ms / ms:.2f}" if peer_ms and name != "cudnn" else "")
            if name in pieces:
                line += " (" + " + ".join(f"{p:.3f}" for p in milliseconds(torch, pieces[name], 4, 1)) + ")"
        results.append(row)
        print(line, flush=True)
        del shape, forward, o, lse, d_o, outs


# ---- the table beside the peers ---------------------------------------------------------------------------------------

def flex(torch, shape):
    """Compiled flex_attention on a shape; returns a call of (q, k, v)."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    torch._dynamo.reset()
    x = shape.x
    mask, score = SEMANTICS[shape.program]
    block_mask = None
    if mask:
        batch = shape.b if shape.program in BATCH_DEPENDENT else None
        heads = shape.h if shape.program in HEAD_DEPENDENT else None
        block_mask = create_block_mask(lambda b, h, q, kv: mask(b, h, q, kv, x), batch, heads, shape.s, shape.s, device="cuda")
    score_mod = (lambda s, b, h, q, kv: score(s, b, h, q, kv, x)) if score else None
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=shape.h != shape.hkv)


def worst_row(out, ref):
    """The largest norm of a row's error."""
    return (out.double() - ref).norm(dim=-1).max().item()


def lse_error(lse, ref):
    """The largest error, relative where LSE is more than 1; infinite where one is -inf alone."""
    empty = ref == -math.inf
    if not (lse[empty] == -math.inf).all():
        return math.inf
    return (lse.double() - ref)[~empty].abs().div(ref[~empty].abs().clamp_min(1)).max().item() if (~empty).any() else 0.0


def head_errors(torch, shape, lse, tensors):
    """Relative errors of (o, dq, dk, dv) of batch 0 and the heads of kv head 0 against float64, then their worst rows, for
    each of `tensors`; and the error of our LSE."""
    group = shape.h // shape.hkv
    q, k, v = (t[:1, :n].double().requires_grad_() for t, n in ((shape.q, group), (shape.k, 1), (shape.v, 1)))
    position = torch.arange(shape.s, device="cuda", dtype=torch.int32)
    o, reference_lse = reference(torch, q, k, v, shape.program, shape.x, 1 / math.sqrt(shape.d), position, position)
    grads = torch.autograd.grad((o * shape.d_o[:1, :group].double()).sum(), (q, k, v))
    errors = [[measure(t[:1, : r.shape[1]], r) for measure in (relative_error, worst_row) for t, r in zip(group_of, (o.detach(), *grads))]
              for group_of in tensors]
    return errors, lse_error(lse[:1, :group], reference_lse.detach())


def bind_backward(torch, launch, shape, o, lse):
    """Backward of ours for `shape.d_o`, bound to new dq, dk, dv, which are returned too."""
    kernels = {spec.role: kernel_of(spec) for spec in shape.specs()[1:]}
    masks = [None, None]
    if shape.dense is not None:
        t = kernels.get("backward_q", kernels["backward_kv"]).tiles
        masks[0] = launch.Mask(shape.dense, t.tile_q, t.tile_kv, shape.row_set_of)
        t = kernels["backward_kv"].tiles
        masks[1] = launch.Mask(shape.dense.transpose(1, 2), t.tile_kv, t.tile_q, shape.row_set_of)
    outs = [torch.empty_like(t) for t in (shape.q, shape.k, shape.v)]
    return launch.Backward(kernels, {"backward_kv": "wgmma", "backward_q": "wgmma"}, captures(shape.program, shape.x, launch), shape.q,
                           shape.k, shape.v, o, lse, shape.d_o, *outs, 1 / math.sqrt(shape.d), *masks), outs


def run_beside(torch, shape, peer):
    """Runs and times ours and a peer, a call of (q, k, v), in turns. Returns (o, dq, dk, dv) of ours, those of the peer, our LSE
    and milliseconds: forward of the peer, of ours, backward of the peer, of ours."""
    import launch
    inputs = [t.detach().requires_grad_() for t in (shape.q, shape.k, shape.v)]
    peer_o = peer(*inputs)
    peer_grads = torch.autograd.grad(peer_o, inputs, shape.d_o, retain_graph=True)
    forward, o, lse = shape.forward(torch, launch, shape.spec("forward"))
    forward.run()
    backward, outs = bind_backward(torch, launch, shape, o, lse)
    backward.run()
    torch.cuda.synchronize()
    detached = [t.detach() for t in inputs]
    with torch.no_grad():
        times = milliseconds(torch, [lambda: peer(*detached), forward.run])
    times += milliseconds(torch, [lambda: torch.autograd.grad(peer_o, inputs, shape.d_o, retain_graph=True), backward.run], 10, 2)
    return (o, *outs), (peer_o.detach(), *peer_grads), lse, times


def time_table(torch, shapes, results):
    """Forward and backward of ours beside cuDNN (dense, causal) or flex_attention, in turns on one GPU."""
    torch._dynamo.config.cache_size_limit = 64
    compile_all([spec for arguments in shapes for spec in Shape.of(*arguments).specs()])
    print("| work | peer | fwd peer ms | fwd ours ms | ratio | bwd peer ms | bwd ours ms | ratio | error O, dQ, dK, dV over peer's; of the worst row | error LSE |")
    for arguments in shapes:
        shape = Shape(torch, *arguments)
        is_plain = shape.program in ("dense", "causal") and shape.h == shape.hkv and shape.d == shape.dv
        shape.d_o = torch.randn(shape.b, shape.h, shape.s, shape.dv, device="cuda", dtype=shape.q.dtype)
        peer = (lambda q, k, v: cudnn(torch, with_inputs(shape, q, k, v))) if is_plain else flex(torch, shape)
        ours, theirs, lse, times = run_beside(torch, shape, peer)
        errors, error_of_lse = [["", ""]], None
        if shape.s <= 16384:
            of_each, error_of_lse = head_errors(torch, shape, lse, (ours, theirs))
            errors = list(zip(*of_each))
        row = {"shape": str(shape), "density": shape.density, "peer": "cuDNN" if is_plain else "flex_attention", "times": times,
               "tflops": [flop / t * 1e-9 for flop, t in zip(2 * [shape.flop] + 2 * [shape.backward_flop], times)], "errors": errors,
               "lse_error": error_of_lse}
        results.append(row)
        ratio = " ".join(f"{a / b:.2f}" if b != "" else "-" for a, b in errors)
        print(f"| {shape} | {row['peer']} | {times[0]:.3f} | {times[1]:.3f} ({row['tflops'][1]:.0f}) | {times[0] / times[1]:.2f} | {times[2]:.3f} "
              f"| {times[3]:.3f} ({row['tflops'][3]:.0f}) | {times[2] / times[3]:.2f} | {ratio} "
              f"| {'-' if error_of_lse is None else f'{error_of_lse:.1e}'} |", flush=True)
        del shape, peer, ours, theirs, lse


def with_inputs(shape, q, k, v):
    proxy = Shape.__new__(Shape)
    proxy.__dict__.update(shape.__dict__)
    proxy.q, proxy.k, proxy.v = q, k, v
    return proxy


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", nargs="+")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--families", default="wgmma,mma_sync")
    parser.add_argument("--variants", help="Python file that defines VARIANTS and SHAPES")
    parser.add_argument("--sample", action="store_true", help="few cases that cover each kernel, for slow tools")
    parser.add_argument("--every-lane-arrives", action="store_true", help="kernels as racecheck can follow them; see hopper.cuh")
    options = parser.parse_args()
    if options.every_lane_arrives:
        global PROLOGUE
        PROLOGUE = "#define CPFLEX_EVERY_LANE_ARRIVES\n"
    if options.sample:
        pick = lambda cases: [c for c in cases if (c.program, c.d) in (("causal", 64), ("doc_causal", 128), ("window", 192), ("prefix_lm", 64),
                                                                       ("softcap_causal", 256))][:7]
        FORWARD_CASES[:], BACKWARD_CASES[:] = pick(FORWARD_CASES), pick(BACKWARD_CASES)
    import torch
    print(torch.cuda.get_device_name(0), torch.__version__, flush=True)
    families = options.families.split(",")
    results = []
    if "check-forward" in options.steps:
        check_forward(torch, families)
    if "time-forward" in options.steps:
        variants = {"wgmma": ("wgmma", (), None)}
        time_forward(torch, variants, DENSE_SHAPES + FLEX_SHAPES, results)
        time_forward(torch, {"mma_sync": ("mma_sync", (), None)},
                     [("dense", 2, 16, 16, 8192, 128), ("causal", 2, 16, 16, 8192, 128), ("causal", 2, 32, 32, 8192, 64),
                      ("causal", 2, 8, 8, 8192, 256)], results)
    if "check-backward" in options.steps:
        check_backward(torch, families)
    both = lambda family: {"backward_kv": family, "backward_q": family}
    if "time-backward" in options.steps:
        time_backward(torch, {"wgmma": (both("wgmma"), (), None)}, DENSE_SHAPES + FLEX_SHAPES, results)
        time_backward(torch, {"mma_sync": (both("mma_sync"), (), None)},
                      [("causal", 2, 16, 16, 8192, 128), ("causal", 2, 32, 32, 8192, 64), ("causal", 2, 8, 8, 8192, 256)], results)
    if "table" in options.steps:
        time_table(torch, FLEX_SHAPES + DENSE_SHAPES + FURTHER_SHAPES, results)
    if options.variants:
        scope = {}
        exec(open(options.variants).read(), scope)
        if "VARIANTS" in scope:
            time_forward(torch, scope["VARIANTS"], scope["SHAPES"], results)
        if "BACKWARD_VARIANTS" in scope:
            time_backward(torch, scope["BACKWARD_VARIANTS"], scope["BACKWARD_SHAPES"], results)
    with open(os.path.join(options.out, "attention.json"), "w") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
