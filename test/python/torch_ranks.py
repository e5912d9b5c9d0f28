# Attention over process groups on the CPU (gloo): layouts, and output, log-sum-exp and gradients of every rank's shard
# against one process. The grid is that of PyTorch's context-parallel tests of flex_attention (S, layouts, documents),
# with what they lack: lengths that fill no tile, windows, scores, fewer heads for keys, three ranks and sub-groups.
import contextlib
import gc
import tempfile
import time
import traceback
import unittest
import weakref

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch._subclasses import FakeTensorMode

from cpflex import context_parallel as native, torch as ours
from cpflex.torch import _calls, _planned, context_parallel as cp
from packed_program import PACKED

BATCH, HEADS, KV_HEADS, COLUMNS = 2, 4, 2, 16
DOCUMENTS = [100, 7, 200, 64, 141]


def causal(b, h, q, kv):
    return q >= kv


def make_window(width):
    return lambda b, h, q, kv: (q >= kv) & (q - kv < width)


def make_documents(length):
    ids = torch.stack([torch.repeat_interleave(torch.arange(5), torch.tensor(DOCUMENTS)),
                       torch.arange(512) // 150])[:, :length].contiguous()
    return lambda b, h, q, kv: (q >= kv) & (ids[b, q] == ids[b, kv])


def alibi(score, b, h, q, kv):
    return score + torch.exp2(-2.0 * (h + 1)) * (kv - q)


def layouts(length, world_size, block_mask):
    yield "contiguous", cp.Layout.contiguous(length, world_size)
    yield "head-tail", cp.Layout.head_tail(length, world_size)
    yield "striped", cp.Layout.striped(length, world_size, 48)
    yield "round robin", cp.Layout.round_robin(block_mask, world_size)
    yield "solved", cp.Layout.solved(block_mask, world_size)
    if length == 512:
        yield "per document", cp.Layout.per_document(DOCUMENTS, world_size)
        yield "documents of each row", cp.Layout.per_document([DOCUMENTS, [150, 150, 150, 62]], world_size)


def run_cases(group):
    """Checks every case in a process of the group. Gives how many there were."""
    torch.manual_seed(0)
    count, world_size = 0, dist.get_world_size(group)
    for length in (512, 300, 2 * world_size - 1):
        whole = [torch.randn(BATCH, heads, length, COLUMNS) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
        for name, mask_mod, score_mod in (("causal", causal, None), ("window", make_window(40), alibi),
                                          ("documents", make_documents(length), None)):
            block_mask = ours.create_block_mask(mask_mod, BATCH, None, length, length)
            expected = gradients(whole, lambda q, k, v: ours.flex_attention(
                q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=True, return_lse=True))
            for layout_name, layout in layouts(length, world_size, block_mask):
                parts = [cp.shard(tensor, 2, layout, group) for tensor in whole]
                actual = gradients(parts, lambda q, k, v: cp.attention(
                    q, k, v, layout, group, score_mod=score_mod, block_mask=block_mask, enable_gqa=True,
                    return_lse=True))
                for what, part, other in zip(("out", "lse", "dq", "dk", "dv"), actual, expected):
                    torch.testing.assert_close(
                        cp.unshard(part, 2, layout, group), other, atol=1e-5, rtol=1e-5,
                        msg=lambda text: f"{what} of {name}, length {length}, {layout_name}: {text}")
                count += 1
    return count


def check_captures(rank, world_size):
    """Gradients of captured tensors and sinks are those of one process, on every rank."""
    length = 200
    torch.manual_seed(0)
    whole = [torch.randn(BATCH, heads, length, COLUMNS) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    layout = cp.Layout.head_tail(length, world_size)
    parts = [cp.shard(tensor, 2, layout) for tensor in whole]
    doc = torch.stack([torch.arange(length) // 70, torch.arange(length) // 50]).int()

    def both(make):
        found = []
        for call, tensors in ((ours.flex_attention, whole), (lambda *given, **keywords: cp.attention(
                *given[:3], layout, **keywords), parts)):
            slope = torch.tensor([0.1, 0.05, 0.02, 0.01], requires_grad=True)
            sinks = torch.tensor([-1.0, 0.0, 1.0, 0.5], requires_grad=True)
            keywords = make(slope, sinks)
            results = gradients(tensors, lambda q, k, v: call(q, k, v, enable_gqa=True, return_lse=True, **keywords))
            found.append((results, slope.grad, sinks.grad))
        for one, other in zip(found[0][0], found[1][0]):
            torch.testing.assert_close(cp.unshard(other, 2, layout), one, atol=1e-5, rtol=1e-5)
        for one, other in zip(found[0][1:], found[1][1:]):
            torch.testing.assert_close(other, one, atol=2e-4, rtol=1e-5)

    def of_program(slope, sinks):
        program = ours.program(PACKED, doc=doc, slope=slope, sinks=sinks)
        return {"score_mod": program, "block_mask": ours.create_block_mask(program, BATCH, None, length, length)}

    def of_function(slope, sinks):
        mask = ours.create_block_mask(lambda b, h, q, kv: (q >= kv) & (doc[b, q] == doc[b, kv]), BATCH, None, length,
                                      length)
        return {"score_mod": lambda score, b, h, q, kv: score + slope[h] * (kv - q), "block_mask": mask}

    both(of_program)
    both(of_function)
    program = ours.program(PACKED, doc=doc, slope=torch.zeros(HEADS), sinks=torch.zeros(HEADS))
    alone = {"block_mask": ours.create_block_mask(program, BATCH, None, length, length)}
    both(lambda slope, sinks: alone)


def check_plans_go(rank, world_size):
    """Plans of masks that are gone are not kept beside those of the executables that are."""
    layout, length = cp.Layout.contiguous(64, world_size), 64
    part = torch.zeros(1, 1, layout.num_owned(rank), COLUMNS)
    for step in range(_calls.MAX_EXECUTABLES + 8):
        doc = torch.arange(length) // (1 + step)
        mask = ours.create_block_mask(lambda b, h, q, kv: doc[q] == doc[kv], None, None, length, length)
        cp.planned(part, part, part, layout, block_mask=mask)
    gc.collect()
    plans = sum(isinstance(each, _planned.CallPlan) for each in gc.get_objects())
    assert plans <= _calls.MAX_EXECUTABLES, f"{plans} plans are alive; expected at most {_calls.MAX_EXECUTABLES}"


def check_groups_of_the_caller(rank, world_size):
    """A communicator stands for a group; what was made with a group goes with it."""
    length = 64
    layout = cp.Layout.head_tail(length, world_size)
    whole = [torch.randn(1, 2, length, COLUMNS, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    mask = ours.create_block_mask(causal, None, None, length, length)
    group = dist.new_group(list(range(world_size)))
    for each in (group, native.Communicator.over(_planned.GroupTransport(group))):
        parts = [cp.shard(tensor, 2, layout, each).requires_grad_() for tensor in whole]
        out = cp.attention(*parts, layout, each, block_mask=mask)
        out.sum().backward(retain_graph=True)
        torch.testing.assert_close(cp.unshard(out.detach(), 2, layout), ours.flex_attention(*whole, block_mask=mask),
                                   atol=1e-5, rtol=1e-5)
    refuses(TypeError, "group is a 'Communicator'; expected a process group or a mesh, which gathers",
            lambda: cp.unshard(out, 2, layout, each))
    refuses(ValueError, "the layout is for 4 ranks, the group has 2", lambda: cp.shard(whole[0], 2, four, each))
    known = weakref.ref(each)
    del each
    assert known() is None, "a communicator of the caller is kept by the calls that were made with it"
    refuses(RuntimeError, "the process group of this call is destroyed", lambda: out.sum().backward())


def check_missing_nccl(rank, world_size):
    """All ranks hear when the first one cannot name a group of GPUs, and none waits."""
    def none():
        raise RuntimeError("no library here")

    native.nccl_id, torch.cuda.device = none, lambda device: contextlib.nullcontext()
    refuses(RuntimeError, "rank 0 has no NCCL: no library here",
            lambda: _planned.nccl_over(dist.group.WORLD, torch.device("cuda", 0), 20))


BROKEN = "broken"  # what a check gives that leaves the group unusable


def check_silent_rank(rank, world_size):
    """A rank that does not come is a TimeoutError on the others; gloo then closes the connection."""
    layout = cp.Layout.contiguous(8, world_size)
    q = torch.zeros(1, 1, 4, 16)
    if rank == 0:
        refuses(TimeoutError, "failed at rank 0 in step 0 (kv) with ranks [1]",
                lambda: cp.attention(q, q, q, layout, deadline_seconds=0.5))
        time.sleep(0.1)
    else:
        time.sleep(3)
    return BROKEN


def gradients(tensors, attention):
    q, k, v = (tensor.clone().requires_grad_() for tensor in tensors[:3])
    out, lse = attention(q, k, v)
    (out * tensors[3]).sum().backward()
    return out.detach(), lse.detach(), q.grad, k.grad, v.grad


def check_grid(rank, world_size):
    assert run_cases(dist.group.WORLD) >= 36
    length = 512
    mask = ours.create_block_mask(make_window(40), None, None, length, length, BLOCK_SIZE=16)
    layout = cp.Layout.contiguous(length, world_size)
    part = torch.zeros(1, 1, len(layout.positions[rank]), COLUMNS)
    plan = cp.planned(part, part, part, layout, block_mask=mask)
    received = plan.rank_numbers(rank)["bytes_received"] // (2 * COLUMNS * part.element_size())
    assert plan.numbers()["num_steps"] >= 1 and "cp.schedule" in plan.print("text")
    most = 39  # the window without its own row
    assert received <= most, f"a window of 40 took {received} rows from other ranks; expected at most {most}"


def check_subgroups(rank, world_size):
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    run_cases(mesh["cp"].get_group())
    refuses(ValueError, "the mesh has 2 dimensions; expected one", lambda: cp.shard(torch.zeros(4), 0, four, mesh))


four = cp.Layout.contiguous(4, 4)


def check_style_and_refusals(rank, world_size):
    from torch.distributed.tensor.parallel import parallelize_module
    mesh = dist.init_device_mesh("cpu", (world_size,))
    layout = cp.Layout.head_tail(256, world_size)
    mask = ours.create_block_mask(causal, None, None, 256, 256)
    module = parallelize_module(cp.FlexAttention(), mesh, cp.ContextParallel(layout))
    whole = [torch.randn(1, 2, 256, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    parts = [cp.shard(tensor, 2, layout, mesh) for tensor in whole]
    out = cp.unshard(module(*parts, block_mask=mask), 2, layout, mesh)
    torch.testing.assert_close(out, ours.flex_attention(*whole, block_mask=mask), atol=1e-5, rtol=1e-5)

    compiled = torch.compile(lambda *parts: module(*parts, block_mask=mask) * 2, backend="aot_eager")
    torch.testing.assert_close(compiled(*parts), module(*parts, block_mask=mask) * 2)
    with FakeTensorMode():
        fake = cp.attention(*[torch.empty(1, 2, 128, 16) for _ in range(3)], layout, mesh, block_mask=mask)
    assert fake.shape == (1, 2, 128, 16)

    short = ours.create_block_mask(causal, None, None, 128, 128)
    listed = ours.create_block_mask(causal, None, None, 256, 256)
    listed.has_own_tiles = True
    q, k, v = parts
    refuses(ValueError, "the layout is for 4 ranks, the group has 2", lambda: cp.attention(q, k, v, four, mesh))
    refuses(ValueError, "block_mask is for 128 queries", lambda: cp.attention(q, k, v, layout, mesh, block_mask=short))
    refuses(ValueError, "key has shape (1, 2, 256, 16)", lambda: cp.attention(q, whole[1], v, layout, mesh))
    refuses(ValueError, "dimension 0 has 5 elements; the layout is for 256",
            lambda: cp.shard(torch.zeros(5), 0, layout))
    refuses(ValueError, "dimension 0 has 5 elements; rank", lambda: cp.unshard(torch.zeros(5), 0, layout))
    refuses(ValueError, "dimension 0 has 1 elements; expected 2 batch rows",
            lambda: cp.shard(torch.zeros(1, 256), 1, cp.Layout.per_document([[256], [256]], world_size)))
    refuses(TypeError, "group is a 'int'; expected a process group, a mesh or a Communicator",
            lambda: cp.shard(torch.zeros(256), 0, layout, 3))
    refuses(TypeError, "the module is a 'Linear'; expected a FlexAttention",
            lambda: parallelize_module(torch.nn.Linear(1, 1), mesh, cp.ContextParallel(layout)))
    refuses(TypeError, "value is a 'int'; expected a tensor", lambda: cp.attention(q, k, 3, layout, mesh))
    refuses(NotImplementedError, "the tiles of block_mask are not those of its mask_mod",
            lambda: cp.attention(q, k, v, layout, mesh, block_mask=listed))


def refuses(kind, message, call):
    try:
        call()
    except kind as error:
        assert message in str(error), f"'{error}'; expected '{message}'"
    else:
        raise AssertionError(f"no error; expected '{message}'")


def process(rank, world_size, check, path, failures):
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world_size)
        if check(rank, world_size) != BROKEN:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        failures.put(f"rank {rank}: {traceback.format_exc()}")
        raise


class Ranks(unittest.TestCase):
    def run_ranks(self, world_size, check):
        failures = torch.multiprocessing.get_context("spawn").SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            try:
                torch.multiprocessing.spawn(process, (world_size, check, f"{folder}/meeting", failures), world_size)
            except Exception:
                self.fail(failures.get() if not failures.empty() else traceback.format_exc())

    def test_two_ranks(self):
        self.run_ranks(2, check_grid)

    def test_three_ranks(self):
        """Covers: context parallelism, scores and masks at global positions, lengths that ranks do not divide."""
        self.run_ranks(3, check_grid)

    def test_sub_groups_of_a_mesh(self):
        """Covers: sub-groups of a mesh."""
        self.run_ranks(4, check_subgroups)

    def test_parallel_style_and_refusals(self):
        """Covers: ParallelStyle for parallelize_module, compiled code around ranks."""
        self.run_ranks(2, check_style_and_refusals)

    def test_captures(self):
        """Covers: context parallelism with gradients of captured tensors and sinks, programs on several ranks."""
        self.run_ranks(2, check_captures)

    def test_groups_of_the_caller(self):
        """Covers: ranks over a communicator of the caller."""
        self.run_ranks(2, check_groups_of_the_caller)

    def test_missing_nccl(self):
        self.run_ranks(2, check_missing_nccl)

    def test_plans_go(self):
        self.run_ranks(2, check_plans_go)

    def test_a_silent_rank(self):
        self.run_ranks(2, check_silent_rank)


class Layouts(unittest.TestCase):
    def test_own_every_position_once(self):
        for layout, expected in [
                (cp.Layout.head_tail(16, 2), [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]),
                (cp.Layout.per_document([4, 12], 2), [[0, 3, 4, 5, 6, 13, 14, 15], [1, 2, 7, 8, 9, 10, 11, 12]]),
                (cp.Layout.contiguous(5, 2), [[0, 1], [2, 3, 4]]),
                (cp.Layout.per_document([[4], [2, 2]], 2), [[[0, 3], [0, 3]], [[1, 2], [1, 2]]]),
                (cp.Layout.striped(7, 2, 2), [[0, 1, 4, 5], [2, 3, 6]]),
        ]:
            self.assertEqual([owned.tolist() for owned in layout.positions], expected)

    def test_refuse_what_is_none(self):
        for call, message in [
                (lambda: cp.Layout([[0, 1], [1, 2]]), "the positions of the ranks do not make up 0 to 4"),
                (lambda: cp.Layout([[1, 0]]), "the positions of rank 0 are not ascending"),
                (lambda: cp.Layout.contiguous(4, 0), "length is 4 and world_size 0"),
                (lambda: cp.Layout.striped(4, 2, 0), "stride is 0; expected 1 or more"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                call()


if __name__ == "__main__":
    unittest.main()
