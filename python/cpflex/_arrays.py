# How arrays cross between Python and the library: NumPy's by their address, any other by DLPack, never by a copy.
import ctypes

import numpy

from cpflex import _library

DTYPES = ("bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f16", "bf16", "f32")
CODES = {name: code for code, name in enumerate(DTYPES)}
NUMPY_NAMES = {
    "bool": "bool",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
    "float16": "f16",
    "bfloat16": "bf16",
     "float32": "f32"}
# NumPy has no bfloat16; its bits travel as uint16.
NUMPY_TYPES = {short: numpy.dtype("uint16" if short == "bf16" else long) for long, short in NUMPY_NAMES.items()}

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def fill(target, data, code, shape, strides, device_type=1, device_index=0):
    """Writes a cpflex_array; strides count elements."""
    rank = len(shape)
    target.data, target.dtype, target.rank = data, code, rank
    target.shape[:rank], target.strides[:rank] = shape, strides
    target.device_type, target.device_index = device_type, device_index


def describe(library, array, name, dtype=None):
    """(cpflex_array, what must stay alive while it is used) of a NumPy array or of anything with `__dlpack__`. `dtype`
    "bf16" takes 16-bit integers for bfloat16."""
    target = _library.Array()
    if isinstance(array, (bool, int, float)):
        array = numpy.asarray(array)
    if not isinstance(array, (numpy.ndarray, numpy.generic)):
        if not hasattr(array, "__dlpack__"):
            if not isinstance(array, (list, tuple)):
                raise TypeError(f"'{name}' is a '{type(array).__name__}'; expected an array")
            array = numpy.asarray(array)
        else:
            capsule = array.__dlpack__()
            try:
                library.array_from_dlpack(_capsule_pointer(capsule, b"dltensor"), target)
            except (ValueError, NotImplementedError) as error:
                raise type(error)(f"'{name}': {error}") from None
            return target, (array, capsule)
    array = numpy.asarray(array)
    short = NUMPY_NAMES.get(array.dtype.name)
    if short is None or not array.dtype.isnative:
        raise TypeError(f"'{name}' has elements of type {array.dtype}; expected bool, an integer, float16 or float32")
    if dtype == "bf16" and short in ("u16", "i16"):
        short = "bf16"
    if array.ndim > 4:
        raise ValueError(f"'{name}' has {array.ndim} dimensions; expected at most 4")
    itemsize = array.itemsize
    if any(stride % itemsize for stride in array.strides):
        array = numpy.ascontiguousarray(array)
    fill(target, array.__array_interface__["data"][0], CODES[short], array.shape,
         [stride // itemsize for stride in array.strides])
    return target, array


def view(source, owner):
    """A NumPy array over memory of the library, which `owner` keeps alive. Read-only."""
    dtype = NUMPY_TYPES[DTYPES[source.dtype]]
    shape = tuple(source.shape[:source.rank])
    if 0 in shape or not source.data:
        return numpy.zeros(shape, dtype)

    class Memory:
        __array_interface__ = {"data": (source.data, True), "shape": shape, "typestr": dtype.str, "version": 3,
                               "strides": tuple(stride * dtype.itemsize for stride in source.strides[:source.rank])}

        def __init__(self):
            self.owner = owner

    return numpy.asarray(Memory())
