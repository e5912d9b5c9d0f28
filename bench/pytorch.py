"""Measures cpflex.torch: microseconds that a call costs over the C call, on tiny CPU tensors, and, where there is a
GPU, block mask, forward and backward beside PyTorch's compiled flex_attention.

    PYTHONPATH=python python bench/pytorch.py [--length 8192]
"""
import argparse
import time

import torch
from torch.nn.attention import flex_attention as pytorch

from cpflex import torch as ours


def microseconds(call, rounds=30, calls=300):
    """The best round's mean CPU time of one call, which other processes disturb least."""
    for _ in range(100):
        call()
    best = float("inf")
    for _ in range(rounds):
        begin = time.thread_time()
        for _ in range(calls):
            call()
        best = min(best, (time.thread_time() - begin) / calls * 1e6)
    return best


def measure_overhead():
    torch.set_num_threads(1)
    q, k, v = (torch.randn(1, 1, 16, 16) for _ in range(3))
    recorded = q.clone().requires_grad_()
    mask = ours.create_block_mask(lambda b, h, i, j: i >= j, None, None, 16, 16)
    bias = torch.zeros(1)
    for name, score_mod in (("mask", None), ("mask, score", lambda s, b, h, i, j: s + bias[h])):
        ours.flex_attention(q, k, v, score_mod=score_mod, block_mask=mask)
        launch = list(ours._ready.values())[-1][2].launch
        out, lse, rests = torch.empty_like(q), torch.empty(1, 1, 16), launch.rests
        packed = launch.PACK.pack(q.data_ptr(), rests[0], k.data_ptr(), rests[1], v.data_ptr(), rests[2],
                                  out.data_ptr(), rests[3], lse.data_ptr(), rests[4], 0, rests[5])
        base = microseconds(lambda: launch.forward(launch.executable.address, packed, None, 0, None))
        plain = microseconds(lambda: ours.flex_attention(q, k, v, score_mod=score_mod, block_mask=mask))
        gradient = microseconds(lambda: ours.flex_attention(recorded, k, v, score_mod=score_mod, block_mask=mask))
        print(f"{name:12} C call {base:5.1f} us; over it: {plain - base:5.1f} us, with autograd "
              f"{gradient - base:5.1f} us")


def milliseconds(call, calls=10):
    for _ in range(3):
        call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


def measure_gpu(length):
    ids = torch.arange(length, device="cuda") // 1000
    masks = {"causal": lambda b, h, i, j: i >= j, "documents": lambda b, h, i, j: (i >= j) & (ids[i] == ids[j])}
    q, k, v = (torch.randn(1, heads, length, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
               for heads in (32, 8, 8))
    d_out = torch.randn_like(q)
    compiled = torch.compile(pytorch.flex_attention, dynamic=False)
    print(f"bf16, 32 heads on 8, head size 128, {length} tokens; {torch.cuda.get_device_name()}")
    for name, mask_mod in masks.items():
        for library, attention, make in (("PyTorch", compiled, pytorch.create_block_mask),
                                         ("cpflex", ours.flex_attention, ours.create_block_mask)):
            make(mask_mod, None, None, length, length, device="cuda")
            torch.cuda.synchronize()
            begin = time.perf_counter()
            mask = make(mask_mod, None, None, length, length, device="cuda")
            torch.cuda.synchronize()
            mask_ms = (time.perf_counter() - begin) * 1e3

            def both():
                attention(q, k, v, block_mask=mask, enable_gqa=True).backward(d_out)

            with torch.no_grad():
                forward = milliseconds(lambda: attention(q, k, v, block_mask=mask, enable_gqa=True))
            print(f"{name:10} {library:8} block mask {mask_ms:7.2f} ms, forward {forward:7.3f} ms, "
                  f"forward and backward {milliseconds(both):7.3f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192)
    options = parser.parse_args()
    measure_overhead()
    if torch.cuda.is_available():
        measure_gpu(options.length)


if __name__ == "__main__":
    main()
