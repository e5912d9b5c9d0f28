"""Attention of sequences that are split over ranks, over NumPy arrays.

    plan = Plan(binding, world_size=4, head_dim=64)     # who owns, computes and sends what; draws itself in a notebook
    ranks = Ranks(plan)                                 # four threads of this process
    out, lse = ranks.forward(q, k, v)
    gradients = ranks.backward(q, k, v, out, lse, d_out)

Or one rank of several processes, which exchange messages over MPI or any transport:

    rank = Rank(plan, Communicator.mpi())
    out, lse = rank.forward(*(plan.layout.shard(array, rank.index, 2) for array in (q, k, v)))
"""
import concurrent.futures
import ctypes

import numpy

from cpflex import _arrays, _library
from cpflex._communicator import Communicator, cuda_threads, nccl_id, threads
from cpflex._program import Binding, _new, library


class Layout:
    """Which rank owns which tokens. Any length and any number of ranks."""

    def __init__(self, address):
        lib = library()
        self._handle = _library.Handle(lib, address, lib.layout_free)
        shape = lib.layout_shape_of(address)
        self.kind, self.length, self.world_size, self.rows = (shape.kind.decode(), shape.length, shape.world_size,
                                                              shape.rows)

    @classmethod
    def _of_kind(cls, kind, length, world_size, cu_seqlens=None):
        lib = library()
        array = None if cu_seqlens is None else _arrays.describe(lib, cu_seqlens, "cu_seqlens")[0]
        return cls(_new(lib.layout_create, kind, length, world_size, array))

    @classmethod
    def contiguous(cls, length, world_size):
        """Each rank owns one piece."""
        return cls._of_kind(b"contiguous", length, world_size)

    @classmethod
    def head_tail(cls, length, world_size):
        """Each rank owns a piece from the head and its mirror image from the tail, which balances a causal mask."""
        return cls._of_kind(b"head-tail", length, world_size)

    @classmethod
    def striped(cls, length, world_size):
        """Tokens go round."""
        return cls._of_kind(b"striped", length, world_size)

    @classmethod
    def per_document(cls, lengths, world_size):
        """Head and tail inside each document of the given lengths."""
        ends = numpy.concatenate([[0], numpy.cumsum(numpy.asarray(lengths, numpy.int64))]).astype(numpy.int64)
        return cls._of_kind(b"per-document", int(ends[-1]), world_size, ends)

    @classmethod
    def of_positions(cls, positions):
        """The caller's own: for each rank the positions that it owns, [count] or [batch, count]."""
        lib = library()
        owned = [numpy.asarray(each, numpy.int64) for each in positions]
        permutation = numpy.ascontiguousarray(numpy.concatenate(owned, -1)) if owned else numpy.zeros(0, numpy.int64)
        sizes = (ctypes.c_int64 * len(owned))(*[each.shape[-1] for each in owned])
        return cls(_new(lib.layout_from_permutation, _arrays.describe(lib, permutation, "positions")[0], sizes,
                        len(owned)))

    def shard_size(self, rank):
        """Tokens that a rank owns in each batch row."""
        return library().layout_shard_size(self._handle.address, rank)

    def _permutations(self):
        both = [numpy.empty((self.rows, self.length), numpy.int64) for _ in range(2)]
        library().layout_permutation(self._handle.address, *[each.ctypes.data for each in both])
        return [each[0] if self.rows == 1 else each for each in both]

    @property
    def permutation(self):
        """The token at each place of the concatenated shards, [length] or [batch, length]."""
        return self._permutations()[0]

    @property
    def inverse_permutation(self):
        """The place of each token in the concatenated shards."""
        return self._permutations()[1]

    def positions(self, rank):
        """The tokens that a rank owns, [count] or [batch, count]."""
        begin = sum(self.shard_size(each) for each in range(rank))
        return self.permutation[..., begin:begin + self.shard_size(rank)]

    def shard(self, array, rank, axis):
        """What `rank` owns of a whole array along `axis`: activations, labels, positions."""
        whole, axis = self._seen(array, axis)
        part = numpy.empty(whole.shape[:axis] + (self.shard_size(rank),) + whole.shape[axis + 1:], whole.dtype)
        lib = library()
        lib.layout_shard(self._handle.address, rank, axis, _arrays.describe(lib, whole, "array")[0],
                         _arrays.describe(lib, part, "shard")[0])
        return part

    def unshard(self, parts, axis):
        """The whole array from the parts of all ranks, in their order."""
        if len(parts) != self.world_size:
            raise ValueError(f"{len(parts)} parts are given; expected {self.world_size}, one for each rank")
        parts = [self._seen(part, axis)[0] for part in parts]
        axis = self._seen(parts[0], axis)[1]
        shape = parts[0].shape
        whole = numpy.empty(shape[:axis] + (self.length,) + shape[axis + 1:], parts[0].dtype)
        lib = library()
        for rank, part in enumerate(parts):
            lib.layout_unshard(self._handle.address, rank, axis, _arrays.describe(lib, part, "part")[0],
                               _arrays.describe(lib, whole, "whole")[0])
        return whole

    @staticmethod
    def _seen(array, axis):
        array = numpy.ascontiguousarray(array)
        if not -array.ndim <= axis < array.ndim:
            raise ValueError(f"axis is {axis}; expected one of {array.ndim}")
        return array, axis % array.ndim


class Plan:
    """Who owns, computes and sends what when `world_size` ranks share the call of a binding. Every process of a job makes
    the same plan. `layout` and `rotation` are words ("auto", "head-tail", "solved", ...; "ring", "selective", ...) or, for
    layouts, a Layout. With `exact_needs` only keys that some query attends to travel, not whole tiles; planning evaluates
    pairs for it."""

    def __init__(self, binding, world_size, *, head_dim, v_head_dim=None, entry=None, mask=None, scale=None, dtype="f32",
                 backward=True, layout="auto", kv_layout=None, rotation="auto", ascending_keys=False,
                 free_token_counts=False, exact_needs=False, other_masks=()):
        lib = library()
        if dtype not in ("f32", "bf16", "f16"):
            raise ValueError(f"dtype is '{dtype}'; expected f32, bf16 or f16")
        self.binding, self.entry, self.dtype, self.backward = binding, entry, dtype, backward
        executable = binding._executable(entry, mask, _arrays.CODES[dtype], head_dim, v_head_dim or head_dim, scale,
                                         int(backward), 1)
        options = _library.PlanOptions(world_size=world_size, rotation=rotation.encode(),
                                       has_ascending_keys=ascending_keys, has_free_token_counts=free_token_counts,
                                       has_exact_needs=exact_needs)
        if isinstance(layout, Layout):
            options.q_layout = layout._handle.address
        else:
            options.layout = layout.encode()
        if kv_layout is not None:
            options.kv_layout = kv_layout._handle.address
        masks = (ctypes.c_void_p * len(other_masks))(*[each._handle.address for each in other_masks])
        options.other_masks, options.num_other_masks = masks, len(other_masks)
        self._handle = _library.Handle(lib, _new(lib.plan_create, executable.address, options), lib.plan_free)
        self.world_size = world_size
        self.layout, self.kv_layout = [Layout(_new(lib.plan_layout, self._handle.address, side)) for side in (0, 1)]

    def print(self, format="summary", backward=False):
        """The schedule of a pass as "text" (lossless), "summary", "json" or "svg"."""
        lib = library()
        return lib.take_buffer(_new(lib.plan_print, self._handle.address, int(backward), format.encode())).decode()

    def numbers(self, backward=False):
        """A dict: rotation, num_steps, largest_work, mean_work, work_bound, received_bound, predicted_seconds, ..."""
        found = _library.PlanNumbers()
        library().plan_numbers_of(self._handle.address, int(backward), found)
        return {name: getattr(found, name) for name, _ in found._fields_} | {"rotation": found.rotation.decode()}

    def rank_numbers(self, rank, backward=False):
        """A dict of one rank: work, bytes_sent, bytes_received, bytes_needed, peak_bytes."""
        found = _library.RankNumbers()
        library().plan_rank_numbers(self._handle.address, int(backward), rank, found)
        return {name: getattr(found, name) for name, _ in found._fields_}

    def _repr_svg_(self):
        return self.print("svg")

    def __str__(self):
        return self.print("summary")


class Rank:
    """One rank of a plan. Used by one thread at a time."""

    def __init__(self, plan, communicator, *, deadline_seconds=60, threads=1):
        lib = library()
        self.plan, self.communicator, self.index = plan, communicator, communicator.rank
        options = _library.RankOptions(deadline_seconds, threads)
        self._handle = _library.Handle(lib, _new(lib.rank_load, plan._handle.address, communicator._handle.address,
                                                 options), lib.rank_free)

    def forward(self, q, k, v):
        """(out, lse) of this rank's shards [b, h, s, d]. All ranks call it together."""
        lib, dtype = library(), self.plan.dtype
        tensors, kept = _library.ForwardTensors(), []
        Binding._describe(lib, tensors, kept, dtype, q=q, k=k, v=v)
        Binding._check_rank(tensors)
        batch, heads, rows = tensors.q.shape[:3]
        out = numpy.empty((batch, heads, rows, tensors.v.shape[3]), _arrays.NUMPY_TYPES[dtype])
        lse = numpy.empty((batch, heads, rows), numpy.float32) if self._entry().has_softmax else None
        Binding._describe(lib, tensors, kept, dtype, out=out, lse=lse)
        self._run(lib.rank_forward, tensors)
        return out, lse

    def backward(self, q, k, v, out, lse, d_out, *, d_lse=None):
        """Gradients as a dict: "q", "k" and "v" of the shards; "sink" and captures with grad=True summed over all ranks,
        in rank order."""
        lib, plan = library(), self.plan
        tensors, kept = _library.BackwardTensors(), []
        Binding._describe(lib, tensors, kept, plan.dtype, q=q, k=k, v=v, out=out, lse=lse, d_out=d_out, d_lse=d_lse)
        Binding._check_rank(tensors)
        gradients = {name: numpy.empty(tuple(getattr(tensors, name).shape), _arrays.NUMPY_TYPES[plan.dtype])
                     for name in "qkv"}
        Binding._describe(lib, tensors, kept, plan.dtype, **{"d_" + name: gradients[name] for name in "qkv"})
        captures, entry = plan.binding.program.captures, self._entry()
        pointers = (ctypes.c_void_p * len(captures))()
        for slot, capture in enumerate(captures):
            if capture.needs_gradient and slot != entry.sink_capture:
                gradients[capture.name] = numpy.zeros(plan.binding.array(capture.name).shape, numpy.float32)
                pointers[slot] = gradients[capture.name].ctypes.data
        tensors.capture_gradients, tensors.num_capture_gradients = pointers, len(pointers)
        if entry.sink_capture >= 0:
            gradients["sink"] = numpy.zeros(plan.binding.sizes["heads"], numpy.float32)
            tensors.sink_gradient = gradients["sink"].ctypes.data
        self._run(lib.rank_backward, tensors)
        return gradients

    def _run(self, run_pass, tensors, stream=None):
        """Runs a pass, on a GPU between the work of the caller's stream. Its error has what the transport raised as its cause; an interrupt stays one."""
        try:
            run_pass(self._handle.address, tensors, stream)
        except Exception as error:
            raised = self.communicator.take_raised()
            if raised is None:
                raise
            if not isinstance(raised, Exception):
                raise raised
            raise error from raised

    def _entry(self):
        return next(each for each in self.plan.binding.program.entries if self.plan.entry in (None, each.name))

    def traffic(self, purpose=None, peer=None):
        """A dict of messages and bytes sent and received so far: of one purpose ("kv", "dkv", ...) and peer, or all."""
        found = library().rank_traffic(self._handle.address, None if purpose is None else purpose.encode(),
                                       -1 if peer is None else peer)
        return {name: getattr(found, name) for name, _ in found._fields_}

    @property
    def peak_bytes(self):
        """The most bytes held at once: shards, buffers and accumulators."""
        return library().rank_peak_bytes(self._handle.address)


class Ranks:
    """All ranks of a plan as threads of this process, over whole arrays."""

    def __init__(self, plan, *, deadline_seconds=60, threads_per_rank=1):
        self.plan = plan
        self.ranks = [Rank(plan, communicator, deadline_seconds=deadline_seconds, threads=threads_per_rank)
                      for communicator in threads(plan.world_size)]

    def _each(self, call):
        """What `call(rank)` gives for each rank, called on threads; the first error is raised."""
        def guarded(rank):
            try:
                return call(rank)
            except BaseException as error:
                rank.communicator.abort(error)
                raise

        with concurrent.futures.ThreadPoolExecutor(len(self.ranks)) as pool:
            futures = [pool.submit(guarded, rank) for rank in self.ranks]
        errors = [future.exception() for future in futures if future.exception()]
        if errors:
            raise next((error for error in errors if " gave up: " not in str(error)), errors[0])
        return [future.result() for future in futures]

    def forward(self, q, k, v):
        """(out, lse) of whole arrays."""
        layout, kv_layout = self.plan.layout, self.plan.kv_layout
        parts = self._each(lambda rank: rank.forward(layout.shard(q, rank.index, 2), kv_layout.shard(k, rank.index, 2),
                                                     kv_layout.shard(v, rank.index, 2)))
        lse = None if parts[0][1] is None else layout.unshard([part[1] for part in parts], 2)
        return layout.unshard([part[0] for part in parts], 2), lse

    def backward(self, q, k, v, out, lse, d_out, *, d_lse=None):
        """Gradients of whole arrays, as those of `Binding.backward`."""
        layout, kv_layout = self.plan.layout, self.plan.kv_layout

        def one(rank):
            mine = [None if array is None else layout.shard(array, rank.index, 2)
                    for array in (q, out, lse, d_out, d_lse)]
            keys = [kv_layout.shard(array, rank.index, 2) for array in (k, v)]
            return rank.backward(mine[0], *keys, *mine[1:4], d_lse=mine[4])

        parts = self._each(one)
        whole = dict(parts[0])
        for name, owner in (("q", layout), ("k", kv_layout), ("v", kv_layout)):
            whole[name] = owner.unshard([part[name] for part in parts], 2)
        return whole

    def trace(self):
        """Computes and transfers of the last passes as a Chrome trace, which Perfetto opens."""
        lib = library()
        addresses = (ctypes.c_void_p * len(self.ranks))(*[rank._handle.address for rank in self.ranks])
        return lib.take_buffer(_new(lib.ranks_trace, addresses, len(self.ranks))).decode()


__all__ = ["Communicator", "Layout", "Plan", "Rank", "Ranks", "cuda_threads", "nccl_id", "threads"]
