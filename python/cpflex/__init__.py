"""Attention masks and scores as small expressions: exact block masks and fused attention over NumPy and DLPack arrays.

    program = cpflex.compile("window.cpf")
    binding = program.bind(WINDOW=256, q_len=4096, heads=8)
    mask = binding.block_mask()            # draws itself in a notebook
    out, lse = binding.forward(q, k, v)

`cpflex.torch` has the same for PyTorch, by FlexAttention's names.
"""
from cpflex._library import CompileError, DataLossError
from cpflex._program import Binding, BlockMask, Program, Segments as segments, compile, port, version
from cpflex._value import TranslationError


def bind(program, *arguments, **keywords):
    """`Program.bind`."""
    return program.bind(*arguments, **keywords)


def block_mask(binding, *arguments, **keywords):
    """`Binding.block_mask`."""
    return binding.block_mask(*arguments, **keywords)


def forward(binding, *arguments, **keywords):
    """`Binding.forward`."""
    return binding.forward(*arguments, **keywords)


def backward(binding, *arguments, **keywords):
    """`Binding.backward`."""
    return binding.backward(*arguments, **keywords)


__all__ = ["Binding", "BlockMask", "CompileError", "DataLossError", "Program", "TranslationError", "backward", "bind",
           "block_mask", "compile", "forward", "port", "segments", "version"]
