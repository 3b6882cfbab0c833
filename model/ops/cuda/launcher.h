#pragma once

// Launches kernels on a stream; for nvcc alone.

#include <atomic>
#include <cstddef>
#include <cstdint>
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

inline std::atomic<bool> streaming{false};  // since the first product that reads ahead

// What a kernel is told once for the current device: how much a block may share; once products
// stream, those of their steps also that a multiprocessor's memory is for sharing as far as it can
// be. One that wants it divided otherwise would wait until all others have left, and they for it.
template <class Kernel>
cudaError_t Configure() {
  static std::atomic<uint64_t> configured{0}, divided{0};  // a bit for each device
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const uint64_t bit = uint64_t{1} << device % 64;
  if constexpr (kSharesMuch<Kernel>) {
    if (error == cudaSuccess && (configured.load(std::memory_order_relaxed) & bit) == 0) {
      error = cudaFuncSetAttribute(RunKernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(sizeof(typename Kernel::Shared)));
      if (error == cudaSuccess) configured.fetch_or(bit, std::memory_order_relaxed);
    }
  }
  if constexpr (kBesideStreams<Kernel>) {
    if (kStreams<Kernel>) streaming.store(true, std::memory_order_relaxed);
    if (streaming.load(std::memory_order_relaxed) &&
        (divided.fetch_or(bit, std::memory_order_relaxed) & bit) == 0 &&
        cudaFuncSetAttribute(RunKernel<Kernel>, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared) != cudaSuccess) {
      cudaGetLastError();  // a hint that is refused is forgotten
    }
  }
  return error;
}

inline int DeviceMultiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    throw std::runtime_error("CUDA: the device does not tell its multiprocessors");
  }
  return count;
}

struct DeviceLauncher {
  Stream stream;
  bool early = true;  // may come while the kernel ahead ends
  int Multiprocessors() const { return DeviceMultiprocessors(); }
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
    if constexpr (kSharesMuch<Kernel>) config.dynamicSmemBytes = sizeof(typename Kernel::Shared);
    cudaError_t error = Configure<Kernel>();
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, RunKernel<Kernel>, kernel);
    if (error != cudaSuccess && config.numAttrs > 0) {
      cudaGetLastError();  // forgets it
      config.numAttrs = 0;
      error = cudaLaunchKernelEx(&config, RunKernel<Kernel>, kernel);
      if (error == cudaSuccess) overlap = false;
    }
    if (error != cudaSuccess) {
      cudaGetLastError();  // else whoever asks next takes it for its own
      throw std::runtime_error(std::string("CUDA: a launch failed: ") + cudaGetErrorString(error));
    }
  }
};

}  // namespace llava::cuda
