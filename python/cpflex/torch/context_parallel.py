"""Attention of sequences that are split over the ranks of a process group: layouts, shards, and the call itself.

    layout = Layout.head_tail(length, group.size())
    q, k, v = (shard(x, 2, layout, group) for x in (q, k, v))
    out = attention(q, k, v, layout, group, score_mod=score_mod, block_mask=block_mask)     # block_mask is the global
    one

Masks and scores see global positions on every rank. Keys and values travel only where the block mask needs them; their
gradients come back and are added in float32 in rank order, so that results do not depend on timing. Gradients of
captured tensors are those of the rank's own queries: sum them over the group as for parameters.
"""
import weakref

import torch
import torch.distributed as dist
from torch.distributed.tensor.parallel import ParallelStyle

from cpflex import torch as _flex
from cpflex.torch._block_mask import BlockMask


class Layout:
    """Which rank owns which positions of a sequence: `positions[rank]`, int64 and ascending. Every position has one
    owner; ranks may own unlike numbers."""

    def __init__(self, positions):
        self.positions = [torch.as_tensor(owned, dtype=torch.int64) for owned in positions]
        self.length = sum(len(owned) for owned in self.positions)
        every = torch.cat(self.positions) if self.positions else torch.zeros(0, dtype=torch.int64)
        if not torch.equal(torch.sort(every).values, torch.arange(self.length)):
            raise ValueError(f"the positions of the ranks do not make up 0 to {self.length}; expected each of "
                             "them once")
        for rank, owned in enumerate(self.positions):
            if (owned[1:] < owned[:-1]).any():
                raise ValueError(f"the positions of rank {rank} are not ascending")

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
        """Head and tail inside each document of the given lengths, which need not be multiples of anything."""
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
    """A process group for a group or a mesh of one dimension."""
    if isinstance(group, dist.DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"the mesh has {group.ndim} dimensions; expected one, as in mesh['cp']")
        return group.get_group()
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group is a '{type(group).__name__}'; expected a process group or a mesh")
    return group if group is not None else dist.group.WORLD


def _rank_in(layout, group):
    group = _group_of(group)
    size = dist.get_world_size(group)
    if size < 1 or dist.get_rank(group) < 0:
        raise ValueError("this process is not a member of the group")
    if size != layout.world_size:
        raise ValueError(f"the layout is for {layout.world_size} ranks, the group has {size}")
    return group, dist.get_rank(group)


def shard(tensor, dim, layout, group=None):
    """This rank's part of a whole tensor along `dim`: activations, labels, or positions for rotary embeddings."""
    _, rank = _rank_in(layout, group)
    if tensor.shape[dim] != layout.length:
        raise ValueError(f"dimension {dim} has {tensor.shape[dim]} elements; the layout is for {layout.length}")
    return tensor.index_select(dim, layout.positions[rank].to(tensor.device))


def unshard(tensor, dim, layout, group=None):
    """The whole tensor on every rank from the parts of all. Gradients are not passed on."""
    group, rank = _rank_in(layout, group)
    if tensor.shape[dim] != len(layout.positions[rank]):
        raise ValueError(f"dimension {dim} has {tensor.shape[dim]} elements; rank {rank} owns "
                         f"{len(layout.positions[rank])}")
    longest = max(len(owned) for owned in layout.positions)
    rows = tensor.detach().movedim(dim, 0)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[:len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(layout.world_size)]
    dist.all_gather(parts, padded, group=group)
    whole = rows.new_empty((layout.length, *rows.shape[1:]))
    for part, owned in zip(parts, layout.positions):
        whole[owned.to(whole.device)] = part[:len(owned)]
    return whole.movedim(0, dim).contiguous()


class Traffic:
    """Which keys every rank needs of every other. `needed[rank]` are ascending positions; rows move in one exchange."""

    def __init__(self, layout, block_mask, rank):
        self.rank, self.layout = rank, layout
        owner = torch.empty(layout.length, dtype=torch.int64)
        place = torch.empty(layout.length, dtype=torch.int64)
        for other, owned in enumerate(layout.positions):
            owner[owned], place[owned] = other, torch.arange(len(owned))
        self.needed = [self._need(owned, block_mask, layout.length) for owned in layout.positions]
        mine = self.needed[rank]
        # Rows that rank `other` takes from this one, as places in the shard; and where what comes from it belongs.
        self.sends = [place[keys[owner[keys] == rank]] for keys in self.needed]
        self.receives = [torch.nonzero(owner[mine] == other).flatten() for other in range(layout.world_size)]

    @staticmethod
    def _need(queries, block_mask, length):
        if block_mask is None:
            return torch.arange(length)
        tile_q, tile_kv = block_mask.BLOCK_SIZE
        rows = torch.unique(queries // tile_q)
        columns = torch.zeros(-(-length // tile_kv), dtype=torch.bool)
        for b in range(block_mask.shape[0]):
            for h in range(block_mask.shape[1]):
                columns |= (block_mask.classes(b, h)[rows] != 0).any(0)
        return torch.nonzero(columns.repeat_interleave(tile_kv)[:length]).flatten()

    def num_received(self):
        """Rows that this rank gets from others."""
        return sum(len(places) for other, places in enumerate(self.receives) if other != self.rank)

    def exchange(self, outgoing, incoming, group):
        """Sends outgoing[other] and fills incoming[other], for all other ranks at once; empty ones stay at home."""
        operations = []
        for other in range(self.layout.world_size):
            peer = dist.get_global_rank(group, other)
            if other != self.rank and outgoing[other].numel():
                operations.append(dist.P2POp(dist.isend, outgoing[other], peer, group))
            if other != self.rank and incoming[other].numel():
                operations.append(dist.P2POp(dist.irecv, incoming[other], peer, group))
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()


class GatherKeys(torch.autograd.Function):
    """Rows of keys and values, stacked as [2, ...] along a leading axis of rows, that the rank's queries need."""

    @staticmethod
    def forward(ctx, keys, values, traffic, group):
        ctx.traffic, ctx.group = traffic, group
        ctx.shapes = keys.shape, values.shape
        rows = torch.cat([keys, values], -1).movedim(2, 0)
        outgoing = [rows[places.to(rows.device)] for places in traffic.sends]
        incoming = [rows.new_empty((len(places), *rows.shape[1:])) for places in traffic.receives]
        incoming[traffic.rank] = outgoing[traffic.rank]
        traffic.exchange(outgoing, incoming, group)
        gathered = rows.new_empty((len(traffic.needed[traffic.rank]), *rows.shape[1:]))
        for places, part in zip(traffic.receives, incoming):
            gathered[places.to(rows.device)] = part
        gathered = gathered.movedim(0, 2)
        return gathered[..., :keys.shape[3]].contiguous(), gathered[..., keys.shape[3]:].contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_keys, d_values):
        traffic, group = ctx.traffic, ctx.group
        rows = torch.cat([d_keys, d_values], -1).movedim(2, 0).contiguous()
        outgoing = [rows[places.to(rows.device)] for places in traffic.receives]
        incoming = [rows.new_empty((len(places), *rows.shape[1:])) for places in traffic.sends]
        incoming[traffic.rank] = outgoing[traffic.rank]
        traffic.exchange(outgoing, incoming, group)
        key_shape, value_shape = ctx.shapes
        total = torch.zeros((key_shape[2], *rows.shape[1:]), dtype=torch.float32, device=rows.device)
        for places, part in zip(traffic.sends, incoming):  # in rank order
            total.index_add_(0, places.to(rows.device), part.float())
        total = total.movedim(0, 2).to(d_keys.dtype)
        return total[..., :key_shape[3]].contiguous(), total[..., key_shape[3]:].contiguous(), None, None


class Plan:
    """What one rank does for one layout and block mask: its traffic, and the mask over its own rows and keys."""

    def __init__(self, layout, block_mask, rank, device):
        if block_mask is not None and isinstance(block_mask.mask_mod, _flex.BoundProgram):
            raise NotImplementedError("block_mask is made from a program; expected one of a Python function, which can "
                                      "be asked for the positions of a shard")
        if block_mask is not None and block_mask.has_own_tiles:
            raise NotImplementedError("the tiles of block_mask are not those of its mask_mod; expected a mask that "
                                      "follows from its function")
        self.traffic = Traffic(layout, block_mask, rank)
        self.q_positions = layout.positions[rank].to(device)
        self.kv_positions = self.traffic.needed[rank].to(device)
        self.block_mask, self._scores = None, {}
        if block_mask is not None:
            q_positions, kv_positions, mask_mod = self.q_positions, self.kv_positions, block_mask.mask_mod

            def mask_of_shard(b, h, q, kv):
                return mask_mod(b, h, q_positions[q], kv_positions[kv])

            self.block_mask = _flex.create_block_mask(mask_of_shard, *block_mask.shape[:2], len(q_positions),
                                                      len(kv_positions), device, block_mask.BLOCK_SIZE)

    def score(self, score_mod):
        """`score_mod` over the rows of the shard."""
        if score_mod is None:
            return None
        if isinstance(score_mod, _flex.BoundProgram):
            raise NotImplementedError("score_mod is a program; expected a Python function, which can be asked for the "
                                      "positions of a shard")
        found = self._scores.get(score_mod)
        if found is None:
            found = self._scores[score_mod] = _score_of_shard(score_mod, self.q_positions, self.kv_positions)
        return found


def _score_of_shard(score_mod, q_positions, kv_positions):
    def score_of_shard(score, b, h, q, kv):
        return score_mod(score, b, h, q_positions[q], kv_positions[kv])

    return score_of_shard


_plans = weakref.WeakKeyDictionary()  # by layout, then by what else they depend on


def plan_of(layout, block_mask, rank, device):
    """The plan, kept as long as its layout lives."""
    plans = _plans.setdefault(layout, {})
    key = (id(block_mask), rank, device)
    found = plans.get(key)
    if found is None or found[0]() is not block_mask:
        reference = (lambda: None) if block_mask is None else weakref.ref(block_mask)
        found = plans[key] = (reference, Plan(layout, block_mask, rank, device))
    return found[1]


def attention(query, key, value, layout, group=None, *, score_mod=None, block_mask=None, scale=None, enable_gqa=False,
              return_lse=False):
    """`flex_attention` of shards [B, H, S of this rank, D] over a process group or a mesh of one dimension.
    `block_mask` is that of the whole sequences, the same on every rank; queries and keys have one layout."""
    group, rank = _rank_in(layout, group)
    if block_mask is not None:
        block_mask = _flex._own(block_mask)
        if block_mask.shape[2:] != (layout.length, layout.length):
            raise ValueError(f"block_mask is for {block_mask.shape[2]} queries and {block_mask.shape[3]} keys, the "
                             f"layout for {layout.length}; make it for the whole sequences")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4 or tensor.shape[2] != len(layout.positions[rank]):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected 4 dimensions, the third of "
                             f"{len(layout.positions[rank])} as rank {rank} owns")
    plan = plan_of(layout, block_mask, rank, query.device)
    key, value = GatherKeys.apply(key, value, plan.traffic, group)
    return _flex.flex_attention(query, key, value, score_mod=plan.score(score_mod), block_mask=plan.block_mask,
                                scale=scale, enable_gqa=enable_gqa, return_lse=return_lse)


class FlexAttention(torch.nn.Module):
    """`flex_attention` as a module, so that a ParallelStyle can find it."""

    def forward(self, query, key, value, **keywords):
        return _flex.flex_attention(query, key, value, **keywords)


class ContextParallel(ParallelStyle):
    """For `parallelize_module`: a FlexAttention module whose arguments are shards of `layout` over the mesh."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def _apply(self, module, device_mesh):
        if not isinstance(module, FlexAttention):
            raise TypeError(f"the module is a '{type(module).__name__}'; expected a FlexAttention")
        group, _ = _rank_in(self.layout, device_mesh)

        def forward(query, key, value, **keywords):
            return attention(query, key, value, self.layout, group, **keywords)

        module.forward = forward
        return module


__all__ = ["BlockMask", "ContextParallel", "FlexAttention", "Layout", "attention", "plan_of", "shard", "unshard"]
