# What a FlexAttention function computes, as `.cpf` text: the function is called once with values that record what is
# done with them. Captured scalars become params, captured arrays declarations. Nothing of PyTorch is needed here; how
# its functions are read is told by an adapter.
import math
import re
import types

from cpflex._operations import COMPARISONS, OPERATIONS, OPERATORS, as_kind, as_number
from cpflex._value import CapturedArray, Row, Scalar, TranslationError, Value, fail, located

# Names that mean something in the language; what is called so in Python gets a `_`.
RESERVED = set(
    """B H HKV Q_LEN KV_LEN abs all any and_masks or_masks attention bool clamp cos exp exp2 float floor ilog2
inf int log log1p mask max min param const tensor per_document per_head pow range ravel remap rsqrt score sigmoid sin
sqrt sum tanh u32 unravel where i32 i64 f32 sorted and or not in if else elif for while return def class lambda import
from as True False None is pass del global nonlocal try except finally raise with yield assert break continue async
await torch math pi entry_mask entry_score""".split())

COORDINATES = ("b", "h", "q", "kv")


class FunctionTrace:
    """What one mask or score function does: its result, and the scalars and arrays that it reads."""

    def __init__(self, function, num_parameters, adapter):
        self.adapter = adapter
        self.functions = {name: self._method(name) for name in OPERATIONS | adapter.operations}
        self.scalars, self.arrays, self.sources, self.copies = [], [], [], {}
        self.is_repeatable = True
        self.names = {}
        self.is_score = num_parameters == 5
        self.title = getattr(function, "__name__", type(function).__name__)
        code = getattr(function, "__code__", None)
        self.place = (code.co_filename, code.co_firstlineno) if code else None
        leaves = [Value(self, "float", "s")] if self.is_score else []
        leaves += [Value(self, "int", name) for name in COORDINATES]
        with adapter.recording(self):
            result = self.rebuilt(function)(*leaves)
        result = self.value(result)
        if self.is_score:
            self.result = as_kind(as_number(result), "float")
        elif result.kind == "float":
            raise TranslationError(located(self.place and (*self.place, None),
                                           f"mask '{self.title}' gives a float; expected a bool"))
        else:
            self.result = as_kind(result, "bool")

    # Where captured things come from.

    def rebuilt(self, function):
        """The function over cells that hold recorded scalars in place of ints and floats. What was found is remembered,
        so that a later call sees whether the function still closes over the same things."""
        if not isinstance(function, types.FunctionType):
            self.is_repeatable = False
            return function
        if self.adapter.is_foreign(function) and not function.__closure__:
            return function
        if id(function) in self.copies:
            return self.copies[id(function)]
        self.copies[id(function)] = function  # a function that calls itself ends in Python's own error
        cells, replaced = [], {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            try:
                content = cell.cell_contents
            except ValueError:  # an empty cell: the function names itself or what is made later
                self.is_repeatable = False
                cells.append(cell)
                continue
            self.sources.append((cell, None, content))
            cells.append(types.CellType(self.replacement(name, content)))
        for name in function.__code__.co_names:
            if name in function.__globals__:
                content = function.__globals__[name]
                self.sources.append((function.__globals__, name, content))
                self.note_name(name, content)
                if isinstance(content, types.FunctionType):
                    replaced[name] = self.rebuilt(content)
                if self.adapter.wraps_arrays and self.adapter.is_array(content):
                    replaced[name] = self.load(self.captured(content), ())
        copy = types.FunctionType(function.__code__, {**function.__globals__, **replaced}, function.__name__,
                                  function.__defaults__, tuple(cells) or None)
        copy.__kwdefaults__ = function.__kwdefaults__
        self.copies[id(function)] = copy
        return copy

    def replacement(self, name, content):
        if type(content) in (int, float):
            scalar = Scalar(self.unique(name), content)
            self.scalars.append(scalar)
            return Value(self, type(content).__name__, "@", (), content, scalar)
        if isinstance(content, types.FunctionType):
            return self.rebuilt(content)
        if type(content) in (tuple, list):
            if not all(isinstance(item, types.FunctionType) for item in content):
                self.is_repeatable = False
            return type(content)(self.rebuilt(item) if isinstance(item, types.FunctionType) else item
                                 for item in content)
        if not (content is None or isinstance(content, (bool, str, type, types.ModuleType, types.BuiltinFunctionType))
                or self.adapter.is_array(content) or self.adapter.is_constant(content)):
            self.is_repeatable = False
        self.note_name(name, content)
        if self.adapter.wraps_arrays and self.adapter.is_array(content):
            return self.load(self.captured(content), ())
        return content

    def note_name(self, name, content):
        if self.adapter.is_array(content):
            self.names.setdefault(id(content), name)

    def unique(self, name):
        name = re.sub(r"\W", "_", name)
        if name in RESERVED or name in COORDINATES or name == "s" or re.fullmatch(r"t\d+", name):
            name += "_"
        taken = {scalar.name for scalar in self.scalars} | {captured.name for captured in self.arrays}
        base, number = name, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        return name

    def is_current(self):
        """Whether the function closes over the very things that were traced; scalars may have other values."""
        for holder, name, content in self.sources:
            found = holder.cell_contents if name is None else holder.get(name)
            if found is not content and not (type(found) is type(content) and type(content) in (int, float)
                                             and found == content):
                return False
        return True

    # What the function does.

    def value(self, content):
        """A Value for anything that may stand in an expression."""
        if isinstance(content, Value):
            return content
        if isinstance(content, Row):
            return self.load(content.captured, content.indices, is_whole=True)
        kind = type(content)
        if kind is bool:
            return Value(self, "bool", str(content), (), content)
        if kind is int:
            return Value(self, "int", f"({content})" if content < 0 else str(content), (), content)
        if kind is float:
            if math.isnan(content):
                fail("nan has no translation")
            form = "inf" if content == math.inf else "(-inf)" if content == -math.inf else repr(content)
            return Value(self, "float", f"({form})" if form[0] == "-" else form, (), content)
        if getattr(content, "shape", None) == () and type(content).__module__ == "numpy":
            return self.value(content.item())
        if self.adapter.is_array(content):
            constant = self.adapter.constant_of(content) if id(content) not in self.names else None
            if constant is not None:
                self.is_repeatable = False
                return self.value(constant)
            return self.load(self.captured(content), (), is_whole=True)
        return fail(f"a '{kind.__name__}' cannot take part in an expression; expected numbers and arrays")

    def captured(self, content):
        for captured in self.arrays:
            if captured.array is content:
                return captured
        if id(content) not in self.names:
            self.is_repeatable = False
        dtype, shape = self.adapter.describe(content)
        if dtype is None:
            fail(f"a captured array has elements of type {self.adapter.type_name(content)}; expected bool, an integer, "
                 "float16, bfloat16 or float32")
        if len(shape) > 4:
            fail(f"a captured array has {len(shape)} dimensions; expected at most 4")
        captured = CapturedArray(self.unique(self.names.get(id(content), "captured")), content, dtype, shape)
        self.arrays.append(captured)
        return captured

    def load(self, captured, indices, is_whole=False):
        if len(indices) > len(captured.shape) or (is_whole and len(indices) < len(captured.shape)):
            fail(f"'{captured.name}' has {len(captured.shape)} dimension{'s' * (len(captured.shape) != 1)}, "
                 f"{len(indices)} ind{'ex' if len(indices) == 1 else 'ices'} given")
        checked = []
        for axis, index in enumerate(indices):
            if index is None or index is Ellipsis or isinstance(index, slice):
                fail(f"an index of '{captured.name}' is {index!r}; expected a number for each dimension")
            index = as_number(self.value(index))
            if index.kind == "float":
                fail(f"an index of '{captured.name}' is a float; expected an int")
            if not index.operands and index.known is not None and index.leaf is None and index.known < 0:
                index = self.value(index.known + captured.shape[axis])  # a constant wraps as in Python
            checked.append(index)
        if len(checked) < len(captured.shape):
            return Row(self, captured, tuple(checked))
        kind = "bool" if captured.dtype == "bool" else "float" if captured.dtype in ("f16", "bf16", "f32") else "int"
        places = ", ".join("{}" for _ in checked)
        return Value(self, kind, f"@[{places}]" if checked else "@", tuple(checked), leaf=captured)

    def _method(self, name):
        return lambda value, *arguments, **keywords: self.apply(name, value, *arguments, **keywords)

    def apply(self, name, *arguments, **keywords):
        operation = self.adapter.operations.get(name)
        if operation:  # these see the arguments as they are
            return operation(self, *arguments, **keywords)
        operation = OPERATIONS[name]
        for ignored in ("dtype", "out", "device", "memory_format"):
            if keywords.pop(ignored, None) is not None and ignored == "out":
                fail("'out' has no translation")
        try:
            return operation(self, *(None if argument is None else self.value(argument) for argument in arguments),
                             **{key: None if argument is None else self.value(argument)
                                for key, argument in keywords.items()})
        except TypeError as error:
            if isinstance(error, TranslationError):
                raise
            return fail(f"'{name}' with these arguments has no translation ({error})")

    def call(self, function, arguments, keywords):
        """A function of the array library that met a traced value."""
        name = getattr(function, "__name__", str(function))
        plain = re.fullmatch(r"__(r?)(\w+)__", name)
        if name == "__getitem__":
            index = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            if isinstance(arguments[0], (Value, Row)):
                return arguments[0][arguments[1]]
            return self.load(self.captured(arguments[0]), index)
        if plain and plain.group(2) in OPERATORS:
            arguments = tuple(reversed(arguments)) if plain.group(1) else arguments
            name = OPERATORS[plain.group(2)]
        elif plain and plain.group(2) in COMPARISONS:
            name = plain.group(2)
        elif name in ("rsub", "__rsub__"):
            name, arguments = "sub", tuple(reversed(arguments))
        if name not in OPERATIONS and name not in self.adapter.operations:
            return fail(self.adapter.refusal(name) or f"'{name}' has no translation")
        if self.adapter.is_method_where(function):
            arguments = (arguments[1], arguments[0], *arguments[2:])
        return self.apply(name, *arguments, **keywords)

    def settle(self, value):
        """Turns the scalars that a value depends on into constants: Python decided something by it."""
        if isinstance(value.leaf, Scalar):
            value.leaf.is_constant = True
        for operand in value.operands:
            self.settle(operand)
