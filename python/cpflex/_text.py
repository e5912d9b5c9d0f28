# The `.cpf` text of a traced mask and score function, and which line of it came from which line of Python.
import os
import re

from cpflex import _trace, _value


class ProgramText:
    """One program with one entry point `main`. `arrays` and `scalars` pair declared names with what they stand for;
    `positions` has for each line of `text` the Python file and line that it came from, or None."""

    def __init__(self, mask, score, sizes, wants_gradient=lambda array: False):
        self.arrays, self.scalars, self.positions = [], [], []
        self._names, self._lines = {}, []
        self._sizes = sizes
        traces = [trace for trace in (mask, score) if trace is not None]
        self._emit('"""' + ", ".join(trace.title for trace in traces).replace('"', "") + ' of Python."""')
        differentiated = [] if score is None else [captured.array for captured in score.arrays
                                                   if wants_gradient(captured.array)]
        for trace in traces:
            self._declare(trace, differentiated)
        arguments = ""
        for role, trace in (("mask", mask), ("score", score)):
            if trace is not None:
                name = self._unique(trace.title if trace.title.isidentifier() else role + "_function")
                self._define(role, name, trace)
                arguments += f", {role}={name}"
        self._emit("")
        self._emit(f'attention("main"{arguments})')
        self.text = "\n".join(self._lines) + "\n"

    def located(self, diagnostics):
        """The compiler's messages at the lines of Python that they are about."""
        lines = []
        for diagnostic in diagnostics:
            if diagnostic["severity"] == 1:
                continue
            at = diagnostic["line"] - 1
            position = self.positions[at] if 0 <= at < len(self.positions) else None
            lines.append(_value.located(position and (*position, None), diagnostic["text"]))
        return "\n".join(lines)

    def _emit(self, line, position=None):
        self._lines.append(line)
        self.positions.append(position)

    def _unique(self, name):
        name = re.sub(r"\W", "_", name)
        if name in _trace.RESERVED or name in _trace.COORDINATES or name == "s" or re.fullmatch(r"t\d+", name):
            name += "_"
        taken, base, number = set(self._names.values()), name, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        self._names[object()] = name
        return name

    def _declare(self, trace, differentiated):
        for scalar in trace.scalars:
            name = self._names[scalar] = self._unique(scalar.name)
            kind = "float" if isinstance(scalar.value, float) else "int"
            if scalar.is_constant or scalar.value in (float("inf"), float("-inf")):
                value = repr(scalar.value) if abs(scalar.value) != float("inf") else f"{'-' * (scalar.value < 0)}inf"
                self._emit(f"{name}: const[{kind}] = {value}", trace.place)
            else:
                self._emit(f"{name}: param[{kind}]", trace.place)
                self.scalars.append((name, scalar.value))
        for captured in trace.arrays:
            known = next((name for name, other in self.arrays if other.array is captured.array), None)
            if known:
                self._names[captured] = known
                continue
            name = self._names[captured] = self._unique(captured.name)
            dims = "".join(f", {self._dim(name, axis, extent)}" for axis, extent in enumerate(captured.shape))
            facts = "(grad=True)" if any(array is captured.array for array in differentiated) else ""
            self._emit(f"{name}: tensor[{captured.dtype}{dims}]{facts}", trace.place)
            self.arrays.append((name, captured))

    def _dim(self, name, axis, extent):
        for size in ("KV_LEN", "Q_LEN"):
            if self._sizes.get(size) == extent:
                return size
        return f"{name}_size{axis}"

    def _define(self, role, name, trace):
        uses, users, order = {}, {}, []

        def visit(root):  # operands before what uses them, without recursion
            stack = [(root, False)]
            while stack:
                value, is_done = stack.pop()
                if is_done:
                    order.append(value)
                    continue
                uses[id(value)] = uses.get(id(value), 0) + 1
                if uses[id(value)] == 1:
                    stack.append((value, True))
                    stack.extend((operand, False) for operand in reversed(value.operands))
                    for operand in value.operands:
                        users.setdefault(id(operand), []).append(value)

        visit(trace.result)
        parameters = ("s, " if role == "score" else "") + ", ".join(_trace.COORDINATES)
        self._emit("")
        self._emit("")
        self._emit("@" + role, trace.place)
        self._emit(f"def {name}({parameters}):", trace.place)
        if trace.place:
            self._emit(f"    # {os.path.basename(trace.place[0])}:{trace.place[1]}", trace.place)
        texts, depths, number = {}, {}, 0
        for value in order:
            form = value.form.replace("@", self._names[value.leaf]) if value.leaf is not None else value.form
            is_call = form.endswith((")", "]")) and "{}" in form
            operands = [f"({texts[id(operand)]})" if not is_call and _is_operator(texts[id(operand)])
                        else texts[id(operand)] for operand in value.operands]
            text = form.format(*operands) if operands else form
            depth = 1 + max((depths[id(operand)] for operand in value.operands), default=0)
            # A line of Python stays one line where no part of it is used twice.
            is_shared = uses[id(value)] > 1 and value.operands
            ends_line = value.operands and all(user.position != value.position for user in users.get(id(value), ()))
            if value is not trace.result and (is_shared or depth > 20 or ends_line):
                variable, number = f"t{number}", number + 1
                self._emit(f"    {variable} = {text}", value.position)
                text, depth = variable, 0
            texts[id(value)], depths[id(value)] = text, depth
        self._emit(f"    return {texts[id(trace.result)]}", trace.result.position)


def _is_operator(text):
    """Whether `text` needs parentheses beside an operator."""
    depth = 0
    for character in text:
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        elif character in " -~" and depth == 0:
            return True
    return False
