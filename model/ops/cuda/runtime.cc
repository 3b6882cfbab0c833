#include "model/ops/cuda/runtime.h"

#include <array>
#include <exception>
#include <mutex>
#include <utility>

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "model/ops/thread_stream.h"

namespace llava::cuda {
namespace {

// On which the calling thread records graphs: LibTorch's pool gives one stream to many, and work
// that another thread queues breaks a recording. `device` is the current one.
c10::cuda::CUDAStream CaptureStream(at::DeviceIndex device) {
  const auto make = [] {
    cudaStream_t made = nullptr;
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
  };
  return c10::cuda::getStreamFromExternal(ops::ThreadStream<cudaStream_t>(device, make), device);
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
