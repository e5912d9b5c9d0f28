# cpflex.torch on CPU tensors against PyTorch's own flex_attention: outputs, log-sum-exp, gradients, operators, compiled
# code, autocast, and every message. PyTorch refuses gradients on the CPU before it starts; its reference computes them.
import gc
import re
import unittest
import warnings
import weakref

import torch
from torch.nn.attention import flex_attention as pytorch

from cpflex import torch as ours

warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
pytorch._validate_device = lambda *tensors: None
torch._dynamo.config.specialize_float = True  # else PyTorch fails on a closure over a float that changes

BATCH, HEADS, KV_HEADS, LENGTH, COLUMNS = 2, 4, 2, 256, 16
NAMES = ("out", "lse", "dq", "dk", "dv")


def causal(b, h, q, kv):
    return q >= kv


def random_tensors(batch=BATCH, heads=HEADS, kv_heads=KV_HEADS, q_len=LENGTH, kv_len=LENGTH, columns=COLUMNS,
                   v_columns=COLUMNS, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    return (tensor(batch, heads, q_len, columns), tensor(batch, kv_heads, kv_len, columns),
            tensor(batch, kv_heads, kv_len, v_columns))


def results(flex_attention, q, k, v, captured=(), seed=1, **keywords):
    """[out, lse, dq, dk, dv, gradients of `captured`] with random gradients of out and lse."""
    for tensor in (q, k, v, *captured):
        tensor.grad = None
    out, lse = flex_attention(q, k, v, return_lse=True, **keywords)
    generator = torch.Generator().manual_seed(seed)
    d_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    d_lse = torch.randn(lse.shape, generator=generator)
    has_keys = torch.isfinite(lse)
    torch.autograd.backward((out, torch.where(has_keys, lse, 0)), (d_out, torch.where(has_keys, d_lse, 0)))
    return [out.detach(), lse.detach()] + [tensor.grad.clone() for tensor in (q, k, v, *captured)]


class AgainstPyTorch(unittest.TestCase):
    def check(self, mask_mod, score_mod, tensors, captured=(), gqa=True, atol=2e-5, shape=None, **keywords):
        q, k, v = tensors
        lengths = (q.shape[2], k.shape[2])
        batch, heads = shape or (None, None)
        masks = [None, None]
        if mask_mod is not None:
            masks = [pytorch.create_block_mask(mask_mod, batch, heads, *lengths, device="cpu"),
                     ours.create_block_mask(mask_mod, batch, heads, *lengths)]
        expected = results(pytorch.flex_attention, q, k, v, captured, score_mod=score_mod, block_mask=masks[0],
                           enable_gqa=gqa, **keywords)
        for mask in masks:
            actual = results(ours.flex_attention, q, k, v, captured, score_mod=score_mod, block_mask=mask,
                             enable_gqa=gqa, **keywords)
            for name, one, other in zip((*NAMES, *("captured",) * len(captured)), actual, expected):
                self.assertEqual(one.dtype, other.dtype, name)
                torch.testing.assert_close(one, other, atol=atol, rtol=atol * 5, msg=lambda text: f"{name}: {text}")

    def test_everything_attends(self):
        """Covers: forward, backward, fewer key heads."""
        self.check(None, None, random_tensors())

    def test_causal(self):
        self.check(causal, None, random_tensors())

    def test_scale_and_value_columns(self):
        """Covers: scale, values of another size."""
        self.check(causal, None, random_tensors(v_columns=24), scale=0.3)

    def test_lengths_that_fill_no_tile(self):
        """Covers: lengths that fill no tile."""
        self.check(lambda b, h, q, kv: q + 40 >= kv, None, random_tensors(q_len=100, kv_len=171))

    def test_key_batch_of_one(self):
        """Covers: one batch of keys for all queries."""
        q, _, _ = random_tensors()
        _, k, v = random_tensors(batch=1)
        self.check(causal, None, (q, k, v), shape=(BATCH, None))

    def test_rows_without_keys(self):
        """Covers: rows without keys."""
        mask = ours.create_block_mask(lambda b, h, q, kv: kv > q, None, None, LENGTH, LENGTH)
        q, k, v = random_tensors()
        out, lse, *gradients = results(ours.flex_attention, q, k, v, block_mask=mask, enable_gqa=True)
        self.assertTrue((out[:, :, -1] == 0).all())
        self.assertTrue((lse[:, :, -1] == -torch.inf).all())
        self.assertTrue(all(torch.isfinite(gradient).all() for gradient in gradients))

    def test_captured_documents_windows_and_heads(self):
        """Covers: captured tensors in masks, captured numbers, and_masks, or_masks."""
        documents = torch.repeat_interleave(torch.arange(4), 64).repeat(BATCH, 1)
        documents[1] = torch.repeat_interleave(torch.arange(2), 128)
        per_head = torch.tensor([10, 50, 100, 200], dtype=torch.int32)
        width = 90

        def window(b, h, q, kv):
            return (q - kv <= width) & (q - kv < per_head[h])

        def document(b, h, q, kv):
            return documents[b, q] == documents[b][kv]

        mask_mod = ours.and_masks(causal, ours.or_masks(document, lambda b, h, q, kv: kv < 4), window)
        self.check(mask_mod, None, random_tensors(), shape=(BATCH, HEADS))

    def test_score_functions(self):
        """Covers: captured tensors in scores."""
        cap, slopes = 5.0, torch.exp2(-torch.arange(1, HEADS + 1).float())

        def soft_cap(score, b, h, q, kv):
            return cap * torch.tanh(score / cap)

        def alibi(score, b, h, q, kv):
            return score + slopes[h] * (kv - q)

        def masked(score, b, h, q, kv):
            return torch.where(q >= kv, score, -float("inf"))

        def mixed(score, b, h, q, kv):
            distance = (q - kv).abs().clamp(max=100).to(torch.float32)
            return torch.where((h % 2 == 0) & ~(kv < 3), alibi(score, b, h, q, kv), score - torch.log1p(distance))

        def both(score, b, h, q, kv):
            return soft_cap(alibi(score, b, h, q, kv), b, h, q, kv)

        for score_mod in (soft_cap, alibi, masked, mixed, both):
            with self.subTest(score_mod.__name__):
                self.check(causal if score_mod is not masked else None, score_mod, random_tensors())

    def test_gradients_of_captured_tensors(self):
        """Covers: gradients of captured tensors, gradient of the log-sum-exp."""
        relative = torch.randn(HEADS, 65, requires_grad=True)
        per_query = torch.randn(BATCH, HEADS, LENGTH, requires_grad=True)
        factor = torch.tensor(0.7, requires_grad=True)
        constant = torch.randn(LENGTH)

        def score_mod(score, b, h, q, kv):
            return score * factor + relative[h, (q - kv).clamp(-32, 32) + 32] + per_query[b, h, q] * constant[kv]

        position = torch.arange(LENGTH)
        distance = position[:, None] - position

        # PyTorch's own fails on a captured scalar that requires a gradient.
        def expected(q, k, v, return_lse):
            scores = q @ k.repeat_interleave(2, 1).mT / COLUMNS**0.5 * factor
            scores = scores + relative[:, distance.clamp(-32, 32) + 32] + per_query[..., None] * constant
            scores = scores.masked_fill(distance < 0, -torch.inf)
            return torch.softmax(scores, -1) @ v.repeat_interleave(2, 1), torch.logsumexp(scores, -1)

        captured = (relative, per_query, factor)
        mask = ours.create_block_mask(causal, None, None, LENGTH, LENGTH)
        actual = results(ours.flex_attention, *random_tensors(), captured, score_mod=score_mod, block_mask=mask,
                         enable_gqa=True)
        for one, other in zip(actual, results(expected, *random_tensors(), captured)):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)

    def test_gradient_of_a_bias(self):
        bias = torch.randn(HEADS, 65, requires_grad=True)
        self.check(causal, lambda score, b, h, q, kv: score + bias[h, (q - kv).clamp(-32, 32) + 32], random_tensors(),
                   (bias,), atol=1e-4)

    def test_half_precision(self):
        """Covers: bf16, f16."""
        q, k, v = random_tensors()
        mask = ours.create_block_mask(causal, None, None, LENGTH, LENGTH)
        expected = results(ours.flex_attention, q, k, v, block_mask=mask, enable_gqa=True)
        for dtype, tolerance in ((torch.bfloat16, 0.06), (torch.float16, 0.008)):
            halves = [tensor.detach().to(dtype).requires_grad_() for tensor in (q, k, v)]
            actual = results(ours.flex_attention, *halves, block_mask=mask, enable_gqa=True)
            for name, one, other in zip(NAMES, actual, expected):
                self.assertEqual(one.dtype, torch.float32 if name == "lse" else dtype)
                torch.testing.assert_close(one.float(), other, atol=tolerance, rtol=tolerance)

    def test_memory_orders(self):
        """Covers: [B, S, H, D] memory and other strides."""
        q, k, v = (tensor.detach() for tensor in random_tensors())
        expected = ours.flex_attention(q, k, v, enable_gqa=True)
        strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]
        out = ours.flex_attention(*strided, enable_gqa=True)
        self.assertTrue(out.transpose(1, 2).is_contiguous())
        torch.testing.assert_close(out, expected)
        columns_first = q.transpose(2, 3).contiguous().transpose(2, 3)
        torch.testing.assert_close(ours.flex_attention(columns_first, k, v, enable_gqa=True), expected)

    def test_largest_scores(self):
        """Covers: return_aux with max_scores."""
        q, k, v = (tensor.detach() for tensor in random_tensors())
        request = ours.AuxRequest(lse=True, max_scores=True)
        out, aux = ours.flex_attention(q, k, v, enable_gqa=True, return_aux=request)
        scores = q @ k.repeat_interleave(2, 1).mT / COLUMNS**0.5
        torch.testing.assert_close(aux.lse, torch.logsumexp(scores, -1))
        torch.testing.assert_close(aux.max_scores, scores.amax(-1))
        only = ours.flex_attention(q, k, v, enable_gqa=True, return_aux=ours.AuxRequest(max_scores=True))[1]
        self.assertIsNone(only.lse)

    def test_empty_tensors(self):
        """Covers: empty tensors."""
        q, k, v = random_tensors(q_len=0)
        self.assertEqual(ours.flex_attention(q, k, v, enable_gqa=True).shape, (BATCH, HEADS, 0, COLUMNS))


class Captures(unittest.TestCase):
    def test_follow_writes(self):
        limit = torch.full((LENGTH,), 8)
        slope = torch.tensor(0.1)

        def mask_mod(b, h, q, kv):
            return kv < limit[q]

        def score_mod(score, b, h, q, kv):
            return score * slope

        q, k, v = (tensor.detach() for tensor in random_tensors(heads=2))
        for length, factor in ((8, 0.1), (100, 0.1), (100, 0.9)):
            limit.fill_(length)
            slope.fill_(factor)
            mask = ours.create_block_mask(mask_mod, None, None, LENGTH, LENGTH)
            out = ours.flex_attention(q, k, v, score_mod=score_mod, block_mask=mask)
            expected = torch.softmax(factor * q @ k[:, :, :length].mT / COLUMNS**0.5, -1) @ v[:, :, :length]
            torch.testing.assert_close(out, expected)

    def test_follow_the_closure(self):
        scale = 1.0

        def score_mod(score, b, h, q, kv):
            return score * scale

        q, k, v = (tensor.detach() for tensor in random_tensors(heads=2))
        for scale in (1.0, 0.5, 2):
            expected = torch.softmax(scale * q @ k.mT / COLUMNS**0.5, -1) @ v
            torch.testing.assert_close(ours.flex_attention(q, k, v, score_mod=score_mod), expected)

    def test_are_found_in_modules(self):
        """Covers: parameters of modules in scores."""
        class Biased(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.bias = torch.nn.Parameter(torch.randn(HEADS))
                self.factor = 2

            def forward(self, q, k, v):
                def score_mod(score, b, h, q_idx, kv_idx):
                    return score + self.factor * self.bias[h] * (kv_idx % 2)
                return ours.flex_attention(q, k, v, score_mod=score_mod, enable_gqa=True)

        module = Biased()
        q, k, v = (tensor.detach() for tensor in random_tensors())

        def expected(bias):
            scores = q @ k.repeat_interleave(2, 1).mT / COLUMNS**0.5
            odd = torch.arange(LENGTH) % 2
            return torch.softmax(scores + module.factor * bias[:, None, None] * odd, -1) @ v.repeat_interleave(2, 1)

        for module.factor in (2, 3):
            module.bias.grad = None
            out = module(q, k, v)
            torch.testing.assert_close(out, expected(module.bias), atol=1e-5, rtol=1e-5)
            out.square().sum().backward()
            bias = module.bias.detach().clone().requires_grad_()
            expected(bias).square().sum().backward()
            torch.testing.assert_close(module.bias.grad, bias.grad, atol=1e-3, rtol=1e-3)

    def test_are_let_go_with_their_function(self):
        q, k, v = (tensor.detach() for tensor in random_tensors(heads=2))

        def call():
            bias = torch.randn(2)
            ours.flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[h])
            return weakref.ref(bias)

        first = call()
        for _ in range(ours._calls.MAX_EXECUTABLES):
            call()
        gc.collect()
        self.assertIsNone(first())

    def test_of_inference_mode(self):
        """Covers: inference mode."""
        with torch.inference_mode():
            ids = torch.arange(LENGTH) // 32
            mask = ours.create_block_mask(lambda b, h, q, kv: ids[q] == ids[kv], None, None, LENGTH, LENGTH)
            q, k, v = random_tensors(heads=2)
            out = ours.flex_attention(q, k, v, block_mask=mask)
            expected = torch.softmax(
                (q @ k.mT / COLUMNS**0.5).masked_fill(ids[:, None] != ids, -torch.inf), -1) @ v
            torch.testing.assert_close(out, expected)


class Operators(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()
        self.bias = torch.randn(HEADS, requires_grad=True)
        bias = self.bias

        def score_mod(score, b, h, q, kv):
            return score + bias[h] * (q - kv) * 0.01

        self.score_mod = score_mod
        self.mask = ours.create_block_mask(causal, None, None, LENGTH, LENGTH)

    def attention(self, q, k, v, mask=None):
        return ours.flex_attention(q, k, v, score_mod=self.score_mod, block_mask=mask or self.mask, enable_gqa=True,
                                   return_lse=True)

    def test_opcheck(self):
        """Covers: torch.library.opcheck."""
        q, k, v = random_tensors()
        chosen, captured = ours._translate.score_of(self.score_mod, None)
        score = chosen.index
        for token in (self.mask.token, ours._ops.NO_MASK):
            arguments = (q, k, v, captured, token, score, False, True)
            torch.library.opcheck(torch.ops.cpflex.attention.default, arguments)
        out, lse, _ = torch.ops.cpflex.attention(*arguments)
        tensors = [tensor.detach() for tensor in (torch.ones_like(out), torch.zeros_like(lse), q, k, v, out, lse)]
        torch.library.opcheck(torch.ops.cpflex.attention_backward.default,
                              (*tensors, [self.bias.detach()], self.mask.token, score))

    def compiled(self, backend="aot_eager", **options):
        def call(q, k, v, return_lse, mask=None):
            return self.attention(q, k, v, mask)

        return torch.compile(call, fullgraph=True, backend=backend, **options)

    def check_compiled(self, call, mask=None):
        q, k, v = random_tensors()
        expected = results(lambda *tensors, return_lse: self.attention(*tensors, mask), q, k, v, (self.bias,))
        keywords = {} if mask is None else {"mask": mask}
        actual = results(call, q, k, v, (self.bias,), **keywords)
        for one, other in zip(actual, expected):
            torch.testing.assert_close(one, other)

    def test_compiled_code_has_no_breaks(self):
        """Covers: torch.compile(fullgraph=True)."""
        call = self.compiled()
        self.check_compiled(call)
        with torch.no_grad():
            self.bias.mul_(3)
        self.check_compiled(call)

    def test_compiled_code_takes_other_masks(self):
        """Covers: another block mask without compiling again."""
        call = self.compiled()
        self.check_compiled(call, self.mask)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for width in (7, 50):
                self.check_compiled(call, ours.create_block_mask(
                    lambda b, h, q, kv: (q >= kv) & (q - kv <= width), None, None, LENGTH, LENGTH))

    def test_inductor(self):
        """Covers: torch.compile with Inductor."""
        try:
            torch.compile(lambda x: x + 1)(torch.ones(2))
        except Exception as error:
            self.skipTest(f"torch.compile has no working backend here: {type(error).__name__}")
        torch._dynamo.reset()
        self.check_compiled(self.compiled("inductor"))

    def test_closures_made_in_compiled_code_are_refused(self):
        def call(q, k, v, bias):
            return ours.flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + bias[h], enable_gqa=True)

        with self.assertRaises(Exception):
            torch.compile(call, fullgraph=True, backend="eager")(*random_tensors(), self.bias)

    def test_fake_tensors(self):
        """Covers: fake tensors."""
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode(allow_non_fake_inputs=True):
            q, k, v = random_tensors()
            out, lse = ours.flex_attention(q, k, v, enable_gqa=True, return_lse=True)
        self.assertEqual((out.shape, lse.shape), ((BATCH, HEADS, LENGTH, COLUMNS), (BATCH, HEADS, LENGTH)))

    def test_autocast(self):
        """Covers: autocast."""
        q, k, v = random_tensors()
        with torch.autocast("cpu", torch.bfloat16):
            out, lse = self.attention(q, k, v)
        self.assertEqual((out.dtype, lse.dtype), (torch.bfloat16, torch.float32))
        expected, _ = self.attention(*(tensor.to(torch.bfloat16) for tensor in (q, k, v)))
        torch.testing.assert_close(out, expected)
        out.float().sum().backward()
        self.assertEqual(q.grad.dtype, torch.float32)

    def test_checkpointed(self):
        """Covers: activation checkpointing."""
        from torch.utils.checkpoint import checkpoint
        q, k, v = random_tensors()
        self.attention(q, k, v)[0].sum().backward()
        expected, q.grad = q.grad, None
        checkpoint(lambda *tensors: self.attention(*tensors)[0], q, k, v, use_reentrant=False).sum().backward()
        torch.testing.assert_close(q.grad, expected)


class Programs(unittest.TestCase):
    TEXT = """
doc: tensor[i64, KV_LEN]
W: param[int] = 16
sinks: tensor[f32, H](grad=True)


@mask
def near(b, h, q, kv):
    return doc[q] == doc[kv] and 0 <= q - kv < W


attention("near", mask=near, sink=sinks)
"""

    def test_run_like_closures(self):
        """Covers: .cpf programs, sinks."""
        doc, sinks = torch.arange(LENGTH) // 50, torch.randn(HEADS, requires_grad=True)
        near = ours.program(self.TEXT, doc=doc, W=20, sinks=sinks)
        q, k, v = random_tensors()
        mask = ours.create_block_mask(near, BATCH, HEADS, LENGTH, LENGTH)
        position = torch.arange(LENGTH)
        allowed = (doc[:, None] == doc) & (position[:, None] >= position) & (position[:, None] - position < 20)

        def expected(q, k, v, return_lse):
            scores = (q @ k.repeat_interleave(2, 1).mT / COLUMNS**0.5).masked_fill(~allowed, -torch.inf)
            lse = torch.logaddexp(torch.logsumexp(scores, -1), sinks[:, None])
            return torch.exp(scores - lse[..., None]) @ v.repeat_interleave(2, 1), lse

        reference = results(expected, q, k, v, (sinks,))
        for keywords in ({"score_mod": near}, {"block_mask": mask}, {"score_mod": near, "block_mask": mask}):
            actual = results(ours.flex_attention, q, k, v, (sinks,), enable_gqa=True, **keywords)
            for one, other in zip(actual, reference):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

    def test_refuse_what_does_not_fit(self):
        doc, sinks = torch.arange(LENGTH), torch.zeros(HEADS)
        near = ours.program(self.TEXT, doc=doc, sinks=sinks)
        frozen = self.TEXT.replace("(grad=True)", "").replace(", sink=sinks", "").replace(
            "W: param", "bias: tensor[f32, H]\nW: param")
        mask = ours.create_block_mask(near, None, None, LENGTH, LENGTH)
        q, k, v = random_tensors()
        cases = [
            (lambda: ours.program(self.TEXT, "far", doc=doc, sinks=sinks), ValueError,
             "entry is 'far'; expected one of 'near'"),
            (lambda: ours.program(self.TEXT, sinks=sinks), ValueError,
             "array 'doc' is not bound; give it as doc=TENSOR"),
            (lambda: ours.program(self.TEXT, doc=[1], sinks=sinks), TypeError, "'doc' is a 'list'; expected a tensor"),
            (lambda: ours.program(self.TEXT, doc=doc.int(), sinks=sinks), TypeError,
             "'doc' has elements of type torch.int32; expected i64"),
            (lambda: ours.program(self.TEXT, doc=doc, sinks=sinks, V=1), ValueError,
             "the program declares no array or param 'V'"),
            (lambda: ours.program(frozen, doc=doc, sinks=sinks, bias=sinks.clone().requires_grad_()), ValueError,
             "'bias' requires a gradient, but the program does not declare it with grad=True"),
            (lambda: ours.flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s, block_mask=mask, enable_gqa=True),
             ValueError, "block_mask is made from a program and score_mod is a Python function"),
            (lambda: ours.flex_attention(q, k, v, score_mod=near, enable_gqa=True,
                                         block_mask=ours.create_block_mask(causal, None, None, LENGTH, LENGTH)),
             ValueError, "block_mask is not made from the program that gives the scores"),
        ]
        for call, kind, message in cases:
            with self.subTest(message), self.assertRaisesRegex(kind, re.escape(message)):
                call()


if __name__ == "__main__":
    unittest.main()
