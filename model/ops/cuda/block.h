#pragma once

// How kernels are written here. A kernel's body is a template over a Block, the threads of one
// block of CUDA's grid, and a row of phases: `Each` runs a lambda on every thread, `Sync` is the
// barrier between phases that share memory, `Sum` a sum over neighbouring lanes, `Multiply` a
// product of a warp's matrix unit. What a thread keeps from one phase to the next lies in a
// PerThread. Control flow outside the lambdas is the same for all threads of a block. DeviceBlock
// makes registers, barriers and shuffles of this; a test's block makes loops and arrays, so that
// every index of a kernel is tried without a GPU.
//
// A kernel may come onto the device while those ahead of it still run. `AwaitEarlier`, called once
// on every path, waits until they have ended; in front of it a body reads only what lay there
// before the kernel ahead began (weights, index arrays), and writes nothing. A block with nothing
// to do calls `LeaveIdle` instead, and makes room for others: a kernel has not ended before its
// other blocks have, at least one of which waits.

#include "model/ops/cuda/number.h"

namespace llava::cuda {

inline constexpr int kWarpLanes = 32;

// Of a thread, whose number nvcc takes for one that may be negative, which is slower to divide.
LLAVA_DEVICE int WarpOf(int thread) {
  return static_cast<int>(static_cast<uint32_t>(thread) / kWarpLanes);
}
LLAVA_DEVICE int LaneOf(int thread) {
  return static_cast<int>(static_cast<uint32_t>(thread) % kWarpLanes);
}

// Of a kernel whose blocks stay while they work on one thing after the other, with copies far
// ahead: a step among those of all turns, each of `steps`, and where its copies lie in a ring of
// stages.
template <int kStages>
struct RingPlace {
  int turn = 0, step = 0, stage = 0;
  LLAVA_DEVICE void Next(int steps) {
    if (++step == steps) {
      step = 0;
      ++turn;
    }
    if (++stage == kStages) stage = 0;
  }
};

#if defined(__CUDACC__)
template <int kNumThreads>
class DeviceBlock {
 public:
  static constexpr int kThreads = kNumThreads;

  template <class X>
  struct PerThread {
    X value;
    __device__ __forceinline__ X& operator[](int) { return value; }
  };

  __device__ __forceinline__ int x() const { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ int y() const { return static_cast<int>(blockIdx.y); }
  __device__ __forceinline__ int z() const { return static_cast<int>(blockIdx.z); }
  __device__ __forceinline__ int num_x() const { return static_cast<int>(gridDim.x); }
  __device__ __forceinline__ int num_y() const { return static_cast<int>(gridDim.y); }

  template <class Phase>
  __device__ __forceinline__ void Each(Phase&& phase) {
    phase(static_cast<int>(threadIdx.x));
  }
  __device__ __forceinline__ void Sync() { __syncthreads(); }
  __device__ __forceinline__ void AwaitEarlier() {
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
  }
  __device__ __forceinline__ void LeaveIdle() {}
  // In a phase: copies 8 or 16 bytes from global into shared memory while the thread goes on; zeros
  // if they are not `there`. Between phases: CloseCopies makes those since the last one a group,
  // AwaitCopies waits until at most the kOpen youngest groups are under way. What has arrived the
  // thread that copied it sees at once, all others behind a Sync.
  template <class X>
  __device__ __forceinline__ void CopyLater(X* to, const void* from, bool there) {
    static_assert(sizeof(X) == 8 || sizeof(X) == 16);
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    if constexpr (sizeof(X) == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                   "r"(there ? 16 : 0)
                   : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(from),
                   "r"(there ? 8 : 0)
                   : "memory");
    }
  }
  __device__ __forceinline__ void CloseCopies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  template <int kOpen>
  __device__ __forceinline__ void AwaitCopies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
  }
  // Each of `kLanes` neighbouring threads gets the sum over all of them, a value at a time.
  template <int kLanes, int N>
  __device__ __forceinline__ void Sum(PerThread<Array<float, N>>& values) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        values.value[i] += __shfl_xor_sync(0xffffffffu, values.value[i], step);
      }
    }
  }
  // Each warp by itself: the sum over kSteps of products A [32, 16] B [16, 8] of bfloat16. With g =
  // lane / 4 and t = lane % 4, a lane has
  //   in a[8 step + 4 half + r] the pair A[16 half + g + 8 (r % 2)][2 t + 8 (r / 2) ...],
  //   in b[2 step + r] the pair B[2 t + 8 r ...][g],
  //   and gets in sums[4 half + c] the sum [16 half + g + 8 (c / 2)][2 t + c % 2]; kAdds: it is
  //   added to what is there.
  template <int kSteps, bool kAdds = false>
  __device__ __forceinline__ void Multiply(PerThread<Array<float, 8>>& sums,
                                           PerThread<Array<uint32_t, 8 * kSteps>>& a,
                                           PerThread<Array<uint32_t, 2 * kSteps>>& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const d = sums.value.values + 4 * half;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint32_t* const x = a.value.values + 8 * step + 4 * half;
        const uint32_t* const y = b.value.values + 2 * step;
        const bool begins = step == 0 && !kAdds;
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]),
              "f"(begins ? 0.0f : d[0]), "f"(begins ? 0.0f : d[1]), "f"(begins ? 0.0f : d[2]),
              "f"(begins ? 0.0f : d[3]));
      }
    }
  }
};
#endif

}  // namespace llava::cuda
