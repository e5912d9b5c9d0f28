"""Trains a small Llama-style stack on packed documents with PyTorch's flex_attention, with cpflex, and with cpflex on
several ranks, from the same weights and tokens, and prints the losses and times side by side.

    python train_packed.py                                            PyTorch and cpflex on one GPU, or on the CPU
    torchrun --nproc-per-node 2 train_packed.py --ranks               also cpflex with the sequence over all ranks
"""
import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import flex_attention as pytorch

from cpflex import torch as ours
from cpflex.torch import context_parallel


class Block(torch.nn.Module):
    """RMSNorm, attention with rotary positions and shared key heads, RMSNorm, gated linear units."""

    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.columns = heads, kv_heads, width // heads
        self.first, self.second = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        self.projection = torch.nn.Linear(width, (heads + 2 * kv_heads) * self.columns, bias=False)
        self.output = torch.nn.Linear(width, width, bias=False)
        self.up = torch.nn.Linear(width, 8 * width // 3 * 2, bias=False)
        self.down = torch.nn.Linear(8 * width // 3, width, bias=False)

    def forward(self, x, angles, attend):
        batch, length, _ = x.shape
        heads = self.projection(self.first(x)).view(batch, length, -1, self.columns).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        out = attend(rotated(q, angles), rotated(k, angles), v)
        x = x + self.output(out.transpose(1, 2).reshape(batch, length, -1))
        gate, value = self.up(self.second(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class Stack(torch.nn.Module):
    def __init__(self, vocabulary, width, heads, kv_heads, layers):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads, kv_heads) for _ in range(layers))
        self.norm = torch.nn.RMSNorm(width)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens, positions, attend):
        frequencies = 10000.0 ** -torch.linspace(0, 1, self.blocks[0].columns // 2, device=tokens.device)
        angles = positions[:, None] * frequencies
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, angles, attend)
        return self.head(self.norm(x))


def rotated(x, angles):
    first, second = x.float().chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)


def packed_batch(length, vocabulary, generator):
    """Documents of random lengths one after the other: (tokens, targets, document of each token, position in it). Two
    of three tokens follow from the one before by a fixed rule, so there is something to learn."""
    lengths, left = [], length
    while left:
        lengths.append(min(left, int(torch.randint(16, max(length // 4, 17), (), generator=generator))))
        left -= lengths[-1]
    tokens = torch.randint(vocabulary, (length + 1,), generator=generator)
    for i in range(1, length + 1):
        if i % 3:
            tokens[i] = (tokens[i - 1] * 5 + 1) % vocabulary
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(count) for count in lengths])
    return tokens[None, :-1], tokens[None, 1:], ids, positions


def document_mask(ids):
    def packed(b, h, q, kv):
        return (q >= kv) & (ids[q] == ids[kv])

    return packed


def train(kind, options, device, dtype):
    """(losses, seconds per step after the first) of one way to compute attention."""
    torch.manual_seed(0)
    model = Stack(options.vocabulary, options.width, options.heads, options.kv_heads, options.layers).to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    generator = torch.Generator().manual_seed(1)
    is_cuda = device.type == "cuda"
    flex = torch.compile(pytorch.flex_attention, dynamic=False) if is_cuda else pytorch.flex_attention
    losses, times = [], []
    for _ in range(options.steps):
        batch = packed_batch(options.length, options.vocabulary, generator)
        tokens, targets, ids, positions = (x.to(device) for x in batch)
        begin = time.perf_counter()
        mask_mod = document_mask(ids)
        if kind == "pytorch":
            mask = pytorch.create_block_mask(mask_mod, None, None, options.length, options.length, device)

            def attend(q, k, v):
                return flex(q, k, v, block_mask=mask, enable_gqa=True)
        elif kind == "cpflex":
            mask = ours.create_block_mask(mask_mod, None, None, options.length, options.length, device)

            def attend(q, k, v):
                return ours.flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        else:
            mask = ours.create_block_mask(mask_mod, None, None, options.length, options.length, device)
            layout = context_parallel.Layout.round_robin(mask, dist.get_world_size())
            tokens, targets = (context_parallel.shard(x, 1, layout) for x in (tokens, targets))
            positions = context_parallel.shard(positions, 0, layout)

            def attend(q, k, v):
                return context_parallel.attention(q, k, v, layout, block_mask=mask, enable_gqa=True)
        logits = model(tokens, positions, attend)
        # The sum over all tokens of all ranks, divided by their number.
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum") / options.length
        loss.backward()
        total = loss.detach()
        if kind == "ranks":
            dist.all_reduce(total)
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())  # waits for the device
        times.append(time.perf_counter() - begin)
    return losses, sum(times[1:]) / max(len(times) - 1, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("length", 4096), ("width", 512), ("heads", 8), ("kv-heads", 2), ("layers", 4), ("steps", 20),
                          ("vocabulary", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ranks", action="store_true", help="also split the sequence over the ranks of torchrun")
    options = parser.parse_args()
    rank = 0
    if options.ranks:
        rank = int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(rank)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cpu":
        pytorch._validate_device = lambda *tensors: None  # PyTorch refuses gradients on the CPU, its plain way has them
    kinds = ["pytorch", "cpflex"] + ["ranks"] * options.ranks
    results = {kind: train(kind, options, device, dtype) for kind in kinds}
    if rank == 0:
        print("step  " + "".join(f"{kind:>10}" for kind in kinds))
        for step in range(options.steps):
            print(f"{step:4}  " + "".join(f"{results[kind][0][step]:10.4f}" for kind in kinds))
        print("ms    " + "".join(f"{results[kind][1] * 1e3:10.1f}" for kind in kinds))
        reference = results["pytorch"][0]
        worst = max(abs(loss - other) for kind in kinds[1:] for loss, other in zip(results[kind][0], reference))
        tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
        print(f"largest difference of losses {worst:.2e}; expected at most {tolerance:.0e}")
        if worst > tolerance or not reference[-1] < reference[0]:
            raise SystemExit("the losses do not agree, or do not fall")
    if options.ranks:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
