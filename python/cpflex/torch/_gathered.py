# Shards on GPUs: the keys that a rank needs are exchanged once through the process group, then attention is one local
# call. On the CPU ranks follow a plan, see _planned.py.
import weakref

import torch
import torch.distributed as dist

from cpflex import torch as _flex


class Traffic:
    """Which keys every rank needs of every other. `needed[rank]` are ascending positions; rows move in one exchange."""

    def __init__(self, layout, block_mask, rank):
        self.rank, self.world_size = rank, layout.world_size
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
        for other in range(self.world_size):
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


_plans = weakref.WeakKeyDictionary()  # by layout, then by what else they depend on; plans do not refer to their layout


def plan_of(layout, block_mask, rank, device):
    """The plan, kept as long as its layout and mask live."""
    plans = _plans.setdefault(layout, {})
    key = (id(block_mask), rank, device)
    found = plans.get(key)
    if found is not None and (block_mask is None or found[0]() is block_mask):
        return found[1]
    for gone in [each for each, (mask, _) in plans.items() if mask() is None]:
        del plans[gone]
    reference = (lambda: True) if block_mask is None else weakref.ref(block_mask)
    plan = Plan(layout, block_mask, rank, device)
    plans[key] = (reference, plan)
    return plan
