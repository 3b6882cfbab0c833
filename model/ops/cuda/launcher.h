#pragma once

// Launches kernels on a stream; for nvcc alone.

#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

#include "model/ops/cuda/dispatch.h"

namespace llava::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) RunKernel(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  DeviceBlock<Kernel::kThreads> block;
  kernel(block, shared);
}

struct DeviceLauncher {
  Stream stream;
  template <class Kernel>
  void operator()(const Kernel& kernel, const Grid& grid) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                      static_cast<unsigned>(grid.z));
    RunKernel<<<blocks, Kernel::kThreads, 0, stream>>>(kernel);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("CUDA: a launch failed: ") + cudaGetErrorString(error));
    }
  }
};

}  // namespace llava::cuda
