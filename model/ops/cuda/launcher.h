#pragma once

// Launches kernels on a stream; for nvcc alone.

#include <atomic>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

#include "model/ops/cuda/dispatch.h"

namespace llava::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, BlocksOf<Kernel>())
    RunKernel(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  DeviceBlock<Kernel::kThreads> block;
#if __CUDA_ARCH__ >= 900
  // The next kernel may come as soon as all blocks of this one have a place. It waits until this
  // one has ended, and this one until those ahead have.
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  kernel(block, shared);
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
    config.numAttrs = CanOverlap() ? 1 : 0;
    cudaError_t error = cudaLaunchKernelEx(&config, RunKernel<Kernel>, kernel);
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
