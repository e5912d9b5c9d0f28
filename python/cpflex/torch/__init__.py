"""FlexAttention's functions on cpflex's kernels: `flex_attention`, `create_block_mask`, `and_masks`, `or_masks`.

    from cpflex.torch import create_block_mask, flex_attention

    block_mask = create_block_mask(mask_mod, None, None, length, length)
    out = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask)

The functions may be those written for `torch.nn.attention.flex_attention`, unchanged. `program` brings a `.cpf`
program. """
import weakref

import torch
from torch.nn.attention import flex_attention as _pytorch

from cpflex._value import TranslationError
from cpflex.torch import _calls, _ops, _translate
from cpflex.torch._block_mask import BlockMask, create_block_mask
from cpflex.torch._translate import BoundProgram, program

AuxRequest, AuxOutput = getattr(_pytorch, "AuxRequest", None), getattr(_pytorch, "AuxOutput", None)
noop_mask = _pytorch.noop_mask


def _combined(mask_mods, name):
    for mask_mod in mask_mods:
        if not callable(mask_mod):
            raise RuntimeError(f"{name} got a '{type(mask_mod).__name__}'; expected mask functions")
    return mask_mods


def and_masks(*mask_mods):
    """The mask of pairs that every one of `mask_mods` allows."""
    return _pytorch.and_masks(*_combined(mask_mods, "and_masks"))


def or_masks(*mask_mods):
    """The mask of pairs that at least one of `mask_mods` allows."""
    return _pytorch.or_masks(*_combined(mask_mods, "or_masks"))


# torch.compile calls these while it traces, and takes what they give as constants and as inputs of the graph.


@torch._dynamo.assume_constant_result
def _score_index(score_mod, scale):
    return _translate.score_of(score_mod, scale)[0].index


@torch._dynamo.assume_constant_result
def _num_captures(score_mod, scale):
    return len(_translate.score_of(score_mod, scale)[1])


@torch._dynamo.assume_constant_result
def _capture(score_mod, scale, place):
    return _translate.score_of(score_mod, scale)[1][place]


def _check(query, key, value, block_mask, enable_gqa):
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a '{type(tensor).__name__}'; expected a tensor")
        if tensor.dim() != 4:
            raise ValueError(f"{name} has {tensor.dim()} dimensions; expected 4: batch, head, position and column")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} and query on {query.device}; expected one device")
        if tensor.dtype != query.dtype:
            raise ValueError(
                f"{name} has elements of type {tensor.dtype} and query of {query.dtype}; expected one type")
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"query has elements of type {query.dtype}; expected float32, bfloat16 or float16")
    if query.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(f"query is on {query.device}; expected the CPU or a CUDA device")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"query has {query.shape[3]} columns and key {key.shape[3]}; expected as many")
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}; expected the same batch, "
                         "heads and length")
    if key.shape[0] not in (query.shape[0], 1):
        raise ValueError(
            f"key has batch {key.shape[0]} and query {query.shape[0]}; expected the same, or 1 for key and value")
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads != kv_heads and not enable_gqa:
        raise ValueError(f"query has {heads} heads and key {kv_heads}; expected as many, or enable_gqa=True")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query has {heads} heads and key {kv_heads}; expected a multiple")
    if block_mask is not None:
        batch, mask_heads, q_len, kv_len = block_mask.shape
        if (q_len, kv_len) != (query.shape[2], key.shape[2]):
            raise ValueError(f"block_mask is for {q_len} queries and {kv_len} keys, the call has {query.shape[2]} and "
                             f"{key.shape[2]}; make it for these lengths")
        if batch not in (1, query.shape[0]):
            raise ValueError(f"block_mask is for batch {batch}, query has {query.shape[0]}; expected the same or 1")
        if mask_heads not in (1, heads):
            raise ValueError(f"block_mask is for {mask_heads} heads, query has {heads}; expected as many or 1")


def _own(block_mask):
    """A cpflex BlockMask for what the caller gave."""
    if isinstance(block_mask, BlockMask):
        return block_mask
    if isinstance(block_mask, _pytorch.BlockMask):
        own = getattr(block_mask, "_cpflex", None)
        if own is None:
            own = block_mask._cpflex = BlockMask.from_torch(block_mask)
        return own
    raise TypeError(f"block_mask is a '{type(block_mask).__name__}'; expected a BlockMask of cpflex or PyTorch")


def flex_attention(query, key, value, score_mod=None, block_mask=None, scale=None, enable_gqa=False, return_lse=False,
                   kernel_options=None, *, return_aux=None):
    """As FlexAttention's: attention of [B, H, S, D] tensors with `score_mod` on the pairs that `block_mask` allows.

    Gives the output, with `return_lse` also the log-sum-exp of each row, with `return_aux` an AuxOutput. Gradients flow
    to query, key, value, the log-sum-exp and captured tensors. `kernel_options` has no meaning here. A row without keys
    is 0 and its log-sum-exp -inf."""
    if return_lse and return_aux is not None:
        raise ValueError("return_lse and return_aux are both given; expected one of them")
    wants_row_max = return_aux is not None and return_aux.max_scores
    if torch.compiler.is_compiling():
        query, key, value = _prepared(query, key, value, block_mask, enable_gqa)
        if score_mod is None and block_mask is not None and isinstance(block_mask.mask_mod, BoundProgram):
            score_mod = block_mask.mask_mod
        score = _score_index(score_mod, scale)
        captures = [_capture(score_mod, scale, place) for place in range(_num_captures(score_mod, scale))]
        out, lse, row_max = _ops.attend(query, key, value, captures, score, block_mask, wants_row_max)
    else:
        out, lse, row_max = _eager(query, key, value, score_mod, block_mask, scale, enable_gqa, wants_row_max)
    if return_aux is not None:
        return out, AuxOutput(lse=lse if return_aux.lse else None, max_scores=row_max if wants_row_max else None)
    return (out, lse) if return_lse else out


_ready = {}  # calls that went through before, by the form of their arguments
MAX_READY = 1024


def _eager(query, key, value, score_mod, block_mask, scale, enable_gqa, wants_row_max):
    form, is_recording = None, torch.is_grad_enabled()
    if (type(query) is type(key) is type(value) is torch.Tensor and not torch._C._is_any_autocast_enabled()
            and not torch._C._len_torch_dispatch_stack()):
        requires_gradient = is_recording and (query.requires_grad or key.requires_grad or value.requires_grad)
        form = (query.shape, query.stride(), key.shape, key.stride(), value.shape, value.stride(), query.dtype,
                key.dtype, value.dtype, query.device, key.device, value.device, id(score_mod), id(block_mask), scale,
                enable_gqa, wants_row_max, is_recording, requires_gradient)
        ready = _ready.get(form)
        if ready is not None and ready[0]() is score_mod and ready[1]() is block_mask and ready[2].fits():
            return ready[2](query, key, value)
    given_mask, given_score = block_mask, score_mod
    if block_mask is not None:
        block_mask = _own(block_mask)
    q, k, v = _prepared(query, key, value, block_mask, enable_gqa)
    if score_mod is None and block_mask is not None and isinstance(block_mask.mask_mod, BoundProgram):
        score_mod = block_mask.mask_mod
    score, captures = _translate.score_of(score_mod, scale)
    _check_captures(captures, q)
    if not _ops.is_plain(q, k, v):
        return _ops.attend(q, k, v, captures, score.index, block_mask, wants_row_max)
    needs_gradient = is_recording and any(tensor.requires_grad for tensor in (q, k, v, *captures))
    launch, call, bound = _calls.launch(q, k, v, captures, score, block_mask, wants_row_max, needs_gradient)
    ready = _ops.Ready(launch, score, block_mask, call, bound, captures, needs_gradient)
    if form is not None and q is query and k is key and v is value and all(
            trace.is_repeatable for trace in ready.traces):
        if len(_ready) >= MAX_READY:
            _ready.clear()
        _ready[form] = (_reference(given_score, form), _reference(given_mask, form), ready)
    return ready(q, k, v)


def _check_captures(captures, q):
    for tensor in captures:
        if tensor.device != q.device:
            raise ValueError(f"a captured tensor of shape {tuple(tensor.shape)} is on {tensor.device} and query on "
                             f"{q.device}; expected one device")


def _reference(thing, form):
    """A reference that takes the call with it when `thing` is deleted."""
    return _nothing if thing is None else weakref.ref(thing, lambda _: _ready.pop(form, None))


def _nothing():
    return None


def _prepared(query, key, value, block_mask, enable_gqa):
    """The tensors checked, in autocast's type, with one batch and a dense last axis."""
    _check(query, key, value, block_mask, enable_gqa)
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    if key.shape[0] != query.shape[0]:
        key, value = key.expand(query.shape[0], -1, -1, -1), value.expand(query.shape[0], -1, -1, -1)
    return _dense(query), _dense(key), _dense(value)


def _dense(tensor):
    """A tensor whose last axis lies dense in memory."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


__all__ = ["AuxOutput", "AuxRequest", "BlockMask", "BoundProgram", "TranslationError", "and_masks", "create_block_mask",
           "flex_attention", "noop_mask", "or_masks", "program"]
