# Shards: every rank makes the same plan of the whole call and follows it. Messages go through the process group on the CPU
# and through NCCL on GPUs.
import ctypes
import datetime
import itertools
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

class Ends:
    """This process's ends of one group, by device, and the ranks that use them. They go with the group."""

    def __init__(self):
        self.communicators, self.ranks = {}, weakref.WeakSet()

    def __del__(self):
        for rank in list(self.ranks):
            rank.close()


_ends = weakref.WeakKeyDictionary()  # by process group, or communicator of the caller


def ends_of(group):
    found = _ends.get(group)
    if found is None:
        found = _ends[group] = Ends()
    return found


def communicator_of(group, device, deadline_seconds):
    """What carries messages between the ranks of a group: on GPUs NCCL, of which the group brings the ranks together."""
    if isinstance(group, _native.Communicator):
        return group
    known = ends_of(group).communicators
    if device not in known:
        known[device] = (_native.Communicator.over(GroupTransport(group)) if device.type == "cpu"
                         else nccl_over(group, device, deadline_seconds))
    return known[device]


def nccl_over(group, device, deadline_seconds):
    """An NCCL communicator of the ranks of a process group. All of them call it together."""
    rank, made = dist.get_rank(group), [None, None]
    if rank == 0:
        try:
            made[0] = _native.nccl_id()
        except Exception as error:
            made[1] = str(error)
    with torch.cuda.device(device):
        dist.broadcast_object_list(made, dist.get_global_rank(group, 0), group)
    if made[1] is not None:
        raise RuntimeError(f"rank 0 has no NCCL: {made[1]}")
    return _native.Communicator.nccl(made[0], rank, dist.get_world_size(group), device.index, deadline_seconds)


def native_layout(layout):
    """The layout as the planner knows it, kept with the caller's."""
    if getattr(layout, "_native", None) is None:
        layout._native = _native.Layout.of_positions([owned.numpy() for owned in layout.positions])
    return layout._native


class CallPlan(_native.Plan):
    """A plan of an executable that exists already."""

    def __init__(self, executable, layout, is_exact):
        lib = _program.library()
        self.executable = executable
        options = _library.PlanOptions(world_size=layout.world_size, q_layout=layout._handle.address,
                                       has_exact_needs=int(is_exact))
        self._handle = _library.Handle(lib, _program._new(lib.plan_create, executable.address, options), lib.plan_free)
        self.world_size, self.layout, self.kv_layout = layout.world_size, layout, layout


_numbers = itertools.count()
_ranks = weakref.WeakValueDictionary()  # by the number by which operators name them


class CallRank(_native.Rank):
    """A rank of such a plan, with what its calls need to know of the score. It lives no longer than its group."""

    def __init__(self, plan, group, device, call, sources, deadline_seconds):
        communicator = communicator_of(group, device, deadline_seconds)
        super().__init__(plan, communicator, deadline_seconds=deadline_seconds, threads=torch.get_num_threads())
        self.call, self.sources, self.number = call, sources, next(_numbers)
        _ranks[self.number] = self
        ends_of(group).ranks.add(self)

    @property
    def communicator(self):
        return self._communicator()

    @communicator.setter
    def communicator(self, given):
        self._communicator = weakref.ref(given)  # the group keeps it

    def close(self):
        self._handle = None

    def device_bytes(self):
        return 0 if self._handle is None else _program.library().rank_device_bytes(self._handle.address)

    def _run(self, run_pass, tensors, stream=None):
        if self._handle is None:
            raise RuntimeError("the process group of this call is destroyed; its gradients need it")
        super()._run(run_pass, tensors, stream)


def call_of(q, k, v, layout, score_mod, block_mask, scale):
    """(executable of the whole call, its Call, for each capture where it comes from). It is on the CPU, since planning
    needs no GPU."""
    score, tensors = _translate.score_of(score_mod, scale)
    call, sources = score.call(block_mask, layout.length, layout.length)
    # Only shapes and types of the whole tensors are read.
    whole = [torch.empty(1, dtype=x.dtype).expand(*x.shape[:2], layout.length, x.shape[3]) for x in (q, k, v)]
    return call.executable(*whole, _calls.all_captures(sources, tensors), True), call, sources


def plan_of(executable, layout, device):
    """The plan for a layout, kept as long as the call's executable."""
    is_exact = device.type == "cpu"  # kernels of GPUs read whole tiles
    key = (id(layout), is_exact)
    found = executable.plans.get(key)
    if found is None or found[0]() is not layout:
        # Ranks that are threads share the executable.
        for gone in [each for each, (of, _) in list(executable.plans.items()) if of() is None]:
            executable.plans.pop(gone, None)
        plan = CallPlan(executable, native_layout(layout), is_exact)
        found = executable.plans[key] = (weakref.ref(layout), plan)
    return found[1]


def rank_of(q, k, v, layout, group, score_mod, block_mask, scale, deadline_seconds):
    """This rank of the plan for tensors of these shapes, kept as long as the call's executable and the group. Ranks on GPUs
    call it together."""
    executable, call, sources = call_of(q, k, v, layout, score_mod, block_mask, scale)
    # A rank keeps its executable, so only the executable may keep the rank.
    ranks = executable.ranks
    key = (id(layout), id(group), q.device, deadline_seconds)
    found = ranks.get(key)
    if found is None or found[0]() is not layout or found[1]() is not group:
        for gone in [each for each, (*of, _) in ranks.items() if None in (of[0](), of[1]())]:
            del ranks[gone]
        rank = CallRank(plan_of(executable, layout, q.device), group, q.device, call, sources, deadline_seconds)
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
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    given = [_calls.array_bytes(tensor) for tensor in (q, k, v, out)]
    given.append(_calls.array_bytes(lse) if rank.call.has_softmax else _calls.EMPTY_ARRAY)
    tensors = _library.ForwardTensors.from_buffer_copy(b"".join(given) + _calls.EMPTY_ARRAY)
    rank._run(_program.library().rank_forward, tensors, _calls.stream_of(q))
    return out, lse


def run_backward(rank, d_out, d_lse, q, k, v, out, lse, score, tensors):
    """[dq, dk, dv, *gradients of what the score captures, summed over the ranks]."""
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    arrays = [_calls.array_bytes(tensor) for tensor in (q, k, v, out, lse, d_out)]
    arrays += [_calls.EMPTY_ARRAY if d_lse is None else _calls.array_bytes(d_lse)]
    arrays += [_calls.array_bytes(tensor) for tensor in (d_q, d_k, d_v)]
    rest = bytes(ctypes.sizeof(_library.BackwardTensors) - len(arrays) * _calls.ARRAY.size)
    arguments = _library.BackwardTensors.from_buffer_copy(b"".join(arrays) + rest)
    # The ranks sum them on the host.
    gradients = _calls.give_gradients(arguments, rank.call, rank.sources, score, tensors, torch.device("cpu"))
    rank._run(_program.library().rank_backward, arguments, _calls.stream_of(q))
    return [d_q, d_k, d_v] + [gradient.to(tensors[place])
                              for place, gradient in zip(score.gradient_places, gradients)]


@torch.library.custom_op("cpflex::rank_attention", mutates_args=())
def rank_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, captures: list[torch.Tensor], rank: int,
                   score: int) -> tuple[torch.Tensor, torch.Tensor]:
    return run_forward(_ranks[rank], q, k, v)


@rank_attention.register_fake
def rank_attention_fake(q, k, v, captures, rank, score):
    return _calls.output_like(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("cpflex::rank_attention_backward", mutates_args=())
def rank_attention_backward(d_out: torch.Tensor, d_lse: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                            out: torch.Tensor, lse: torch.Tensor, captures: list[torch.Tensor], rank: int,
                            score: int) -> list[torch.Tensor]:
    return run_backward(_ranks[rank], d_out, d_lse, q, k, v, out, lse, _translate.scores[score], captures)


@rank_attention_backward.register_fake
def rank_attention_backward_fake(d_out, d_lse, q, k, v, out, lse, captures, rank, score):
    return [torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)] + [
        torch.empty_like(captures[place]) for place in _translate.scores[score].gradient_places]


def save(ctx, inputs, output):
    q, k, v, captures, ctx.rank, ctx.score = inputs
    ctx.save_for_backward(q, k, v, *output, *captures)


def differentiate(ctx, d_out, d_lse):
    q, k, v, out, lse, *captures = ctx.saved_tensors
    d_out = torch.zeros_like(out) if d_out is None else _ops.dense(d_out)
    d_lse = torch.zeros_like(lse) if d_lse is None else _ops.dense(d_lse)
    d_q, d_k, d_v, *found = rank_attention_backward(d_out, d_lse, q, k, v, out, lse, captures, ctx.rank, ctx.score)
    gradients = [None] * len(captures)
    for place, gradient in zip(_translate.scores[ctx.score].gradient_places, found):
        gradients[place] = gradient
    return d_q, d_k, d_v, gradients, None, None


rank_attention.register_autograd(differentiate, setup_context=save)


class PlannedAttention(torch.autograd.Function):
    """Both passes of one rank, without the dispatcher for plain tensors."""

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
    if q.device.type == "cuda":
        if q.dtype == torch.float32:
            raise TypeError("query has elements of type torch.float32 on a GPU; expected bfloat16 or float16")
        if torch.cuda.is_current_stream_capturing():
            raise NotImplementedError("attention over ranks exchanges messages from the host; expected a call outside of "
                                      "the capture of a CUDA graph")
    score, tensors = _translate.score_of(score_mod, scale)
    _flex._check_captures(tensors, q)
    rank = rank_of(q, k, v, layout, group, score_mod, block_mask, scale, deadline_seconds)
    if not _ops.is_plain(q, k, v):
        return rank_attention(q, k, v, tensors, rank.number, score.index)
    return PlannedAttention.apply(q, k, v, rank, score, *tensors)
