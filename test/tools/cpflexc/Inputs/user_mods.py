"""Masks and score functions in the styles that users of PyTorch write: factories, partial, lambdas, defaults, combinations."""
import functools
import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import and_masks, or_masks

WINDOW = 256
SINK_TOKENS = 4
NEG_INF = float("-inf")


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def generate_doc_mask_mod(mask_mod, offsets: Tensor):
    document_id = offsets_to_ids(offsets)

    def doc_mask_mod(b, h, q_idx, kv_idx):
        same_doc = document_id[q_idx] == document_id[kv_idx]
        q_logical = q_idx - offsets[document_id[q_idx]]
        kv_logical = kv_idx - offsets[document_id[kv_idx]]
        return same_doc & mask_mod(b, h, q_logical, kv_logical)

    return doc_mask_mod


def generate_softcap(soft_cap: int, approx: bool = False):
    tanh = torch.tanh

    def softcap(score, b, h, q_idx, kv_idx):
        return soft_cap * tanh(score / soft_cap)

    softcap.__name__ = f"softcap_{soft_cap}" if approx else "softcap"
    return softcap


def streaming(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, window: int = WINDOW) -> Tensor:
    """A window and sinks."""
    return (0 <= q_idx - kv_idx) & (q_idx - kv_idx < window) | (kv_idx < SINK_TOKENS)


def _windowed(width, b, h, q_idx, kv_idx):
    return torch.abs(q_idx - kv_idx) <= width


near = partial(_windowed, 128)


def _decayed(score, b, h, q_idx, kv_idx, rate):
    return score - rate * torch.abs(q_idx - kv_idx)


decayed = functools.partial(_decayed, rate=math.log(2.0))


def generate_prefix(prefix_lens: Tensor, n: int):
    limit = prefix_lens.max().item()
    last = n - 1

    def prefix_mask(b, h, q_idx, kv_idx):
        in_prefix = kv_idx < prefix_lens[b]
        return torch.logical_or(in_prefix, q_idx >= kv_idx) & (0 <= kv_idx <= last) & (kv_idx < limit)

    return prefix_mask


def generate_learned(tau, table):
    max_d = table.shape[1] // 2

    def learned(score, b, h, q_idx, kv_idx):
        rel = torch.clamp(q_idx - kv_idx, -max_d, max_d) + max_d
        s = score * tau[h] + table[h, rel]
        s = torch.where(torch.abs(q_idx - kv_idx) > 128, s - torch.maximum(torch.exp(-tau[h]), torch.tensor(0.1)), s)
        return torch.where(q_idx >= kv_idx, torch.tanh(s), NEG_INF)

    return learned


prefix = lambda b, h, q, kv: kv <= WINDOW


def generate_lambda(width):
    return lambda b, h, q, kv: abs(q - kv) < width


def local(b, h, q_idx, kv_idx):
    return q_idx - kv_idx <= WINDOW


local_causal = and_masks(causal, local)


def generate_global(first: int):
    def is_first(b, h, q_idx, kv_idx):
        return kv_idx < first

    combined = or_masks(is_first, local_causal)
    return combined


def generate_tree(tree, P):
    n = tree.size(0)

    def tree_mask(b, h, q_idx, kv_idx):
        inside = kv_idx >= P
        return torch.where(inside, tree[q_idx, torch.clamp(kv_idx - P, 0, n - 1)], True)

    return tree_mask


def generate_modalities(modalities):
    modalities = modalities.long()

    def modality_mask(b, h, q_idx, kv_idx):
        mask = q_idx >= kv_idx
        for _, offset, length in modalities[b]:
            mask = mask | ((q_idx >= offset) & (kv_idx < (offset + length)))
        return mask

    return modality_mask
