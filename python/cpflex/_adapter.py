# How arrays of NumPy, and of any library that speaks DLPack, are met while a function is traced.
import contextlib
import os

import numpy

from cpflex import _value

_value.FOREIGN_FOLDERS += [os.path.dirname(numpy.__file__), "<__array_function__ internals>"]

TYPES = {"bool": "bool", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "u8", "uint16": "u16",
         "uint32": "u32", "uint64": "u64", "float16": "f16", "float32": "f32"}


class NumpyAdapter:
    """NumPy's arrays cannot be indexed by a traced value; cells that hold them are replaced while tracing."""

    wraps_arrays = True
    operations = {}

    def is_array(self, content):
        return isinstance(content, numpy.ndarray)

    def is_constant(self, content):
        return isinstance(content, (numpy.generic, numpy.dtype, numpy.ufunc))

    def is_foreign(self, function):
        return False

    def recording(self, trace):
        return contextlib.nullcontext()

    def attribute(self, value, name):
        return None

    def constant_of(self, array):
        return None

    def describe(self, array):
        return TYPES.get(array.dtype.name), array.shape

    def type_name(self, array):
        return array.dtype.name

    def refusal(self, name):
        return None

    def is_method_where(self, function):
        return False
