#pragma once

// How kernels are written here. A kernel's body is a template over a Block, the threads of one
// block of CUDA's grid, and a row of phases: `Each` runs a lambda on every thread, `Sync` is the
// barrier between phases that share memory, `Sum` a sum over neighbouring lanes. What a thread
// keeps from one phase to the next lies in a PerThread. Control flow outside the lambdas is the
// same for all threads of a block. DeviceBlock makes registers, barriers and shuffles of this; a
// test's block makes loops and arrays, so that every index of a kernel is tried without a GPU.

#include "model/ops/cuda/number.h"

namespace llava::cuda {

inline constexpr int kWarpLanes = 32;

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
  __device__ __forceinline__ int num_y() const { return static_cast<int>(gridDim.y); }

  template <class Phase>
  __device__ __forceinline__ void Each(Phase&& phase) {
    phase(static_cast<int>(threadIdx.x));
  }
  __device__ __forceinline__ void Sync() { __syncthreads(); }
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
};
#endif

}  // namespace llava::cuda
