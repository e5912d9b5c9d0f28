"""The cases of PyTorch's own tests of context parallelism (its test_attention.py: RingAttentionTest, CPFlexAttentionTest,
TestCPCustomOps, TestContextParallelStyle, TestSharding) over cpflex.torch.context_parallel, with what PyTorch's context
parallelism gives for the same tensors beside ours:

    torchrun --nproc-per-node 2 test/python/torch_cp_grid.py              two GPUs, NCCL
    torchrun --nproc-per-node 2 test/python/torch_cp_grid.py --small      short sequences; without GPUs over gloo

Errors are the largest difference from attention written out in float32 on one device, in units of the largest value (LSE: as
it is). One line per case, and a last one with counts; the exit status is 1 when a case is wrong. What PyTorch refuses or
cannot do is said in its column."""
import argparse
import datetime
import functools
import itertools
import os
import sys
import time
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.experimental import _context_parallel as theirs
from torch.distributed.tensor.experimental._context_parallel import _attention as their_attention
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.attention import SDPBackend, flex_attention as pytorch, sdpa_kernel

from cpflex import torch as ours
from cpflex.torch import _planned, context_parallel as cp

HEADS, COLUMNS, DOCUMENTS = 8, 32, 28
NAMES = ("out", "lse", "dq", "dk", "dv")
# In units of the largest value: a few roundings of results and of probabilities.
TOLERANCES = {torch.bfloat16: 6 * 2.0 ** -8, torch.float16: 6 * 2.0 ** -11, torch.float32: 2e-5}
LSE_TOLERANCE = 1e-3


class Grid:
    def __init__(self, is_small):
        self.is_small, self.device = is_small, torch.device("cpu")
        if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"]):
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        self.is_cuda = self.device.type == "cuda"
        dist.init_process_group("nccl" if self.is_cuda else "gloo", timeout=datetime.timedelta(seconds=60))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.mesh = dist.init_device_mesh(self.device.type, (self.world_size,), mesh_dim_names=("cp",))
        self.types = (torch.bfloat16, torch.float16) if self.is_cuda else (torch.float32,)
        self.num_right = self.num_wrong = self.num_beside = 0
        self.begin = time.monotonic()

    def say(self, text):
        if self.rank == 0:
            print(text, flush=True)

    def case(self, name, run, beside=None):
        """Runs a case on all ranks. `run()` gives (text, whether it is right), `beside()` PyTorch's text."""
        try:
            text, is_right = run()
        except Exception as error:
            text, is_right = f"{type(error).__name__}: {error}", False
            # Other ranks may wait in vain for this one, and never come to tell.
            print(f"rank {self.rank}, {name}: {text}", file=sys.stderr, flush=True)
        # A case is right when it is on every rank.
        verdicts = [None] * self.world_size
        dist.all_gather_object(verdicts, (is_right, text))
        is_right = all(verdict for verdict, _ in verdicts)
        if not is_right:
            text = next(said for verdict, said in verdicts if not verdict)
        other = "-"
        if beside is not None:
            try:
                other = beside()
                self.num_beside += 1
            except (NotImplementedError, RuntimeError, ValueError, AssertionError, TypeError) as error:
                other = f"refuses: {str(error).splitlines()[0][:60] if str(error) else type(error).__name__}"
        self.num_right, self.num_wrong = self.num_right + is_right, self.num_wrong + (not is_right)
        self.say(f"{'right' if is_right else 'WRONG'}  {name:58}  cpflex {text}  |  PyTorch {other}")

    def tensors(self, batch, length, dtype, seed=0):
        """q, k, v and the gradient of the output, the same on every rank."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(batch, HEADS, length, COLUMNS, generator=generator).to(self.device, dtype) for _ in range(4)]


def reference(tensors, allowed, bias=0.0):
    """Attention and its gradients written out in float32; `allowed` is [batch or 1, S, S], `bias` is added to scores."""
    found = []
    for row in range(tensors[0].shape[0]):
        q, k, v, d_out = (tensor[row].float() for tensor in tensors)
        scale = q.shape[2] ** -0.5
        scores = (q @ k.transpose(1, 2)).mul_(scale).add_(bias)
        scores.masked_fill_(~allowed[row % len(allowed)], -torch.inf)
        lse = scores.logsumexp(-1)
        p = (scores - lse[..., None]).exp_()
        out = p @ v
        d_scores = p * (d_out @ v.transpose(1, 2) - (d_out * out).sum(-1, keepdim=True))
        found.append((out, lse, scale * (d_scores @ k), scale * (d_scores.transpose(1, 2) @ q), p.transpose(1, 2) @ d_out))
    return [torch.stack(each) for each in zip(*found)]


def errors(actual, expected):
    return [float((one.float() - other).abs().max()) / (1.0 if name == "lse" else float(other.abs().max().clamp(min=1)))
            for name, one, other in zip(NAMES, actual, expected) if one is not None]


def shown(found):
    return " ".join(f"{error:.1e}" for error in found)


def is_right(found, dtype, names=NAMES):
    return all(error <= (LSE_TOLERANCE if name == "lse" else TOLERANCES[dtype]) for name, error in zip(names, found))


def run_ours(grid, tensors, layout, block_mask, is_forward_only=False, score_mod=None, mesh=None):
    """(the five whole tensors, the rank that computed this process's part)."""
    mesh = grid.mesh if mesh is None else mesh
    q, k, v, d_out = (cp.shard(tensor, 2, layout, mesh) for tensor in tensors)
    for tensor in (q, k, v):
        tensor.requires_grad_(not is_forward_only)
    out, lse = cp.attention(q, k, v, layout, mesh, score_mod=score_mod, block_mask=block_mask, return_lse=True)
    parts = [out.detach(), lse.detach()]
    if not is_forward_only:
        out.backward(d_out)
        parts += [q.grad, k.grad, v.grad]
    rank = _planned.rank_of(q, k, v, layout, mesh.get_group(), score_mod, block_mask, None, 60)
    return [cp.unshard(part, 2, layout, mesh) for part in parts], rank


def causal(b, h, q, kv):
    return q >= kv


def causal_pairs(grid, length):
    places = torch.arange(length, device=grid.device)
    return (places[:, None] >= places)[None]


# RingAttentionTest


class Attend(torch.nn.Module):
    """Attention as a module, which PyTorch's context parallelism hooks into."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *tensors, **keywords):
        return self.call(*tensors, **keywords)


def their_ring(grid, tensors, is_causal, is_balanced, is_forward_only, backend, rotation, has_context):
    theirs.set_rotate_method(rotation)
    theirs._cp_options.enable_load_balance = is_balanced
    kind = torch.float32 if backend is SDPBackend.EFFICIENT_ATTENTION else torch.bfloat16
    q, k, v, d_out = (tensor.to(kind).clone() for tensor in tensors)
    balancer = theirs._HeadTailLoadBalancer(q.shape[2], grid.world_size, grid.device) if is_balanced else None

    def both(call):
        for tensor in (q, k, v):
            tensor.requires_grad_(not is_forward_only)
        with sdpa_kernel(backend):
            out = call(q, k, v, is_causal=is_causal)
            if not is_forward_only:
                out.backward(d_out)
        parts = [out.detach()] + ([] if is_forward_only else [q.grad, k.grad, v.grad])
        whole = theirs.context_parallel_unshard(grid.mesh, parts, [2] * len(parts), balancer)
        for tensor in (q, k, v):
            tensor.grad, _ = None, tensor.requires_grad_(False)
        return [whole[0], None] + whole[1:]

    if has_context:
        with theirs.context_parallel(grid.mesh, buffers=[q, k, v, d_out], buffer_seq_dims=[2] * 4):
            return both(F.scaled_dot_product_attention)
    q, k, v, d_out = theirs._context_parallel_shard(grid.mesh, [q, k, v, d_out], [2] * 4, balancer)
    theirs._enable_context_parallel_dispatcher()
    try:
        module = Attend(lambda q, k, v, is_causal: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal))
        plan = theirs._ContextParallel(seq_dim=2, attention_type=theirs._ContextParallel.AttentionType.SDPA)
        return both(parallelize_module(module, grid.mesh, plan))
    finally:
        theirs._disable_context_parallel_dispatcher()


def check_ring(grid):
    length = 256 if grid.is_small else 1024 * grid.world_size

    @functools.lru_cache(maxsize=None)
    def expected(is_causal):
        tensors = grid.tensors(8, length, grid.types[0])
        allowed = causal_pairs(grid, length) if is_causal else torch.ones(1, length, length, dtype=torch.bool,
                                                                          device=grid.device)
        return tensors, reference(tensors, allowed)

    @functools.lru_cache(maxsize=None)
    def mine(is_causal, is_balanced, dtype, is_forward_only):
        tensors = [tensor.to(dtype) for tensor in expected(is_causal)[0]]
        mask = ours.create_block_mask(causal, None, None, length, length, grid.device) if is_causal else None
        layout = (cp.Layout.head_tail if is_balanced else cp.Layout.contiguous)(length, grid.world_size)
        found, rank = run_ours(grid, tensors, layout, mask, is_forward_only)
        plan = rank.plan
        sent, counted, most = plan.rank_numbers(grid.rank)["bytes_sent"], rank.traffic(), grid.world_size - 1
        if is_forward_only:  # which comes first; a rank counts all of its calls
            assert counted["bytes_sent"] == sent, f"{counted['bytes_sent']} bytes left rank {grid.rank}; the plan says {sent}"
            received = rank.traffic("kv")["messages_received"]
            assert received <= most, f"{received} messages of keys; expected at most {most}"
            assert is_causal or received == most, f"{received} messages of keys of all; expected {most}"
        actual = errors(found, expected(is_causal)[1])
        return shown(actual), is_right(actual, dtype)

    def one(is_causal, is_balanced, is_forward_only, their_way=None):
        backend = their_way and their_way[0]
        # Where PyTorch has float32, f16 is tried.
        dtype = grid.types[-1 if backend is SDPBackend.EFFICIENT_ATTENTION and is_causal else 0]

        def beside():
            found = their_ring(grid, expected(is_causal)[0], is_causal, is_balanced, is_forward_only, *their_way)
            return shown(errors(found, expected(is_causal)[1]))

        name = ["ring", "causal" if is_causal else "full", "head-tail" if is_balanced else "contiguous",
                "forward" if is_forward_only else "both"]
        if their_way is not None:
            name += [backend.name.split("_")[0].lower(), their_way[1], "context" if their_way[2] else "module"]
        grid.case(" ".join(name), functools.partial(mine, is_causal, is_balanced, dtype, is_forward_only),
                  their_way and beside)

    # PyTorch's ring needs kernels of GPUs.
    their_ways = [None] if not grid.is_cuda else list(itertools.product(
        (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION), ("alltoall", "allgather"),
        (True, False)))
    for is_causal, is_balanced in ((True, False), (True, True), (False, False)):
        for is_forward_only in (True, False):
            for their_way in their_ways:
                one(is_causal, is_balanced, is_forward_only, their_way)


def check_causal_steps(grid):
    """Who receives keys: without balance the first rank none, with it both. PyTorch's table says the same."""
    length = 512
    mask = ours.create_block_mask(causal, None, None, length, length)
    part = torch.empty(1, 1, length // grid.world_size, COLUMNS, dtype=grid.types[0], device=grid.device)
    for is_balanced in (False, True):
        layout = (cp.Layout.head_tail if is_balanced else cp.Layout.contiguous)(length, grid.world_size)

        def run():
            plan = cp.planned(part, part, part, layout, grid.mesh, block_mask=mask)
            takes = [plan.rank_numbers(rank)["bytes_received"] > 0 for rank in range(grid.world_size)]
            return str(takes), takes == [is_balanced or rank > 0 for rank in range(grid.world_size)]

        def beside():
            theirs._cp_options.enable_load_balance = is_balanced
            steps = [[theirs._is_causal_behavior(rank, grid.world_size, step, True) for step in range(1, grid.world_size)]
                     for rank in range(grid.world_size)]
            return str([any(step is not theirs._CausalBehavior.SKIP for step in of) for of in steps])

        grid.case(f"causal steps {'head-tail' if is_balanced else 'contiguous'}", run, beside)


# CPFlexAttentionTest


def their_flex(grid, tensors, mask_mod, batch, balancer_of, score_mod=None):
    length = tensors[0].shape[2]
    mask = pytorch.create_block_mask(mask_mod, batch, 1, length, length, device=grid.device)
    balancer = balancer_of(mask)
    q, k, v, d_out, mask = theirs._context_parallel_shard(grid.mesh, [each.clone() for each in tensors] + [mask], [2] * 5,
                                                          balancer)
    q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
    module = parallelize_module(
        Attend(pytorch.flex_attention), grid.mesh,
        theirs._ContextParallel(seq_dim=2, attention_type=theirs._ContextParallel.AttentionType.FLEX))
    out, lse = module(q, k, v, score_mod=score_mod, block_mask=mask, return_lse=True)
    out.backward(d_out)
    torch._dynamo.reset()
    return theirs.context_parallel_unshard(grid.mesh, [out.detach(), lse.detach(), q.grad, k.grad, v.grad], [2] * 5, balancer)


def random_lengths(total, count, multiple, generator):
    """`count` documents of at least `multiple` tokens, in multiples of it."""
    lengths = [multiple] * count
    for place in torch.randint(count, ((total // multiple) - count,), generator=generator).tolist():
        lengths[place] += multiple
    return lengths


def flex_case(grid, name, length, batch, mask_mod, allowed, mask_batch, types, layout_of, balancer_of):
    for dtype in types:
        tensors = grid.tensors(batch, length, dtype)
        expected = reference(tensors, allowed)

        def run():
            mask = ours.create_block_mask(mask_mod, mask_batch, 1, length, length, grid.device)
            found = errors(run_ours(grid, tensors, layout_of(mask), mask)[0], expected)
            return shown(found), is_right(found, dtype)

        def beside():
            return shown(errors(their_flex(grid, tensors, mask_mod, mask_batch, balancer_of), expected))

        # PyTorch's results do not depend on the type much; it runs in the first.
        grid.case(f"{name} {str(dtype).split('.')[1]}", run, beside if dtype == grid.types[0] else None)


def check_flex_causal(grid):
    layouts = {
        "contiguous": (lambda mask: cp.Layout.contiguous(mask.shape[2], grid.world_size), lambda mask: None),
        "head-tail": (lambda mask: cp.Layout.head_tail(mask.shape[2], grid.world_size),
                      lambda mask: theirs._HeadTailLoadBalancer(mask.shape[2], grid.world_size, grid.device)),
        "ptrr": (lambda mask: cp.Layout.round_robin(mask, grid.world_size),
                 lambda mask: theirs._PTRRLoadBalancer(mask, grid.world_size)),
    }
    # PyTorch's tests expect it to refuse 128; 331 is nobody's multiple.
    for length in (512, 128, 331) if grid.is_small else (512, 2048, 128, 331):
        for name, (layout_of, balancer_of) in layouts.items():
            flex_case(grid, f"flex causal S={length} {name}", length, 8, causal, causal_pairs(grid, length), None, grid.types,
                      layout_of, balancer_of)


def check_flex_documents(grid):
    for batch in (2, 4, 8):
        for length in (512,) if grid.is_small else (512, 2048):
            for name in ("contiguous", "head-tail", "per-document", "ptrr"):
                generator = torch.Generator().manual_seed(10)
                multiple = 2 * grid.world_size if name == "per-document" else 1
                lengths = [random_lengths(length, DOCUMENTS, multiple, generator) for _ in range(batch)]
                ids = torch.stack([torch.repeat_interleave(torch.arange(DOCUMENTS), torch.tensor(row))
                                   for row in lengths]).to(grid.device)

                def mask_mod(b, h, q, kv):
                    return (q >= kv) & (ids[b, q] == ids[b, kv])

                layout_of, balancer_of = {
                    "contiguous": (lambda mask: cp.Layout.contiguous(length, grid.world_size), lambda mask: None),
                    "head-tail": (lambda mask: cp.Layout.head_tail(length, grid.world_size),
                                  lambda mask: theirs._HeadTailLoadBalancer(length, grid.world_size, grid.device)),
                    "per-document": (lambda mask: cp.Layout.per_document(lengths, grid.world_size),
                                     lambda mask: theirs._PerDocumentHeadTailLoadBalancer(lengths, grid.world_size,
                                                                                          grid.device)),
                    "ptrr": (lambda mask: cp.Layout.solved(mask, grid.world_size, "ptrr"),
                             lambda mask: theirs._PTRRLoadBalancer(mask, grid.world_size)),
                }[name]
                allowed = causal_pairs(grid, length) & (ids[:, :, None] == ids[:, None])
                flex_case(grid, f"flex documents B={batch} S={length} {name}", length, batch, mask_mod, allowed, batch,
                          grid.types[:1], layout_of, balancer_of)


# What PyTorch's tests leave out


def check_scores(grid):
    """Scores over positions, with the gradient of what they capture. PyTorch's see positions in the shards."""
    length = 512
    tensors = grid.tensors(2, length, grid.types[0])
    slopes = torch.exp2(-torch.arange(1.0, HEADS + 1, device=grid.device)).requires_grad_()
    places = torch.arange(length, device=grid.device)
    bias = (places - places[:, None]).float() * slopes.detach()[:, None, None]
    expected = reference(tensors, causal_pairs(grid, length), bias)

    def alibi(score, b, h, q, kv):
        return score + slopes[h] * (kv - q)

    def run():
        mask = ours.create_block_mask(causal, None, None, length, length, grid.device)
        found = errors(run_ours(grid, tensors, cp.Layout.head_tail(length, grid.world_size), mask, score_mod=alibi)[0],
                       expected)
        sums = [torch.empty_like(slopes.grad) for _ in range(grid.world_size)]
        dist.all_gather(sums, slopes.grad)
        is_one = all(torch.equal(each, sums[0]) for each in sums)
        # On one device, of the same tensors.
        mine, slopes.grad = slopes.grad, None
        ours.flex_attention(*tensors[:3], score_mod=alibi, block_mask=mask).backward(tensors[3])
        apart = float((mine - slopes.grad).abs().max() / slopes.grad.abs().max())
        return f"{shown(found)} slopes {apart:.1e}", is_right(found, grid.types[0]) and is_one and apart < 0.02

    def beside():
        balancer = theirs._HeadTailLoadBalancer(length, grid.world_size, grid.device)
        frozen = slopes.detach()
        return shown(errors(their_flex(grid, tensors, causal, None, lambda mask: balancer,
                                       lambda score, b, h, q, kv: score + frozen[h] * (kv - q)), expected))

    grid.case("flex causal S=512 head-tail with ALiBi", run, beside)


def check_meshes(grid):
    """The sequence over one dimension of a larger mesh."""
    length = 300
    tensors = grid.tensors(2, length, grid.types[0])
    expected = reference(tensors, causal_pairs(grid, length))
    for sizes in ((1, grid.world_size), (grid.world_size, 1)):
        def run():
            mesh = dist.init_device_mesh(grid.device.type, sizes, mesh_dim_names=("dp", "cp"))["cp"]
            mask = ours.create_block_mask(causal, None, None, length, length, grid.device)
            found = errors(run_ours(grid, tensors, cp.Layout.head_tail(length, mesh.size()), mask, mesh=mesh)[0], expected)
            return shown(found), is_right(found, grid.types[0])

        grid.case(f"a mesh of {sizes[0]} x {sizes[1]}, sequence over the second", run)


# TestCPCustomOps


def check_operators(grid):
    layout = cp.Layout.contiguous(8 * grid.world_size, grid.world_size)
    for needs_gradient in (False, True):
        tensors = [torch.randn(8, 8, 8, 8, generator=torch.Generator().manual_seed(seed)).to(grid.device, grid.types[0])
                   .requires_grad_(needs_gradient) for seed in range(3)]

        def run():
            score, captured = ours._translate.score_of(None, None)
            rank = _planned.rank_of(*tensors, layout, grid.mesh.get_group(), None, None, None, 60)
            torch.library.opcheck(torch.ops.cpflex.rank_attention.default,
                                  (*tensors, captured, rank.number, score.index))
            return "opcheck passes", True

        def beside():
            torch.library.opcheck(theirs.flex_cp_allgather, (*tensors[1:], 2, grid.mesh.get_group().group_name))
            return "opcheck passes"

        grid.case(f"operators{' with gradients' if needs_gradient else ''}", run, beside)


# TestContextParallelStyle


def check_style(grid):
    length = 64 * grid.world_size
    layout = cp.Layout.head_tail(length, grid.world_size)
    mask = ours.create_block_mask(causal, None, None, length, length, grid.device)
    parts = [cp.shard(tensor, 2, layout, grid.mesh) for tensor in grid.tensors(2, length, grid.types[0])[:3]]
    q, k, v = parts
    expected = cp.attention(*parts, layout, grid.mesh, block_mask=mask)
    module = parallelize_module(cp.FlexAttention(), grid.mesh, cp.ContextParallel(layout))
    for name, call in (("positional", lambda: module(q, k, v, None, mask)),
                       ("keywords", lambda: module(query=q, key=k, value=v, block_mask=mask)),
                       ("value by keyword", lambda: module(q, k, value=v, block_mask=mask)),
                       ("key and value by keyword", lambda: module(q, key=k, value=v, score_mod=None, block_mask=mask)),
                       ("mask by keyword", lambda: module(q, k, v, block_mask=mask))):
        grid.case(f"style, {name}", lambda: ("equal", torch.equal(call(), expected)))


# TestSharding


def check_sharding(grid):
    length, layout = 32, cp.Layout.head_tail(32, grid.world_size)
    frequencies = torch.arange(length, device=grid.device)
    rows = torch.arange(4 * length, device=grid.device).view(4, length)
    positions = torch.arange(length, device=grid.device).expand(4, -1)  # of stride 0
    for name, buffer, dim in (("frequencies", frequencies, 0), ("tokens", rows, 1), ("expanded positions", positions, 1)):
        def run():
            chunks = buffer.chunk(2 * grid.world_size, dim)
            expected = torch.cat([chunks[grid.rank], chunks[2 * grid.world_size - 1 - grid.rank]], dim)
            part = cp.shard(buffer, dim, layout, grid.mesh)
            return "equal", torch.equal(part, expected) and torch.equal(cp.unshard(part, dim, layout, grid.mesh), buffer)

        def beside():
            balancer = theirs._HeadTailLoadBalancer(length, grid.world_size, grid.device)
            part, = theirs._context_parallel_shard(grid.mesh, [buffer.clone()], [dim], balancer)
            return "equal" if torch.equal(part, cp.shard(buffer, dim, layout, grid.mesh)) else "differs"

        grid.case(f"sharding of {name}", run, beside)

    def run():
        """Attention over ranks leaves PyTorch's own attention as it was: nothing is registered or replaced."""
        before = F.scaled_dot_product_attention
        tensors = grid.tensors(2, 256, grid.types[0])
        run_ours(grid, tensors, cp.Layout.contiguous(256, grid.world_size), None)
        local = [tensor.chunk(grid.world_size, 2)[grid.rank] for tensor in tensors[:3]]
        shards = [DTensor.from_local(tensor, grid.mesh, [Shard(2)], run_check=False) for tensor in local]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(*shards)
        return str(out.placements), F.scaled_dot_product_attention is before and out.placements != (Shard(2),)

    if grid.is_cuda:  # where DTensor knows the operator
        grid.case("attention of sequence shards without context parallelism", run)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="short sequences")
    warnings.simplefilter("ignore")
    grid = Grid(parser.parse_args().small)
    # PyTorch's masks and attention do without its compiler, which would take minutes for the grid.
    their_attention._compiled_create_block_mask = pytorch.create_block_mask
    if not grid.is_cuda:
        pytorch._validate_device = lambda *tensors: None  # PyTorch refuses gradients on the CPU, its plain way has them
    for check in (check_sharding, check_causal_steps, check_operators, check_style, check_scores, check_meshes,
                  check_flex_causal, check_flex_documents, check_ring):
        check(grid)
    grid.say(f"{grid.num_right + grid.num_wrong} cases on {grid.world_size} ranks ({grid.device.type}): {grid.num_right} right, "
             f"{grid.num_wrong} wrong; PyTorch ran {grid.num_beside} of them; {time.monotonic() - grid.begin:.0f} s")
    dist.barrier()
    dist.destroy_process_group()
    sys.exit(grid.num_wrong > 0)


if __name__ == "__main__":
    main()
