# Shards on the CPU: every rank makes the same plan of the whole call and follows it, with messages through the process
# group.
import ctypes
import datetime
import time
import types
import weakref

import torch
import torch.distributed as dist

from cpflex import _library, _program
from cpflex import context_parallel as _native
from cpflex.torch import _calls, _ops, _translate

TAGS = 1 << 20  # of messages between two ranks, which come round
SHORTEST_WAIT = datetime.timedelta(milliseconds=1)  # that gloo takes for a time


class GroupTransport:
    """Point-to-point messages of a process group, tagged by their turn between two ranks."""

    def __init__(self, group):
        self.group, self.rank, self.world_size = group, dist.get_rank(group), dist.get_world_size(group)
        self.sent, self.received, self.pending = [0] * self.world_size, [0] * self.world_size, {}

    def start(self, ticket, messages):
        self.pending[ticket] = [self._begin(*message) for message in messages]

    def _begin(self, peer, is_send, address, size):
        turns = self.sent if is_send else self.received
        turns[peer] += 1
        memory = (ctypes.c_uint8 * max(size, 1)).from_address(address if size else ctypes.addressof(_NOTHING))
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        begin = dist.isend if is_send else dist.irecv
        # The work is kept with its buffer.
        return begin(buffer, dist.get_global_rank(self.group, peer), self.group, turns[peer] % TAGS), buffer, peer

    def wait(self, ticket, seconds):
        end = time.monotonic() + seconds
        for work, _, peer in self.pending.pop(ticket):
            left = max(datetime.timedelta(seconds=end - time.monotonic()), SHORTEST_WAIT)
            try:
                work.wait(left)
            except RuntimeError as error:
                if "imed out" not in str(error):
                    raise
                raise TimeoutError(f"rank {peer} is silent") from error


_NOTHING = ctypes.c_uint8(0)

_communicators = weakref.WeakKeyDictionary()  # by process group


def communicator_of(group):
    found = _communicators.get(group)
    if found is None:
        found = _communicators[group] = _native.Communicator.over(GroupTransport(group))
    return found


def native_layout(layout):
    """The layout as the planner knows it, kept with the caller's."""
    if getattr(layout, "_native", None) is None:
        layout._native = _native.Layout.of_positions([owned.numpy() for owned in layout.positions])
    return layout._native


class CallPlan(_native.Plan):
    """A plan of an executable that exists already."""

    def __init__(self, executable, layout):
        lib = _program.library()
        self.executable = executable
        options = _library.PlanOptions(world_size=layout.world_size, q_layout=layout._handle.address,
                                       has_exact_needs=1)
        self._handle = _library.Handle(lib, _program._new(lib.plan_create, executable.address, options), lib.plan_free)
        self.world_size, self.layout, self.kv_layout = layout.world_size, layout, layout


class CallRank(_native.Rank):
    """A rank of such a plan, with what its calls need to know of the score."""

    def __init__(self, plan, communicator, call, sources, deadline_seconds):
        super().__init__(plan, communicator, deadline_seconds=deadline_seconds, threads=torch.get_num_threads())
        self.call, self.sources = call, sources


def rank_of(q, k, v, layout, group, score_mod, block_mask, scale, deadline_seconds):
    """This rank of the plan for tensors of these shapes, kept as long as the call's executable."""
    score, tensors = _translate.score_of(score_mod, scale)
    call, sources = score.call(block_mask, layout.length, layout.length)
    # Only shapes and types of the whole tensors are read.
    whole = [x.new_empty(1).expand(*x.shape[:2], layout.length, x.shape[3]) for x in (q, k, v)]
    executable = call.executable(*whole, _calls.all_captures(sources, tensors), True)
    # A rank keeps its executable, so only the executable may keep the rank.
    ranks = executable.ranks
    key = (id(layout), id(group), deadline_seconds)
    found = ranks.get(key)
    if found is None or found[0]() is not layout or found[1]() is not group:
        for gone in [each for each, (layout_of, *_) in ranks.items() if layout_of() is None]:
            del ranks[gone]
        plan = CallPlan(executable, native_layout(layout))
        rank = CallRank(plan, communicator_of(group), call, sources, deadline_seconds)
        found = ranks[key] = (weakref.ref(layout), weakref.ref(group), rank)
    return found[2]


def layout_of(block_mask, world_size, kind):
    """The planner's layout for a block mask."""
    call, sources = _translate.score_of(
        block_mask.mask_mod if isinstance(block_mask.mask_mod, _translate.BoundProgram) else None, None)[0].call(
            block_mask, *block_mask.shape[2:])
    tensors = list(block_mask.mask_mod.tensors.values()) if isinstance(
        block_mask.mask_mod, _translate.BoundProgram) else []
    batch, heads, q_len, kv_len = block_mask.shape
    q, k = (torch.empty(1).expand(batch, heads, length, 64) for length in (q_len, kv_len))
    executable = call.executable(q, k, k, _calls.all_captures(sources, tensors), True)
    lib = _program.library()
    options = _library.PlanOptions(world_size=world_size, layout=kind.encode())
    plan = _library.Handle(lib, _program._new(lib.plan_create, executable.address, options), lib.plan_free)
    return _native.Layout(_program._new(lib.plan_layout, plan.address, 0))


def per_document(lengths, world_size):
    """Positions of each rank, head and tail inside each document."""
    native = _native.Layout.per_document(lengths, world_size)
    return [torch.from_numpy(native.positions(rank).copy()) for rank in range(world_size)]


def run_forward(rank, q, k, v):
    """(out, lse) of the rank's shards."""
    out = _calls.output_like(q, v.shape[3])
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    given = [_calls.array_bytes(tensor) for tensor in (q, k, v, out)]
    given.append(_calls.array_bytes(lse) if rank.call.has_softmax else _calls.EMPTY_ARRAY)
    tensors = _library.ForwardTensors.from_buffer_copy(b"".join(given) + _calls.EMPTY_ARRAY)
    rank._run(_program.library().rank_forward, tensors)
    return out, lse


def run_backward(rank, d_out, d_lse, q, k, v, out, lse, score, tensors):
    """[dq, dk, dv, *gradients of what the score captures, summed over the ranks]."""
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    arrays = [_calls.array_bytes(tensor) for tensor in (q, k, v, out, lse, d_out)]
    arrays += [_calls.EMPTY_ARRAY if d_lse is None else _calls.array_bytes(d_lse)]
    arrays += [_calls.array_bytes(tensor) for tensor in (d_q, d_k, d_v)]
    rest = bytes(ctypes.sizeof(_library.BackwardTensors) - len(arrays) * _calls.ARRAY.size)
    arguments = _library.BackwardTensors.from_buffer_copy(b"".join(arrays) + rest)
    gradients = _calls.give_gradients(arguments, rank.call, rank.sources, score, tensors, q.device)
    rank._run(_program.library().rank_backward, arguments)
    return [d_q, d_k, d_v] + [gradient.to(tensors[place].dtype)
                              for place, gradient in zip(score.gradient_places, gradients)]


class PlannedAttention(torch.autograd.Function):
    """Both passes of one rank."""

    @staticmethod
    def forward(ctx, q, k, v, rank, score, *tensors):
        out, lse = run_forward(rank, q, k, v)
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.rank, ctx.score = rank, score
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_lse):
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        d_out = torch.zeros_like(out) if d_out is None else _ops.dense(d_out)
        d_lse = None if d_lse is None else _ops.dense(d_lse)
        d_q, d_k, d_v, *found = run_backward(ctx.rank, d_out, d_lse, q, k, v, out, lse, ctx.score, tensors)
        gradients = [None] * len(tensors)
        for place, gradient in zip(ctx.score.gradient_places, found):
            gradients[place] = gradient
        return d_q, d_k, d_v, None, None, *gradients


def attend(query, key, value, layout, group, score_mod, block_mask, scale, enable_gqa, deadline_seconds):
    """(out, lse) of this rank's shards, with gradients."""
    from cpflex import torch as _flex
    # Lengths of the mask are those of the whole sequences, which the caller has checked.
    seen = None if block_mask is None else types.SimpleNamespace(
        shape=(*block_mask.shape[:2], query.shape[2], key.shape[2]))
    q, k, v = _flex._prepared(query, key, value, seen, enable_gqa)
    score, tensors = _translate.score_of(score_mod, scale)
    rank = rank_of(q, k, v, layout, group, score_mod, block_mask, scale, deadline_seconds)
    return PlannedAttention.apply(q, k, v, rank, score, *tensors)
