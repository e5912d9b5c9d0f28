# How PyTorch's tensors and functions are met while a mask or score function is traced.
import os

import torch
from torch.overrides import TorchFunctionMode

from cpflex import _value
from cpflex._operations import OPERATIONS, as_kind
from cpflex._value import Value, fail, find_trace

_value.FOREIGN_FOLDERS.append(os.path.dirname(torch.__file__))

TYPES = {torch.bool: "bool", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
         torch.uint8: "u8", torch.uint16: "u16", torch.uint32: "u32", torch.uint64: "u64", torch.float16: "f16",
         torch.bfloat16: "bf16", torch.float32: "f32"}
KINDS = {torch.bool: "bool", torch.float32: "float", torch.float64: None, torch.float16: None, torch.bfloat16: None,
         bool: "bool", int: "int", float: "float"}
KIND_TYPES = {"bool": torch.bool, "int": torch.int32, "float": torch.float32}

SCANS = {"cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "roll", "diff"}
ROW_STATISTICS = {"softmax", "log_softmax", "logsumexp", "mean", "std", "var", "norm", "topk", "sort", "argsort",
                  "argmax", "argmin", "amax", "amin", "median", "prod", "normalize", "layer_norm"}
RANDOM = {"rand", "randn", "randint", "rand_like", "randn_like", "bernoulli", "dropout", "multinomial"}


def converted(trace, value, dtype):
    if not isinstance(value, Value):
        value = trace.value(value)
    kind = KINDS.get(dtype, "int")
    if kind is None:
        fail(f"a value is converted to {dtype}; floats are 32 bits wide here, expected torch.float32")
    if value.kind == "float" and kind == "int" and dtype not in (torch.int32, torch.int64, int):
        fail(f"a float is converted to {dtype}; expected torch.int32 or torch.int64")
    return as_kind(value, kind)


def to(trace, value, *arguments, dtype=None, **keywords):
    for argument in arguments:
        if isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, Value):
            dtype = KIND_TYPES[argument.kind]
        elif isinstance(argument, torch.Tensor):
            dtype = argument.dtype
    return value if dtype is None else converted(trace, value, dtype)


def converter(dtype):
    return lambda trace, value, **keywords: converted(trace, value, dtype)


def divide(trace, left, right, rounding_mode=None):
    left, right = trace.value(left), trace.value(right)
    if rounding_mode == "trunc":
        fail("rounding_mode='trunc' has no translation; expected 'floor'")
    return OPERATIONS["true_divide" if rounding_mode is None else "floor_divide"](trace, left, right)


def filled(number):
    def apply(trace, value, size=(), fill_value=None, dtype=None, **keywords):
        if tuple(size):
            fail(f"an array of shape {tuple(size)} is made for each pair; expected one element")
        return to(trace, trace.value(number), dtype or KIND_TYPES[value.kind])
    return apply


def filled_like(number):
    return lambda trace, value, dtype=None, **keywords: to(trace, trace.value(number), dtype or KIND_TYPES[value.kind])


def full_like(trace, value, fill_value, dtype=None, **keywords):
    return to(trace, trace.value(fill_value), dtype or KIND_TYPES[value.kind])


def relu(trace, value, inplace=False):
    return OPERATIONS["maximum"](trace, value, trace.value(0))


def log2(trace, value):
    return trace.apply("mul", trace.apply("log", value), 1.4426950408889634)


def detach(trace, value):
    return fail("'detach' of a traced value has no translation; detach captured tensors where they are made")


def one_pair(name):
    def apply(trace, value, *arguments, **keywords):
        return fail(f"'{name}' has no translation; a mask or score function computes one value for one pair")
    return apply


class IndexMode(TorchFunctionMode):
    """Lets a traced value index a tensor."""

    def __torch_function__(self, function, kinds, arguments=(), keywords=None):
        trace = find_trace(arguments) or (keywords and find_trace(keywords.values()))
        if trace:
            return trace.call(function, arguments, keywords or {})
        return function(*arguments, **(keywords or {}))


class TorchAdapter:
    wraps_arrays = False
    operations = {
        "to": to, "type": to, "type_as": to, "int": converter(torch.int32), "long": converter(torch.int64),
        "float": converter(torch.float32), "double": converter(torch.float64), "half": converter(torch.float16),
        "bfloat16": converter(torch.bfloat16), "bool": converter(torch.bool), "div": divide, "divide": divide,
        "new_ones": filled(1), "new_zeros": filled(0), "ones_like": filled_like(1), "zeros_like": filled_like(0),
        "full_like": full_like, "relu": relu, "log2": log2, "detach": detach, "item": one_pair("item"),
        "sum": one_pair("sum"), "reshape": one_pair("reshape"), "view": one_pair("view"),
    }

    def is_array(self, content):
        return isinstance(content, torch.Tensor)

    def is_constant(self, content):
        return isinstance(content, (torch.dtype, torch.device, torch.Size)) or callable(content) and getattr(
            content, "__module__", "").startswith("torch.")

    def is_foreign(self, function):
        return (function.__module__ or "").split(".")[0] == "torch"

    def recording(self, trace):
        return IndexMode()

    def attribute(self, value, name):
        return {"dtype": KIND_TYPES[value.kind], "device": torch.device("cpu"), "requires_grad": False}.get(name)

    def constant_of(self, tensor):
        if tensor.ndim == 0 and tensor.device.type == "cpu" and not tensor.requires_grad:
            return tensor.item()
        return None

    def describe(self, tensor):
        return TYPES.get(tensor.dtype), tensor.shape

    def type_name(self, tensor):
        return str(tensor.dtype)

    def refusal(self, name):
        if name in SCANS:
            return f"'{name}' is a scan along the keys; compute it beforehand into a captured tensor"
        if name in ROW_STATISTICS:
            return f"'{name}' needs the whole row; a mask or score function sees one pair"
        if name in RANDOM:
            return f"'{name}' has a hidden state; compute it beforehand into a captured tensor"
        return None

    def is_method_where(self, function):
        return function is torch.Tensor.where
