"""Mask and score functions as PyTorch users write them: factories whose inner functions close over numbers and tensors."""
import math

import torch
from torch import Tensor


def causal_mask(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def generate_sliding_window(window_size: int):
    def sliding_window(b, h, q_idx, kv_idx):
        causal = q_idx >= kv_idx
        windowed = q_idx - kv_idx <= window_size
        return causal & windowed

    return sliding_window


def generate_dilated_sliding_window(window_size: int, dilation: int):
    def dilated_sliding_window(b, h, q_idx, kv_idx):
        diff = torch.abs(q_idx - kv_idx)
        in_window = diff <= window_size
        is_dilated = (diff % dilation) == 0
        return in_window & is_dilated

    return dilated_sliding_window


def generate_prefix_lm_mask(prefix_length: int):
    def prefix_mask(b, h, q_idx, kv_idx):
        return kv_idx < prefix_length

    def prefix_lm(b, h, q_idx, kv_idx):
        return prefix_mask(b, h, q_idx, kv_idx) | causal_mask(b, h, q_idx, kv_idx)

    return prefix_lm


def generate_doc_mask(offsets: Tensor, document_id: Tensor):
    def doc_mask(b, h, q_idx, kv_idx):
        same_doc = document_id[q_idx] == document_id[kv_idx]
        q_logical = q_idx - offsets[document_id[q_idx]]
        kv_logical = kv_idx - offsets[document_id[kv_idx]]
        return same_doc & causal_mask(b, h, q_logical, kv_logical)

    return doc_mask


def generate_packed_causal(doc_start: Tensor):
    def packed_causal(b, h, q_idx, kv_idx):
        return (kv_idx >= doc_start[q_idx]) & (kv_idx <= q_idx)

    return packed_causal


def generate_natten(canvas_w: int, canvas_h: int, kernel: int):
    def get_x_y(idx):
        return idx % canvas_w, idx // canvas_w

    def natten(b, h, q_idx, kv_idx):
        q_x, q_y = get_x_y(q_idx)
        kv_x, kv_y = get_x_y(kv_idx)
        center_x = q_x.clamp(kernel // 2, (canvas_w - 1) - kernel // 2)
        center_y = q_y.clamp(kernel // 2, (canvas_h - 1) - kernel // 2)
        hori = (center_x - kv_x).abs() <= kernel // 2
        vert = (center_y - kv_y).abs() <= kernel // 2
        return hori & vert

    return natten


def generate_tiled_natten(canvas_w: int, canvas_h: int, kernel: int, tile_w: int, tile_h: int):
    def position(idx):
        tile_id = idx // (tile_w * tile_h)
        offset = idx % (tile_w * tile_h)
        tiles_in_row = canvas_w // tile_w
        x = (tile_id % tiles_in_row) * tile_w + offset % tile_w
        y = (tile_id // tiles_in_row) * tile_h + offset // tile_w
        return x, y

    def tiled_natten(b, h, q_idx, kv_idx):
        q_x, q_y = position(q_idx)
        kv_x, kv_y = position(kv_idx)
        x = torch.clamp(q_x, min=kernel // 2, max=canvas_w - 1 - kernel // 2)
        y = torch.clamp(q_y, min=kernel // 2, max=canvas_h - 1 - kernel // 2)
        return ((x - kv_x).abs() <= kernel // 2) & ((y - kv_y).abs() <= kernel // 2)

    return tiled_natten


def generate_spatial_head(prompt_length: int, token_per_frame: int, width: int):
    limit = width * token_per_frame // 128 * 128

    def spatial_head(b, h, q_idx, kv_idx):
        first = (kv_idx < prompt_length) | (q_idx < prompt_length)
        return first | (torch.abs(q_idx - kv_idx) < limit)

    return spatial_head


def generate_shared_prefix(offsets: Tensor, document_id: Tensor, prefix_of: Tensor):
    def shared_prefix(b, h, q_idx, kv_idx):
        doc = document_id[q_idx]
        prefix = prefix_of[doc]
        own = torch.logical_and(kv_idx >= offsets[doc], kv_idx <= q_idx)
        shared = (doc != prefix) & (kv_idx >= offsets[prefix]) & (kv_idx < offsets[prefix + 1])
        return torch.logical_or(own, shared)

    return shared_prefix


def generate_global_sliding_window(is_global: Tensor, window: int):
    def global_sliding_window(b, h, q_idx, kv_idx):
        local = torch.abs(q_idx - kv_idx) <= window
        return local | is_global[q_idx] | is_global[kv_idx]

    return global_sliding_window


def generate_selected_tiles(block_map: Tensor, tile: int):
    def selected_tiles(b, h, q_idx, kv_idx):
        return block_map[b, h, q_idx // tile, kv_idx // tile]

    return selected_tiles


def generate_paged(physical_to_logical: Tensor, page_size: int, q_offset: int):
    def paged(b, h, q_idx, kv_idx):
        logical = physical_to_logical[b, kv_idx // page_size] * page_size + kv_idx % page_size
        return torch.where(physical_to_logical[b, kv_idx // page_size] >= 0, logical <= q_idx + q_offset, False)

    return paged


def generate_alibi_bias(num_heads: int):
    def alibi_mod(score, b, h, q_idx, kv_idx):
        scale = torch.exp2(-((h + 1) * 8.0 / num_heads))
        bias = (kv_idx - q_idx) * scale
        return score + bias

    return alibi_mod


def generate_tanh_softcap(soft_cap: float):
    def tanh_softcap(score, b, h, q_idx, kv_idx):
        return soft_cap * torch.tanh(score / soft_cap)

    return tanh_softcap


def generate_activation(offset: float):
    def activation(score, b, h, q_idx, kv_idx):
        return torch.log(torch.maximum(score, torch.zeros_like(score)) + offset)

    return activation


def generate_relative_bias(bias: Tensor, radius: int):
    def relative_bias(score, b, h, q_idx, kv_idx):
        return score + bias[h, torch.clamp(q_idx - kv_idx, -radius, radius) + radius]

    return relative_bias


def generate_causal_with_penalty(penalty: float):
    def causal_with_penalty(score, b, h, q_idx, kv_idx):
        score = score - penalty * (q_idx - kv_idx).to(torch.float32) / math.sqrt(64)
        return torch.where(q_idx >= kv_idx, score, -float("inf"))

    return causal_with_penalty
