"""How the harness gets machine code before the product's own API does it: tiles, instantiations, hand-written functors
and NVRTC through ctypes. Mirrors runtime/contract/TileConfig.cpp; needs NumPy-free Python only, so it also compiles on a
machine without a GPU."""
import ctypes
import os
import re
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def round_up(value, multiple):
    return (value + multiple - 1) // multiple * multiple


def panel_bytes(rows, columns):
    return rows * round_up(columns, 64) * 2


class Tiles:
    def __init__(self, tile_q, tile_kv, stages, threads, shared_bytes, blocks_per_processor=1):
        self.tile_q, self.tile_kv, self.stages, self.threads = tile_q, tile_kv, stages, threads
        self.shared_bytes, self.blocks_per_processor = shared_bytes, blocks_per_processor


def sums_dq(d, dv):
    """sumsDQ() of KernelArguments.h."""
    return dv <= 64 if d <= 64 else d <= 128 and dv <= 128


def tile_config(role, family, d, dv):
    """The table of TileConfig.cpp for compute capability 9.0."""
    widest = max(d, dv)
    if role in ("backward_delta", "backward_sink"):
        return Tiles(128, 0, 1, 128, 0)
    if family == "wgmma":
        rest = 1024 + 1024
        if role == "forward":
            kv = 128 if widest <= 128 or (d <= 192 and dv <= 128) else 112 if widest <= 192 else 80
            q = 192 if widest <= 64 else 128
            output = panel_bytes(q, dv) if widest <= 128 else 0
            return Tiles(q, kv, 2, 2 * q + 128, panel_bytes(q, d) + output + rest + 2 * (panel_bytes(kv, d) + panel_bytes(kv, dv)))
        if role == "backward_kv" and sums_dq(d, dv):
            q, stages = (96, 3) if widest <= 64 else (64, 2)
            return Tiles(q, 128, stages, 384, panel_bytes(128, d) + panel_bytes(128, dv) + rest + stages * (panel_bytes(q, d) + panel_bytes(q, dv) + 8 * q)
                         + 2 * 128 * 128 * (2 if d <= 64 else 1) + 2 * q * round_up(d, 64) * 4)
        if role == "backward_kv":
            if widest > 128:
                return Tiles(64, 64, 2, 384, panel_bytes(64, d) + panel_bytes(64, dv) + rest + 2 * (panel_bytes(64, d) + panel_bytes(64, dv) + 8 * 64) + 2 * 64 * 64 * 4)
            return Tiles(64, 128, 2, 384, panel_bytes(128, d) + panel_bytes(128, dv) + rest + 2 * (panel_bytes(64, d) + panel_bytes(64, dv) + 8 * 64))
        if role == "backward_q":
            kv = 128 if widest <= 128 else 64 if widest <= 192 else 48
            return Tiles(128, kv, 2, 384, panel_bytes(128, d) + panel_bytes(128, dv) + rest + 2 * (panel_bytes(kv, d) + panel_bytes(kv, dv)))
    if role == "forward":
        kv = 128 if widest <= 64 else 64
        return Tiles(128, kv, 1, 128 if widest <= 128 else 256, panel_bytes(128, d) + panel_bytes(kv, d) + panel_bytes(kv, dv) + 1024,
                     2 if widest <= 128 else 1)
    streamed = 64 if widest <= 128 else 32
    shared = panel_bytes(64 + streamed, d) + panel_bytes(64 + streamed, dv) + 1024
    if role == "backward_kv":
        return Tiles(streamed, 64, 1, 128, shared, 2)
    if role == "backward_q":
        return Tiles(64, streamed, 1, 128, shared, 2)
    raise ValueError((role, family))


ROLES = {
    ("forward", "wgmma"): ("attention_forward_wgmma.cuh", "attention_forward", "attentionForwardWgmma"),
    ("forward", "mma_sync"): ("attention_forward_mma_sync.cuh", "attention_forward", "attentionForwardMmaSync"),
    ("backward_kv", "wgmma"): ("attention_backward_kv_wgmma.cuh", "attention_backward_kv", "attentionBackwardKVWgmma"),
    ("backward_kv", "mma_sync"): ("attention_backward_kv_mma_sync.cuh", "attention_backward_kv", "attentionBackwardKVMmaSync"),
    ("backward_q", "wgmma"): ("attention_backward_q_wgmma.cuh", "attention_backward_q", "attentionBackwardQWgmma"),
    ("backward_q", "mma_sync"): ("attention_backward_q_mma_sync.cuh", "attention_backward_q", "attentionBackwardQMmaSync"),
    ("backward_delta", "mma_sync"): ("attention_backward_rows.cuh", "attention_backward_delta", "attentionBackwardDelta"),
    ("backward_sink", "mma_sync"): ("attention_backward_rows.cuh", "attention_backward_sink", "attentionBackwardSink"),
}


def kernel_role(role, family, d, dv):
    if role == "backward_kv" and family == "wgmma" and max(d, dv) > 128:
        return "attention_backward_kv_wide_wgmma.cuh", "attention_backward_kv", "attentionBackwardKVWideWgmma"
    if role == "backward_kv" and family == "wgmma" and sums_dq(d, dv):
        return "attention_backward_fused_wgmma.cuh", "attention_backward_kv", "attentionBackwardFusedWgmma"
    return ROLES[role, family]


def instantiation(role, family, d, dv, tiles, has_mask, element="BFloat16", softmax=True, f32=False, positions="Identity"):
    _, function, template = kernel_role(role, family, d, dv)
    maps = family == "wgmma"
    prefix = "Forward" if role == "forward" else "Backward"
    text = "struct Config {\n"
    text += f"  using Element = cpflex::kernels::{element};\n"
    for name, value in (("kHeadDim", d), ("kVHeadDim", dv), ("kTileQ", tiles.tile_q), ("kTileKV", tiles.tile_kv),
                        ("kStages", tiles.stages), ("kThreads", tiles.threads), ("kSharedBytes", tiles.shared_bytes)):
        text += f"  static constexpr int {name} = {value};\n"
    text += f"  static constexpr bool kHasSoftmax = {str(softmax).lower()};\n"
    text += f"  static constexpr bool kOutputIsF32 = {str(f32).lower()};\n"
    text += f"  static constexpr cpflex::PositionMode kPositions = cpflex::PositionMode::{positions};\n}};\n"
    text += f'extern "C" __global__ void __launch_bounds__(Config::kThreads, {tiles.blocks_per_processor}) {function}(\n'
    text += f"    const __grid_constant__ cpflex::{prefix}Arguments arguments,\n"
    text += "    const __grid_constant__ Program::Captures captures"
    if maps:
        text += f",\n    const __grid_constant__ cpflex::{prefix}TensorMaps maps"
    text += f") {{\n  cpflex::kernels::{template}<Config, Program>(arguments, captures{', maps' if maps else ''});\n}}\n"
    if maps and has_mask:
        axes = "RowsAreKV" if role == "backward_kv" else "RowsAreQ"
        threads = 2 * (tiles.tile_kv if role == "backward_kv" else tiles.tile_q)
        text += f'extern "C" __global__ void __launch_bounds__({threads}, {(64 << 10) // (128 * threads)}) {function}_words(\n'
        text += f"    const __grid_constant__ cpflex::{prefix}Arguments arguments,\n"
        text += "    const __grid_constant__ Program::Captures captures, const int *pairOf, int numSets) {\n"
        text += f"  cpflex::kernels::fillMaskWords<Config, Program, cpflex::kernels::TileAxes::{axes}>(arguments, captures, pairOf, numSets);\n}}\n"
    return text


def program(captures="", mask=None, score=None, form="Identity", gradient=None):
    """A functor as the compiler would print it. `c.` names captures."""
    return f"""struct Program {{
  struct Captures {{ {captures} }};
  static constexpr bool kHasMask = {'true' if mask else 'false'};
  static constexpr cpflex::ScoreForm kScoreForm = cpflex::ScoreForm::{form};
  static __device__ __forceinline__ bool mask(const Captures &c, int b, int h, int q, int kv) {{ {mask or 'return true;'} }}
  static __device__ __forceinline__ float score(const Captures &c, float s, int b, int h, int q, int kv) {{ {score or 'return s;'} }}
  static __device__ __forceinline__ float scoreGradient(const Captures &c, float s, float g, int b, int h, int q, int kv) {{ {gradient or 'return g;'} }}
}};
"""


DOC_LOAD = "c.doc[(long long)b * c.length + {}]"
PROGRAMS = {
    "dense": program(),
    "causal": program(mask="return kv <= q;"),
    "window": program("int width;", mask="return q >= kv & q - kv <= c.width;"),
    "prefix_lm": program("int prefix;", mask="return kv < c.prefix | q >= kv;"),
    "documents": program("const int *doc; long long length;",
                         mask=f"return {DOC_LOAD.format('q')} == {DOC_LOAD.format('kv')};"),
    "doc_causal": program("const int *doc; long long length;",
                          mask=f"return (q >= kv) & ({DOC_LOAD.format('q')} == {DOC_LOAD.format('kv')});"),
    "sink_window": program("int width; int sink;", mask="return q >= kv & (q - kv <= c.width | kv < c.sink);"),
    "dilated": program("int width;", mask="return q >= kv & (q - kv) % 4 == 0 & q - kv <= c.width;"),
    "alibi_causal": program("int heads;", mask="return kv <= q;", form="Additive",
                            score="return s + exp2f(-8.0f * (h + 1) / c.heads) * (float)(kv - q);"),
    "softcap_causal": program("float cap, inverse;", mask="return kv <= q;", form="General",
                              score="return c.cap * cpflex::ops::tanh(s * c.inverse);",
                              gradient="float t = cpflex::ops::tanh(s * c.inverse); return g * (1.0f - t * t);"),
    "relpos": program(form="Additive", score="return s + (float)(q - kv);"),
    "per_head": program("int width;", mask="return h % 2 == 0 ? kv <= q : (q >= kv & q - kv <= c.width);"),
}


def kernel_text(role, family, functor, config, d, dv):
    words = '#include "runtime/kernels/mask_words.cuh"\n' if family == "wgmma" else ""
    return ('#include "runtime/contract/Operations.h"\n' + words +
            f'#include "runtime/kernels/{kernel_role(role, family, d, dv)[0]}"\n{functor}{config}')


_nvrtc = None


def nvrtc():
    global _nvrtc
    if _nvrtc is None:
        names = ["libnvrtc.so.13", "/usr/local/cuda/lib64/libnvrtc.so.13", "libnvrtc.so"]
        try:
            import nvidia
            for base in nvidia.__path__:
                names.append(os.path.join(base, "cu13/lib/libnvrtc.so.13"))
        except ImportError:
            pass
        for name in names:
            try:
                _nvrtc = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise RuntimeError("no libnvrtc found")
    return _nvrtc


def headers(patches=()):
    """Path from the repository root to text, with textual patches (file, old, new) for experiments."""
    result = {}
    folder = os.path.join(ROOT, "runtime/kernels")
    paths = [f"runtime/kernels/{name}" for name in sorted(os.listdir(folder)) if name.endswith(".cuh")]
    for path in paths + ["runtime/contract/Operations.h", "runtime/contract/KernelArguments.h"]:
        result[path] = open(os.path.join(ROOT, path)).read()
    for file, old, new in patches:
        path = f"runtime/kernels/{file}"
        if old not in result[path]:
            raise RuntimeError(f"patch for {file} does not apply: {old!r}")
        result[path] = result[path].replace(old, new)
    return result


class CompileError(Exception):
    pass


def compile_text(text, arch="sm_90a", patches=()):
    """Returns (cubin, report) where report has ms, registers, spill, stack and the log."""
    lib = nvrtc()
    files = headers(patches)
    handle = ctypes.c_void_p()
    names = (ctypes.c_char_p * len(files))(*[name.encode() for name in files])
    texts = (ctypes.c_char_p * len(files))(*[body.encode() for body in files.values()])
    lib.nvrtcCreateProgram(ctypes.byref(handle), text.encode(), b"kernel.cu", len(files), texts, names)
    options = [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", "-default-device", "--no-cache"]
    begin = time.perf_counter()
    result = lib.nvrtcCompileProgram(handle, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options]))
    ms = (time.perf_counter() - begin) * 1e3
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(handle, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(handle, log)
    log = log.value.decode()
    if result != 0:
        lib.nvrtcDestroyProgram(ctypes.byref(handle))
        raise CompileError(log)
    lib.nvrtcGetCUBINSize(handle, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetCUBIN(handle, cubin)
    lib.nvrtcDestroyProgram(ctypes.byref(handle))

    # The module may hold the kernel that fills the words of the mask, too.
    reports = re.split(r"Compiling entry function '(\w+)'", log)
    own = next((body for name, body in zip(reports[1::2], reports[2::2]) if not name.endswith("_words")), log)

    def number(pattern):
        found = re.search(pattern, own)
        return int(found.group(1)) if found else -1

    report = {"ms": ms, "registers": number(r"Used (\d+) registers"), "spill": number(r"(\d+) bytes spill stores"),
              "stack": number(r"(\d+) bytes stack frame"), "log": log,
              "warnings": [line for line in log.splitlines() if re.search(r"C75\d\d|warning|erializ", line)]}
    return cubin.raw, report
