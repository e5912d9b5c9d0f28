# BlockMask with FlexAttention's attributes over a mask that cpflex derives, and its conversion from and to PyTorch's.
import collections
import itertools
import weakref

import torch
from torch.nn.attention import flex_attention as pytorch

from cpflex import _program
from cpflex.torch import _translate

LISTS = _program.LISTS

# Compiled code names block masks by number. The youngest stay alive,
# since a backward pass may come after their last use.
_numbers = itertools.count(1)
_by_number = weakref.WeakValueDictionary()
_youngest = collections.deque(maxlen=64)


def by_token(token):
    """The block mask of a token, None for 0."""
    number = int(token)
    if number == 0:
        return None
    found = _by_number.get(number)
    if found is None:
        raise RuntimeError(f"block mask {number} is gone; keep it until the backward pass has run")
    return found


NO_MASK = torch.zeros((), dtype=torch.int64)


class BlockMask:
    """Which tiles of a mask are computed. Made by `create_block_mask` or `from_torch`; `mask_mod` is the function that
    single pairs are asked of. Index lists are made when they are first read."""

    def __init__(self, mask_mod, shape, block_size, device, native=None, lists=None):
        self.mask_mod, self.shape, self.BLOCK_SIZE, self.device = mask_mod, tuple(shape), tuple(block_size), device
        self._native, self._lists, self._trace = native, lists, None
        # Tiles that do not follow from mask_mod have to be carried along.
        self.has_own_tiles = native is None
        number = next(_numbers)
        # A tensor, so that compiled code takes another block mask without compiling again.
        self.token = torch.tensor(number, dtype=torch.int64)
        _by_number[number] = self
        _youngest.append(self)

    @classmethod
    def from_torch(cls, block_mask):
        """PyTorch's BlockMask. Its tiles are kept exactly, also those that its mask_mod would not give."""
        lists = {name: getattr(block_mask, name) for name in LISTS[:4]}
        batch, heads = lists["kv_num_blocks"].shape[:2]
        mask = cls(block_mask.mask_mod, (batch, heads, *block_mask.seq_lengths), block_mask.BLOCK_SIZE,
                   lists["kv_num_blocks"].device, None, lists)
        if block_mask.mask_mod is not None and mask._follows():
            mask.has_own_tiles = False
        return mask

    def trace(self):
        """The trace of mask_mod, None where it is no Python function. One that cannot be watched stays as it was when
        the mask was first used."""
        if self.mask_mod is None or isinstance(self.mask_mod, _translate.BoundProgram):
            return None
        if self._trace is None or self._trace.is_repeatable:
            self._trace = _translate.trace_of(self.mask_mod, 4)
        return self._trace

    def _follows(self):
        """Whether the given tiles are those of mask_mod. A given partial tile may be a full one: PyTorch calls tiles
        beyond the lengths partial."""
        derived = _translate.native_mask(self.mask_mod, self.shape, self.BLOCK_SIZE)
        given = self.native(*self.shape[:2])
        pairs = [(given.classes(b, h), derived.classes(b, h))
                 for b in range(self.shape[0]) for h in range(self.shape[1])]
        return all(((ours == theirs) | (theirs == 2) & (ours == 1)).all() for theirs, ours in pairs)

    def native(self, batch, heads):
        """The mask of its lists for `batch` rows and `heads`; axes of size 1 are repeated."""
        arrays = [None if values is None else values.detach().expand(batch, heads, *values.shape[2:]).cpu().numpy()
                  for values in (self._lists[name] for name in LISTS[:4])]
        return _program.BlockMask.from_index_lists(*arrays, q_len=self.shape[2], kv_len=self.shape[3],
                                                   tile=self.BLOCK_SIZE)

    @property
    def _mask(self):
        if self._native is None:
            self._native = self.native(*self.shape[:2])
        return self._native

    def __getattr__(self, name):
        if name not in LISTS:
            raise AttributeError(f"'BlockMask' object has no attribute '{name}'")
        if self._lists is None or name not in self._lists:
            found = self._mask.index_lists()
            self._lists = {key: torch.from_numpy(values.copy()).to(self.device) for key, values in found.items()} | (
                self._lists or {})
        return self._lists[name]

    @property
    def seq_lengths(self):
        return self.shape[2:]

    def numel(self):
        batch, heads, rows, columns = self.shape
        return batch * heads * rows * columns

    def classes(self, b=0, h=0):
        """0 for empty, 1 for full, 2 for partial tiles, as a CPU tensor [q tiles, kv tiles]."""
        return torch.from_numpy(self._mask.classes(b, h))

    def to_dense(self):
        """1 for every tile that is computed, int32 [B, H, q tiles, kv tiles]."""
        batch, heads = self.shape[:2]
        return torch.stack([torch.stack([(self.classes(b, h) != 0).int() for h in range(heads)]) for b in range(batch)])

    def sparsity(self):
        """The percentage of tiles that are skipped."""
        dense = self.to_dense()
        return 100.0 * (1.0 - dense.float().mean().item()) if dense.numel() else 0.0

    def to_string(self, grid_size=(20, 20), limit=4):
        cells = 0 if grid_size == -1 else max(grid_size)
        return self._mask.draw("text", max_cells=cells)

    def to(self, device):
        """The same mask with its lists on another device."""
        moved = None if self._lists is None else {name: None if values is None else values.to(device)
                                                  for name, values in self._lists.items()}
        mask = BlockMask(self.mask_mod, self.shape, self.BLOCK_SIZE, torch.device(device), self._native, moved)
        mask.has_own_tiles = self.has_own_tiles
        return mask

    def to_torch(self):
        """PyTorch's BlockMask of the same tiles."""
        mask_mod = None if isinstance(self.mask_mod, _translate.BoundProgram) else self.mask_mod
        return pytorch.BlockMask.from_kv_blocks(*(getattr(self,
    name) for name in LISTS[:4]),
    BLOCK_SIZE=self.BLOCK_SIZE,
    mask_mod=mask_mod,
     seq_lengths=self.seq_lengths)

    def _repr_svg_(self):
        return self._mask.draw("svg")

    def __str__(self):
        return self.to_string()

    def __repr__(self):
        return f"BlockMask(shape={self.shape}, sparsity={self.sparsity():.2f}%)"


def create_block_mask(mask_mod, B, H, Q_LEN, KV_LEN, device=None, BLOCK_SIZE=128, _compile=False):
    """As FlexAttention's: the tiles of `mask_mod` for B batch rows and H heads, None for one that stands for all. They
    are derived and not sampled, and equal those of every pair evaluated. `mask_mod` may be a `program`. `_compile` has
    no meaning here."""
    size = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else tuple(BLOCK_SIZE)
    if len(size) != 2 or not all(isinstance(each, int) and each > 0 for each in size):
        raise ValueError(f"BLOCK_SIZE is {BLOCK_SIZE!r}; expected a positive int or two of them")
    for name, length in (("Q_LEN", Q_LEN), ("KV_LEN", KV_LEN)):
        if not isinstance(length, int) or length < 0:
            raise ValueError(f"{name} is {length!r}; expected an int of 0 or more")
    shape = (B, H, Q_LEN, KV_LEN)
    device = torch.device(device) if device is not None else _translate.device_of(mask_mod)
    native = _translate.native_mask(mask_mod, shape, size)
    found = native.statistics
    return BlockMask(mask_mod, (found["batch"], found["heads"], Q_LEN, KV_LEN), size, device, native)
