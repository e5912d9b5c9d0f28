#!/usr/bin/env python3
"""An independent meaning of `.cpf` programs: Python's own parser and NumPy, nothing of the compiler.

    program = Program("file.cpf", constants={"W": 128}, arrays={"doc": doc}, sizes={"Q_LEN": 64, "KV_LEN": 64})
    allowed = program.mask("entry", b, h, q, kv)      # bool, broadcast over integer arrays
    scores = program.score("entry", s, b, h, q, kv)   # f32

Values have NumPy's dtypes bool, int64, uint32 and float32. Loads outside an array give 0, `//` floors, division by zero
gives 0, shifts act as if unbounded.

    cpf_oracle.py CATALOGUE.json ARRAYS [CASE...]     checks the expected counts of a catalogue by brute force
"""
import ast
import json
import pathlib
import sys

import numpy as np

STANDARD_LIBRARY = pathlib.Path(__file__).resolve().parents[2] / "lib" / "Std"
TYPES = {"int": np.int64, "i32": np.int64, "i64": np.int64, "float": np.float32, "f32": np.float32, "bool": np.bool_,
         "u32": np.uint32, "float32": np.float32, "int32": np.int64, "int64": np.int64, "long": np.int64}


def angle(x):
    """From 2**29 on neighbouring f32 are further apart than a period, and sin and cos see 0."""
    return np.where(np.abs(x) < 2.0**29, x, x - x)


FLOAT_FUNCTIONS = {"exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "tanh": np.tanh, "sqrt": np.sqrt,
                   "sin": lambda x: np.sin(angle(x)), "cos": lambda x: np.cos(angle(x)), "floor": np.floor, "rsqrt": lambda x: 1 / np.sqrt(x),
                   "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def is_float(x):
    return np.asarray(x).dtype == np.float32


def unify(a, b):
    """Both operands in one type: an int that meets a float becomes a float, one that meets a u32 becomes a u32."""
    a, b = np.asarray(a), np.asarray(b)
    for kind in (np.float32, np.uint32):
        if a.dtype == kind or b.dtype == kind:
            return a.astype(kind), b.astype(kind)
    return a, b


def to_type(x, kind):
    x = np.asarray(x)
    if kind in (np.int64, np.uint32) and x.dtype == np.float32:
        limit = np.float32(2.0**63)
        low, high = x < -limit, x >= limit
        inside = np.where(np.isnan(x) | low | high, np.float32(0), x).astype(np.int64)
        x = np.where(high, np.int64(2**63 - 1), np.where(low, np.int64(-(2**63)), inside))
    return x.astype(kind)


def floor_divide(a, b):
    a, b = unify(a, b)
    if is_float(a):
        return np.where(b == 0, np.float32(0), np.floor(divide(a, b))).astype(np.float32)
    if a.dtype == np.uint32:
        return np.where(b == 0, np.uint32(0), a // np.where(b == 0, np.uint32(1), b)).astype(np.uint32)
    safe = np.where((b == 0) | (b == -1), np.int64(1), b)
    return np.where(b == 0, np.int64(0), np.where(b == -1, np.int64(0) - a, a // safe))


def remainder(a, b):
    a, b = unify(a, b)
    if is_float(a):
        return np.where(b == 0, np.float32(0), a - np.floor(divide(a, b)) * b).astype(np.float32)
    if a.dtype == np.uint32:
        return np.where(b == 0, np.uint32(0), a % np.where(b == 0, np.uint32(1), b)).astype(np.uint32)
    safe = np.where((b == 0) | (b == -1), np.int64(1), b)
    return np.where((b == 0) | (b == -1), np.int64(0), a % safe)


def divide(a, b):
    a, b = np.asarray(a).astype(np.float32), np.asarray(b).astype(np.float32)
    return np.where(b == 0, np.float32(0), a / np.where(b == 0, np.float32(1), b)).astype(np.float32)


def shift(a, n, is_left):
    a, n = unify(a, n)
    if a.dtype == np.uint32:
        inside = n < 32
        count = np.where(inside, n, np.uint32(0))
        return np.where(inside, a << count if is_left else a >> count, np.uint32(0)).astype(np.uint32)
    amount = n if is_left else np.int64(0) - n  # positive: to the left
    left = np.where((amount >= 0) & (amount < 64), a << np.clip(amount, 0, 63), np.int64(0))
    right = a >> np.clip(np.int64(0) - np.maximum(amount, -63), 0, 63)
    return np.where(amount >= 0, left, right)


def power(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if is_float(a) or is_float(b):
        return np.power(a.astype(np.float32).astype(np.float64), b.astype(np.float32)).astype(np.float32)
    result = np.ones_like(a)
    for _ in range(int(b)):
        result = result * a
    return result


def integer_log2(x):
    x = np.asarray(x)
    result = np.zeros_like(x)
    for bit in range(1, 63):
        result = np.where(x >= np.int64(1) << bit, np.asarray(bit, x.dtype), result).astype(x.dtype)
    return result


OPERATORS = {
    ast.Add: lambda a, b: np.add(*unify(a, b)), ast.Sub: lambda a, b: np.subtract(*unify(a, b)),
    ast.Mult: lambda a, b: np.multiply(*unify(a, b)), ast.Div: divide, ast.FloorDiv: floor_divide, ast.Mod: remainder,
    ast.Pow: power, ast.LShift: lambda a, b: shift(a, b, True), ast.RShift: lambda a, b: shift(a, b, False),
    ast.BitAnd: lambda a, b: np.bitwise_and(*unify(a, b)), ast.BitOr: lambda a, b: np.bitwise_or(*unify(a, b)),
    ast.BitXor: lambda a, b: np.bitwise_xor(*unify(a, b)),
}
COMPARISONS = {ast.Eq: np.equal, ast.NotEq: np.not_equal, ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater,
               ast.GtE: np.greater_equal}


class Function:
    def __init__(self, node, module):
        self.node, self.module = node, module
        self.role = next((d.id for d in node.decorator_list if isinstance(d, ast.Name)), "plain")


class View:
    """An array with the indices given so far; None stands for `:`."""

    def __init__(self, array, indices=()):
        self.array, self.indices = array, tuple(indices)


class Module:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.tree = ast.parse(self.path.read_text())
        self.names = {}


class Program:
    def __init__(self, path, constants=None, arrays=None, sizes=None):
        self.constants, self.arrays = dict(constants or {}), dict(arrays or {})
        self.sizes = {"B": 1, "H": 1, "HKV": 1, **(sizes or {})}
        self.modules, self.declared, self.entries = {}, {}, {}
        self.main = self.load(path)

    # Modules and declarations.

    def load(self, path):
        key = str(pathlib.Path(path).resolve())
        if key not in self.modules:
            module = self.modules[key] = Module(path)
            self.collect(module)
        return self.modules[key]

    def find_import(self, module, name, member):
        beside = module.path.parent / (name.replace(".", "/") + ".cpf")
        if name != "cpflex.std" and beside.is_file():
            return self.load(beside)
        for path in sorted(STANDARD_LIBRARY.glob("*.cpf")):
            text = path.read_text()
            if f"\ndef {member}(" in text or f"\n{member} = " in text or f"\n{member}: " in text:
                return self.load(path)
        raise KeyError(name)

    def collect(self, module):
        # The main file's declarations hold for the files that it imports, so they come first.
        for node in module.tree.body:
            if isinstance(node, ast.AnnAssign):
                module.names[node.target.id] = ("declared", node)
                self.declared.setdefault(node.target.id, (node, module))
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef):
                module.names[node.name] = Function(node, module)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    module.names[target.id] = ("alias", node.value)
            elif isinstance(node, ast.ImportFrom) and not node.module.startswith("torch"):
                for name in node.names:
                    module.names[name.asname or name.name] = ("imported", self.find_import(module, node.module, name.name), name.name)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.func.id == "attention":
                keywords = {k.arg: k.value for k in node.value.keywords}
                self.entries[node.value.args[0].value] = (module, keywords)

    def declaration(self, name, module):
        node, owner = self.declared[name]
        base = node.annotation
        while isinstance(base, ast.Call):
            base = base.func
        kind = base.value.id
        if kind == "tensor":
            return View(self.arrays[name])
        dtype = TYPES[base.slice.id]
        if name in self.constants:
            return np.asarray(self.constants[name]).astype(dtype)
        return to_type(self.evaluate(node.value, {}, owner), dtype)

    def name(self, name, local, module):
        if name in local:
            return local[name]
        if name in module.names:
            found = module.names[name]
            if isinstance(found, Function):
                return found
            if found[0] == "declared":
                return self.declaration(name, module)
            if found[0] == "alias":
                return self.evaluate(found[1], {}, module)
            return self.name(found[2], {}, found[1])
        if name in self.sizes:
            return np.int64(self.sizes[name])
        if name == "inf":
            return np.float32(np.inf)
        for node, owner in self.declared.values():
            size = self.dimension(name, node)
            if size is not None:
                return np.int64(size)
        return ("builtin", name)

    def dimension(self, name, node):
        """The size of a dimension that a declaration calls `name`, None when it calls none so."""
        shape = node.annotation.func if isinstance(node.annotation, ast.Call) else node.annotation
        if shape.value.id != "tensor" or not isinstance(shape.slice, ast.Tuple) or node.target.id not in self.arrays:
            return None
        for axis, dim in enumerate(shape.slice.elts[1:]):
            offset = 0
            if isinstance(dim, ast.BinOp) and isinstance(dim.op, ast.Add) and isinstance(dim.right, ast.Constant):
                dim, offset = dim.left, dim.right.value
            if isinstance(dim, ast.Name) and dim.id == name:
                return self.arrays[node.target.id].shape[axis] - offset
        return None

    # Expressions.

    def evaluate(self, node, local, module):
        return getattr(self, "on_" + type(node).__name__)(node, local, module)

    def on_Constant(self, node, local, module):
        value = node.value
        if isinstance(value, bool):
            return np.bool_(value)
        if isinstance(value, int):
            return np.int64(value)
        return np.float32(value) if isinstance(value, float) else value

    def on_Name(self, node, local, module):
        return self.name(node.id, local, module)

    def on_Tuple(self, node, local, module):
        return tuple(self.evaluate(e, local, module) for e in node.elts)

    on_List = on_Tuple

    def scalar(self, node, local, module):
        value = self.evaluate(node, local, module)
        return self.load_view(value) if isinstance(value, View) else value

    def on_BinOp(self, node, local, module):
        left, right = self.scalar(node.left, local, module), self.scalar(node.right, local, module)
        if self.is_mask(left):
            return ("combined", type(node.op), left, right)
        return OPERATORS[type(node.op)](left, right)

    def on_UnaryOp(self, node, local, module):
        value = self.scalar(node.operand, local, module)
        if isinstance(node.op, ast.Invert) and self.is_mask(value):
            return ("not", value)
        if isinstance(node.op, (ast.Not, ast.Invert)):
            return np.invert(np.asarray(value))
        return np.negative(value) if isinstance(node.op, ast.USub) else value

    def on_BoolOp(self, node, local, module):
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        result = self.scalar(node.values[0], local, module)
        for value in node.values[1:]:
            result = combine(result, self.scalar(value, local, module))
        return result

    def on_Compare(self, node, local, module):
        result, left = None, self.scalar(node.left, local, module)
        for op, comparator in zip(node.ops, node.comparators):
            if isinstance(op, (ast.In, ast.NotIn)):
                one = self.contains(left, self.evaluate(comparator, local, module))
                one = np.invert(one) if isinstance(op, ast.NotIn) else one
            else:
                right = self.scalar(comparator, local, module)
                one = COMPARISONS[type(op)](*unify(left, right))
                left = right
            result = one if result is None else np.logical_and(result, one)
        return result

    def contains(self, value, container):
        if isinstance(container, tuple):
            result = np.bool_(False)
            for element in container:
                result = np.logical_or(result, np.equal(*unify(value, element)))
            return result
        free = [axis for axis in range(container.array.ndim)
                if axis >= len(container.indices) or container.indices[axis] is None]
        result = np.bool_(False)
        for position in np.ndindex(*[container.array.shape[axis] for axis in free]):
            indices = list(container.indices) + [None] * (container.array.ndim - len(container.indices))
            for axis, index in zip(free, position):
                indices[axis] = np.int64(index)
            result = np.logical_or(result, np.equal(*unify(self.load_view(View(container.array, indices)), value)))
        return result

    def on_IfExp(self, node, local, module):
        condition = np.asarray(self.scalar(node.test, local, module))
        return self.choose(condition, self.scalar(node.body, local, module), self.scalar(node.orelse, local, module))

    def choose(self, condition, a, b):
        if isinstance(a, tuple):
            return tuple(self.choose(condition, x, y) for x, y in zip(a, b))
        return np.where(condition, *unify(a, b))

    def on_Subscript(self, node, local, module):
        base = self.evaluate(node.value, local, module)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        indices = [None if isinstance(p, ast.Slice) else self.scalar(p, local, module) for p in parts]
        if isinstance(base, tuple):
            return base[int(indices[0])]
        view = View(base.array, base.indices + tuple(indices))
        whole = len(view.indices) == view.array.ndim and all(i is not None for i in view.indices)
        return self.load_view(view) if whole else view

    def load_view(self, view):
        array = view.array
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        elif array.dtype != np.bool_ and array.dtype != np.uint32:
            array = array.astype(np.int64)
        inside, clipped = np.bool_(True), []
        for size, index in zip(array.shape, view.indices):
            index = np.asarray(index)
            inside = inside & (index >= 0) & (index < size)
            clipped.append(np.clip(index, 0, max(size - 1, 0)))
        if 0 in array.shape:
            return np.zeros(np.shape(inside), array.dtype)
        value = array[tuple(clipped)] if clipped else array[()]
        return np.where(inside, value, array.dtype.type(0))

    def on_Attribute(self, node, local, module):
        if node.attr == "shape":
            return tuple(np.int64(n) for n in self.evaluate(node.value, local, module).array.shape)
        if node.attr == "inf":
            return np.float32(np.inf)
        return ("builtin", node.attr)

    # Calls.

    def on_Call(self, node, local, module):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.GeneratorExp):
            return self.reduce(node.func.id, first, local, module)
        arguments = [self.evaluate(a, local, module) for a in node.args]
        named = {k.arg: self.evaluate(k.value, local, module) for k in node.keywords}
        is_method = isinstance(node.func, ast.Attribute) and not (
            isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "math", "np"))
        if is_method:
            return self.builtin(node.func.attr, [self.evaluate(node.func.value, local, module), *arguments], named)
        callee = self.evaluate(node.func, local, module)
        if isinstance(callee, Function):
            return self.call(callee, arguments, named)
        if self.is_mask(callee):
            return self.at(callee, *arguments)
        return self.builtin(callee[1], arguments, named)

    def call(self, function, arguments, named=None):
        node, local = function.node, dict(named or {})
        names = [a.arg for a in node.args.args]
        local.update(zip(names, arguments))
        for name, default in zip(names[len(names) - len(node.args.defaults):], node.args.defaults):
            if name not in local:
                local[name] = self.evaluate(default, {}, function.module)
        returned, result = self.run(node.body, local, function.module)
        assert returned, f"{node.name} does not return"
        return result

    def run(self, body, local, module):
        """Whether the block returned, and what; binds names in `local`."""
        for at, node in enumerate(body):
            if isinstance(node, ast.Return):
                return True, self.scalar(node.value, local, module)
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                if isinstance(node, ast.AugAssign):
                    value = OPERATORS[type(node.op)](local[node.target.id], self.scalar(node.value, local, module))
                    self.bind(node.target, value, local)
                    continue
                value = self.evaluate(node.value, local, module)
                for target in node.targets:
                    self.bind(target, value, local)
            elif isinstance(node, ast.If):
                condition = np.asarray(self.scalar(node.test, local, module))
                first, second = dict(local), dict(local)
                if not any(isinstance(inner, ast.Return) for inner in ast.walk(node)):
                    self.run(node.body, first, module)
                    self.run(node.orelse, second, module)
                    for name in set(first) & set(second):
                        x, y = first[name], second[name]
                        local[name] = x if x is y else self.choose(condition, x, y)
                    continue
                # What follows belongs to the arms that do not return.
                rest = body[at + 1:]
                a, b = self.run(node.body + rest, first, module), self.run(node.orelse + rest, second, module)
                return True, self.choose(condition, a[1], b[1])
        return False, None

    def bind(self, target, value, local):
        if isinstance(target, ast.Tuple):
            for name, element in zip(target.elts, value):
                self.bind(name, element, local)
        else:
            local[target.id] = value

    def reduce(self, kind, node, local, module, clause=0):
        combine = {"any": np.logical_or, "all": np.logical_and, "sum": lambda a, b: np.add(*unify(a, b)),
                   "min": lambda a, b: np.minimum(*unify(a, b)), "max": lambda a, b: np.maximum(*unify(a, b))}[kind]
        if clause == len(node.generators):
            return self.scalar(node.elt, local, module)
        generator = node.generators[clause]
        bounds = [int(self.scalar(a, local, module)) for a in generator.iter.args]
        result = None
        for index in range(*bounds):
            inner = {**local, generator.target.id: np.int64(index)}
            value = self.reduce(kind, node, inner, module, clause + 1)
            for condition in generator.ifs:
                neutral = np.asarray(kind == "all").astype(np.asarray(value).dtype)
                value = np.where(self.scalar(condition, inner, module), value, neutral)
            result = value if result is None else combine(result, value)
        if result is None:
            return np.bool_(kind == "all") if kind in ("any", "all") else np.int64(0)
        return result

    def builtin(self, name, a, named):
        if name in ("remap", "per_head", "per_document"):
            return (name, *a, named)
        if name == "unravel":
            rest, result = a[0], []
            for size in reversed(a[1][1:]):
                result.append(remainder(rest, size))
                rest = floor_divide(rest, size)
            return (rest, *reversed(result))
        if name == "ravel":
            result = a[0][0]
            for coordinate, size in zip(a[0][1:], a[1][1:]):
                result = result * size + coordinate
            return result
        a = [self.load_view(x) if isinstance(x, View) else x for x in a]
        if name == "float" and isinstance(a[0], str):
            return np.float32(a[0])
        if name in TYPES:
            return to_type(a[0], TYPES[name])
        if name in ("to", "type"):
            return to_type(a[0], TYPES[a[1][1]])
        if name in ("min", "max", "minimum", "maximum", "sum", "any", "all"):
            values = a[0] if len(a) == 1 else a
            fold = {"min": np.minimum, "max": np.maximum, "sum": np.add, "any": np.logical_or, "all": np.logical_and}[name[:3]]
            result = values[0]
            for value in values[1:]:
                result = fold(*unify(result, value))
            return result
        if name in ("clamp", "clip"):
            low = named.get("min", named.get("lo", a[1] if len(a) > 1 else None))
            high = named.get("max", named.get("hi", a[2] if len(a) > 2 else None))
            result = a[0] if low is None else np.maximum(*unify(a[0], low))
            return result if high is None else np.minimum(*unify(result, high))
        if name == "where":
            return np.where(a[0], *unify(a[1], a[2]))
        if name == "abs":
            return np.abs(a[0]) if is_float(a[0]) else np.where(a[0] < 0, np.negative(a[0]), a[0]).astype(np.asarray(a[0]).dtype)
        if name == "pow":
            return power(a[0], a[1])
        if name == "ilog2":
            return integer_log2(a[0])
        if name.startswith("logical_"):
            return {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}[name[8:]](*a)
        if name == "floor" and not is_float(a[0]):
            return a[0]
        # In double precision and rounded once: NumPy's own f32 functions are off by several units in the last place.
        return FLOAT_FUNCTIONS[name](np.asarray(a[0]).astype(np.float32).astype(np.float64)).astype(np.float32)

    # Masks as values and entry points.

    def is_mask(self, value):
        return (isinstance(value, Function) and value.role == "mask") or (
            isinstance(value, tuple) and value and isinstance(value[0], str)
            and value[0] in ("combined", "not", "remap", "per_head", "per_document"))

    def at(self, mask, b, h, q, kv):
        if isinstance(mask, Function):
            return self.call(mask, [b, h, q, kv])
        if mask[0] == "combined":
            return OPERATORS[mask[1]](self.at(mask[2], b, h, q, kv), self.at(mask[3], b, h, q, kv))
        if mask[0] == "not":
            return np.invert(self.at(mask[1], b, h, q, kv))
        if mask[0] == "remap":
            moved = {"q": q, "kv": kv}
            for axis, how in mask[-1].items():
                moved[axis] = self.position(how, b, h, moved[axis])
            return self.at(mask[1], b, h, moved["q"], moved["kv"])
        if mask[0] == "per_head":
            condition = self.position(mask[1], None, None, h)
            return np.where(condition, self.at(mask[2], b, h, q, kv), self.at(mask[3], b, h, q, kv))
        begin = lambda x: np.max(np.where(mask[2].array.astype(np.int64) <= np.asarray(x)[..., None], mask[2].array.astype(np.int64), 0), axis=-1)
        return (begin(q) == begin(kv)) & self.at(mask[1], b, h, q - begin(q), kv - begin(kv))

    def position(self, how, b, h, x):
        if isinstance(how, Function):
            arguments = [v for v in (b, h, x)][-len(how.node.args.args):]
            return self.call(how, arguments if len(arguments) != 2 else [b, x])
        free = how.array.ndim - len(how.indices)
        prefix = {1: (), 2: (b,), 3: (b, h)}[free]
        return self.load_view(View(how.array, how.indices + prefix + (x,)))

    def mask(self, entry, b, h, q, kv):
        b, h, q, kv = (np.asarray(x, dtype=np.int64) for x in (b, h, q, kv))
        shape = np.broadcast_shapes(b.shape, h.shape, q.shape, kv.shape)
        if entry in self.entries:
            module, keywords = self.entries[entry]
            value = self.evaluate(keywords["mask"], {}, module) if "mask" in keywords else None
        else:
            value = self.name(entry, {}, self.main)
        return np.broadcast_to(True if value is None else self.at(value, b, h, q, kv), shape)

    def score(self, entry, s, b, h, q, kv):
        b, h, q, kv = (np.asarray(x, dtype=np.int64) for x in (b, h, q, kv))
        s = np.asarray(s, dtype=np.float32)
        if entry in self.entries:
            module, keywords = self.entries[entry]
            if "score" not in keywords:
                return s
            functions = self.evaluate(keywords["score"], {}, module)
            functions = functions if isinstance(functions, tuple) else (functions,)
        else:
            functions = (self.name(entry, {}, self.main),)
        for function in functions:
            s = to_type(self.call(function, [s, b, h, q, kv]), np.float32)
        return s


def counts(program, case):
    """The counts of catalogue.json by brute force, one row of tiles at a time."""
    tile_q, tile_kv = (int(n) for n in case["tile"].split("x"))
    num_q, num_kv = case["q_len"], case["kv_len"]
    result = dict(allowed=0, empty=0, full=0, partial=0, rows_without_keys=0)
    columns = np.zeros(num_kv, dtype=np.int64)
    kv = np.arange(num_kv)[None, :]
    for begin in range(0, num_q, tile_q):
        q = np.arange(begin, min(begin + tile_q, num_q))[:, None]
        allowed = program.mask(case["entry"], 0, 0, q, kv)
        result["allowed"] += int(allowed.sum())
        result["rows_without_keys"] += int((~allowed.any(axis=1)).sum())
        columns += allowed.sum(axis=0)
        for at in range(0, num_kv, tile_kv):
            tile = allowed[:, at:at + tile_kv]
            result["full" if tile.all() else "partial" if tile.any() else "empty"] += 1
    result["columns_without_queries"] = int((columns == 0).sum())
    return result


def main():
    catalogue = pathlib.Path(sys.argv[1])
    num_failed = 0
    for case in json.loads(catalogue.read_text())["cases"]:
        if sys.argv[3:] and case["case"] not in sys.argv[3:]:
            continue
        arrays = {name: np.load(pathlib.Path(sys.argv[2]) / file) for name, file in case["binds"].items()}
        program = Program(catalogue.parent / case["file"], case["defines"], arrays, {"Q_LEN": case["q_len"], "KV_LEN": case["kv_len"]})
        found = counts(program, case)
        if found != case["expected"]:
            num_failed += 1
            print(f"{case['case']}: found {found}, expected {case['expected']}")
    print(f"{num_failed} failed")
    return num_failed > 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
