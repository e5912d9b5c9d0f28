# What the operations of Python, NumPy and PyTorch mean in the language. Each takes Values and gives a Value.
import math
import operator

from cpflex._value import Value, fail


def as_kind(value, kind):
    if value.kind == kind:
        return value
    if value.known is not None and not value.operands and value.leaf is None:
        return value.trace.value({"bool": bool, "int": int, "float": float}[kind](value.known))
    known = None if value.known is None else {"bool": bool, "int": int, "float": float}[kind](value.known)
    return Value(value.trace, kind, kind + "({})", (value,), known)


def as_number(value):
    return as_kind(value, "int") if value.kind == "bool" else value


def joined(*values):
    """The values in the kind that all fit in, as PyTorch promotes them."""
    kinds = {value.kind for value in values}
    kind = "float" if "float" in kinds else "int" if "int" in kinds else "bool"
    # The language lets an int meet a float by itself.
    return kind, [value if value.kind == kind or (kind == "float" and value.kind == "int") else as_kind(value, kind)
                  for value in values]


def known_of(function, *values):
    if any(value.known is None for value in values):
        return None
    try:
        return function(*(value.known for value in values))
    except (ArithmeticError, ValueError, TypeError):
        return None


def arithmetic(symbol, function):
    def apply(trace, left, right):
        left, right = as_number(left), as_number(right)
        kind = "float" if symbol == "/" or "float" in (left.kind, right.kind) else "int"
        if symbol in ("<<", ">>") and kind == "float":
            fail(f"'{symbol}' works on ints")
        return Value(trace, kind, "{} " + symbol + " {}", (left, right), known_of(function, left, right))
    return apply


def comparison(symbol, function):
    def apply(trace, left, right):
        _, (left, right) = joined(left, right)
        if left.kind == "bool" and symbol not in ("==", "!="):
            left, right = as_kind(left, "int"), as_kind(right, "int")
        return Value(trace, "bool", "{} " + symbol + " {}", (left, right), known_of(function, left, right))
    return apply


def bitwise(symbol, function):
    def apply(trace, left, right):
        kind, (left, right) = joined(left, right)
        if kind == "float":
            fail(f"'{symbol}' works on bools and ints")
        return Value(trace, kind, "{} " + symbol + " {}", (left, right), known_of(function, left, right))
    return apply


def logical(symbol, function):
    def apply(trace, left, right):
        left, right = as_kind(left, "bool"), as_kind(right, "bool")
        return Value(trace, "bool", "{} " + symbol + " {}", (left, right), known_of(function, left, right))
    return apply


def float_function(name):
    def apply(trace, value):
        return Value(trace, "float", name + "({})", (as_number(value),))
    return apply


def invert(trace, value):
    if value.kind == "float":
        fail("'~' works on bools and ints")
    return Value(trace, value.kind, "~{}", (value,),
                 known_of((lambda x: not x) if value.kind == "bool" else operator.inv, value))


def negate(trace, value):
    value = as_number(value)
    return Value(trace, value.kind, "-{}", (value,), known_of(operator.neg, value))


def absolute(trace, value):
    value = as_number(value)
    return Value(trace, value.kind, "abs({})", (value,), known_of(abs, value))


def extreme(name, function):
    def apply(trace, left, right=None):
        if right is None:
            return left
        kind, values = joined(as_number(left), as_number(right))
        return Value(trace, kind, name + "({}, {})", tuple(values), known_of(function, *values))
    return apply


def power(trace, base, exponent):
    base, exponent = as_number(base), as_number(exponent)
    if base.kind == exponent.kind == "int" and exponent.known is not None and exponent.known >= 0:
        trace.settle(exponent)
        return Value(trace, "int", "{} ** " + str(exponent.known), (base,), known_of(lambda x: x**exponent.known, base))
    return Value(trace, "float", "{} ** {}", (as_kind(base, "float"), exponent), known_of(operator.pow, base, exponent))


def where(trace, condition, chosen, other):
    kind, (chosen, other) = joined(chosen, other)
    return Value(trace, kind, "where({}, {}, {})", (as_kind(condition, "bool"), chosen, other))


AT_LEAST, AT_MOST = extreme("max", max), extreme("min", min)


def clamp(trace, value, min=None, max=None):
    value = as_number(value)
    if min is not None:
        value = AT_LEAST(trace, value, min)
    if max is not None:
        value = AT_MOST(trace, value, max)
    return value


def floor(trace, value):
    return Value(trace, "float", "floor({})", (value,), known_of(math.floor, value)) if value.kind == "float" else value


def truth(trace, value):
    return as_kind(value, "bool")


def identity(trace, value):
    return value


ADD, SUBTRACT = arithmetic("+", operator.add), arithmetic("-", operator.sub)
MULTIPLY, DIVIDE = arithmetic("*", operator.mul), arithmetic("/", operator.truediv)

# By the names that PyTorch and NumPy have for them; methods and functions alike.
OPERATIONS = {
    "add": ADD, "sub": SUBTRACT, "subtract": SUBTRACT, "mul": MULTIPLY, "multiply": MULTIPLY,
    "true_divide": DIVIDE, "floor_divide": arithmetic("//", operator.floordiv),
    "remainder": arithmetic("%", operator.mod), "pow": power,
    "bitwise_left_shift": arithmetic("<<", operator.lshift), "bitwise_right_shift": arithmetic(">>", operator.rshift),
    "eq": comparison("==", operator.eq), "ne": comparison("!=", operator.ne),
    "not_equal": comparison("!=", operator.ne),
    "lt": comparison("<", operator.lt), "less": comparison("<", operator.lt),
    "le": comparison("<=", operator.le), "less_equal": comparison("<=", operator.le),
    "gt": comparison(">", operator.gt), "greater": comparison(">", operator.gt),
    "ge": comparison(">=", operator.ge), "greater_equal": comparison(">=", operator.ge),
    "bitwise_and": bitwise("&", operator.and_), "bitwise_or": bitwise("|", operator.or_),
    "bitwise_xor": bitwise("^", operator.xor), "bitwise_not": invert,
    "logical_and": logical("&", operator.and_), "logical_or": logical("|", operator.or_),
    "logical_xor": logical("^", operator.xor),
    "logical_not": lambda trace, value: invert(trace, as_kind(value, "bool")),
    "neg": negate, "negative": negate, "abs": absolute, "absolute": absolute, "positive": identity,
    "minimum": AT_MOST, "maximum": AT_LEAST, "min": AT_MOST, "max": AT_LEAST, "clamp": clamp, "clip": clamp,
    "where": where, "floor": floor,
    "square": lambda trace, value: MULTIPLY(trace, value, value),
    "any": truth, "all": truth, "clone": identity, "contiguous": identity, "squeeze": identity,
} | {name: float_function(name)
     for name in ("exp", "exp2", "log", "log1p", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos")}

OPERATORS = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "true_divide", "floordiv": "floor_divide", "mod": "remainder",
    "pow": "pow", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor",
}
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def install_operators():
    def binary(name):
        return lambda self, other: self.trace.apply(name, self, other)

    def reflected(name):
        return lambda self, other: self.trace.apply(name, other, self)

    for short, name in OPERATORS.items():
        setattr(Value, f"__{short}__", binary(name))
        setattr(Value, f"__r{short}__", reflected(name))
    for name in COMPARISONS:
        setattr(Value, f"__{name}__", binary(name))
    for short, name in (("neg", "neg"), ("pos", "positive"), ("abs", "abs"), ("invert", "bitwise_not")):
        setattr(Value, f"__{short}__", lambda self, name=name: self.trace.apply(name, self))


install_operators()
