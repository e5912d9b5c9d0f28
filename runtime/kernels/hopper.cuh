// Hopper's asynchronous machinery (sm_90a): barriers in shared memory, tensor memory copies, warpgroup products and the
// handing over of registers between warpgroups.
#pragma once

#include "runtime/contract/KernelArguments.h"
#include "runtime/kernels/device.cuh"

namespace cpflex::kernels {

/// How a warp arrives at a barrier: one lane does. Tools that follow arrivals thread by thread (compute-sanitizer's
/// racecheck) take what the other lanes did before for unordered; for them a build lets every lane arrive.
#ifdef CPFLEX_EVERY_LANE_ARRIVES
constexpr int kArrivalsPerWarp = kWarpSize;
#else
constexpr int kArrivalsPerWarp = 1;
#endif

/// A barrier in shared memory: a phase ends when the expected arrivals and bytes have come.
struct SharedBarrier {
  uint64 state;

  __device__ __forceinline__ void initialize(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(this)), "r"(arrivals) : "memory");
  }
  __device__ __forceinline__ void initializeForWarps(int warps) { initialize(warps * kArrivalsPerWarp); }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(this)) : "memory");
  }
  /// One arrival of those that initializeForWarps() counts; the warp is converged.
  __device__ __forceinline__ void arriveAsWarp() {
    if (kArrivalsPerWarp > 1 || isElectedLane())
      arrive();
  }
  /// Arrives and adds `bytes` to what the phase waits for.
  __device__ __forceinline__ void arriveExpecting(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(this)), "r"(bytes)
                 : "memory");
  }
  /// Returns when the phase of this parity has ended; a fresh barrier's phase of parity 1 has ended.
  __device__ __forceinline__ void wait(uint32 parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "WAIT:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra DONE;\n"
                 "bra WAIT;\n"
                 "DONE:\n"
                 "}\n" ::"r"(sharedAddress(this)),
                 "r"(parity)
                 : "memory");
  }
};

/// Makes initialised barriers visible to the copy engine; __syncthreads follows.
__device__ __forceinline__ void fenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Orders this thread's shared memory writes before later reads by products and copies.
__device__ __forceinline__ void fenceSharedForAsync() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// How long loaded lines should stay in the L2 cache.
enum class CacheHint : uint64 { EvictFirst = 0x12F0000000000000ull, EvictLast = 0x14F0000000000000ull };

__device__ __forceinline__ void prefetchTensorMap(const TensorMapArgument &map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// Copies one box at (column, row, head, batch) to `destination`; its bytes count on `barrier`.
__device__ __forceinline__ void copyBox(const TensorMapArgument &map, SharedBarrier &barrier, void *destination,
                                        int column, int row, int head, int batch, CacheHint hint) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
               " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(sharedAddress(destination)),
               "l"(&map), "r"(sharedAddress(&barrier)), "r"(column), "r"(row), "r"(head), "r"(batch),
               "l"(static_cast<uint64>(hint))
               : "memory");
}

/// Where `isElected`, copies a box of shared memory to (column, row, head, batch); what lies beyond the tensor is left
/// out. bulkCommit() follows. The condition is no branch: the compiler would serialise products around one.
__device__ __forceinline__ void writeBoxIf(bool isElected, const TensorMapArgument &map, const void *source, int column,
                                           int row, int head, int batch) {
  asm volatile(
      "{ .reg .pred elected; setp.ne.b32 elected, %6, 0;\n"
      "@elected cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1]; }" ::"l"(&map),
      "r"(sharedAddress(source)), "r"(column), "r"(row), "r"(head), "r"(batch), "r"((int)isElected)
      : "memory");
}

/// Copies `bytes` (a multiple of 16, both ends 16-byte aligned) of global memory; they count on `barrier`.
__device__ __forceinline__ void copyBytes(void *destination, const void *source, int bytes, SharedBarrier &barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   sharedAddress(destination)),
               "l"(source), "r"(bytes), "r"(sharedAddress(&barrier))
               : "memory");
}

/// Writes `bytes` (a multiple of 16, both ends 16-byte aligned) of shared memory to global memory, or adds them to f32
/// values there; bulkCommit() closes a group of such calls of one thread.
__device__ __forceinline__ void writeBytes(void *destination, const void *source, int bytes, CacheHint hint) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(destination),
               "r"(sharedAddress(source)), "r"(bytes), "l"(static_cast<uint64>(hint))
               : "memory");
}
__device__ __forceinline__ void addFloats(float *destination, const void *source, int bytes, CacheHint hint) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.f32 [%0], [%1], %2, %3;" ::"l"(
                   destination),
               "r"(sharedAddress(source)), "r"(bytes), "l"(static_cast<uint64>(hint))
               : "memory");
}
__device__ __forceinline__ void bulkCommit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until the sources of all groups have been read.
__device__ __forceinline__ void bulkWaitRead() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
/// Waits until all groups have reached global memory.
__device__ __forceinline__ void bulkWait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/// Orders what this thread has seen of global memory before its copies that follow.
__device__ __forceinline__ void fenceGlobalForAsync() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

/// Orders what this thread has seen of other blocks before what it reads next.
__device__ __forceinline__ void fenceAcquireRelease() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

/// A word that other blocks write or read meanwhile; orders nothing else.
__device__ __forceinline__ int loadRelaxed(const int *address) {
  int value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ __forceinline__ void storeRelease(int *address, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// Stores four 8 x 8 matrices of 2-byte elements: lane l gives the address of row l % 8 of matrix l / 8, and its words
/// are columns 2(l%4) + {0, 1} of row l/4 of each.
__device__ __forceinline__ void storeMatrices(void *row, uint32 a, uint32 b, uint32 c, uint32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(sharedAddress(row)), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

/// Registers per thread of the calling warpgroup from here on.
template <int kRegisters> __device__ __forceinline__ void takeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters> __device__ __forceinline__ void giveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Orders earlier register accesses before the products issued next.
__device__ __forceinline__ void productFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes the group of products issued since the last call; an empty group is allowed.
__device__ __forceinline__ void productCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `kPending` groups are unfinished.
template <int kPending> __device__ __forceinline__ void productWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Describes an operand in swizzled panels (device.cuh) to a product; this is the low half of the descriptor, to which
/// steps are added. Along the contracted dimension (K-major) the columns of a panel are contracted; otherwise
/// (MN-major) its rows are, and `panelBytes` leads to the next 64 columns.
__device__ __forceinline__ uint32 operandDescriptor(const void *panels, int panelBytes) {
  return (uint32)(panelBytes >> 4) << 16 | (sharedAddress(panels) & 0x3ffff) >> 4;
}
/// The step of a descriptor by `bytes`.
constexpr __host__ __device__ uint32 descriptorStep(int bytes) { return (uint32)(bytes >> 4); }
/// The whole descriptor: swizzle 128B, 1024 bytes from one group of eight rows to the next.
__device__ __forceinline__ uint64 wholeDescriptor(uint32 low) {
  constexpr uint64 kSwizzle128 = 1ull << 62, kEightRows = 1024;
  return kSwizzle128 | (kEightRows >> 4) << 32 | low;
}

/// Which way an operand in shared memory lies.
enum class Major : int { K = 0, MN = 1 };

/// D[64 x N] (+)= A[64 x 16] B[16 x N] by one warpgroup, f32 accumulators in the layout of tiles.cuh.
/// fromShared takes both operands by descriptor, fromRegisters A in registers: a[0], a[1] columns 2(l%4) + {0, 1} of
/// rows l/4 and l/4 + 8, a[2], a[3] the same 8 columns further. `accumulate` 0 overwrites D.
template <class Element, int N> struct WarpgroupProduct;

// Operand lists: placeholders of the accumulators in the instruction, and the registers behind them, in steps of 8.
#define CPFLEX_PLACES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define CPFLEX_PLACES_16 CPFLEX_PLACES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define CPFLEX_PLACES_24 CPFLEX_PLACES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define CPFLEX_PLACES_32 CPFLEX_PLACES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define CPFLEX_PLACES_40 CPFLEX_PLACES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define CPFLEX_PLACES_48 CPFLEX_PLACES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define CPFLEX_PLACES_56 CPFLEX_PLACES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define CPFLEX_PLACES_64 CPFLEX_PLACES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define CPFLEX_PLACES_72 CPFLEX_PLACES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define CPFLEX_PLACES_80 CPFLEX_PLACES_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define CPFLEX_PLACES_88 CPFLEX_PLACES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define CPFLEX_PLACES_96 CPFLEX_PLACES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define CPFLEX_PLACES_104 CPFLEX_PLACES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define CPFLEX_PLACES_112 CPFLEX_PLACES_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define CPFLEX_PLACES_120 CPFLEX_PLACES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define CPFLEX_PLACES_128 CPFLEX_PLACES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define CPFLEX_REGISTERS(i)                                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),          \
      "+f"(d[i + 7])
#define CPFLEX_OPERANDS_8 CPFLEX_REGISTERS(0)
#define CPFLEX_OPERANDS_16 CPFLEX_OPERANDS_8, CPFLEX_REGISTERS(8)
#define CPFLEX_OPERANDS_24 CPFLEX_OPERANDS_16, CPFLEX_REGISTERS(16)
#define CPFLEX_OPERANDS_32 CPFLEX_OPERANDS_24, CPFLEX_REGISTERS(24)
#define CPFLEX_OPERANDS_40 CPFLEX_OPERANDS_32, CPFLEX_REGISTERS(32)
#define CPFLEX_OPERANDS_48 CPFLEX_OPERANDS_40, CPFLEX_REGISTERS(40)
#define CPFLEX_OPERANDS_56 CPFLEX_OPERANDS_48, CPFLEX_REGISTERS(48)
#define CPFLEX_OPERANDS_64 CPFLEX_OPERANDS_56, CPFLEX_REGISTERS(56)
#define CPFLEX_OPERANDS_72 CPFLEX_OPERANDS_64, CPFLEX_REGISTERS(64)
#define CPFLEX_OPERANDS_80 CPFLEX_OPERANDS_72, CPFLEX_REGISTERS(72)
#define CPFLEX_OPERANDS_88 CPFLEX_OPERANDS_80, CPFLEX_REGISTERS(80)
#define CPFLEX_OPERANDS_96 CPFLEX_OPERANDS_88, CPFLEX_REGISTERS(88)
#define CPFLEX_OPERANDS_104 CPFLEX_OPERANDS_96, CPFLEX_REGISTERS(96)
#define CPFLEX_OPERANDS_112 CPFLEX_OPERANDS_104, CPFLEX_REGISTERS(104)
#define CPFLEX_OPERANDS_120 CPFLEX_OPERANDS_112, CPFLEX_REGISTERS(112)
#define CPFLEX_OPERANDS_128 CPFLEX_OPERANDS_120, CPFLEX_REGISTERS(120)

// One product of width N with COUNT accumulators; P0.. are the places of the operands that follow them.
#define CPFLEX_PRODUCT(ELEMENT, TYPE, N, COUNT, P0, P1, P2, P3, P4, P5, P6)                                            \
  template <> struct WarpgroupProduct<ELEMENT, N> {                                                                    \
    template <Major kMajorA, Major kMajorB>                                                                            \
    static __device__ __forceinline__ void fromShared(float (&d)[COUNT], uint32 a, uint32 b, int accumulate) {         \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #P2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE  \
                   "." TYPE " {" CPFLEX_PLACES_##COUNT "}, %" #P0 ", %" #P1 ", p, 1, 1, %" #P3 ", %" #P4 "; }"         \
                   : CPFLEX_OPERANDS_##COUNT                                                                           \
                   : "l"(wholeDescriptor(a)), "l"(wholeDescriptor(b)), "r"(accumulate), "n"((int)kMajorA),             \
                     "n"((int)kMajorB));                                                                               \
    }                                                                                                                  \
    template <Major kMajorB>                                                                                           \
    static __device__ __forceinline__ void fromRegisters(float (&d)[COUNT], uint32 a0, uint32 a1, uint32 a2,           \
                                                         uint32 a3, uint32 b, int accumulate) {                        \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #P5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE  \
                   "." TYPE " {" CPFLEX_PLACES_##COUNT "}, {%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4            \
                                                       ", p, 1, 1, %" #P6 "; }"                                        \
                   : CPFLEX_OPERANDS_##COUNT                                                                           \
                   : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(wholeDescriptor(b)), "r"(accumulate), "n"((int)kMajorB)); \
    }                                                                                                                  \
  };
#define CPFLEX_PRODUCTS(N, COUNT, ...)                                                                                 \
  CPFLEX_PRODUCT(BFloat16, "bf16", N, COUNT, __VA_ARGS__)                                                              \
  CPFLEX_PRODUCT(Float16, "f16", N, COUNT, __VA_ARGS__)
CPFLEX_PRODUCTS(16, 8, 8, 9, 10, 11, 12, 13, 14)
CPFLEX_PRODUCTS(32, 16, 16, 17, 18, 19, 20, 21, 22)
CPFLEX_PRODUCTS(48, 24, 24, 25, 26, 27, 28, 29, 30)
CPFLEX_PRODUCTS(64, 32, 32, 33, 34, 35, 36, 37, 38)
CPFLEX_PRODUCTS(80, 40, 40, 41, 42, 43, 44, 45, 46)
CPFLEX_PRODUCTS(96, 48, 48, 49, 50, 51, 52, 53, 54)
CPFLEX_PRODUCTS(112, 56, 56, 57, 58, 59, 60, 61, 62)
CPFLEX_PRODUCTS(128, 64, 64, 65, 66, 67, 68, 69, 70)
CPFLEX_PRODUCTS(144, 72, 72, 73, 74, 75, 76, 77, 78)
CPFLEX_PRODUCTS(160, 80, 80, 81, 82, 83, 84, 85, 86)
CPFLEX_PRODUCTS(176, 88, 88, 89, 90, 91, 92, 93, 94)
CPFLEX_PRODUCTS(192, 96, 96, 97, 98, 99, 100, 101, 102)
CPFLEX_PRODUCTS(208, 104, 104, 105, 106, 107, 108, 109, 110)
CPFLEX_PRODUCTS(224, 112, 112, 113, 114, 115, 116, 117, 118)
CPFLEX_PRODUCTS(240, 120, 120, 121, 122, 123, 124, 125, 126)
CPFLEX_PRODUCTS(256, 128, 128, 129, 130, 131, 132, 133, 134)
#undef CPFLEX_PRODUCTS
#undef CPFLEX_PRODUCT
#undef CPFLEX_REGISTERS
#undef CPFLEX_PLACES_8
#undef CPFLEX_OPERANDS_8
#undef CPFLEX_PLACES_16
#undef CPFLEX_OPERANDS_16
#undef CPFLEX_PLACES_24
#undef CPFLEX_OPERANDS_24
#undef CPFLEX_PLACES_32
#undef CPFLEX_OPERANDS_32
#undef CPFLEX_PLACES_40
#undef CPFLEX_OPERANDS_40
#undef CPFLEX_PLACES_48
#undef CPFLEX_OPERANDS_48
#undef CPFLEX_PLACES_56
#undef CPFLEX_OPERANDS_56
#undef CPFLEX_PLACES_64
#undef CPFLEX_OPERANDS_64
#undef CPFLEX_PLACES_72
#undef CPFLEX_OPERANDS_72
#undef CPFLEX_PLACES_80
#undef CPFLEX_OPERANDS_80
#undef CPFLEX_PLACES_88
#undef CPFLEX_OPERANDS_88
#undef CPFLEX_PLACES_96
#undef CPFLEX_OPERANDS_96
#undef CPFLEX_PLACES_104
#undef CPFLEX_OPERANDS_104
#undef CPFLEX_PLACES_112
#undef CPFLEX_OPERANDS_112
#undef CPFLEX_PLACES_120
#undef CPFLEX_OPERANDS_120
#undef CPFLEX_PLACES_128
#undef CPFLEX_OPERANDS_128

} // namespace cpflex::kernels
