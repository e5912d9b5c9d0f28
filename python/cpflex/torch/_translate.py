# From what a user passes (closures, programs, block masks) to a call: which program, which captured tensors.
import weakref

import torch

from cpflex import _arrays, _library, _program, _text, _trace
from cpflex.torch import _calls
from cpflex.torch._adapter import TorchAdapter

ADAPTER = TorchAdapter()

_traces = {}    # of functions that live, by id: (weak reference, trace)
_programs = {}  # compiled, by text
_calls_made = {}  # by what they consist of
MAX_PROGRAMS, MAX_CALLS = 1024, 256  # that are kept; what is in use lives on


class BoundProgram:
    """An entry point of a `.cpf` program with its tensors and values. Made by `program`; stands where FlexAttention
    takes a mask_mod or score_mod, and brings both."""

    def __init__(self, compiled, entry, tensors, scalars):
        self.compiled, self.entry, self.tensors, self.scalars = compiled, entry, tensors, scalars
        chosen = next(each for each in compiled.entries if entry in (None, each.name))
        sink = None if chosen.sink_capture < 0 else compiled.captures[chosen.sink_capture].name
        differentiable = {capture.name for capture in compiled.captures if capture.needs_gradient} | {sink}
        self.gradient_places = []
        for place, (name, tensor) in enumerate(tensors.items()):
            if tensor.requires_grad and name not in differentiable:
                raise ValueError(f"'{name}' requires a gradient, but the program does not declare it with grad=True")
            if tensor.requires_grad:
                self.gradient_places.append(place)
        self.scores = {}


def program(source, entry=None, /, *, constants=None, include_dirs=(), **captures):
    """An entry point of a `.cpf` program (text, or a path that ends in .cpf) with its arrays as tensors and its params
    as numbers, by name."""
    compiled = _program.compile(source, constants=constants, include_dirs=include_dirs)
    names = [each.name for each in compiled.entries]
    if entry is None and len(names) != 1 or entry is not None and entry not in names:
        raise ValueError(f"entry is {entry!r}; expected one of {', '.join(map(repr, names))}")
    declared = {capture.name: capture for capture in compiled.captures}
    params = {param.name for param in compiled.params}
    tensors, scalars = {}, []
    for name, value in captures.items():
        if name in declared:
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"'{name}' is a '{type(value).__name__}'; expected a tensor")
            if _calls.CODES.get(value.dtype) != _arrays.CODES[declared[name].dtype]:
                raise TypeError(f"'{name}' has elements of type {value.dtype}; expected {declared[name].dtype}")
            tensors[name] = value
        elif name in params:
            scalars.append((name, value))
        else:
            raise ValueError(f"the program declares no array or param '{name}'")
    missing = [name for name in declared if name not in tensors]
    if missing:
        raise ValueError(f"array '{missing[0]}' is not bound; give it as {missing[0]}=TENSOR")
    return BoundProgram(compiled, entry, tensors, scalars)


def trace_of(function, num_parameters):
    """The trace of a function, made once for as long as it closes over the same things."""
    known = _traces.get(id(function))
    is_known = known is not None and known[0]() is function and known[1].is_score == (num_parameters == 5)
    if is_known and known[1].is_current():
        return known[1]
    if not callable(function):
        raise TypeError(f"a mask or score function is a '{type(function).__name__}'; expected something to call")
    trace = _trace.FunctionTrace(function, num_parameters, ADAPTER)
    trace.scores = {}
    trace.tensors = [captured.array for captured in trace.arrays]
    if trace.is_repeatable:
        key = id(function)
        _traces[key] = (weakref.ref(function, lambda _: _traces.pop(key, None)), trace)
    return trace


def _compiled(text):
    found = _programs.get(text.text)
    if found is None:
        if len(_programs) >= MAX_PROGRAMS:
            _programs.clear()
        found = _programs[text.text] = _program.compile_traced(text)
        found.forget_origin()  # another function of the same text brings its own tensors
    return found


def native_mask(mask_mod, shape, block_size):
    """The derived tiles of a mask function or program, as cpflex.BlockMask; None in `shape` stands for 1."""
    lib = _program.library()
    if isinstance(mask_mod, BoundProgram):
        compiled, entry = mask_mod.compiled, mask_mod.entry
        tensors, scalars = mask_mod.tensors, mask_mod.scalars
        # Arrays of the program may say how large the batch and heads are that FlexAttention calls None.
        shape = tuple(-1 if given is None else given for given in shape)
    else:
        trace = trace_of(mask_mod, 4)
        text = _text.ProgramText(trace, None, {"Q_LEN": shape[2], "KV_LEN": shape[3]})
        compiled, entry = _compiled(text), None
        shape = (shape[0] or 1, shape[1] or 1, *shape[2:])
        tensors, scalars = {name: captured.array for name, captured in text.arrays}, text.scalars
    sizes = (shape[0], shape[1], shape[1], shape[2], shape[3])
    binding = _calls.bind(compiled, list(tensors.items()), scalars, sizes)
    options = _library.BlockMaskOptions(tile_q=block_size[0], tile_kv=block_size[1])
    return _program.BlockMask(_program._new(lib.block_mask_build, binding.address, entry and entry.encode(), options))


def device_of(mask_mod):
    """Where the tensors are that a mask captures; the CPU when there are none."""
    if isinstance(mask_mod, BoundProgram):
        tensors = list(mask_mod.tensors.values())
    else:
        tensors = [captured.array for captured in trace_of(mask_mod, 4).arrays]
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


class Score:
    """What scores and captures a call has, apart from its block mask: a traced score function, a program, or neither,
    with the scale. `gradient_places` are those of `tensors` that get a gradient."""

    def __init__(self, trace, bound, scale, tensors, gradient_places):
        self.trace, self.bound, self.scale = trace, bound, scale
        self.num_tensors, self.gradient_places = len(tensors), gradient_places
        self.pairs, self._index = {}, None

    @property
    def index(self):
        """The number by which operators name this score; those that have one are kept."""
        if self._index is None:
            scores.append(self)
            self._index = len(scores) - 1
        return self._index

    def call(self, block_mask, q_len, kv_len):
        """(Call, for each of its captures the place among the score's tensors or a tensor of the mask)."""
        key = (None if block_mask is None else id(block_mask), q_len, kv_len)
        mask = None if block_mask is None else block_mask.trace()
        known = self.pairs.get(key)
        if known is not None and (block_mask is None or known[0]() is block_mask) and known[3] is mask:
            return known[1], known[2]
        if self.bound is not None:
            call, sources = self._program_call(block_mask)
        else:
            call, sources = self._traced_call(block_mask, mask, q_len, kv_len)
        if len(self.pairs) >= MAX_PAIRS:
            self.pairs.clear()
        self.pairs[key] = (None if block_mask is None else weakref.ref(block_mask), call, sources, mask)
        return call, sources

    def _program_call(self, block_mask):
        if block_mask is not None and block_mask.mask_mod is not self.bound:
            raise ValueError("block_mask is not made from the program that gives the scores; expected "
                             "create_block_mask(program, ...) or no block_mask")
        call = call_of(id(self.bound.compiled), self.bound.compiled, list(self.bound.tensors), self.bound.scalars,
                       set(self.bound.tensors), self.bound.entry, self.scale, None)
        return call, list(range(self.num_tensors))

    def _traced_call(self, block_mask, mask, q_len, kv_len):
        if block_mask is not None and isinstance(block_mask.mask_mod, BoundProgram):
            raise ValueError(
                "block_mask is made from a program and score_mod is a Python function; expected both of one kind")
        lists = block_mask if block_mask is not None and block_mask.has_own_tiles else None
        differentiated = [self.trace.arrays[place].array for place in self.gradient_places]
        text = _text.ProgramText(mask, self.trace, {"Q_LEN": q_len, "KV_LEN": kv_len},
                                 lambda array: any(array is other for other in differentiated))
        mine = [] if self.trace is None else [captured.array for captured in self.trace.arrays]
        masks = [] if mask is None else [captured.array for captured in mask.arrays]
        sources, mask_names = [], set()
        for name, captured in text.arrays:
            place = next((place for place, array in enumerate(mine) if array is captured.array), None)
            sources.append(captured.array if place is None else place)
            if any(array is captured.array for array in masks):
                mask_names.add(name)
        return call_of(text.text, _compiled(text), [name for name, _ in text.arrays], text.scalars, mask_names, None,
                       self.scale, lists), sources


MAX_PAIRS = 64  # of a score with block masks; masks that are made for each batch come and go

scores = []  # that operators name by their index; a compiled graph may do so for as long as the process lives
_plain = {}  # scores without a function, by scale


def score_of(score_mod, scale):
    """(Score, its captured tensors, which get gradients)."""
    if isinstance(score_mod, BoundProgram):
        tensors = list(score_mod.tensors.values())
        if scale not in score_mod.scores:
            score_mod.scores[scale] = Score(None, score_mod, scale, tensors, score_mod.gradient_places)
        return score_mod.scores[scale], tensors
    if score_mod is None:
        if scale not in _plain:
            _plain[scale] = Score(None, None, scale, [], [])
        return _plain[scale], []
    trace = trace_of(score_mod, 5)
    flags = tuple([tensor.requires_grad for tensor in trace.tensors])
    score = trace.scores.get((scale, flags))
    if score is None:
        places = [place for place, needs_gradient in enumerate(flags) if needs_gradient]
        score = trace.scores[scale, flags] = Score(trace, None, scale, trace.tensors, places)
    return score, trace.tensors


def call_of(identity, compiled, names, scalars, mask_names, entry, scale, lists):
    key = (identity, entry, tuple(names), tuple(scalars), scale, id(lists) if lists is not None else None)
    call = _calls_made.get(key)
    if call is None:
        if len(_calls_made) >= MAX_CALLS:
            _calls_made.clear()
        # The call keeps the program and the lists alive, so that their ids stay their own.
        call = _calls_made[key] = _calls.Call(compiled, names, scalars, mask_names, entry, scale, lists)
    return call
