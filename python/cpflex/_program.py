# Programs, bindings and block masks as Python objects over the C
# interface. Arrays are NumPy's or any that speak DLPack.
import collections
import ctypes
import pathlib
import types

import numpy

from cpflex import _adapter, _arrays, _library, _text, _trace, _value

_loaded = []


def library():
    """The library, loaded when it is first needed."""
    if not _loaded:
        _loaded.append(_library.load())
    return _loaded[0]


def _new(function, *arguments):
    result = ctypes.c_void_p()
    function(*arguments, ctypes.byref(result))
    return result.value


def _name(entry):
    return None if entry is None else entry.encode()


def _options(include_dirs, constants, cache_dir):
    options = _library.CompileOptions(abi_version=_library.ABI_VERSION)
    folders = [str(folder).encode() for folder in include_dirs]
    options.include_dirs = (ctypes.c_char_p * len(folders))(*folders)
    options.num_include_dirs = len(folders)
    values = (_library.NamedText * len(constants))()
    for place, (name, value) in zip(values, constants.items()):
        place.name, place.value = name.encode(), str(value).encode()
    options.constants, options.num_constants = values, len(constants)
    if cache_dir is not None:
        options.cache_dir = str(cache_dir).encode()
    return options


Entry = collections.namedtuple("Entry", "name has_mask has_score has_softmax scale sink_capture")
Capture = collections.namedtuple("Capture", "name dtype dims needs_gradient")
Param = collections.namedtuple("Param", "name type default")


class Program:
    """A compiled `.cpf` program."""

    def __init__(self, address, origin=None):
        lib = library()
        self._handle = _library.Handle(lib, address, lib.program_free)
        self._origin = origin  # the text of a traced function: binds what it closed over
        self.entries = [self._entry(lib, i) for i in range(lib.program_num_entries(address))]
        self.captures = [self._capture(lib, i) for i in range(lib.program_num_captures(address))]
        self.params = [self._param(lib, i) for i in range(lib.program_num_params(address))]
        self.warnings = [lib.diagnostic(lib.program_warning(address, i))["text"]
                         for i in range(lib.program_num_warnings(address))]
        self.compile_ms = lib.program_compile_ms(address)

    def _entry(self, lib, index):
        entry = _library.Entry()
        lib.program_entry(self._handle.address, index, entry)
        return Entry(entry.name.decode(), bool(entry.has_mask), bool(entry.has_score), bool(entry.has_softmax),
                     entry.scale if entry.has_scale else None, entry.sink_capture)

    def _capture(self, lib, index):
        capture = _library.Capture()
        lib.program_capture(self._handle.address, index, capture)
        return Capture(capture.name.decode(), _arrays.DTYPES[capture.dtype],
                       tuple(capture.dims[axis].decode() for axis in range(capture.rank)), bool(capture.needs_gradient))

    def _param(self, lib, index):
        param = _library.Param()
        lib.program_param(self._handle.address, index, param)
        default = None
        if param.has_default:
            default = param.default_float if param.type == 3 else param.default_int
        return Param(param.name.decode(), ("bool", "int", "u32", "float")[param.type], default)

    def forget_origin(self):
        """Lets go of what a traced function closed over; `bind` then takes it by name."""
        self._origin = None

    def emit(self, stage, entry=None):
        """The text of a stage of the compiler: "mask", "mask-opt", "cuda", ..."""
        lib = library()
        return lib.take_buffer(_new(lib.program_emit, self._handle.address, stage.encode(), _name(entry))).decode()

    def bind(self, captures=None, params=None, *, batch=-1, heads=-1, kv_heads=-1, q_len=-1, kv_len=-1, borrow=False,
             **named):
        """Binds arrays and values by name, as dicts or as keywords. Sizes that are left out are taken from arrays, else
        batch and heads are 1, kv_heads is heads and kv_len is q_len. Arrays are copied; with `borrow` the binding reads
        the caller's memory, which must have the declared element types, and `Binding.changed` must be called when its
        elements change."""
        lib = library()
        values = dict(captures or {}) | dict(params or {}) | named
        if self._origin is not None:
            closed_over = {name: captured.array for name, captured in self._origin.arrays}
            values = closed_over | dict(self._origin.scalars) | values
        request = _library.Handle(lib, _new(lib.bind_request_create, self._handle.address), lib.bind_request_free)
        lib.bind_request_sizes(request.address, _library.Sizes(batch, heads, kv_heads, q_len, kv_len))
        arrays = {capture.name: capture.dtype for capture in self.captures}
        kept = []
        for name, value in values.items():
            if isinstance(value, Segments) and name in arrays:
                array, owner = _arrays.describe(lib, value.cu_seqlens, name)
                lib.bind_request_segments(request.address, name.encode(), array, value.length)
            elif name in arrays or hasattr(value, "__dlpack__") and getattr(value, "ndim", 0) > 0:
                array, owner = _arrays.describe(lib, value, name, arrays.get(name))
                lib.bind_request_array(request.address, name.encode(), array, 1 if borrow else 0)
                kept.append(owner)
            else:
                self._bind_value(lib, request, name, value)
        return Binding(self, _new(lib.bind, request.address), kept if borrow else [])

    def _bind_value(self, lib, request, name, value):
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, bool) or isinstance(value, str):
            lib.bind_request_text(request.address, name.encode(), str(value).encode())
        elif isinstance(value, int):
            lib.bind_request_int(request.address, name.encode(), value)
        elif isinstance(value, float):
            lib.bind_request_float(request.address, name.encode(), value)
        else:
            raise TypeError(f"'{name}' is a '{type(value).__name__}'; expected a number or text")


class Segments(collections.namedtuple("Segments", "cu_seqlens length", defaults=(-1,))):
    """Document ids from cumulative lengths, to be bound in place of an array: `doc=segments(cu_seqlens)`."""


class Binding:
    """A program with its arrays, values and sizes."""

    def __init__(self, program, address, kept):
        lib = library()
        self.program, self._kept, self._executables = program, kept, {}
        self._handle = _library.Handle(lib, address, lib.binding_free)

    @property
    def sizes(self):
        """A dict of batch, heads, kv_heads, q_len and kv_len."""
        sizes = library().binding_sizes(self._handle.address)
        return {name: getattr(sizes, name) for name, _ in sizes._fields_}

    def dim(self, name):
        """The value of a dimension of the program, as "KV_LEN"."""
        value = ctypes.c_int64()
        library().binding_dim(self._handle.address, name.encode(), value)
        return value.value

    def array(self, name):
        """A bound array as the binding holds it; bfloat16 as uint16."""
        array = _library.Array()
        library().binding_array(self._handle.address, name.encode(), array)
        return _arrays.view(array, self)

    def changed(self):
        """Says that elements of borrowed arrays changed. Masks made before are refused from then on."""
        self._executables.clear()
        lib = library()
        lib.binding_set_version(self._handle.address, lib.binding_version(self._handle.address) + 1)

    def evaluate_mask(self, q=None, kv=None, b=0, h=0, entry=None):
        """Which pairs of the half-open ranges `q` and `kv` attend, as bools; whole when left out."""
        sizes = self.sizes
        q, kv = q or (0, sizes["q_len"]), kv or (0, sizes["kv_len"])
        pairs = numpy.zeros((max(q[1] - q[0], 0), max(kv[1] - kv[0], 0)), numpy.uint8)
        library().binding_evaluate_mask(self._handle.address, _name(entry), b, h, *q, *kv,
                                        pairs.__array_interface__["data"][0], pairs.shape[1])
        return pairs.astype(bool)

    def block_mask(self, entry=None, tile=(128, 128), threads=0):
        """The exact BlockMask. `tile` is rows and keys of a tile, or one number for both."""
        tile_q, tile_kv = (tile, tile) if isinstance(tile, int) else tile
        lib = library()
        options = _library.BlockMaskOptions(tile_q=tile_q, tile_kv=tile_kv, num_threads=threads)
        return BlockMask(_new(lib.block_mask_build, self._handle.address, _name(entry), options))

    def _executable(self, entry, mask, code, head_dim, v_head_dim, scale, backward, threads):
        key = (entry, mask and mask._handle.address, code, head_dim, v_head_dim, scale, backward, threads)
        found = self._executables.get(key)
        if found is None:
            lib = library()
            options = _library.LoadOptions(dtype=code, head_dim=head_dim, v_head_dim=v_head_dim, num_threads=threads,
                                           has_backward=backward)
            if scale is not None:
                options.has_scale, options.scale = 1, scale
            address = _new(lib.load, self._handle.address, _name(entry), mask and mask._handle.address, options)
            # The mask is kept so that its address stays its own.
            found = self._executables[key] = (_library.Handle(lib, address, lib.executable_free), mask)
        return found[0]

    def forward(self, q, k, v, *, entry=None, mask=None, scale=None, dtype=None, out=None, lse=True, threads=0):
        """Attention of arrays [b, h, s, d]. Gives (out, lse); lse, in natural logarithms, is None when it was not asked
        for. `out` may be the caller's array. `dtype="bf16"` takes uint16 arrays for bfloat16."""
        lib = library()
        tensors, kept = _library.ForwardTensors(), []
        self._describe(lib, tensors, kept, dtype, q=q, k=k, v=v)
        self._check_rank(tensors)
        batch, heads, rows = tensors.q.shape[0], tensors.q.shape[1], tensors.q.shape[2]
        if out is None:
            out = numpy.empty((batch, heads, rows, tensors.v.shape[3]),
                              _arrays.NUMPY_TYPES[_arrays.DTYPES[tensors.q.dtype]])
        row_sums = numpy.empty((batch, heads, rows), numpy.float32) if lse else None
        self._describe(lib, tensors, kept, _arrays.DTYPES[tensors.q.dtype], out=out, lse=row_sums)
        executable = self._executable(entry, mask, tensors.q.dtype, tensors.q.shape[3], tensors.v.shape[3], scale, 0,
                                      threads)
        lib.forward(executable.address, tensors, None, 0, None)
        return out, row_sums

    def backward(self, q, k, v, out, lse, d_out, *, d_lse=None, entry=None, mask=None, scale=None, dtype=None,
                 threads=0):
        """Gradients as a dict: "q", "k", "v", "sink" where the entry point has one, and the captures declared with
        grad=True by their names."""
        lib = library()
        tensors, kept = _library.BackwardTensors(), []
        self._describe(lib, tensors, kept, dtype, q=q, k=k, v=v, out=out, lse=lse, d_out=d_out, d_lse=d_lse)
        self._check_rank(tensors)
        kind = _arrays.NUMPY_TYPES[_arrays.DTYPES[tensors.q.dtype]]
        gradients = {name: numpy.empty(tuple(getattr(tensors, name).shape), kind) for name in "qkv"}
        self._describe(lib, tensors, kept, _arrays.DTYPES[tensors.q.dtype],
                       **{"d_" + name: gradients[name] for name in "qkv"})
        chosen = next((each for each in self.program.entries if entry in (None, each.name)), None)
        pointers = (ctypes.c_void_p * len(self.program.captures))()
        for index, capture in enumerate(self.program.captures):
            if capture.needs_gradient and (chosen is None or index != chosen.sink_capture):
                gradients[capture.name] = numpy.zeros(self.array(capture.name).shape, numpy.float32)
                pointers[index] = gradients[capture.name].__array_interface__["data"][0]
        tensors.capture_gradients, tensors.num_capture_gradients = pointers, len(pointers)
        if chosen is not None and chosen.sink_capture >= 0:
            gradients["sink"] = numpy.zeros(self.sizes["heads"], numpy.float32)
            tensors.sink_gradient = gradients["sink"].__array_interface__["data"][0]
        executable = self._executable(entry, mask, tensors.q.dtype, tensors.q.shape[3], tensors.v.shape[3], scale, 1,
                                      threads)
        lib.backward(executable.address, tensors, None, 0, None)
        return gradients

    @staticmethod
    def _describe(lib, tensors, kept, dtype, **arrays):
        for name, array in arrays.items():
            if array is not None:
                described, owner = _arrays.describe(lib, array, name, None if name in ("lse", "d_lse") else dtype)
                setattr(tensors, name, described)
                kept.append(owner)

    @staticmethod
    def _check_rank(tensors):
        for name in ("q", "k", "v"):
            if getattr(tensors, name).rank != 4:
                raise ValueError(f"'{name}' has {getattr(tensors, name).rank} dimensions; expected 4: batch, head, "
                                 "position and column")


LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices",
         "full_q_num_blocks", "full_q_indices")


HEADS = ("one", "distinct")


def _picture(batch, head, max_cells, cell_pixels, title, rows, columns, heads, document_bounds):
    if heads not in HEADS:
        raise ValueError(f"'heads' is {heads!r}; expected 'one' or 'distinct'")
    options = _library.PictureOptions(batch, head, *rows, *columns, max_cells, cell_pixels, _name(title), HEADS.index(heads))
    if document_bounds is not None:
        bounds = [int(position) for position in document_bounds]
        options.document_bounds = (ctypes.c_int64 * max(len(bounds), 1))(*bounds)
        options.num_document_bounds = len(bounds)
    return options


class BlockMask:
    """Which tiles of a mask are empty, full or partial. Draws itself in notebooks."""

    def __init__(self, address):
        lib = library()
        self._handle = _library.Handle(lib, address, lib.block_mask_free)

    @classmethod
    def read(cls, path):
        """A mask that `save` kept."""
        return cls(_new(library().block_mask_read, str(path).encode()))

    @classmethod
    def from_index_lists(cls, kv_num_blocks, kv_indices, full_kv_num_blocks=None, full_kv_indices=None, *, q_len,
                         kv_len, tile=(128, 128)):
        """The mask of FlexAttention's lists: counts [batch, heads, rows], indices [batch, heads, rows, columns]."""
        lib = library()
        shape = _library.BlockMaskStatistics(q_len=q_len, kv_len=kv_len, tile_q=tile[0], tile_kv=tile[1])
        names = LISTS[:4]
        arrays = [None if values is None else numpy.ascontiguousarray(values, numpy.int32)
                  for values in (kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices)]
        described = [None if values is None else _arrays.describe(lib, values, name)[0]
                     for name, values in zip(names, arrays)]
        return cls(_new(lib.block_mask_from_index_lists, *described, shape))

    @property
    def statistics(self):
        """A dict: lengths, tile sizes, batch, heads, distinct_bh, counts of empty, full and partial tiles, bytes,
        points_evaluated, build_ms."""
        found = library().block_mask_statistics_of(self._handle.address)
        return {name: getattr(found, name) for name, _ in found._fields_}

    def count_pairs(self):
        """A dict: allowed, rows_without_keys, columns_without_queries, density."""
        counts = _library.PairCounts()
        library().block_mask_count_pairs(self._handle.address, counts)
        return {name: getattr(counts, name) for name, _ in counts._fields_}

    def classes(self, b=0, h=0):
        """0 for empty, 1 for full, 2 for partial tiles, as uint8 [q tiles, kv tiles]."""
        found = self.statistics
        tiles = numpy.zeros((-(-found["q_len"] // found["tile_q"]), - \
                            (-found["kv_len"] // found["tile_kv"])), numpy.uint8)
        library().block_mask_classes(self._handle.address, b, h, tiles.__array_interface__["data"][0], tiles.size)
        return tiles

    def index_lists(self):
        """FlexAttention's lists, a dict of int32 arrays by their names there."""
        lib = library()
        owner = _library.Handle(lib, _new(lib.block_mask_to_index_lists, self._handle.address), lib.index_lists_free)
        lists = {}
        for index, name in enumerate(LISTS):
            array = _library.Array()
            lib.index_lists_array(owner.address, index, array)
            lists[name] = _arrays.view(array, owner)
        return lists

    def draw(self, format="text", *, batch=0, head=0, max_cells=0, cell_pixels=0, title=None, rows=(0, 0),
             columns=(0, 0), heads="one", document_bounds=None):
        """The mask as "text", "svg", "json" (text) or "png", "npz" (bytes). `rows` and `columns` are ranges of
        tokens. `heads` is "one" for that of `batch` and `head`, or "distinct" for a grid of those that differ.
        `document_bounds` are the tokens where documents begin; None: what the captures say."""
        lib = library()
        options = _picture(batch, head, max_cells, cell_pixels, title, rows, columns, heads, document_bounds)
        drawn = lib.take_buffer(_new(lib.block_mask_draw, self._handle.address, format.encode(), options))
        return drawn if format in ("png", "npz") else drawn.decode()

    def draw_difference(self, other, format="text", *, batch=0, head=0, max_cells=0, cell_pixels=0, title=None,
                        rows=(0, 0), columns=(0, 0), heads="distinct", document_bounds=None):
        """Where this mask and another of equal lengths and tiles differ, as "text", "svg" or "png" (bytes), and the
        number of tiles that do."""
        lib = library()
        options = _picture(batch, head, max_cells, cell_pixels, title, rows, columns, heads, document_bounds)
        count = ctypes.c_int64()
        drawn = lib.take_buffer(_new(lib.block_mask_draw_difference, self._handle.address, other._handle.address,
                                     format.encode(), options, count))
        return (drawn if format == "png" else drawn.decode()), count.value

    def save(self, path):
        """Keeps the mask in a file that `read` takes."""
        library().block_mask_save(self._handle.address, str(path).encode())

    def _repr_svg_(self):
        return self.draw("svg", heads="distinct")

    def __str__(self):
        return self.draw("text")

    def __repr__(self):
        found = self.statistics
        return (f"BlockMask({found['q_len']} x {found['kv_len']} in tiles of {found['tile_q']} x {found['tile_kv']}: "
                f"{found['full']} full, {found['partial']} partial, {found['empty']} empty)")


def compile(source, *, constants=None, include_dirs=(), path=None, cache_dir=None):
    """Compiles `.cpf` text, the file at a path (a path object, or text that ends in `.cpf`), or a Python function
    written for FlexAttention: 4 parameters make a mask, 5 a score function; a pair (mask, score) makes both. What a
    function closes over is bound by `Program.bind` unless it is given there. CompileError shows each error with its
    line."""
    lib = library()
    options = _options(include_dirs, constants or {}, cache_dir)
    if isinstance(source, tuple) or isinstance(source, types.FunctionType):
        mask, score = source if isinstance(source, tuple) else _by_role(source)
        adapter = _adapter.NumpyAdapter()
        return compile_traced(_text.ProgramText(mask and _trace.FunctionTrace(mask, 4, adapter),
                                                score and _trace.FunctionTrace(score, 5, adapter), {}), options)
    if isinstance(source, pathlib.PurePath) or "\n" not in source and source.endswith(".cpf"):
        return Program(_new(lib.compile_file, str(source).encode(), options))
    text = source.encode()
    return Program(_new(lib.compile_text, str(path or "program.cpf").encode(), text, len(text), options))


def compile_traced(program_text, options=None):
    """Compiles the text of traced functions; errors are at lines of Python."""
    lib = library()
    text = program_text.text.encode()
    try:
        address = _new(lib.compile_text, b"function.cpf", text, len(text), options or _options((), {}, None))
    except _library.CompileError as error:
        raise _value.TranslationError(program_text.located(error.diagnostics)) from None
    return Program(address, program_text)


def _by_role(function):
    parameters = function.__code__.co_argcount
    if parameters not in (4, 5):
        raise ValueError(f"'{function.__name__}' has {parameters} parameters; a mask has 4: batch, head, query and "
                         "key, a score function a score before them")
    return (function, None) if parameters == 4 else (None, function)


def port(path, function):
    """The `.cpf` text of a FlexAttention function in a Python file, which is not run, and warnings about guessed
    types."""
    lib = library()
    text = pathlib.Path(path).read_bytes()
    translated, warnings = ctypes.c_void_p(), ctypes.c_void_p()
    lib.port(str(path).encode(), text, len(text), function.encode(), _options((), {}, None), ctypes.byref(translated),
             ctypes.byref(warnings))
    found = lib.take_buffer(warnings.value).decode() if warnings.value else ""
    return lib.take_buffer(translated.value).decode(), found


def version():
    """The release of the library."""
    return library().version().decode()
