"""Attention of sequences that are split over the ranks of a process group: layouts, shards, and the call itself.

    layout = Layout.head_tail(length, group.size())
    q, k, v = (shard(x, 2, layout, group) for x in (q, k, v))
    out = attention(q, k, v, layout, group, score_mod=score_mod, block_mask=block_mask)     # block_mask is the global
    one

Masks and scores, Python functions or `.cpf` programs, see global positions on every rank. The ranks follow the plan of
`planned`: keys travel step by step, only where the mask needs them, beside the compute of the step before; on GPUs over an
NCCL communicator of the group. Gradients of keys are added in float32 in rank order; those of captured tensors and sinks are
the sums over all ranks, on every rank. So results do not depend on timing.
"""
import torch
import torch.distributed as dist
from torch.distributed.tensor.parallel import ParallelStyle

from cpflex import torch as _flex
from cpflex.context_parallel import Communicator
from cpflex.torch import _planned
from cpflex.torch._block_mask import BlockMask


class Layout:
    """Which rank owns which positions of a sequence: `positions[rank]`, int64 and ascending, or [batch, count] where batch
    rows differ. Every position has one owner in each row; ranks may own unlike numbers."""

    def __init__(self, positions):
        self.positions = [torch.as_tensor(owned, dtype=torch.int64) for owned in positions]
        every = torch.cat(self.positions, -1) if self.positions else torch.zeros(0, dtype=torch.int64)
        self.length, self.rows = every.shape[-1], 1 if every.dim() == 1 else every.shape[0]
        if not torch.equal(torch.sort(every).values, torch.arange(self.length).expand(every.shape)):
            raise ValueError(f"the positions of the ranks do not make up 0 to {self.length}; expected each of "
                             "them once")
        for rank, owned in enumerate(self.positions):
            if (owned[..., 1:] < owned[..., :-1]).any():
                raise ValueError(f"the positions of rank {rank} are not ascending")

    def num_owned(self, rank):
        """Positions that a rank owns in each batch row."""
        return self.positions[rank].shape[-1]

    @classmethod
    def solved(cls, block_mask, world_size, kind="solved"):
        """The layout that the planner chooses for a global BlockMask, by compute and traffic together; `kind` may be another
        rule of it: "auto", "ptrr", "per-document", ..."""
        native = _planned.layout_of(_flex._own(block_mask), world_size, kind)
        layout = cls.__new__(cls)  # of positions that are right
        sizes = [native.shard_size(rank) for rank in range(world_size)]
        layout.positions = list(torch.from_numpy(native.permutation).split(sizes, -1))
        layout.length, layout.rows, layout._native = native.length, native.rows, native
        return layout

    @property
    def world_size(self):
        return len(self.positions)

    @classmethod
    def _of_chunks(cls, length, world_size, num_chunks, owner):
        _check_sizes(length, world_size)
        bounds = [length * chunk // num_chunks for chunk in range(num_chunks + 1)]
        owned = [[] for _ in range(world_size)]
        for chunk in range(num_chunks):
            owned[owner(chunk)].append(torch.arange(bounds[chunk], bounds[chunk + 1]))
        return cls([torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.int64) for chunks in owned])

    @classmethod
    def contiguous(cls, length, world_size):
        """Each rank owns one piece."""
        return cls._of_chunks(length, world_size, world_size, lambda chunk: chunk)

    @classmethod
    def head_tail(cls, length, world_size):
        """Of 2 * world_size pieces each rank owns one from the head and its mirror image from the tail, which balances
        a causal mask. The length need not be a multiple."""
        return cls._of_chunks(length, world_size, 2 * world_size, lambda chunk: min(chunk, 2 * world_size - 1 - chunk))

    @classmethod
    def striped(cls, length, world_size, stride=128):
        """Pieces of `stride` tokens go round."""
        _check_sizes(length, world_size)
        if stride < 1:
            raise ValueError(f"stride is {stride}; expected 1 or more")
        owner = torch.arange(length) // stride % world_size
        return cls([torch.nonzero(owner == rank).flatten() for rank in range(world_size)])

    @classmethod
    def per_document(cls, lengths, world_size):
        """Head and tail inside each document of the given lengths, which need not be multiples of anything. A list of
        lists gives each batch row its own documents; their ranks own equally many tokens."""
        if any(isinstance(length, (list, tuple)) for length in lengths):
            rows = [_planned.per_document(row, world_size) for row in lengths]
            return cls([torch.stack([row[rank] for row in rows]) for rank in range(world_size)])
        owned, begin = [[] for _ in range(world_size)], 0
        for length in lengths:
            for rank, positions in enumerate(cls.head_tail(length, world_size).positions):
                owned[rank].append(positions + begin)
            begin += length
        return cls([torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64) for pieces in owned])

    @classmethod
    def round_robin(cls, block_mask, world_size):
        """Rows of tiles of a global BlockMask in the order of their work, dealt out back and forth."""
        work = block_mask.to_dense().sum((0, 1, 3))
        order = torch.sort(work, descending=True, stable=True).indices.tolist()
        owned, rows = [[] for _ in range(world_size)], block_mask.BLOCK_SIZE[0]
        for place, row in enumerate(order):
            turn, at = divmod(place, world_size)
            owned[at if turn % 2 == 0 else world_size - 1 - at].append(row)
        length = block_mask.shape[2]
        return cls([torch.cat([torch.arange(row * rows, min((row + 1) * rows, length)) for row in sorted(mine)])
                    if mine else torch.zeros(0, dtype=torch.int64) for mine in owned])


def _check_sizes(length, world_size):
    if length < 0 or world_size < 1:
        raise ValueError(f"length is {length} and world_size {world_size}; expected 0 or more and 1 or more")


def _group_of(group):
    """A process group for a group or a mesh of one dimension; a communicator stands for itself."""
    if isinstance(group, dist.DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"the mesh has {group.ndim} dimensions; expected one, as in mesh['cp']")
        return group.get_group()
    if group is not None and not isinstance(group, (dist.ProcessGroup, Communicator)):
        raise TypeError(f"group is a '{type(group).__name__}'; expected a process group, a mesh or a Communicator")
    return group if group is not None else dist.group.WORLD


def _rank_in(layout, group):
    group = _group_of(group)
    if isinstance(group, Communicator):
        size, rank = group.world_size, group.rank
    else:
        size, rank = dist.get_world_size(group), dist.get_rank(group)
    if size < 1 or rank < 0:
        raise ValueError("this process is not a member of the group")
    if size != layout.world_size:
        raise ValueError(f"the layout is for {layout.world_size} ranks, the group has {size}")
    return group, rank


def shard(tensor, dim, layout, group=None):
    """This rank's part of a whole tensor along `dim`: activations, labels, or positions for rotary embeddings."""
    _, rank = _rank_in(layout, group)
    if tensor.shape[dim] != layout.length:
        raise ValueError(f"dimension {dim} has {tensor.shape[dim]} elements; the layout is for {layout.length}")
    owned, dim = layout.positions[rank].to(tensor.device), dim % tensor.dim()
    if layout.rows == 1:
        return tensor.index_select(dim, owned.flatten())
    _check_rows(tensor, dim, layout)
    return torch.stack([row.index_select(dim - 1, places) for row, places in zip(tensor, owned)])


def _check_rows(tensor, dim, layout):
    if dim == 0 or tensor.shape[0] != layout.rows:
        raise ValueError(f"dimension 0 has {tensor.shape[0]} elements; expected {layout.rows} batch rows, as many as the "
                         "layout has")


def unshard(tensor, dim, layout, group=None):
    """The whole tensor on every rank from the parts of all, over a process group. Gradients are not passed on."""
    group, rank = _rank_in(layout, group)
    if isinstance(group, Communicator):
        raise TypeError("group is a 'Communicator'; expected a process group or a mesh, which gathers")
    dim %= tensor.dim()
    if tensor.shape[dim] != layout.num_owned(rank):
        raise ValueError(f"dimension {dim} has {tensor.shape[dim]} elements; rank {rank} owns {layout.num_owned(rank)}")
    if layout.rows != 1:
        _check_rows(tensor, dim, layout)
    longest = max(layout.num_owned(each) for each in range(layout.world_size))
    rows = tensor.detach().movedim(dim, 0)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[:len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(layout.world_size)]
    dist.all_gather(parts, padded, group=group)
    whole = rows.new_empty((layout.length, *rows.shape[1:]))
    for part, owned in zip(parts, layout.positions):
        owned = owned.to(whole.device)
        if layout.rows == 1:
            whole[owned.flatten()] = part[:owned.shape[-1]]
        else:
            for row, places in enumerate(owned):  # batch rows are the second axis here
                whole[places, row] = part[:len(places), row]
    return whole.movedim(0, dim).contiguous()


@torch.compiler.disable  # ranks meet on the host, so compiled code has a graph before the call and one behind it
def attention(query, key, value, layout, group=None, *, score_mod=None, block_mask=None, scale=None, enable_gqa=False,
              return_lse=False, deadline_seconds=60):
    """`flex_attention` of shards [B, H, S of this rank, D] over a process group or a mesh of one dimension, or over a
    Communicator of the caller's own. `block_mask` is that of the whole sequences, the same on every rank; queries and keys
    have one layout. No wait for another rank is longer than the deadline. On GPUs the first call over a group makes its
    NCCL communicator, which goes with the group."""
    group, rank = _rank_in(layout, group)
    if block_mask is not None:
        block_mask = _flex._own(block_mask)
        if block_mask.shape[2:] != (layout.length, layout.length):
            raise ValueError(f"block_mask is for {block_mask.shape[2]} queries and {block_mask.shape[3]} keys, the "
                             f"layout for {layout.length}; make it for the whole sequences")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a '{type(tensor).__name__}'; expected a tensor")
        if tensor.dim() != 4 or tensor.shape[2] != layout.num_owned(rank):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected 4 dimensions, the third of "
                             f"{layout.num_owned(rank)} as rank {rank} owns")
    if score_mod is None and block_mask is not None and isinstance(block_mask.mask_mod, _flex.BoundProgram):
        score_mod = block_mask.mask_mod
    if block_mask is not None and block_mask.has_own_tiles:
        raise NotImplementedError("the tiles of block_mask are not those of its mask_mod; expected a mask that follows "
                                  "from its function")
    out, lse = _planned.attend(query, key, value, layout, group, score_mod, block_mask, scale, enable_gqa,
                               deadline_seconds)
    return (out, lse) if return_lse else out


def planned(query, key, value, layout, group=None, *, score_mod=None, block_mask=None, scale=None):
    """The plan by which `attention` shares this call over the ranks: `cpflex.context_parallel.Plan`, whose numbers, text and
    picture can be looked at. Tensors are the rank's shards; of them only shapes and types are read."""
    group, rank = _rank_in(layout, group)
    block_mask = None if block_mask is None else _flex._own(block_mask)
    if score_mod is None and block_mask is not None and isinstance(block_mask.mask_mod, _flex.BoundProgram):
        score_mod = block_mask.mask_mod
    executable, _, _ = _planned.call_of(query, key, value, layout, score_mod, block_mask, scale)
    return _planned.plan_of(executable, layout, query.device)


class FlexAttention(torch.nn.Module):
    """`flex_attention` as a module, so that a ParallelStyle can find it."""

    def forward(self, query, key, value, score_mod=None, block_mask=None, scale=None, enable_gqa=False, return_lse=False):
        return _flex.flex_attention(query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse)


class ContextParallel(ParallelStyle):
    """For `parallelize_module`: a FlexAttention module whose arguments are shards of `layout` over the mesh."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def _apply(self, module, device_mesh):
        if not isinstance(module, FlexAttention):
            raise TypeError(f"the module is a '{type(module).__name__}'; expected a FlexAttention")
        group, _ = _rank_in(self.layout, device_mesh)

        def forward(query, key, value, score_mod=None, block_mask=None, scale=None, enable_gqa=False, return_lse=False):
            return attention(query, key, value, self.layout, group, score_mod=score_mod, block_mask=block_mask, scale=scale,
                             enable_gqa=enable_gqa, return_lse=return_lse)

        module.forward = forward
        return module


__all__ = ["BlockMask", "ContextParallel", "FlexAttention", "Layout", "attention", "planned", "shard", "unshard"]
