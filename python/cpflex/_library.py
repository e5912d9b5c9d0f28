# How Python reaches libcpflex: where the library is found, the structs and functions of lib/API/cpflex.c.h as ctypes
# declarations, and its errors as exceptions of the usual types.
import ctypes
import os
import pathlib

ABI_VERSION = 1

pointer = ctypes.c_void_p
text = ctypes.c_char_p
i32 = ctypes.c_int32
i64 = ctypes.c_int64
size = ctypes.c_size_t


class Struct(ctypes.Structure):
    """A struct whose members are given by name and are 0 where they are not."""


class Diagnostic(Struct):
    _fields_ = [("file", text), ("line", i32), ("column", i32), ("end_line", i32), ("end_column", i32),
                ("severity", i32), ("text", text), ("source_line", text)]


class Array(Struct):
    _fields_ = [("data", pointer), ("dtype", i32), ("rank", i32), ("shape", i64 * 4), ("strides", i64 * 4),
                ("device_type", i32), ("device_index", i32)]


class NamedText(Struct):
    _fields_ = [("name", text), ("value", text)]


class CompileOptions(Struct):
    _fields_ = [("abi_version", ctypes.c_uint32), ("include_dirs", ctypes.POINTER(text)), ("num_include_dirs", size),
                ("constants", ctypes.POINTER(NamedText)), ("num_constants", size), ("log", pointer),
                ("log_user_data", pointer), ("log_level", i32), ("cache_dir", text)]


class Entry(Struct):
    _fields_ = [("name", text), ("has_mask", i32), ("has_score", i32), ("has_softmax", i32), ("has_scale", i32),
                ("scale", ctypes.c_float), ("sink_capture", i32)]


class Capture(Struct):
    _fields_ = [("name", text), ("dtype", i32), ("rank", i32), ("dims", text * 4), ("is_sorted", i32),
                ("has_lo", i32), ("has_hi", i32), ("lo", i64), ("hi", i64), ("needs_gradient", i32)]


class Param(Struct):
    _fields_ = [("name", text), ("type", i32), ("has_default", i32), ("default_int", i64),
                ("default_float", ctypes.c_double)]


class Sizes(Struct):
    _fields_ = [("batch", i64), ("heads", i64), ("kv_heads", i64), ("q_len", i64), ("kv_len", i64)]


class Part(Struct):
    _fields_ = [("batch_begin", i64), ("batch_end", i64), ("head_begin", i64), ("head_end", i64), ("q_begin", i64),
                ("q_end", i64), ("kv_begin", i64), ("kv_end", i64)]


class BlockMaskOptions(Struct):
    _fields_ = [("tile_q", i64), ("tile_kv", i64), ("num_threads", i32), ("part", Part)]


class BlockMaskStatistics(Struct):
    _fields_ = [("q_len", i64), ("kv_len", i64), ("tile_q", i64), ("tile_kv", i64), ("batch", i64), ("heads", i64),
                ("distinct_bh", i64), ("empty", i64), ("full", i64), ("partial", i64), ("bytes", i64),
                ("points_evaluated", i64), ("build_ms", ctypes.c_double)]


class PairCounts(Struct):
    _fields_ = [("allowed", i64), ("rows_without_keys", i64), ("columns_without_queries", i64),
                ("density", ctypes.c_double)]


class PictureOptions(Struct):
    _fields_ = [("batch", i64), ("head", i64), ("row_begin", i64), ("row_end", i64), ("column_begin", i64),
                ("column_end", i64), ("max_cells", i64), ("cell_pixels", i64), ("title", text),
                ("heads", i32), ("document_bounds", ctypes.POINTER(i64)), ("num_document_bounds", size)]


class LoadOptions(Struct):
    _fields_ = [("device", text), ("dtype", i32), ("head_dim", i64), ("v_head_dim", i64), ("has_scale", i32),
                ("scale", ctypes.c_float), ("has_backward", i32), ("num_threads", i32), ("part", Part),
                ("stream", pointer)]


class ForwardTensors(Struct):
    _fields_ = [(name, Array) for name in ("q", "k", "v", "out", "lse", "row_max")]


class BackwardTensors(Struct):
    _fields_ = [(name, Array) for name in ("q", "k", "v", "out", "lse", "d_out", "d_lse", "d_q", "d_k", "d_v")] + [
        ("capture_gradients", ctypes.POINTER(pointer)), ("num_capture_gradients", size), ("sink_gradient", pointer)]


class LayoutShape(Struct):
    _fields_ = [("kind", text), ("length", i64), ("world_size", i32), ("rows", i64)]


class PlanOptions(Struct):
    _fields_ = [("world_size", i32), ("layout", text), ("rotation", text), ("q_layout", pointer),
                ("kv_layout", pointer), ("has_ascending_keys", i32), ("has_free_token_counts", i32),
                ("has_exact_needs", i32), ("other_masks", ctypes.POINTER(pointer)), ("num_other_masks", size)]


class PlanNumbers(Struct):
    _fields_ = [("rotation", text), ("world_size", i32), ("num_steps", i32), ("num_transfers", i64),
                ("largest_work", ctypes.c_double), ("mean_work", ctypes.c_double), ("work_bound", ctypes.c_double),
                ("received_bound", i64), ("received_bound_worst", i64), ("predicted_seconds", ctypes.c_double)]


class RankNumbers(Struct):
    _fields_ = [("work", ctypes.c_double), ("bytes_sent", i64), ("bytes_received", i64), ("bytes_needed", i64),
                ("peak_bytes", i64)]


class Message(Struct):
    _fields_ = [("peer", i32), ("is_send", i32), ("data", pointer), ("size", i64)]


# The text that a callback fills is given by its address, since a c_char_p would arrive as a copy.
START = ctypes.CFUNCTYPE(i32, pointer, i64, i32, text, ctypes.POINTER(Message), size, pointer, size)
WAIT = ctypes.CFUNCTYPE(i32, pointer, i64, ctypes.c_double, pointer, size)
ABORT = ctypes.CFUNCTYPE(None, pointer, text)


class Transport(Struct):
    _fields_ = [("rank", i32), ("world_size", i32), ("user_data", pointer), ("start", START), ("wait", WAIT),
                ("abort", ABORT)]


class RankOptions(Struct):
    _fields_ = [("deadline_seconds", ctypes.c_double), ("num_threads", i32), ("has_times", i32)]


class Traffic(Struct):
    _fields_ = [("messages_sent", i64), ("bytes_sent", i64), ("messages_received", i64), ("bytes_received", i64)]


# Result type and argument types of each function; "error" for those that give a cpflex_error.
array = ctypes.POINTER(Array)
out = ctypes.POINTER(pointer)
FUNCTIONS = {
    "abi_version": (ctypes.c_uint32, []),
    "version": (text, []),
    "error_code": (i32, [pointer]),
    "error_message": (text, [pointer]),
    "error_num_diagnostics": (size, [pointer]),
    "error_diagnostic": (Diagnostic, [pointer, size]),
    "error_free": (None, [pointer]),
    "buffer_bytes": (pointer, [pointer]),
    "buffer_size": (size, [pointer]),
    "buffer_free": (None, [pointer]),
    "array_from_dlpack": ("error", [pointer, array]),
    "compile_text": ("error", [text, text, size, ctypes.POINTER(CompileOptions), out]),
    "compile_file": ("error", [text, ctypes.POINTER(CompileOptions), out]),
    "port": ("error", [text, text, size, text, ctypes.POINTER(CompileOptions), out, out]),
    "program_free": (None, [pointer]),
    "program_num_warnings": (size, [pointer]),
    "program_warning": (Diagnostic, [pointer, size]),
    "program_compile_ms": (ctypes.c_double, [pointer]),
    "program_num_entries": (size, [pointer]),
    "program_entry": ("error", [pointer, size, ctypes.POINTER(Entry)]),
    "program_num_captures": (size, [pointer]),
    "program_capture": ("error", [pointer, size, ctypes.POINTER(Capture)]),
    "program_num_params": (size, [pointer]),
    "program_param": ("error", [pointer, size, ctypes.POINTER(Param)]),
    "program_emit": ("error", [pointer, text, text, out]),
    "bind_request_create": ("error", [pointer, out]),
    "bind_request_free": (None, [pointer]),
    "bind_request_array": ("error", [pointer, text, array, i32]),
    "bind_request_segments": ("error", [pointer, text, array, i64]),
    "bind_request_text": ("error", [pointer, text, text]),
    "bind_request_int": ("error", [pointer, text, i64]),
    "bind_request_float": ("error", [pointer, text, ctypes.c_double]),
    "bind_request_sizes": ("error", [pointer, ctypes.POINTER(Sizes)]),
    "bind": ("error", [pointer, out]),
    "binding_free": (None, [pointer]),
    "binding_sizes": (Sizes, [pointer]),
    "binding_dim": ("error", [pointer, text, ctypes.POINTER(i64)]),
    "binding_version": (ctypes.c_uint64, [pointer]),
    "binding_set_version": ("error", [pointer, ctypes.c_uint64]),
    "binding_array": ("error", [pointer, text, array]),
    "binding_evaluate_mask": ("error", [pointer, text, i64, i64, i64, i64, i64, i64, pointer, i64]),
    "block_mask_build": ("error", [pointer, text, ctypes.POINTER(BlockMaskOptions), out]),
    "block_mask_free": (None, [pointer]),
    "block_mask_statistics_of": (BlockMaskStatistics, [pointer]),
    "block_mask_count_pairs": ("error", [pointer, ctypes.POINTER(PairCounts)]),
    "block_mask_classes": ("error", [pointer, i64, i64, pointer, size]),
    "block_mask_draw": ("error", [pointer, text, ctypes.POINTER(PictureOptions), out]),
    "block_mask_draw_difference": ("error", [pointer, pointer, text, ctypes.POINTER(PictureOptions),
                                             ctypes.POINTER(i64), out]),
    "block_mask_save": ("error", [pointer, text]),
    "block_mask_read": ("error", [text, out]),
    "block_mask_to_index_lists": ("error", [pointer, out]),
    "index_lists_array": ("error", [pointer, i32, array]),
    "index_lists_free": (None, [pointer]),
    "block_mask_from_index_lists": ("error", [array, array, array, array, ctypes.POINTER(BlockMaskStatistics), out]),
    "load": ("error", [pointer, text, pointer, ctypes.POINTER(LoadOptions), out]),
    "executable_free": (None, [pointer]),
    "executable_workspace_bytes": (i64, [pointer, i32]),
    "executable_device_bytes": (i64, [pointer]),
    "forward": ("error", [pointer, ctypes.POINTER(ForwardTensors), pointer, i64, pointer]),
    "backward": ("error", [pointer, ctypes.POINTER(BackwardTensors), pointer, i64, pointer]),
    "layout_create": ("error", [text, i64, i32, array, out]),
    "layout_from_permutation": ("error", [array, ctypes.POINTER(i64), i32, out]),
    "layout_free": (None, [pointer]),
    "layout_shape_of": (LayoutShape, [pointer]),
    "layout_shard_size": (i64, [pointer, i32]),
    "layout_permutation": ("error", [pointer, pointer, pointer]),
    "layout_shard": ("error", [pointer, i32, i32, array, array]),
    "layout_unshard": ("error", [pointer, i32, i32, array, array]),
    "plan_create": ("error", [pointer, ctypes.POINTER(PlanOptions), out]),
    "plan_free": (None, [pointer]),
    "plan_layout": ("error", [pointer, i32, out]),
    "plan_print": ("error", [pointer, i32, text, out]),
    "plan_numbers_of": ("error", [pointer, i32, ctypes.POINTER(PlanNumbers)]),
    "plan_rank_numbers": ("error", [pointer, i32, i32, ctypes.POINTER(RankNumbers)]),
    "thread_group_create": ("error", [i32, out]),
    "thread_group_free": (None, [pointer]),
    "communicator_of_threads": ("error", [pointer, i32, out]),
    "communicator_of_mpi": ("error", [text, out]),
    "nccl_id": ("error", [pointer]),
    "communicator_of_nccl": ("error", [pointer, i32, i32, i32, ctypes.c_double, out]),
    "communicator_of_nccl_comm": ("error", [pointer, i32, ctypes.c_double, out]),
    "communicators_of_cuda_threads": ("error", [i32, ctypes.POINTER(i32), size, out]),
    "communicator_of_transport": ("error", [ctypes.POINTER(Transport), out]),
    "communicator_rank": (i32, [pointer]),
    "communicator_world_size": (i32, [pointer]),
    "communicator_abort": (None, [pointer, text]),
    "communicator_free": (None, [pointer]),
    "rank_load": ("error", [pointer, pointer, ctypes.POINTER(RankOptions), out]),
    "rank_free": (None, [pointer]),
    "rank_forward": ("error", [pointer, ctypes.POINTER(ForwardTensors), pointer]),
    "rank_backward": ("error", [pointer, ctypes.POINTER(BackwardTensors), pointer]),
    "rank_traffic": (Traffic, [pointer, text, i32]),
    "rank_device_bytes": (i64, [pointer]),
    "rank_peak_bytes": (i64, [pointer]),
    "ranks_trace": ("error", [ctypes.POINTER(pointer), size, out]),
}


class CompileError(ValueError):
    """A program with errors. The message has each one with its source line and a caret."""


class DataLossError(OSError):
    """Stored bytes are damaged."""


# By cpflex_code, see the header.
EXCEPTIONS = {1: ValueError, 2: NotImplementedError, 3: RuntimeError, 4: MemoryError, 5: TimeoutError, 6: DataLossError}


def candidates():
    """Where the library is looked for, the first that exists is taken: CPFLEX_LIBRARY, beside this file, the build
    trees."""
    named = os.environ.get("CPFLEX_LIBRARY")
    if named:
        path = pathlib.Path(named)
        return [path / "libcpflex.so" if path.is_dir() else path]
    here = pathlib.Path(__file__).resolve().parent
    roots = [here.parents[1] / build / "lib" for build in ("build", "build-portable")]
    return [here / "libcpflex.so"] + [root / "libcpflex.so" for root in roots]


def load():
    """The library with declared functions, without their prefix. ImportError names every place that was tried."""
    tried = []
    for path in candidates():
        if not path.exists():
            tried.append(f"{path}: no such file")
            continue
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
            actual = library.cpflex_abi_version()
        except (OSError, AttributeError) as error:
            tried.append(f"{path}: {error}")
            continue
        if actual != ABI_VERSION:
            tried.append(f"{path}: ABI version {actual}; expected {ABI_VERSION}")
            continue
        return Library(library)
    raise ImportError("libcpflex.so was not found; set CPFLEX_LIBRARY to it, or build it; tried " + "; ".join(tried))


class Library:
    """The functions of the header as attributes. Those that can fail raise."""

    def __init__(self, library):
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, "cpflex_" + name)
            function.argtypes = arguments
            # An error's address is 0 when there is none, which ctypes gives as None.
            function.restype = pointer if result == "error" else result
            if result == "error":
                function.errcheck = self._raise
            setattr(self, name, function)
        # Takes the tensors as bytes and gives the error, for callers that count microseconds.
        self.raw_forward = ctypes.CFUNCTYPE(pointer, pointer, text, pointer, i64, pointer)(("cpflex_forward", library))

    def _raise(self, error, function, arguments):
        if error is not None:
            self.raise_error(error)

    def raise_error(self, error):
        """Raises a cpflex_error, which is freed, as an exception of a usual type."""
        message = self.error_message(error).decode(errors="replace")
        kind = EXCEPTIONS.get(self.error_code(error), RuntimeError)
        if self.error_num_diagnostics(error):
            kind = CompileError
        exception = kind(message)
        exception.diagnostics = [self.diagnostic(self.error_diagnostic(error, i))
                                 for i in range(self.error_num_diagnostics(error))]
        self.error_free(error)
        raise exception

    @staticmethod
    def diagnostic(source):
        """A diagnostic as a dict that outlives its owner."""
        values = {name: getattr(source, name) for name, _ in Diagnostic._fields_}
        return {name: value.decode(errors="replace") if isinstance(value, bytes) else value
                for name, value in values.items()}

    def take_buffer(self, buffer):
        """The bytes of a buffer, which is freed."""
        try:
            return ctypes.string_at(self.buffer_bytes(buffer), self.buffer_size(buffer))
        finally:
            self.buffer_free(buffer)


class Handle:
    """Owns one object of the library."""

    def __init__(self, library, address, free):
        self.library, self.address, self._free = library, address, free

    def __del__(self):
        if self.address:
            self._free(self.address)
            self.address = None
