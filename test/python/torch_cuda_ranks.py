# Attention of ranks on a GPU through the Python package: ranks are threads of this process that share GPU 0, or one rank
# through NCCL. Outputs, log-sum-exp and gradients against one device in float32. More than one GPU: torch_cp_grid.py.
import gc
import threading
import unittest

import torch

from cpflex import context_parallel as native, torch as ours
from cpflex.torch import _calls, _planned, context_parallel as cp
from packed_program import PACKED

BATCH, HEADS, KV_HEADS, LENGTH, COLUMNS = 2, 4, 2, 700, 64
NAMES = ("out", "lse", "dq", "dk", "dv")
LENGTHS = [[300, 30, 250, 120], [150, 400, 50, 100]]


def causal(b, h, q, kv):
    return q >= kv


def document_ids(device):
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS]).int().to(
        device)


def whole_tensors(dtype):
    """q, k, v and the gradient of the output, the same on every thread."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(BATCH, heads, LENGTH, COLUMNS, generator=generator).to(dtype).cuda()
            for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]


def both_passes(call, tensors):
    q, k, v = (tensor.detach().clone().requires_grad_() for tensor in tensors[:3])
    out, lse = call(q, k, v)
    out.backward(tensors[3].to(out.dtype))
    return [each.detach() for each in (out, lse, q.grad, k.grad, v.grad)]


def single(tensors, **keywords):
    """The same call on the CPU in float32."""
    return both_passes(lambda q, k, v: ours.flex_attention(q, k, v, enable_gqa=True, return_lse=True, **keywords),
                       [tensor.float().cpu() for tensor in tensors])


def on_threads(world_size, call):
    """What call(communicator) gives for each rank, each in a thread and a stream of its own."""
    communicators, found, errors = native.cuda_threads(world_size, [0]), [None] * world_size, []

    def run(communicator):
        try:
            # Backward then runs in this thread, not in the one of the GPU, where ranks would wait for each other.
            with torch.autograd.set_multithreading_enabled(False), torch.cuda.stream(torch.cuda.Stream()):
                found[communicator.rank] = call(communicator)
                torch.cuda.current_stream().synchronize()
        except BaseException as error:
            errors.append(error)
            communicator.abort(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=run, args=(communicator,)) for communicator in communicators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if " gave up: " not in str(error)), errors[0])
    return found


def unsharded(parts, layout):
    """The whole tensor from the parts of all ranks."""
    whole = parts[0].new_empty((*parts[0].shape[:2], layout.length, *parts[0].shape[3:]))
    for rank, part in enumerate(parts):
        for row in range(len(whole)):
            owned = layout.positions[rank] if layout.rows == 1 else layout.positions[rank][row]
            whole[row][:, owned.to(whole.device)] = part[row]
    return whole


@unittest.skipUnless(torch.cuda.is_available(), "no CUDA device")
class CudaRanks(unittest.TestCase):
    def compare(self, name, actual, expected, dtype):
        ulp = 2.0 ** -8 if dtype == torch.bfloat16 else 2.0 ** -11
        largest = float(expected[torch.isfinite(expected)].abs().max().clamp(min=1))
        tolerance = 2e-3 if name == "lse" else 6 * ulp * largest
        torch.testing.assert_close(actual.float().cpu(), expected, atol=tolerance, rtol=0,
                                   msg=lambda text: f"{name}: {text}")

    def check(self, layout, dtype=torch.bfloat16, make=None):
        """`make(device)` gives score_mod and block_mask."""
        whole = whole_tensors(dtype)
        keywords = make("cuda")
        parts = on_threads(layout.world_size, lambda group: both_passes(
            lambda q, k, v: cp.attention(q, k, v, layout, group, enable_gqa=True, return_lse=True, **keywords),
            [cp.shard(tensor, 2, layout, group) for tensor in whole]))
        for name, actual, expected in zip(NAMES, zip(*parts), single(whole, **make("cpu"))):
            self.compare(name, unsharded(actual, layout), expected, dtype)

    @staticmethod
    def masked(mask_mod, score_mod=None, batch=None):
        return lambda device: {"score_mod": score_mod, "block_mask": ours.create_block_mask(
            mask_mod, batch, None, LENGTH, LENGTH, device)}

    def test_layouts_and_types(self):
        """Covers: context parallelism, lengths that ranks do not divide, fewer key heads."""
        mask = ours.create_block_mask(causal, None, None, LENGTH, LENGTH)
        for layout in (cp.Layout.contiguous(LENGTH, 2), cp.Layout.head_tail(LENGTH, 3), cp.Layout.striped(LENGTH, 2, 48),
                       cp.Layout.round_robin(mask, 2), cp.Layout.solved(mask, 3)):
            self.check(layout, make=self.masked(causal))
        self.check(cp.Layout.head_tail(LENGTH, 2), torch.float16, self.masked(causal))

    def test_windows_with_scores(self):
        """Covers: scores and masks at global positions."""
        self.check(cp.Layout.head_tail(LENGTH, 2), make=self.masked(
            lambda b, h, q, kv: (q >= kv) & (q - kv < 90),
            lambda score, b, h, q, kv: score + torch.exp2(-2.0 * (h + 1)) * (kv - q)))

    def test_documents_of_each_row(self):
        def make(device):
            ids = document_ids(device)
            return {"block_mask": ours.create_block_mask(lambda b, h, q, kv: (q >= kv) & (ids[b, q] == ids[b, kv]), BATCH,
                                                         None, LENGTH, LENGTH, device)}

        for layout in (cp.Layout.contiguous(LENGTH, 2), cp.Layout.per_document(LENGTHS, 2)):
            self.check(layout, make=make)

    def test_programs_captures_and_sinks(self):
        """Covers: context parallelism with gradients of captured tensors and sinks, programs on several ranks."""
        whole, layout = whole_tensors(torch.bfloat16), cp.Layout.head_tail(LENGTH, 2)

        def given(device):
            slope = torch.tensor([0.1, 0.05, 0.02, 0.01], device=device, requires_grad=True)
            sinks = torch.tensor([-1.0, 0.0, 1.0, 0.5], device=device, requires_grad=True)
            program = ours.program(PACKED, doc=document_ids(device), slope=slope, sinks=sinks)
            mask = ours.create_block_mask(program, BATCH, None, LENGTH, LENGTH)
            return slope, sinks, {"score_mod": program, "block_mask": mask}

        def rank(group):
            slope, sinks, keywords = given("cuda")
            results = both_passes(
                lambda q, k, v: cp.attention(q, k, v, layout, group, enable_gqa=True, return_lse=True, **keywords),
                [cp.shard(tensor, 2, layout, group) for tensor in whole])
            return results, slope.grad, sinks.grad

        parts = on_threads(2, rank)
        slope, sinks, keywords = given("cpu")
        for name, actual, expected in zip(NAMES, zip(*[part[0] for part in parts]), single(whole, **keywords)):
            self.compare(name, unsharded(actual, layout), expected, torch.bfloat16)
        for place, expected in ((1, slope.grad), (2, sinks.grad)):
            torch.testing.assert_close(parts[0][place], parts[1][place], atol=0, rtol=0)
            torch.testing.assert_close(parts[0][place].cpu(), expected,
                                       atol=0.02 * float(expected.abs().max()), rtol=0)

    def test_scores_see_what_captures_hold_at_the_call(self):
        layout = cp.Layout.contiguous(LENGTH, 1)
        bias = torch.zeros(HEADS, device="cuda")
        q, k, v, _ = whole_tensors(torch.bfloat16)

        def twice(group):
            found = []
            for value in (0.0, 0.3):
                bias.fill_(value)
                found.append(cp.attention(q, k, v, layout, group, enable_gqa=True,
                                          score_mod=lambda s, b, h, i, j: s + bias[h] * (j % 7)))
            return found

        first, second = on_threads(1, twice)[0]
        expected = single([q, k, v, q], score_mod=lambda s, b, h, i, j: s + 0.3 * (j % 7))[0]
        self.compare("out", second, expected, torch.bfloat16)
        self.assertGreater((first - second).abs().max(), 0.05)

    def test_the_same_bits_and_layers_that_share_a_communicator(self):
        layout = cp.Layout.head_tail(LENGTH, 2)
        mask = self.masked(causal)("cuda")["block_mask"]
        whole = whole_tensors(torch.bfloat16)

        def layers(group):
            x = [cp.shard(tensor, 2, layout, group) for tensor in whole]
            found = []
            for scale in (None, 0.5, None):  # two calls that differ, the first one again
                found.append(both_passes(lambda q, k, v: cp.attention(
                    q, k, v, layout, group, block_mask=mask, scale=scale, enable_gqa=True, return_lse=True), x))
            held = [rank.device_bytes() for rank in _planned.ends_of(group).ranks]
            assert len(held) == 2 and min(held) > 0, f"bytes that ranks hold on the GPU are {held}"
            return found

        for first, _, again in on_threads(2, layers):
            for one, other in zip(first, again):
                self.assertTrue(torch.equal(one, other))

    def test_the_current_stream(self):
        """Covers: the current stream."""
        layout, slow = cp.Layout.head_tail(LENGTH, 2), torch.empty(1 << 27, device="cuda")
        whole = whole_tensors(torch.bfloat16)
        expected = single(whole)[0]

        def late(group):
            x = [torch.full_like(cp.shard(tensor, 2, layout, group), float("nan")) for tensor in whole[:3]]
            torch.cuda.current_stream().synchronize()
            for _ in range(32):
                slow.zero_()
            for tensor, values in zip(x, whole):
                tensor.copy_(cp.shard(values, 2, layout, group))
            return cp.attention(*x, layout, group, enable_gqa=True) * 1

        self.compare("out", unsharded(on_threads(2, late), layout), expected, torch.bfloat16)

    def test_groups_come_and_go(self):
        layout, whole = cp.Layout.head_tail(LENGTH, 2), whole_tensors(torch.bfloat16)

        def forward(group):
            return cp.attention(*[cp.shard(tensor, 2, layout, group) for tensor in whole[:3]], layout, group,
                                enable_gqa=True)

        free = []
        for _ in range(12):
            del on_threads(2, forward)[:]
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # PyTorch keeps memory for each stream that was used
            free.append(torch.cuda.mem_get_info()[0])
        self.assertGreaterEqual(free[-1], free[1] - (16 << 20), "what groups left on the GPU")

    def test_one_rank_through_nccl(self):
        try:
            name = native.nccl_id()
        except RuntimeError as error:
            self.skipTest(str(error))
        group = native.Communicator.nccl(name, 0, 1)
        layout, whole = cp.Layout.contiguous(LENGTH, 1), whole_tensors(torch.bfloat16)
        actual = both_passes(lambda q, k, v: cp.attention(q, k, v, layout, group, enable_gqa=True, return_lse=True), whole)
        for name, one, other in zip(NAMES, actual, single(whole)):
            self.compare(name, one, other, torch.bfloat16)

    def test_refusals(self):
        group, layout = native.cuda_threads(1)[0], cp.Layout.contiguous(LENGTH, 1)
        q, k, v, _ = whole_tensors(torch.bfloat16)
        bias = torch.zeros(HEADS)
        on_cpu = native.threads(1)[0]
        plan = cp.planned(q, k, v, layout, group)

        def strided():
            wide = torch.zeros(BATCH, HEADS, LENGTH, 2 * COLUMNS, dtype=q.dtype, device="cuda")[..., ::2]
            _planned.run_forward(_planned.rank_of(q, k, v, layout, group, None, None, None, 60), wide, k, v)

        def captured():
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                cp.attention(q, k, v, layout, group, enable_gqa=True)

        def on_cuda():
            call, sources = ours._translate.score_of(None, None)[0].call(None, LENGTH, LENGTH)
            executable = call.executable(q, k, v, [], True)
            _planned.CallRank(_planned.CallPlan(executable, plan.layout, False), on_cpu, torch.device("cpu"), call, sources,
                              60)

        for kind, message, call in [
                (TypeError, "query has elements of type torch.float32 on a GPU; expected bfloat16 or float16",
                 lambda: cp.attention(q.float(), k.float(), v.float(), layout, group, enable_gqa=True)),
                (ValueError, "a captured tensor of shape (4,) is on cpu and query on cuda:0", lambda: cp.attention(
                    q, k, v, layout, group, enable_gqa=True, score_mod=lambda s, b, h, i, j: s + bias[h])),
                (ValueError, "'q' is on cpu; expected cuda:0",
                 lambda: cp.attention(q.cpu(), k.cpu(), v.cpu(), layout, group, enable_gqa=True)),
                (ValueError, "'q' is on cuda:0; expected cpu",
                 lambda: cp.attention(q, k, v, layout, on_cpu, enable_gqa=True)),
                (ValueError, "'q' has last stride 2; expected 1 on a GPU", strided),
                (ValueError, "the plan's executable is on CUDA and the communicator 'threads' has its messages in host "
                             "memory; expected an executable on the cpu, or a communicator between GPUs", on_cuda),
                (NotImplementedError, "attention over ranks exchanges messages from the host; expected a call outside of "
                                      "the capture of a CUDA graph", captured),
        ]:
            with self.subTest(message), self.assertRaises(kind) as caught:
                call()
            self.assertIn(message, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
