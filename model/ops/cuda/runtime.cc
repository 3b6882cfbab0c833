#include "model/ops/cuda/runtime.h"

#include <array>
#include <exception>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

namespace llava::cuda {
namespace {

// Streams on which graphs are recorded, one for a thread at a time and nobody else's: LibTorch's
// pool gives one stream to many, and work that another thread queues breaks a recording. They are
// used again and never destroyed: cuBLAS keeps its work space for every stream that it meets.
class CaptureStreams {
 public:
  cudaStream_t Take(at::DeviceIndex device) {
    const std::lock_guard lock(mutex_);
    std::vector<cudaStream_t>& free = free_[device];
    if (free.empty()) {
      cudaStream_t made = nullptr;
      C10_CUDA_CHECK(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
      return made;
    }
    const cudaStream_t taken = free.back();
    free.pop_back();
    return taken;
  }
  void GiveBack(at::DeviceIndex device, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    free_[device].push_back(stream);
  }

 private:
  std::mutex mutex_;
  std::map<at::DeviceIndex, std::vector<cudaStream_t>> free_;
};

CaptureStreams& AllCaptureStreams() {
  static CaptureStreams& streams = *new CaptureStreams;  // threads may end later than main
  return streams;
}

// Those of a thread; on its current device.
class ThreadStreams {
 public:
  ThreadStreams() = default;
  ThreadStreams(const ThreadStreams&) = delete;
  ThreadStreams& operator=(const ThreadStreams&) = delete;
  ~ThreadStreams() {
    for (const auto& [device, stream] : taken_) AllCaptureStreams().GiveBack(device, stream);
  }
  c10::cuda::CUDAStream On(at::DeviceIndex device) {
    const auto [found, added] = taken_.try_emplace(device);
    if (added) {
      try {
        found->second = AllCaptureStreams().Take(device);
      } catch (...) {
        taken_.erase(found);
        throw;
      }
    }
    return c10::cuda::getStreamFromExternal(found->second, device);
  }

 private:
  std::map<at::DeviceIndex, cudaStream_t> taken_;
};

c10::cuda::CUDAStream CaptureStream(at::DeviceIndex device) {
  static thread_local ThreadStreams streams;
  return streams.On(device);
}

// Held while a graph of the device begins, ends or goes: LibTorch 2.11 keeps the graphs that a
// device's random numbers know in a set without a lock (mended behind it: pytorch/pytorch#173421).
std::mutex& GeneratorGraphs(at::DeviceIndex device) {
  static auto& mutexes = *new std::array<std::mutex, C10_COMPILE_TIME_MAX_GPUS>;
  return mutexes.at(static_cast<size_t>(device));
}

}  // namespace

Stream CurrentStream(at::Device device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

at::Tensor HostBuffer(at::IntArrayRef shape, at::ScalarType dtype, at::Device device) {
  return at::empty(shape, at::TensorOptions(dtype).pinned_memory(device.is_cuda()));
}

at::Tensor Download(const at::Tensor& tensor) {
  at::Tensor host = HostBuffer(tensor.sizes(), tensor.scalar_type(), tensor.device());
  host.copy_(tensor, /*non_blocking=*/true);
  c10::cuda::getCurrentCUDAStream(tensor.device().index()).synchronize();
  return host;
}

struct Graph::State {
  std::function<void()> work;
  at::DeviceIndex device;
  at::cuda::CUDAGraph graph;
};

void Graph::Delete::operator()(State* state) const {
  const std::lock_guard lock(GeneratorGraphs(state->device));
  delete state;
}

Graph::Graph(std::function<void()> work, at::Device device, const Graph* beside)
    : state_(new State{.work = std::move(work), .device = 0, .graph = {}}) {
  const c10::cuda::CUDAGuard device_guard(device);
  state_->device = c10::cuda::current_device();
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStream stream = CaptureStream(state_->device);
  const c10::cuda::CUDAStreamGuard guard(stream);
  std::exception_ptr failure;  // the first one is the one to tell
  const auto attempt = [&failure](const auto& step) {
    try {
      step();
    } catch (const c10::AcceleratorError& error) {
      if (failure) return;
      failure = std::current_exception();
      if (error.get_error_code() == cudaErrorMemoryAllocation) {  // of the driver itself
        failure = std::make_exception_ptr(
            c10::OutOfMemoryError({__func__, __FILE__, __LINE__}, error.what()));
      }
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  };
  attempt(state_->work);
  // Also if it failed: what is queued reads memory that goes with whoever made it.
  attempt([&] { stream.synchronize(); });
  if (failure) std::rethrow_exception(failure);
  {
    const std::lock_guard lock(GeneratorGraphs(state_->device));
    // Other threads may go on allocating.
    state_->graph.capture_begin(beside ? beside->state_->graph.pool() : at::cuda::MempoolId_t{0, 0},
                                cudaStreamCaptureModeThreadLocal);
  }
  attempt(state_->work);
  attempt([&] {
    const std::lock_guard lock(GeneratorGraphs(state_->device));
    state_->graph.capture_end();
  });
  if (!failure) return;
  try {
    state_->graph.pool();
  } catch (...) {
    // The capture has not ended: LibTorch's allocator still asks the graph which memory is its own.
    static_cast<void>(state_.release());
  }
  std::rethrow_exception(failure);
}

Graph::~Graph() = default;

void Graph::Run() { state_->graph.replay(); }

}  // namespace llava::cuda
