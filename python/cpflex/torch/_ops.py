# Attention as operators of PyTorch: what torch.compile, fake tensors and autograd see. Eager calls take a shorter way
# to the same functions.
import torch

from cpflex.torch import _calls
from cpflex.torch._block_mask import NO_MASK, by_token
from cpflex.torch._translate import scores

@torch.library.custom_op("cpflex::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, captures: list[torch.Tensor], mask: torch.Tensor,
              score: int, row_max: bool, backward: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _calls.run_forward(q, k, v, captures, scores[score], by_token(mask), row_max, backward)


@attention.register_fake
def attention_fake(q, k, v, captures, mask, score, row_max, backward):
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return _calls.output_like(q, v.shape[3]), lse, q.new_empty(q.shape[:3] if row_max else (0,), dtype=torch.float32)


@torch.library.custom_op("cpflex::attention_backward", mutates_args=())
def attention_backward(d_out: torch.Tensor, d_lse: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                       out: torch.Tensor, lse: torch.Tensor, captures: list[torch.Tensor], mask: torch.Tensor,
                       score: int) -> list[torch.Tensor]:
    return _calls.run_backward(d_out, d_lse, q, k, v, out, lse, captures, scores[score], by_token(mask))


@attention_backward.register_fake
def attention_backward_fake(d_out, d_lse, q, k, v, out, lse, captures, mask, score):
    return [torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)] + [
        torch.empty(captures[place].shape, dtype=captures[place].dtype, device=q.device)
        for place in scores[score].gradient_places]


def dense(gradient):
    """A gradient whose last axis the kernels can read; `out.sum()` gives one of stride 0."""
    return gradient if gradient.stride(-1) == 1 and 0 not in gradient.stride() else gradient.contiguous()


def save(ctx, inputs, output):
    q, k, v, captures, mask, score, row_max, backward = inputs
    out, lse, _ = output
    ctx.save_for_backward(q, k, v, out, lse, mask, *captures)
    ctx.score = score


def differentiate(ctx, d_out, d_lse, d_row_max):
    q, k, v, out, lse, mask, *captures = ctx.saved_tensors
    d_out = torch.zeros_like(out) if d_out is None else dense(d_out)
    d_lse = torch.zeros_like(lse) if d_lse is None else dense(d_lse)
    d_q, d_k, d_v, *found = attention_backward(d_out, d_lse, q, k, v, out, lse, captures, mask, ctx.score)
    gradients = [None] * len(captures)
    for place, gradient in zip(scores[ctx.score].gradient_places, found):
        gradients[place] = gradient
    return d_q, d_k, d_v, gradients, None, None, None, None


attention.register_autograd(differentiate, setup_context=save)


class EagerAttention(torch.autograd.Function):
    """The operator's meaning without the dispatcher, for plain tensors outside of compiled code."""

    @staticmethod
    def forward(ctx, q, k, v, launch, score, block_mask, *captures):
        out, lse, row_max = launch(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse, *captures)
        ctx.score, ctx.block_mask = score, block_mask
        ctx.set_materialize_grads(False)
        if row_max is not None:
            ctx.mark_non_differentiable(row_max)
        return out, lse, row_max

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_lse, d_row_max):
        q, k, v, out, lse, *captures = ctx.saved_tensors
        d_out = torch.zeros_like(out) if d_out is None else dense(d_out)
        d_lse = None if d_lse is None else dense(d_lse)
        d_q, d_k, d_v, *found = _calls.run_backward(d_out, d_lse, q, k, v,
                                                    out, lse, captures, ctx.score, ctx.block_mask)
        gradients = [None] * len(captures)
        for place, gradient in zip(ctx.score.gradient_places, found):
            gradients[place] = gradient
        return d_q, d_k, d_v, None, None, None, *gradients


def is_plain(q, k, v):
    """Whether nothing but autograd has to see what is done with the tensors."""
    return type(q) is type(k) is type(v) is torch.Tensor and not torch._C._len_torch_dispatch_stack()


class Ready:
    """A call that was checked and prepared once, for the same functions and for tensors of the same form."""

    def __init__(self, launch, score, block_mask, call, captures, tensors, needs_gradient):
        self.launch, self.score, self.block_mask, self.needs_gradient = launch, score, block_mask, needs_gradient
        self.traces = [trace for trace in (score.trace, block_mask and block_mask.trace()) if trace is not None]
        self.tensors = tensors  # that the score captures
        self.flags = [tensor.requires_grad for tensor in tensors]
        self.captures = [(tensor, tensor.data_ptr()) for tensor in captures]
        self.versions = [(captures[place], _calls.version_of(captures[place])) for place in call.watched]

    def fits(self):
        """Whether closures and captured tensors are as they were."""
        for trace in self.traces:
            if not trace.is_current():
                return False
        for tensor, address in self.captures:
            if tensor.data_ptr() != address:
                return False
        for tensor, version in self.versions:
            if _calls.version_of(tensor) != version:
                return False
        return not self.tensors or self.flags == [tensor.requires_grad for tensor in self.tensors]

    def __call__(self, q, k, v):
        if self.needs_gradient:
            return EagerAttention.apply(q, k, v, self.launch, self.score, self.block_mask, *self.tensors)
        return self.launch(q, k, v)


def attend(q, k, v, captures, score, block_mask, wants_row_max):
    """(out, lse, row_max) of tensors, as an operator."""
    needs_gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad
                                                  or any([tensor.requires_grad for tensor in captures]))
    token = NO_MASK if block_mask is None else block_mask.token
    return attention(q, k, v, list(captures), token, score, wants_row_max, needs_gradient)
