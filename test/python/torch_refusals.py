# What cpflex.torch refuses: wrong tensors, masks and functions, each with an exception of a usual type and our message.
import re
import unittest

import torch

import cpflex
from cpflex import torch as ours

HEADS, LENGTH = 4, 256


def causal(b, h, q, kv):
    return q >= kv


def random_tensors():
    return torch.randn(2, HEADS, LENGTH, 16), torch.randn(2, 2, LENGTH, 16), torch.randn(2, 2, LENGTH, 16)


class Refusals(unittest.TestCase):
    def test_of_tensors(self):
        q, k, v = random_tensors()
        mask = ours.create_block_mask(causal, 3, None, LENGTH, LENGTH)
        head_mask = ours.create_block_mask(causal, None, 3, LENGTH, LENGTH)
        longer = ours.create_block_mask(causal, None, None, LENGTH, 2 * LENGTH)
        gqa = {"enable_gqa": True}
        cases = [
            ((q.tolist(), k, v), gqa, TypeError, "query is a 'list'; expected a tensor"),
            ((q[0], k, v), gqa, ValueError, "query has 3 dimensions; expected 4"),
            ((q, k.to("meta"), v), gqa, ValueError, "key is on meta and query on cpu; expected one device"),
            ((q, k.half(), v), gqa, ValueError, "key has elements of type torch.float16 and query of torch.float32"),
            ((q.double(), k.double(), v.double()), gqa, TypeError, "query has elements of type torch.float64"),
            ((q.to("meta"), k.to("meta"), v.to("meta")), gqa, NotImplementedError, "query is on meta"),
            ((q[..., :8], k, v), gqa, ValueError, "query has 8 columns and key 16; expected as many"),
            ((q, k, v[:, :, :9]), gqa, ValueError, "key has shape (2, 2, 256, 16) and value (2, 2, 9, 16)"),
            ((torch.cat([q, q]), k, v), gqa, ValueError, "key has batch 2 and query 4"),
            ((q, k, v), {}, ValueError, "query has 4 heads and key 2; expected as many, or enable_gqa=True"),
            ((q[:, :3], k, v), gqa, ValueError, "query has 3 heads and key 2; expected a multiple"),
            ((q, k, v), gqa | {"block_mask": longer}, ValueError, "block_mask is for 256 queries and 512 keys"),
            ((q, k, v), gqa | {"block_mask": mask}, ValueError, "block_mask is for batch 3, query has 2"),
            ((q, k, v), gqa | {"block_mask": head_mask}, ValueError, "block_mask is for 3 heads, query has 4"),
            ((q, k, v), gqa | {"block_mask": 3}, TypeError, "block_mask is a 'int'"),
            ((q, k, v), gqa | {"score_mod": 3}, TypeError, "a mask or score function is a 'int'"),
            ((q, k, v), gqa | {"return_lse": True, "return_aux": ours.AuxRequest(lse=True)}, ValueError,
             "return_lse and return_aux are both given"),
        ]
        for tensors, keywords, kind, message in cases:
            with self.subTest(message), self.assertRaisesRegex(kind, re.escape(message)):
                ours.flex_attention(*tensors, **keywords)

    def test_of_captures_elsewhere(self):
        q, k, v = random_tensors()
        bias = torch.zeros(HEADS, device="meta")
        with self.assertRaisesRegex(ValueError, "a captured tensor of shape .* is on meta and query on cpu"):
            ours.flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + bias[h], enable_gqa=True)

    def test_of_masks(self):
        for arguments, kind, message in [
                ((causal, 1, 1, -1, 8), ValueError, "Q_LEN is -1; expected an int of 0 or more"),
                ((causal, 1, 1, 8, "8"), ValueError, "KV_LEN is '8'"),
                ((causal, 1, 1, 8, 8, "cpu", 0), ValueError, "BLOCK_SIZE is 0; expected a positive int or two of them"),
                ((None, 1, 1, 8, 8), TypeError, "a mask or score function is a 'NoneType'"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(kind, re.escape(message)):
                ours.create_block_mask(*arguments)
        with self.assertRaisesRegex(RuntimeError, "and_masks got a 'int'; expected mask functions"):
            ours.and_masks(causal, 3)
        with self.assertRaisesRegex(RuntimeError, "block mask 999999 is gone"):
            ours._ops.by_token(torch.tensor(999999))

    def test_of_functions(self):
        ids, doubles = torch.zeros(LENGTH, dtype=torch.int64), torch.zeros(4, dtype=torch.float64)
        cases = [
            (lambda b, h, q, kv: torch.cumsum(q, 0) > kv, "'cumsum' is a scan along the keys"),
            (lambda b, h, q, kv: torch.softmax(q, 0) > kv, "'softmax' needs the whole row"),
            (lambda b, h, q, kv: torch.rand_like(q) > kv, "'rand_like' has a hidden state"),
            (lambda b, h, q, kv: q.tril() > kv, "'tril' has no translation"),
            (lambda b, h, q, kv: q.detach() > kv, "'detach' of a traced value has no translation"),
            (lambda b, h, q, kv: q.item() > kv, "'item' has no translation"),
            (lambda b, h, q, kv: q.to(torch.float64) > kv, "a value is converted to torch.float64"),
            (lambda b, h, q, kv: (q * 0.5).to(torch.int8) > kv, "a float is converted to torch.int8"),
            (lambda b, h, q, kv: torch.div(q, 2, rounding_mode="trunc") > kv,
             "rounding_mode='trunc' has no translation"),
            (lambda b, h, q, kv: q.new_ones((2,)) > kv, "an array of shape (2,) is made for each pair"),
            (lambda b, h, q, kv: ids > kv, "'ids' has 1 dimension, 0 indices given"),
            (lambda b, h, q, kv: ids[q, kv] > 0, "'ids' has 1 dimension, 2 indices given"),
            (lambda b, h, q, kv: doubles[q] > kv, "a captured array has elements of type torch.float64"),
            (lambda b, h, q, kv: torch.exp(q * 0.1) > kv, "'exp' of a float in a mask"),
        ]
        for function, message in cases:
            with self.subTest(message), self.assertRaises(cpflex.TranslationError) as caught:
                ours.create_block_mask(function, None, None, LENGTH, LENGTH)
            self.assertIn(message, str(caught.exception))
            self.assertRegex(str(caught.exception), r"torch_refusals\.py:\d+:(\d+:)? error: ")


if __name__ == "__main__":
    unittest.main()
