# The values that record what a traced function does with them, and how a failure is shown at its line of Python.
import linecache
import operator
import pathlib
import sys
import types

# Frames of these folders are not the user's.
FOREIGN_FOLDERS = [str(pathlib.Path(__file__).resolve().parent)]


class TranslationError(ValueError):
    """A Python function that has no translation; the message begins with the file and line where it ends."""


def user_frame():
    """The innermost frame of the user's code, or None."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(tuple(FOREIGN_FOLDERS)):
        frame = frame.f_back
    return frame


def position_of(frame):
    """(file, line, columns or None) where `frame` stands."""
    file, line, columns = frame.f_code.co_filename, frame.f_lineno, None
    if hasattr(frame.f_code, "co_positions"):  # CPython 3.11 and newer
        for index, (begin, end, first, last) in enumerate(frame.f_code.co_positions()):
            if index == frame.f_lasti // 2:
                if begin == end and first is not None:
                    columns = (first, last)
                break
    return file, line, columns


def located(position, message):
    """A message as compilers print it."""
    if position is None:
        return "error: " + message
    file, line, columns = position
    source = linecache.getline(file, line).rstrip("\n")
    if not source:
        return f"{file}:{line}: error: {message}"
    if columns is None:
        return f"{file}:{line}: error: {message}\n{source}"
    first, last = columns
    first = len(source.encode()[:first].decode(errors="replace"))
    return (f"{file}:{line}:{first + 1}: error: {message}\n{source}\n" + \
            " " * first + "^" + "~" * (last - columns[0] - 1))


def fail(message):
    frame = user_frame()
    raise TranslationError(located(position_of(frame) if frame else None, message))


class Scalar:
    """A captured int or float, known by where it was found."""

    def __init__(self, name, value):
        self.name, self.value, self.is_constant = name, value, False


class CapturedArray:
    """A captured array, known by identity. `array` is the user's object."""

    def __init__(self, name, array, dtype, shape):
        self.name, self.array, self.dtype, self.shape = name, array, dtype, tuple(shape)


class Value:
    """A traced bool, int or float. `form` is text with a place for each operand and `@` for the name of `leaf`, a
    captured thing; `known` is its value when it depends on captured scalars only."""

    __slots__ = ("trace", "kind", "form", "operands", "known", "leaf", "position")
    __hash__ = object.__hash__

    def __init__(self, trace, kind, form, operands=(), known=None, leaf=None):
        self.trace, self.kind, self.form, self.operands = trace, kind, form, operands
        self.known, self.leaf = known, leaf
        frame = user_frame()
        self.position = (frame.f_code.co_filename, frame.f_lineno) if frame else None

    # What Python asks of numbers. A value of captured scalars only answers, and these scalars become constants.

    def _settled(self, what):
        if self.known is None:
            fail(f"{what} needs a value that depends on batch, head, query or key; expected operations on each pair, "
                 "such as torch.where")
        self.trace.settle(self)
        return self.known

    def __bool__(self):
        return bool(self._settled("a condition of Python"))

    def __int__(self):
        return int(self._settled("int()"))

    def __float__(self):
        return float(self._settled("float()"))

    def __index__(self):
        return operator.index(self._settled("an index of Python"))

    def __iter__(self):
        fail("a value of one pair cannot be iterated over")

    def __getitem__(self, index):
        if index is Ellipsis or index is None or index == ():
            return self
        fail("a value of one pair has no elements; expected a captured array before '['")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        method = self.trace.functions.get(name)
        if method is None:
            found = self.trace.adapter.attribute(self, name)
            if found is not None:
                return found
            fail(self.trace.adapter.refusal(name) or f"'{name}' has no translation")
        return types.MethodType(method, self)

    ndim = 0
    shape = ()

    def __array_ufunc__(self, function, method, *arguments, **keywords):
        return self.trace.call(function, arguments, keywords)

    def __array_function__(self, function, kinds, arguments, keywords):
        return self.trace.call(function, arguments, keywords)

    @classmethod
    def __torch_function__(cls, function, kinds, arguments=(), keywords=None):
        trace = find_trace(arguments) or find_trace((keywords or {}).values())
        return trace.call(function, arguments, keywords or {})


def find_trace(arguments):
    for argument in arguments:
        if isinstance(argument, (Value, Row)):
            return argument.trace
        if isinstance(argument, (tuple, list)):
            found = find_trace(argument)
            if found:
                return found
    return None


class Row:
    """A captured array with fewer indices than axes."""

    def __init__(self, trace, captured, indices):
        self.trace, self.captured, self.indices = trace, captured, indices

    def __getitem__(self, index):
        return self.trace.load(self.captured, self.indices + (index if isinstance(index, tuple) else (index,)))

    @classmethod
    def __torch_function__(cls, function, kinds, arguments=(), keywords=None):
        trace = find_trace(arguments) or find_trace((keywords or {}).values())
        return trace.call(function, arguments, keywords or {})
