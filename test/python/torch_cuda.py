# cpflex.torch on a CUDA device against PyTorch's compiled flex_attention: outputs, log-sum-exp, gradients, streams,
# CUDA graphs, operators and compiled code. Says what it skips where there is no device.
import unittest

import torch
from torch.nn.attention import flex_attention as pytorch

from cpflex import torch as ours

BATCH, HEADS, KV_HEADS, LENGTH, COLUMNS = 2, 8, 2, 1024, 64
NAMES = ("out", "lse", "dq", "dk", "dv")


def causal(b, h, q, kv):
    return q >= kv


def random_tensors(dtype=torch.bfloat16, length=LENGTH, columns=COLUMNS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, heads, length, columns, generator=generator).to("cuda", dtype).requires_grad_()
            for heads in (HEADS, KV_HEADS, KV_HEADS)]


def results(flex_attention, q, k, v, **keywords):
    for tensor in (q, k, v):
        tensor.grad = None
    out, lse = flex_attention(q, k, v, return_lse=True, enable_gqa=True, **keywords)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    out.backward(d_out)
    return [out.detach(), lse.detach(), q.grad, k.grad, v.grad]


@unittest.skipUnless(torch.cuda.is_available(), "no CUDA device")
class Cuda(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()

    def check(self, mask_mod, score_mod=None, batch=None, heads=None, **shape):
        q, k, v = random_tensors(**shape)
        length = q.shape[2]
        mask = pytorch.create_block_mask(mask_mod, batch, heads, length, length, device="cuda")
        keywords = {"score_mod": score_mod, "block_mask": mask}
        expected = results(torch.compile(pytorch.flex_attention, dynamic=False), q, k, v, **keywords)
        mine = ours.create_block_mask(mask_mod, batch, heads, length, length, device="cuda")
        actual = results(ours.flex_attention, q, k, v, score_mod=score_mod, block_mask=mine)
        for name, one, other in zip(NAMES, actual, expected):
            tolerance = 2e-3 if name == "lse" else 0.03 * float(other.float().abs().max().clamp(min=1))
            torch.testing.assert_close(one.float(), other.float(), atol=tolerance, rtol=0,
                                       msg=lambda text: f"{name}: {text}")

    def test_causal(self):
        """Covers: forward, backward, bf16, f16, fewer key heads, head sizes 64 and 128."""
        self.check(causal)
        self.check(causal, dtype=torch.float16, columns=128)

    def test_captures_on_the_device(self):
        """Covers: captured tensors in masks, captured tensors in scores."""
        ids = (torch.arange(LENGTH, device="cuda") // 300).repeat(BATCH, 1)
        slopes = torch.exp2(-torch.arange(1, HEADS + 1, device="cuda").float())
        self.check(lambda b, h, q, kv: (q >= kv) & (ids[b, q] == ids[b, kv]),
                   lambda score, b, h, q, kv: score + slopes[h] * (kv - q), batch=BATCH)

    def test_gradients_of_captured_tensors(self):
        """Covers: gradients of captured tensors."""
        bias = torch.zeros(HEADS, device="cuda", requires_grad=True)
        q, k, v = random_tensors()
        out = ours.flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + bias[h] * (i - j), enable_gqa=True)
        try:
            out.float().square().sum().backward()
        except NotImplementedError as error:
            self.skipTest(str(error))
        self.assertGreater(bias.grad.abs().max(), 0)

    def test_current_stream(self):
        """Covers: the current stream."""
        q, k, v = (tensor.detach() for tensor in random_tensors())
        expected = ours.flex_attention(q, k, v, enable_gqa=True)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = torch.cat([q] * 8)[:BATCH] * 1  # work that the call must wait for
            out = ours.flex_attention(late, k, v, enable_gqa=True)
        stream.synchronize()
        torch.testing.assert_close(out, expected, atol=0, rtol=0)

    def test_cuda_graphs(self):
        """Covers: CUDA graphs."""
        q, k, v = (tensor.detach() for tensor in random_tensors())
        mask = ours.create_block_mask(causal, None, None, LENGTH, LENGTH, device="cuda")
        for _ in range(2):
            ours.flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ours.flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        q.copy_(random_tensors(seed=5)[0].detach())
        graph.replay()
        torch.testing.assert_close(out, ours.flex_attention(q, k, v, block_mask=mask, enable_gqa=True), atol=0, rtol=0)

    def test_compiled(self):
        """Covers: torch.compile(fullgraph=True), autocast."""
        q, k, v = random_tensors()
        mask = ours.create_block_mask(causal, None, None, LENGTH, LENGTH, device="cuda")

        def call(q, k, v, return_lse, enable_gqa):
            return ours.flex_attention(q * 1, k, v, block_mask=mask, return_lse=return_lse, enable_gqa=enable_gqa)

        expected = results(call, q, k, v)
        for one, other in zip(results(torch.compile(call, fullgraph=True), q, k, v), expected):
            torch.testing.assert_close(one, other)
        with torch.autocast("cuda", torch.bfloat16):
            out = ours.flex_attention(q.float(), k.float(), v.float(), block_mask=mask, enable_gqa=True)
        torch.testing.assert_close(out, expected[0])

    def test_opcheck(self):
        """Covers: torch.library.opcheck."""
        q, k, v = random_tensors(length=256)
        score, captured = ours._translate.score_of(None, None)
        torch.library.opcheck(torch.ops.cpflex.attention.default,
                              (q, k, v, captured, ours._ops.NO_MASK, score.index, False, True))

    def test_float32_is_refused(self):
        q, k, v = random_tensors(dtype=torch.float32)
        with self.assertRaises((NotImplementedError, ValueError)):
            ours.flex_attention(q, k, v, enable_gqa=True)


if __name__ == "__main__":
    unittest.main()
