#!/usr/bin/env python3
"""Random well-typed `.cpf` programs with what cpf_oracle.py says they give.

    random_programs.py FOLDER NUM_PROGRAMS SEED

Writes groups of programs: groupN.cpf with one entry point each, arrays beside it, expected values in groupN.bin, and
programs.json. Overflow, division by 0, shifts, NaN, loads outside of arrays and positions near 2^31 are among them.

A score either uses operations that every target rounds alike, and must agree exactly, or ends in `exact + t` or `t`, where
`t` is one function that is rounded differently (exp, tanh, ...) of an exact value: then it may differ by 2 units in the
last place of t and of the sum.
"""
import json
import pathlib
import random
import sys

import numpy as np

from cpf_oracle import Program

PROGRAMS_IN_GROUP = 25
INTERESTING = [0, 1, 1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 63, 64, 65, 127, 128, 2147483647, 2147483648, 4294967295, 1 << 40,
               9223372036854775807]
FLOATS = ["0.0", "1.0", "0.5", "2.0", "3.0", "1e-3", "1e30", "1e-38", "0.1", "16777217.0", "9.3e18", "inf"]
ROUNDED = ["exp", "exp2", "log", "log1p", "tanh", "sigmoid", "rsqrt", "sin", "cos", "pow", "quotient"]
MASK, SCORE = "mask", "score"
RARE_STATEMENTS = 7
SIZE = {"small": (40, 60), "long": (2**31 - 1, 2**31 - 1), "narrow": (2**30, 2**30)}


class Function:
    """The text of one function; `role` says what it may use."""

    def __init__(self, rng, role):
        self.rng, self.role = rng, role
        self.names = {"int": ["b", "h", "q", "kv", "q", "kv"], "bool": [], "u32": [], "float": []}
        if role == SCORE:
            self.names["float"] = ["s", "s", "s"]
        self.lines, self.indent, self.next_name = [], "    ", 0
        self.in_reduction = False

    def pick(self, *choices):
        return self.rng.choice(choices)

    def fresh(self):
        self.next_name += 1
        return f"v{self.next_name}"

    def expression(self, kind, depth):
        return getattr(self, kind)(depth)

    def int(self, depth):
        if depth <= 0:
            return self.pick(*self.names["int"], self.literal(), "W", "P", "D", "KV_LEN", "Q_LEN", "N")
        d = depth - 1
        choice = self.rng.randrange(26)
        if choice < 7:
            return self.pick(f"({self.int(d)} {self.pick('+', '-', '-', '*')} {self.int(d)})",
                             f"({self.int(d)} {self.pick('//', '%')} {self.divisor('int', d)})")
        if choice < 9:
            return f"({self.int(d)} {self.pick('&', '|', '^')} {self.int(d)})"
        if choice < 11:
            amount = self.pick(self.int(d), f"({self.int(d)} % 70)", f"({self.int(d)} % 130 - 65)")
            return f"({self.int(d)} {self.pick('<<', '>>')} {amount})"
        if choice == 11:
            return f"({self.int(d)} ** {self.pick(0, 1, 2, 3)})"
        if choice < 14:
            return self.pick(f"-{self.int(d)}", f"~{self.int(d)}", f"abs({self.int(d)})", f"ilog2({self.int(d)})")
        if choice < 16:
            return f"{self.pick('min', 'max')}({self.int(d)}, {self.int(d)})"
        if choice == 16:
            return f"({self.int(d)} if {self.bool(d)} else {self.int(d)})"
        if choice == 17:
            return f"where({self.bool(d)}, {self.int(d)}, {self.int(d)})"
        if choice == 18:
            low = self.rng.randrange(-5, 50)
            return f"clamp({self.int(d)}, {low}, {low + self.rng.randrange(60)})"
        if choice < 22:
            return self.pick(f"doc[{self.index(d)}]", f"small[{self.index(d)}, {self.index(d)}]", f"big[{self.index(d)}]",
                             f"doc[{self.int(d)} % 50]", f"small[{self.int(d)} % 8, {self.int(d)} & 7]")
        if choice == 22:
            return f"int({self.bool(d)})"
        if choice == 23:
            return f"int({self.u32(d)})"
        if choice == 24:
            return f"int({self.float(d) if self.role == SCORE else self.bool(d)})"
        return self.reduction(self.pick("sum", "min", "max"), "int", d)

    def index(self, depth):
        """An int that is no constant: a constant index outside of an array is an error."""
        return self.pick("q", "kv", f"({self.int(depth)} + {self.pick('q', 'kv', 'W')})")

    def divisor(self, kind, depth, is_quotient=False):
        """A value that is no constant 0, which would be an error, though it may be 0 at run time. Quotients of floats in
        scores may be products with a reciprocal, which is exact for powers of 2."""
        offset = {"int": "W", "u32": "SEED", "float": "X"}[kind]
        variable = {"int": "kv", "u32": "u32(kv)", "float": "float(q)"}[kind]
        constant = {"int": ["2", "3", "7", "64", "(-5)", "(-1)"], "u32": ["2", "7", "4096"], "float": ["2.0", "-0.25", "1024.0"]}[kind]
        if kind == "float" and self.role == SCORE and is_quotient:
            return self.pick(*constant)
        return self.pick(variable, self.pick(*constant), f"({self.expression(kind, depth)} + {offset})")

    def literal(self):
        value = self.rng.choice(INTERESTING)
        return f"({-value})" if self.rng.random() < 0.3 and value else str(value)

    def u32(self, depth):
        if depth <= 0:
            return self.pick(*self.names["u32"], f"u32({self.int(0)})", f"u32({self.rng.choice(INTERESTING[:20])})", "SEED")
        d = depth - 1
        choice = self.rng.randrange(8)
        if choice < 4:
            return self.pick(f"({self.u32(d)} {self.pick('+', '-', '*', '&', '|', '^', '<<', '>>')} {self.u32(d)})",
                             f"({self.u32(d)} {self.pick('//', '%')} {self.divisor('u32', d)})")
        if choice == 4:
            return self.pick(f"~{self.u32(d)}", f"min({self.u32(d)}, {self.u32(d)})", f"max({self.u32(d)}, {self.u32(d)})",
                             f"ilog2({self.u32(d)})")
        if choice == 5:
            return f"seeds[{self.int(d)} % 20]"
        if choice == 6:
            return self.pick(f"u32({self.int(d)})", f"u32({self.bool(d)})",
                             f"u32({self.float(d) if self.role == SCORE else self.int(d)})")
        return f"({self.u32(d)} if {self.bool(d)} else {self.u32(d)})"

    def bool(self, depth):
        if depth <= 0:
            return self.pick(*self.names["bool"], *[f"({self.int(0)} {self.comparison()} {self.int(0)})"] * 3, "FLAG")
        d = depth - 1
        choice = self.rng.randrange(17)
        if choice < 5:
            return f"({self.int(d)} {self.comparison()} {self.int(d)})"
        if choice == 5:
            return f"({self.int(d)} {self.comparison()} {self.int(d)} {self.comparison()} {self.int(d)})"
        if choice == 6:
            return f"({self.u32(d)} {self.comparison()} {self.u32(d)})"
        if choice == 7:
            return f"({self.float(d)} {self.comparison()} {self.float(d)})"
        if choice < 11:
            return f"({self.bool(d)} {self.pick('and', 'or', '&', '|', '^', '==', '!=')} {self.bool(d)})"
        if choice == 11:
            return self.pick(f"(not {self.bool(d)})", f"(~{self.bool(d)})")
        if choice == 12:
            return f"flags[{self.index(d)}]"
        if choice == 13:
            return self.pick(f"({self.int(d)} in (1, {self.int(0)}, 3))", f"({self.int(d)} in small[{self.int(0)} % 8, :])")
        if choice == 14:
            return self.pick(f"bool({self.int(d)})", f"bool({self.u32(d)})",
                             f"bool({self.float(d) if self.role == SCORE else self.int(d)})")
        if choice == 15:
            return f"({self.bool(d)} if {self.bool(d)} else {self.bool(d)})"
        return self.reduction(self.pick("any", "all"), "bool", d)

    def comparison(self):
        return self.pick("==", "!=", "<", "<=", ">", ">=")

    def float(self, depth):
        """A value that all targets round alike."""
        if depth <= 0:
            return self.pick(*self.names["float"], *FLOATS, f"float({self.int(0)})", "X")
        d = depth - 1
        choice = self.rng.randrange(14)
        if choice < 5:
            return self.pick(f"({self.float(d)} {self.pick('+', '-', '*')} {self.float(d)})",
                             f"({self.float(d)} / {self.divisor('float', d, is_quotient=True)})")
        if choice == 5:
            return self.pick(f"-{self.float(d)}", f"abs({self.float(d)})")
        if choice == 6:
            return f"{self.pick('min', 'max')}({self.float(d)}, {self.float(d)})"
        if choice == 7:
            return f"({self.float(d)} if {self.bool(d)} else {self.float(d)})"
        if choice == 8:
            return f"table[{self.int(d)} % 30]"
        if choice == 9:
            return self.pick(f"float({self.int(d)})", f"float({self.u32(d)})", f"float({self.bool(d)})")
        if choice == 10:
            return f"({self.float(d)} + {self.int(d)})"
        if self.role == SCORE:
            return self.pick(f"floor({self.float(d)})", f"sqrt({self.float(d)})", 
                             f"({self.float(d)} {self.pick('//', '%')} {self.divisor('float', d)})")
        return f"({self.float(d)} / {self.divisor('float', d, is_quotient=True)})"

    def reduction(self, name, kind, depth):
        if self.in_reduction:
            return self.expression(kind, 0)
        self.in_reduction = True
        index = self.fresh()
        self.names["int"].append(index)
        element = self.expression(kind, min(depth, 2))
        self.names["int"].remove(index)
        self.in_reduction = False
        return f"{name}({element} for {index} in range({self.pick('N', 'N', 0, 1, 3)}))"

    def rounded(self):
        """One of all rounded functions, by the position of the key."""
        names = self.rng.sample(ROUNDED, len(ROUNDED))
        text = self.rounded_call(names[0])
        for i, name in enumerate(names[1:]):
            text = f"({self.rounded_call(name)} if kv % {len(ROUNDED)} == {i} else {text})"
        return text

    def rounded_call(self, name):
        if name == "pow":
            return f"pow({self.float(1)}, {self.pick('2.5', '-1.5', 's', self.float(1), self.float(1))})"
        if name == "quotient":
            # A product with the reciprocal may take its place.
            return f"({self.float(1)} / {self.pick('3.0', '-7.5', '0.3', '1e10', 'X', 'float(q)', 'float(q - kv)')})"
        return f"{name}({self.pick('s', self.float(1), '(s * %s)' % self.pick('0.01', '8.0', '50.0'), self.float(2))})"

    def rare(self, number):
        """A statement with one of the operations that chance gives seldom."""
        masks = [("int", lambda: f"-{self.int(1)}"), ("int", lambda: f"abs({self.int(1)})"), ("int", lambda: f"~{self.int(1)}"),
                 ("int", lambda: f"ilog2({self.int(1)})"), ("int", lambda: f"({self.int(1)} << ({self.int(1)} % 70))"),
                 ("int", lambda: f"({self.int(1)} >> ({self.int(1)} % 70))"), ("int", lambda: f"min({self.int(1)}, {self.int(1)})"),
                 ("int", lambda: f"max({self.int(1)}, {self.int(1)})"), ("bool", lambda: f"{self.int(1)} <= {self.int(1)}"),
                 ("bool", lambda: f"{self.int(1)} > {self.int(1)}"), ("bool", lambda: f"bool({self.index(1)})"),
                 ("float", lambda: f"{self.float(1)} / {self.divisor('float', 1, is_quotient=True)}"), ("bool", lambda: f"not ({self.index(0)} < {self.int(1)})"),
                 ("int", lambda: self.reduction(self.pick("sum", "min", "max"), "int", 1))]
        scores = [("float", lambda: f"floor({self.float(1)} * s)"), ("float", lambda: f"sqrt({self.float(1)} * s)"),
                  ("int", lambda: f"int({self.float(1)} + s)"), ("float", lambda: f"-({self.float(1)} + s)")] if self.role == SCORE else []
        kind, text = (masks + scores * 2)[number % (len(masks) + 2 * len(scores))]
        name = self.fresh()
        self.emit(f"{name} = {text()}")
        self.names[kind].append(name)

    def statement(self):
        choice = self.rng.randrange(12)
        kind = self.pick("int", "int", "int", "bool", "u32", "float")
        if choice < 8:
            name = self.fresh()
            self.emit(f"{name} = {self.expression(kind, 2)}")
            self.names[kind].append(name)
        elif choice == 8:
            names = [self.fresh() for _ in range(3)]
            sizes = [self.rng.randrange(1, 9) for _ in range(3)]
            self.emit(f"{', '.join(names)} = unravel({self.int(1)}, ({', '.join(map(str, sizes))}))")
            self.names["int"] += names
        elif choice == 9:
            name = self.fresh()
            self.emit(f"{name} = {self.int(1)}")
            self.emit(f"if {self.bool(1)}:")
            self.emit(f"    {name} {self.pick('+=', '-=', '*=', '//=', '%=')} {self.divisor('int', 1)}")
            self.emit("else:")
            self.emit(f"    {name} = {self.int(2)}")
            self.names["int"].append(name)
        elif choice == 10:
            name = self.fresh()
            self.emit(f"{name} = helper({self.int(1)}, {self.int(1)})" if self.rng.random() < 0.5 else f"{name} = helper({self.int(2)})")
            self.names["int"].append(name)
        else:
            name = self.fresh()
            self.emit(f"{name} = ravel(({self.int(1)}, {self.int(1)}), (5, {self.rng.randrange(1, 9)}))")
            self.names["int"].append(name)

    def emit(self, line):
        self.lines.append(self.indent + line)


HEADER = """doc: tensor[i32, 50]
small: tensor[i16, 8, 8](lo=0, hi=8)
big: tensor[i64, N]
flags: tensor[bool, 60]
table: tensor[f32, 30]
seeds: tensor[u32, 20]
W: param[int]
P: param[int]
SEED: param[u32]
FLAG: param[bool]
X: param[float]
D: const[int] = %d


def helper(x, y=3):
    if x < y:
        return x %% 11
    elif x == y:
        return 0
    return x - y
"""


def mask_text(rng, name, number):
    function = Function(rng, MASK)
    for _ in range(rng.randrange(1, 6)):
        function.statement()
    for i in range(RARE_STATEMENTS):
        function.rare(number * RARE_STATEMENTS + i)
    if rng.random() < 0.3:
        function.emit(f"if {function.bool(1)}:")
        function.emit(f"    return {function.bool(1)}")
    # A comparison that holds for some pairs keeps most masks from being constant.
    balance = f"((q * {rng.randrange(1, 9)} + kv * {rng.randrange(1, 9)}) % {rng.randrange(2, 6)} == 0)"
    function.emit(f"return {function.bool(2)} {rng.choice(['^', '^', '|', '&'])} {balance}")
    return f"@mask\ndef {name}(b, h, q, kv):\n" + "\n".join(function.lines) + f'\n\n\nattention("e_{name}", mask={name})\n'


def score_text(rng, name, number):
    """The score function, and for a rounded one a second that gives the rounded part alone."""
    function = Function(rng, SCORE)
    for _ in range(rng.randrange(0, 4)):
        function.statement()
    for i in range(RARE_STATEMENTS):
        function.rare(number * RARE_STATEMENTS + i)
    is_exact = rng.random() < 0.15
    text = f"@score\ndef {name}(s, b, h, q, kv):\n" + "\n".join(function.lines) + ("\n" if function.lines else "")
    if is_exact:
        return text + f'    return {function.float(3)}\n\n\nattention("e_{name}", score={name})\n', False
    rounded = function.rounded()
    whole = rng.choice(["t", f"{function.float(2)} + t", f"s - t", f"t if {function.bool(2)} else {function.float(1)}"])
    alone = text.replace(f"def {name}(", f"def {name}_part(")
    return (text + f"    t = {rounded}\n    return {whole}\n\n\n" + alone + f"    t = {rounded}\n    return t\n\n\n"
            f'attention("e_{name}", score={name})\n'), True


def ulp(x):
    x = np.abs(x.astype(np.float64))
    exponent = np.floor(np.log2(np.where((x > 0) & np.isfinite(x), x, 1)))
    return 2.0 ** (np.maximum(exponent, -126) - 23)


def write_group(folder, number, num_programs, rng):
    rows = np.random.default_rng(rng.randrange(2**32))
    n = int(rows.integers(0, 7))
    arrays = {
        "doc": rows.integers(-2**31, 2**31, 50).astype(np.int32) >> rows.integers(0, 31, 50).astype(np.int32),
        "small": rows.integers(0, 8, (8, 8)).astype(np.int16),
        "big": rows.integers(-2**63, 2**63 - 1, n).astype(np.int64),
        "flags": rows.integers(0, 2, 60).astype(np.bool_),
        "table": (rows.standard_normal(30) * 2.0 ** rows.integers(-40, 40, 30)).astype(np.float32),
        "seeds": rows.integers(0, 2**32, 20).astype(np.uint32),
    }
    for name, array in arrays.items():
        np.save(folder / f"group{number}_{name}.npy", array)
    kind = ["small", "small", "long", "narrow"][number % 4]
    q_len, kv_len = SIZE[kind]
    largest = 2**62 if kind != "narrow" else 2**29
    params = {"W": rng.randrange(-largest, largest) >> rng.randrange(62), "P": rng.randrange(-largest, largest) >> rng.randrange(62),
              "SEED": rng.randrange(2**32), "FLAG": bool(rng.randrange(2)), "X": float(np.float32(rng.uniform(-100, 100)))}
    constant = rng.randrange(-4, 40)
    text, names = HEADER % constant, []
    for i in range(num_programs):
        if rng.random() < 0.4:
            text, names = text + "\n\n" + mask_text(rng, f"f{i}", i + number * num_programs), names + [(f"f{i}", MASK, False)]
        else:
            score, has_part = score_text(rng, f"f{i}", i + number * num_programs)
            text, names = text + "\n\n" + score, names + [(f"f{i}", SCORE, has_part)]
    path = folder / f"group{number}.cpf"
    path.write_text(text)
    num_q, num_kv = (12, 60) if kind == "small" else (8, 40)
    at = {"b": rng.randrange(2), "h": rng.randrange(3), "q": rng.randrange(q_len - num_q + 1) if kind == "small" else q_len - num_q,
          "kv": 0 if kind == "small" else kv_len - num_kv if rng.random() < 0.5 else 0, "num_q": num_q, "num_kv": num_kv}
    program = Program(path, params, arrays, {"B": 2, "H": 3, "HKV": 3, "Q_LEN": q_len, "KV_LEN": kv_len})
    q = np.arange(at["q"], at["q"] + num_q)[:, None]
    kv = np.arange(at["kv"], at["kv"] + num_kv)[None, :]
    scores = (rows.standard_normal((num_q, num_kv)) * 4).astype(np.float32)
    scores[0, :6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40]
    with open(folder / f"group{number}.bin", "wb") as out:
        out.write(scores.tobytes())
        for name, role, has_part in names:
            if role == MASK:
                out.write(np.ascontiguousarray(program.mask(f"e_{name}", at["b"], at["h"], q, kv)).astype(np.uint8).tobytes())
                continue
            expected = np.broadcast_to(program.score(f"e_{name}", scores, at["b"], at["h"], q, kv), scores.shape)
            allowance = np.zeros(scores.shape)
            if has_part:
                part = np.broadcast_to(program.score(f"{name}_part", scores, at["b"], at["h"], q, kv), scores.shape)
                allowance = 2 * ulp(part) + 2 * ulp(expected)
            out.write(np.ascontiguousarray(expected).tobytes() + allowance.astype(np.float32).tobytes())
    return {"file": path.name, "q_len": q_len, "kv_len": kv_len, "at": at, "params": {k: str(v) for k, v in params.items()},
            "arrays": list(arrays), "entries": [{"name": f"e_{name}", "kind": role} for name, role, _ in names]}


def main():
    np.seterr(all="ignore")
    folder, num_programs, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    groups = []
    while num_programs > 0:
        rng = random.Random(seed * 1000003 + len(groups))
        count = min(num_programs, PROGRAMS_IN_GROUP)
        groups.append(write_group(folder, len(groups), count, rng))
        num_programs -= count
    (folder / "programs.json").write_text(json.dumps(groups))


if __name__ == "__main__":
    main()
