# What a FlexAttention call runs: its compiled program, and executables over the captured tensors, each kept for as long
# as it fits.
import collections
import ctypes
import struct

import torch

from cpflex import _library, _program

CODES = {torch.bool: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.uint8: 5, torch.uint16: 6,
         torch.uint32: 7, torch.uint64: 8, torch.float16: 9, torch.bfloat16: 10, torch.float32: 11}
DEVICE_TYPES = {"cpu": 1, "cuda": 2}
ARRAY = struct.Struct("<Qii4q4qii")  # cpflex_array
# Of one call the oldest executables go; layers of a model often share a call. They keep the captured tensors alive, and
# on a GPU tables of their masks.
MAX_EXECUTABLES, MAX_KEPT_BYTES = 64, 1 << 30


def array_bytes(tensor):
    """`tensor` as a cpflex_array."""
    rank = tensor.dim()
    device = tensor.device
    padding = (0,) * (4 - rank)
    return ARRAY.pack(tensor.data_ptr(), CODES[tensor.dtype], rank, *tensor.shape, *padding, *tensor.stride(), *padding,
                      DEVICE_TYPES[device.type], device.index or 0)


EMPTY_ARRAY = bytes(ARRAY.size)


def version_of(tensor):
    """The number of writes to `tensor`'s elements, as PyTorch counts them; inference tensors have no count."""
    return 0 if tensor.is_inference() else tensor._version


def bind(program, tensors, scalars, sizes):
    """A binding, as a handle, that reads the memory of `tensors`, (name, tensor) pairs."""
    lib = _program.library()
    address = _program._new(lib.bind_request_create, program._handle.address)
    request = _library.Handle(lib, address, lib.bind_request_free)
    lib.bind_request_sizes(request.address, _library.Sizes(*sizes))
    for name, tensor in tensors:
        array = _library.Array.from_buffer_copy(array_bytes(tensor))
        lib.bind_request_array(request.address, name.encode(), array, 1)  # borrowed
    for name, value in scalars:
        program._bind_value(lib, request, name, value)
    return _library.Handle(lib, _program._new(lib.bind, request.address), lib.binding_free)


class Executable:
    """One program over given captured tensors for tensors of given shapes."""

    def __init__(self, call, q, k, v, captures, needs_backward):
        program = call.program
        lib = _program.library()
        self.library = lib
        self.captures = captures  # the binding reads their memory
        self.plans, self.ranks = {}, {}  # by which it runs together with others, see _planned.py
        self.versions = call.versions(captures)
        self.binding = bind(program, list(zip(call.array_names, captures)), call.scalars,
                            (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2]))
        device = "cpu" if q.device.type == "cpu" else f"cuda:{q.device.index or 0}"
        options = _library.LoadOptions(device=device.encode(), dtype=CODES[q.dtype], head_dim=q.shape[3],
                                       v_head_dim=v.shape[3], has_backward=int(needs_backward))
        if call.scale is not None:
            options.has_scale, options.scale = 1, call.scale
        if call.threads:
            options.num_threads = call.threads
        self.stream = stream_of(q)
        options.stream = self.stream
        mask = call.mask_for(q.shape[0], q.shape[1])
        self.handle = _library.Handle(lib, _program._new(lib.load, self.binding.address, call.entry,
                                                         mask and mask._handle.address, options), lib.executable_free)
        self.address = self.handle.address
        if self.stream is not None:
            self.uploaded = torch.cuda.current_stream(q.device).record_event()
        self.mask = mask
        self.kept_bytes = lib.executable_device_bytes(self.address) + sum(
            tensor.numel() * tensor.element_size() for tensor in captures)
        self.workspace_bytes = [lib.executable_workspace_bytes(self.address, 0),
                                lib.executable_workspace_bytes(self.address, 1) if needs_backward else 0]

    def held_bytes(self):
        """What is kept with it, ranks included."""
        return self.kept_bytes + sum(rank.device_bytes() for *_, rank in self.ranks.values())

    def order(self, tensor):
        """Lets calls on another stream than this was made on wait for its tables. While a graph is captured nothing is
        waited for: capturing asks for a call before it, and for its end."""
        if self.stream is not None and stream_of(tensor) != self.stream and not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(tensor.device).wait_event(self.uploaded)

    def workspace(self, which, device):
        """Scratch memory of one call on a GPU; on the CPU the library has its own."""
        if device.type == "cpu":
            return None
        return torch.empty(max(self.workspace_bytes[which], 1), dtype=torch.uint8, device=device)


def stream_of(tensor):
    if tensor.device.type == "cpu":
        return None
    return torch.cuda.current_stream(tensor.device).cuda_stream


class Call:
    """A compiled program with the values of its scalars, its scale and, where the tiles do not follow from the mask
    function, its block mask. Captured tensors come with each call."""

    def __init__(self, program, array_names, scalars, mask_names, entry=None, scale=None, lists=None):
        self.program, self.array_names, self.scalars, self.scale = program, array_names, scalars, scale
        self.entry = None if entry is None else entry.encode()
        self.lists = lists  # index lists that replace the derived tiles, or None
        self.threads = 0
        names = [capture.name for capture in program.captures]
        chosen = next(each for each in program.entries if entry in (None, each.name))
        self.has_mask, self.has_softmax = chosen.has_mask, chosen.has_softmax
        self.slots = [names.index(name) for name in array_names]
        self.sink = chosen.sink_capture
        # Tiles are derived from what masks read; what only scores read may change freely.
        self.watched = [place for place, name in enumerate(array_names) if name in mask_names]
        self.executables = collections.OrderedDict()
        self.masks = {}

    def versions(self, captures):
        return [version_of(captures[place]) for place in self.watched]

    def mask_for(self, batch, heads):
        """The block mask of given lists for all batch rows and heads."""
        if self.lists is None:
            return None
        if (batch, heads) not in self.masks:
            self.masks[batch, heads] = self.lists.native(batch, heads)
        return self.masks[batch, heads]

    def executable(self, q, k, v, captures, needs_backward):
        needs_backward = needs_backward or q.device.type == "cpu"  # where both come from one compilation
        key = (q.shape, k.shape, v.shape, q.dtype, q.device, needs_backward,
               tuple([tensor.data_ptr() for tensor in captures]))
        found = self.executables.get(key)
        if found is not None and self._fits(found, captures):
            found.order(q)
            return found
        found = self.executables[key] = Executable(self, q, k, v, captures, needs_backward)
        self.executables.move_to_end(key)
        while len(self.executables) > 1 and (len(self.executables) > MAX_EXECUTABLES or sum(
                each.held_bytes() for each in self.executables.values()) > MAX_KEPT_BYTES):
            self.executables.popitem(last=False)
        return found

    def _fits(self, found, captures):
        for tensor, bound in zip(captures, found.captures):
            if tensor is not bound and (tensor.shape != bound.shape or tensor.stride() != bound.stride()
                                        or tensor.dtype != bound.dtype):
                return False
        for place, version in zip(self.watched, found.versions):
            if version_of(captures[place]) != version:
                return False
        return True


def output_like(q, columns):
    """An output in the memory order of `q`: [b, s, h, d] where q is so, else [b, h, s, d]."""
    batch, heads, rows, _ = q.shape
    if not q.is_contiguous() and q.stride(1) < q.stride(2):
        return q.new_empty((batch, rows, heads, columns)).transpose(1, 2)
    return q.new_empty((batch, heads, rows, columns))


def all_captures(sources, tensors):
    """The captures of a call: those of the score as they are passed, those of the mask as it has them."""
    return [tensors[source] if type(source) is int else source for source in sources]


class Launch:
    """One executable called with tensors of given shapes, strides and types: all of the arguments but the addresses."""

    PACK = struct.Struct("<Q80sQ80sQ80sQ80sQ80sQ80s")  # six arrays, their addresses apart

    def __init__(self, executable, call, q, k, v, wants_row_max):
        self.executable, self.device, self.is_on_cpu = executable, q.device, q.device.type == "cpu"
        self.columns, self.wants_row_max = v.shape[3], wants_row_max
        out = output_like(q, self.columns)
        # Both give the same memory order; the shorter way is taken where it does.
        self.is_like_q = out.shape == q.shape and torch.empty_like(q).stride() == out.stride()
        self.row = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)  # what lse looks like
        given = (q, k, v, out, self.row if call.has_softmax else None, self.row if wants_row_max else None)
        self.rests = [(EMPTY_ARRAY if tensor is None else array_bytes(tensor))[8:] for tensor in given]
        self.has_softmax = call.has_softmax
        # Without the declared argument types, which would copy.
        self.forward = executable.library.raw_forward

    def __call__(self, q, k, v):
        """(out, lse, row_max); row_max is empty when it was not asked for."""
        executable, rests = self.executable, self.rests
        out = torch.empty_like(q) if self.is_like_q else output_like(q, self.columns)
        lse = torch.empty_like(self.row)
        row_max = torch.empty_like(self.row) if self.wants_row_max else None
        packed = self.PACK.pack(q.data_ptr(), rests[0], k.data_ptr(), rests[1], v.data_ptr(), rests[2], out.data_ptr(),
                                rests[3], lse.data_ptr() if self.has_softmax else 0, rests[4],
                                row_max.data_ptr() if self.wants_row_max else 0, rests[5])
        if self.is_on_cpu:
            error = self.forward(executable.address, packed, None, 0, None)
        else:
            workspace = executable.workspace(0, self.device)
            error = self.forward(executable.address, packed, workspace.data_ptr(), executable.workspace_bytes[0],
                                 stream_of(q))
        if error is not None:
            executable.library.raise_error(error)
        return out, lse, row_max


def launch(q, k, v, tensors, score, block_mask, wants_row_max, needs_backward):
    """(Launch, captures) for tensors whose last axis is dense; `tensors` are what the score captures."""
    call, sources = score.call(block_mask, q.shape[2], k.shape[2])
    captures = all_captures(sources, tensors)
    return Launch(call.executable(q, k, v, captures, needs_backward), call, q, k, v, wants_row_max), call, captures


def run_forward(q, k, v, tensors, score, block_mask, wants_row_max, needs_backward):
    """(out, lse, row_max) of tensors whose last axis is dense; `tensors` are what the score captures."""
    out, lse, row_max = launch(q, k, v, tensors, score, block_mask, wants_row_max, needs_backward)[0](q, k, v)
    return out, lse, q.new_empty((0,), dtype=torch.float32) if row_max is None else row_max


def give_gradients(arguments, call, sources, score, tensors, device):
    """Float32 gradients of what the score captures, in its order, as memory that a backward call fills."""
    pointers = (ctypes.c_void_p * len(call.program.captures))()
    gradients = []
    for place in score.gradient_places:
        gradient = torch.zeros(tensors[place].shape, dtype=torch.float32, device=device)
        gradients.append(gradient)
        slot = call.slots[next(i for i, source in enumerate(sources) if type(source) is int and source == place)]
        if slot == call.sink:
            arguments.sink_gradient = gradient.data_ptr()
        else:
            pointers[slot] = gradient.data_ptr()
    if gradients:
        arguments.capture_gradients, arguments.num_capture_gradients = pointers, len(pointers)
    return gradients


def run_backward(d_out, d_lse, q, k, v, out, lse, tensors, score, block_mask):
    """[dq, dk, dv, *gradients of what the score captures, where it has one, in their types]."""
    call, sources = score.call(block_mask, q.shape[2], k.shape[2])
    executable = call.executable(q, k, v, all_captures(sources, tensors), True)
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    arrays = [array_bytes(tensor) for tensor in (q, k, v, out, lse, d_out)]
    arrays += [EMPTY_ARRAY if d_lse is None else array_bytes(d_lse)]
    arrays += [array_bytes(tensor) for tensor in (d_q, d_k, d_v)]
    rest = bytes(ctypes.sizeof(_library.BackwardTensors) - len(arrays) * ARRAY.size)
    arguments = _library.BackwardTensors.from_buffer_copy(b"".join(arrays) + rest)
    gradients = give_gradients(arguments, call, sources, score, tensors, q.device)
    workspace = executable.workspace(1, q.device)
    executable.library.backward(executable.address, arguments, None if workspace is None else workspace.data_ptr(),
                                executable.workspace_bytes[1], stream_of(q))
    return [d_q, d_k, d_v] + [gradient.to(tensors[place].dtype)
                              for place, gradient in zip(score.gradient_places, gradients)]
