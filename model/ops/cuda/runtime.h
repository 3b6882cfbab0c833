#pragma once

// What the CUDA decoder needs of streams, pinned memory and graphs.

#include <functional>
#include <memory>

#include <ATen/core/Tensor.h>

#include "model/ops/cuda/kernels.h"

namespace llava::cuda {

// The stream that LibTorch queues the thread's work on.
Stream CurrentStream(at::Device device);

// Memory of the host that the device copies from and to without waiting; uninitialized.
at::Tensor HostBuffer(at::IntArrayRef shape, at::ScalarType dtype, at::Device device);

// A copy on the host, complete when this returns.
at::Tensor Download(const at::Tensor& tensor);

// Work that is queued as one piece. One thread.
class Graph {
 public:
  // Runs `work` once to warm up, then records it. It may read and write only memory that stays
  // (besides tensors that it makes itself), must not wait for the device, and is kept. What it
  // makes itself lies in the same memory as that of the graph `beside`, which lives at least as
  // long and never runs at the same time. Throws what `work` does, and c10::OutOfMemoryError.
  Graph(std::function<void()> work, at::Device device, const Graph* beside = nullptr);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  // Queues the recorded work on the current stream.
  void Run();

 private:
  struct State;
  struct Delete {
    void operator()(State* state) const;
  };
  std::unique_ptr<State, Delete> state_;
};

}  // namespace llava::cuda
