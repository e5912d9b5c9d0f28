"""What PyTorch offers for context parallelism, timed on the GPUs of this machine, one process each: ring attention over SDPA
(cuDNN) for a causal mask, and flex_attention after an all-gather of keys and values for sparse masks.

  torchrun --nproc-per-node 2 bench/cp/peers.py --documents doc.npy [--length 65536] [--out peers.json]

bf16, B=1 H=16 D=128. Rank 0 prints a line for each work and writes all as JSON to --out: milliseconds of forward, and of forward
and backward, each the median over repetitions of the slowest rank, by events of the GPU.
"""
import argparse
import json
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._context_parallel import (_context_parallel_shard, _HeadTailLoadBalancer,
                                                                     flex_cp_allgather, set_rotate_method)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

HEADS, HEAD_DIM = 16, 128
WARMUPS, TIMED = 3, 9
WINDOW = 1024


def slowest_median_ms(run):
    """The median over repetitions of the slowest rank's milliseconds."""
    for _ in range(WARMUPS):
        run()
    times = []
    for _ in range(TIMED):
        torch.cuda.synchronize()
        dist.barrier()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    each = torch.tensor(times, device="cuda")
    dist.all_reduce(each, dist.ReduceOp.MAX)
    return each.median().item()


def time_passes(attention, q, k, v):
    """Forward without and with backward."""
    gradient = torch.randn_like(q)

    def forward():
        with torch.no_grad():
            attention(q, k, v)

    def both():
        attention(q, k, v).backward(gradient)
        q.grad = k.grad = v.grad = None

    result = {"forward_ms": slowest_median_ms(forward)}
    for tensor in (q, k, v):
        tensor.requires_grad_(True)
    result["forward_and_backward_ms"] = slowest_median_ms(both)
    for tensor in (q, k, v):
        tensor.requires_grad_(False)
    return result


def ring(mesh, tensors):
    """Ring attention: queries and keys in the head-tail order, keys pass on by all-to-all."""
    set_rotate_method("alltoall")
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), context_parallel(mesh, buffers=tensors, buffer_seq_dims=[2, 2, 2]):
        return time_passes(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *tensors)


def all_gather(mesh, tensors, mask_mod, length, balancer=None):
    """flex_attention over gathered keys, as PyTorch's context parallelism of FlexAttention does it."""
    compiled = torch.compile(flex_attention, dynamic=False)
    mask = torch.compile(create_block_mask, dynamic=False)(mask_mod, 1, 1, length, length, device="cuda")
    q, k, v, mask = _context_parallel_shard(mesh, [*tensors, mask], [2, 2, 2, 2], balancer)
    name = mesh.get_group().group_name

    def attention(q, k, v):
        return compiled(q, *flex_cp_allgather(k, v, 2, name), block_mask=mask)

    return time_passes(attention, *(x.detach().clone() for x in (q, k, v)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", required=True, help="a .npy of one document id per position")
    parser.add_argument("--length", type=int, default=65536)
    parser.add_argument("--out", help="also write the JSON here")
    options = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    document = torch.from_numpy(np.load(options.documents).astype(np.int32).reshape(-1)).cuda()
    torch.manual_seed(0)

    def tensors():
        return [torch.randn(1, HEADS, options.length, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(3)]

    def doc_causal(b, h, q, kv):
        return (q >= kv) & (document[q] == document[kv])

    def window(b, h, q, kv):
        return (q >= kv) & (q - kv <= WINDOW)

    def causal(b, h, q, kv):
        return q >= kv

    head_tail = _HeadTailLoadBalancer(options.length, dist.get_world_size(), "cuda")
    works = {"causal: ring SDPA cuDNN": lambda: ring(mesh, tensors()),
             "causal: flex all-gather": lambda: all_gather(mesh, tensors(), causal, options.length, head_tail),
             "doc_causal_2k: flex all-gather": lambda: all_gather(mesh, tensors(), doc_causal, options.length),
             f"swa_{WINDOW}: flex all-gather": lambda: all_gather(mesh, tensors(), window, options.length)}
    results = {}
    for name, work in works.items():
        results[name] = work()
        if rank == 0:
            print(name, {key: round(value, 3) for key, value in results[name].items()}, flush=True)
    if rank == 0 and options.out:
        with open(options.out, "w") as file:
            json.dump(results, file, indent=1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
