# The kinds of mask and score functions that attention-gym collects, written anew for these tests: the same BlockMask as
# PyTorch's create_block_mask, tile by tile, and the same output as its flex_attention.
import unittest
import warnings

import torch
from torch.nn.attention import flex_attention as pytorch

from cpflex import torch as ours

warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")

LENGTH, HEADS = 512, 4


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def make_sliding_window(window_size):
    def sliding_window(b, h, q_idx, kv_idx):
        is_causal = q_idx >= kv_idx
        is_near = q_idx - kv_idx <= window_size
        return is_causal & is_near

    sliding_window.__name__ = f"sliding_window_{window_size}"
    return sliding_window


def make_dilated_window(window_size, dilation):
    def dilated_window(b, h, q_idx, kv_idx):
        distance = q_idx - kv_idx
        is_in_step = (distance % dilation) == 0
        return (distance.abs() <= window_size) & is_in_step & (distance >= 0)

    return dilated_window


def make_prefix_lm(prefix_length):
    def prefix(b, h, q_idx, kv_idx):
        return kv_idx < prefix_length

    return pytorch.or_masks(prefix, causal)


def make_batched_prefix_lm(prefix_lengths):
    return pytorch.or_masks(lambda b, h, q_idx, kv_idx: kv_idx < prefix_lengths[b], causal)


def make_documents(inner, offsets):
    lengths = offsets[1:] - offsets[:-1]
    document_id = torch.repeat_interleave(torch.arange(len(lengths)), lengths)

    def documents(b, h, q_idx, kv_idx):
        is_same = document_id[q_idx] == document_id[kv_idx]
        q_logical = q_idx - offsets[document_id[q_idx]]
        kv_logical = kv_idx - offsets[document_id[kv_idx]]
        return is_same & inner(b, h, q_logical, kv_logical)

    return documents


def make_natten(width, height, kernel_width, kernel_height):
    def coordinates(index):
        return index % width, index // width

    def natten(b, h, q_idx, kv_idx):
        q_x, q_y = coordinates(q_idx)
        kv_x, kv_y = coordinates(kv_idx)
        center_x = q_x.clamp(kernel_width // 2, (width - 1) - kernel_width // 2)
        center_y = q_y.clamp(kernel_height // 2, (height - 1) - kernel_height // 2)
        return ((center_x - kv_x).abs() <= kernel_width // 2) & ((center_y - kv_y).abs() <= kernel_height // 2)

    return natten


def make_sliding_tiles(width, height, tile, kernel):
    def tile_of(index):
        tile_id = index // (tile * tile)
        return tile_id // (width // tile), tile_id % (width // tile)

    def sliding_tiles(b, h, q_idx, kv_idx):
        q_row, q_column = tile_of(q_idx)
        kv_row, kv_column = tile_of(kv_idx)
        row = torch.clamp(q_row, kernel // 2, height // tile - 1 - kernel // 2)
        column = torch.clamp(q_column, kernel // 2, width // tile - 1 - kernel // 2)
        return torch.logical_and(torch.abs(row - kv_row) <= kernel // 2, torch.abs(column - kv_column) <= kernel // 2)

    return sliding_tiles


def make_cross_attention(image_of_text):
    def cross(b, h, q_idx, kv_idx):
        return image_of_text[b, q_idx] == kv_idx // 64

    return cross


def make_transfusion(begins, lengths):
    def transfusion(b, h, q_idx, kv_idx):
        result = q_idx >= kv_idx
        for span in range(begins.shape[1]):
            begin, end = begins[b, span], begins[b, span] + lengths[b, span]
            result = result | ((q_idx >= begin) & (q_idx < end) & (kv_idx >= begin) & (kv_idx < end))
        return result

    return transfusion


def make_global_tokens(num_global, window_size):
    def is_global(b, h, q_idx, kv_idx):
        return torch.minimum(q_idx, kv_idx) < num_global

    return ours.or_masks(is_global, make_sliding_window(window_size))


def make_block_diffusion(length, block):
    def block_diffusion(b, h, q_idx, kv_idx):
        q_is_clean, kv_is_clean = q_idx >= length, kv_idx >= length
        q_block = torch.where(q_is_clean, q_idx - length, q_idx) // block
        kv_block = torch.where(kv_is_clean, kv_idx - length, kv_idx) // block
        diagonal = (q_block == kv_block) & (q_is_clean == kv_is_clean)
        offset = (q_block > kv_block) & kv_is_clean & ~q_is_clean
        block_causal = (q_block >= kv_block) & kv_is_clean & q_is_clean
        return diagonal | offset | block_causal

    return block_diffusion


def make_padding(lengths):
    return lambda b, h, q_idx, kv_idx: (kv_idx < lengths[b]) & (q_idx < lengths[b])


def make_random_blocks(chosen):
    return lambda b, h, q_idx, kv_idx: chosen[h, q_idx // 64, kv_idx // 64]


def make_head_windows(windows):
    return lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < windows[h])


def make_alibi(heads):
    def alibi(score, b, h, q_idx, kv_idx):
        scale = torch.exp2(-((h + 1) * 8.0 / heads))
        return score + (kv_idx - q_idx) * scale

    return alibi


def make_soft_cap(cap):
    def soft_cap(score, b, h, q_idx, kv_idx):
        score = score / cap
        score = torch.tanh(score)
        return score * cap

    return soft_cap


def make_relative_bias(table, reach):
    return lambda score, b, h, q_idx, kv_idx: score + table[h][(q_idx - kv_idx).clamp(-reach, reach) + reach]


def make_checkerboard(factor):
    def checkerboard(score, b, h, q_idx, kv_idx):
        score = torch.where(torch.abs(kv_idx - q_idx) % 2 == 1, score * 0.5, score)
        return torch.where(torch.abs(kv_idx - q_idx) % 2 == 0, score * factor, score)

    return checkerboard


def make_distance_decay(rate):
    return lambda score, b, h, q_idx, kv_idx: score - rate * torch.log1p((q_idx - kv_idx).abs().float())


def make_per_token_scale(scales):
    return lambda score, b, h, q_idx, kv_idx: score * scales[b, q_idx]


def make_attend_only(keys):
    return lambda score, b, h, q_idx, kv_idx: torch.where(keys[kv_idx], score, float("-inf"))


generator = torch.Generator().manual_seed(0)
OFFSETS, PADDED = torch.tensor([0, 100, 130, 384, 512]), torch.tensor([300, 512])
SPANS = torch.tensor([[10, 200], [128, 300]]), torch.tensor([[50, 70], [128, 9]])
MASKS = {
    "no mask": (pytorch.noop_mask, None, None),
    "causal": (causal, None, None),
    "sliding window": (make_sliding_window(100), None, None),
    "dilated window": (make_dilated_window(200, 3), None, None),
    "prefix": (make_prefix_lm(170), None, None),
    "prefix per batch": (make_batched_prefix_lm(torch.tensor([40, 300])), 2, None),
    "documents": (make_documents(causal, OFFSETS), None, None),
    "windows in documents": (make_documents(make_sliding_window(20), OFFSETS), None, None),
    "natten": (make_natten(32, 16, 7, 5), None, None),
    "sliding tiles": (make_sliding_tiles(32, 16, 4, 3), None, None),
    "cross attention": (make_cross_attention(torch.arange(LENGTH).repeat(2, 1) // 90), 2, None),
    "transfusion": (make_transfusion(*SPANS), 2, None),
    "global tokens": (make_global_tokens(5, 64), None, None),
    "block diffusion": (make_block_diffusion(256, 32), None, None),
    "padding": (make_padding(PADDED), 2, None),
    "random blocks": (make_random_blocks(torch.rand(HEADS, 8, 8, generator=generator) > 0.5), None, HEADS),
    "a window per head": (make_head_windows(torch.tensor([1, 50, 200, 512])), None, HEADS),
    "and, or": (ours.or_masks(ours.and_masks(causal, make_padding(PADDED)), make_prefix_lm(9)), 2, None),
}
SCORES = {
    "alibi": make_alibi(HEADS),
    "soft cap": make_soft_cap(3),
    "relative bias": make_relative_bias(torch.randn(HEADS, 65, generator=generator), 32),
    "checkerboard": make_checkerboard(1.5),
    "distance decay": make_distance_decay(0.3),
    "scale per token": make_per_token_scale(torch.rand(2, LENGTH, generator=generator)),
    "attend only": make_attend_only(torch.rand(LENGTH, generator=generator) > 0.3),
}


def rows_of(counts, indices):
    """The listed columns of every row; what lies beyond a row's count means nothing."""
    return [sorted(row[:count].tolist()) for row, count in zip(indices.flatten(0, 2), counts.flatten())]


class Gym(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.tensors = [torch.randn(2, HEADS, LENGTH, 16) for _ in range(3)]

    def test_block_masks(self):
        """Covers: BlockMask equal to PyTorch's tile by tile."""
        for name, (mask_mod, batch, heads) in MASKS.items():
            for block_size in (128, (64, 128)):
                with self.subTest(name, block_size=block_size):
                    theirs = pytorch.create_block_mask(mask_mod, batch, heads, LENGTH, LENGTH, "cpu", block_size)
                    mine = ours.create_block_mask(mask_mod, batch, heads, LENGTH, LENGTH, "cpu", block_size)
                    self.assertEqual(mine.shape, theirs.shape)
                    self.assertEqual(mine.BLOCK_SIZE, theirs.BLOCK_SIZE)
                    self.assertAlmostEqual(mine.sparsity(), theirs.sparsity(), places=4)
                    for kind in ("kv", "full_kv", "q", "full_q"):
                        counts, indices = f"{kind}_num_blocks", f"{kind}_indices"
                        self.assertEqual(rows_of(getattr(mine, counts), getattr(mine, indices)),
                                         rows_of(getattr(theirs, counts), getattr(theirs, indices)), kind)

    def test_outputs(self):
        for name, (mask_mod, batch, heads) in MASKS.items():
            with self.subTest(name):
                theirs = pytorch.create_block_mask(mask_mod, batch, heads, LENGTH, LENGTH, "cpu")
                mine = ours.create_block_mask(mask_mod, batch, heads, LENGTH, LENGTH)
                expected, lse = pytorch.flex_attention(*self.tensors, block_mask=theirs, return_lse=True)
                for mask in (mine, theirs, mine.to("cpu")):
                    actual = ours.flex_attention(*self.tensors, block_mask=mask, return_lse=True)
                    torch.testing.assert_close(actual[0], expected, atol=1e-5, rtol=1e-5)
                    torch.testing.assert_close(actual[1], lse, atol=1e-5, rtol=1e-5)

    def test_scores(self):
        theirs = pytorch.create_block_mask(causal, None, None, LENGTH, LENGTH, "cpu")
        for name, score_mod in SCORES.items():
            with self.subTest(name):
                expected = pytorch.flex_attention(*self.tensors, score_mod=score_mod, block_mask=theirs)
                actual = ours.flex_attention(*self.tensors, score_mod=score_mod, block_mask=theirs)
                torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    def test_our_mask_runs_in_pytorch(self):
        """Covers: BlockMask to and from PyTorch's."""
        mask_mod = MASKS["windows in documents"][0]
        mine = ours.create_block_mask(mask_mod, None, None, LENGTH, LENGTH)
        expected = ours.flex_attention(*self.tensors, block_mask=mine)
        actual = pytorch.flex_attention(*self.tensors, block_mask=mine.to_torch())
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    def test_tiles_that_no_function_gives_are_kept(self):
        """Covers: BlockMask.from_kv_blocks with tiles of the user's own."""
        chosen = torch.tensor([[0, 2, 0, 0], [1, 0, 0, 0], [3, 2, 1, 0], [0, 0, 0, 0]], dtype=torch.int32)[None, None]
        counts = torch.tensor([2, 1, 3, 0], dtype=torch.int32)[None, None]
        theirs = pytorch.BlockMask.from_kv_blocks(counts, chosen, mask_mod=causal, seq_lengths=(LENGTH, LENGTH))
        q, k, v = self.tensors
        allowed = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
        for row, count in enumerate(counts.flatten().tolist()):
            for column in chosen[0, 0, row, :count].tolist():
                allowed[row * 128:(row + 1) * 128, column * 128:(column + 1) * 128] = True
        allowed &= torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        scores = (q @ k.mT / 4).masked_fill(~allowed, -torch.inf)
        expected = torch.nan_to_num(torch.softmax(scores, -1)) @ v
        torch.testing.assert_close(ours.flex_attention(q, k, v, block_mask=theirs), expected, atol=1e-5, rtol=1e-5)

    def test_masks_tell_about_themselves(self):
        mask = ours.create_block_mask(causal, None, None, LENGTH, LENGTH)
        self.assertEqual(mask.seq_lengths, (LENGTH, LENGTH))
        self.assertEqual(mask.numel(), LENGTH * LENGTH)
        self.assertEqual(mask.to_dense().tolist(), [[torch.ones(4, 4, dtype=torch.int32).tril().tolist()]])
        self.assertIn("partial", mask.to_string())
        self.assertEqual(repr(mask), "BlockMask(shape=(1, 1, 512, 512), sparsity=37.50%)")
        self.assertIn("</svg>", mask._repr_svg_())
        with self.assertRaisesRegex(AttributeError, "'BlockMask' object has no attribute 'other'"):
            mask.other


if __name__ == "__main__":
    unittest.main()
