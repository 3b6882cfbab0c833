#pragma once

// Launches kernels on a stream; for nvcc alone.

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

#include "model/ops/cuda/dispatch.h"

namespace llava::cuda {

// What a block may share without being asked for it at the launch.
inline constexpr size_t kOrdinaryShared = 48 << 10;

template <class Kernel>
constexpr bool kSharesMuch = sizeof(typename Kernel::Shared) > kOrdinaryShared;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, BlocksOf<Kernel>())
    RunKernel(const Kernel kernel) {
  DeviceBlock<Kernel::kThreads> block;
#if __CUDA_ARCH__ >= 900
  // The next kernel may come as soon as all blocks of this one have a place. It waits until this
  // one has ended, and this one until those ahead have.
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  if constexpr (kSharesMuch<Kernel>) {
    extern __shared__ uint4 much[];
    kernel(block, *reinterpret_cast<typename Kernel::Shared*>(much));
  } else {
    __shared__ typename Kernel::Shared shared;
    kernel(block, shared);
  }
}

inline std::atomic<bool> overlap{true};

inline bool CanOverlap() {
  static const bool can = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major >= 9;
  }();
  return can && overlap.load(std::memory_order_relaxed);
}

struct DeviceLauncher {
  Stream stream;
  bool early = true;  // may come while the kernel ahead ends
  template <class Kernel>
  void operator()(const Kernel& kernel, const Grid& grid) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                          static_cast<unsigned>(grid.z));
    config.blockDim = dim3(Kernel::kThreads);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = early && CanOverlap() ? 1 : 0;
    cudaError_t error = cudaSuccess;
    if constexpr (kSharesMuch<Kernel>) {
      config.dynamicSmemBytes = sizeof(typename Kernel::Shared);
      error = cudaFuncSetAttribute(RunKernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(config.dynamicSmemBytes));
    }
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, RunKernel<Kernel>, kernel);
    if (error != cudaSuccess && config.numAttrs > 0) {
      cudaGetLastError();  // forgets it
      overlap = false;
      config.numAttrs = 0;
      error = cudaLaunchKernelEx(&config, RunKernel<Kernel>, kernel);
    }
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("CUDA: a launch failed: ") + cudaGetErrorString(error));
    }
  }
};

}  // namespace llava::cuda
