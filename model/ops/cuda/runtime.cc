#include "model/ops/cuda/runtime.h"

#include <map>
#include <stdexcept>
#include <utility>

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

namespace llava::cuda {
namespace {

// One for all graphs of a thread: cuBLAS keeps its work space for every stream that it meets.
c10::cuda::CUDAStream CaptureStream(at::DeviceIndex device) {
  static thread_local std::map<at::DeviceIndex, c10::cuda::CUDAStream> streams;
  const auto found = streams.find(device);
  if (found != streams.end()) return found->second;
  return streams.emplace(device, c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device))
      .first->second;
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
  at::cuda::CUDAGraph graph;
};

Graph::Graph(std::function<void()> work, at::Device device)
    : state_(new State{.work = std::move(work), .graph = {}}) {
  const c10::cuda::CUDAGuard device_guard(device);
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStream stream = CaptureStream(c10::cuda::current_device());
  const c10::cuda::CUDAStreamGuard guard(stream);
  state_->work();
  stream.synchronize();
  // Other threads may go on allocating.
  state_->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  try {
    state_->work();
  } catch (...) {
    try {
      state_->graph.capture_end();
    } catch (...) {  // the first failure is the one to tell
    }
    throw;
  }
  state_->graph.capture_end();
}

Graph::~Graph() = default;

void Graph::Run() { state_->graph.replay(); }

}  // namespace llava::cuda
