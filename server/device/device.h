#pragma once

// From the words of --device, --dtype and --threads to LibTorch, the same in both model services.

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace llava {

// "cpu", "cuda:0" or several with commas between, all of one kind (features computed by different
// arithmetic must not share a cache). INVALID_ARGUMENT saying what is expected.
absl::StatusOr<std::vector<at::Device>> ParseDevices(const std::string& text);

// For a --memory-budget of 0: nine tenths of what is free at the moment on the GPUs that `text` (as
// above) names, of as many as there are as much as on the fullest. 0, no limit: for the CPU
// (HostMemoryBudget knows), and where a GPU cannot be asked, which CheckDevice will tell.
uint64_t DeviceMemoryBudget(const std::string& text);

// Gives the device back what LibTorch keeps of tensors that are gone: other processes may want it,
// and other versions have streams of their own, which cannot use it. Nothing on the CPU; while
// another thread records a graph, LibTorch keeps it until the next call.
void GiveBackMemory(at::Device device);
// As the first member of what holds tensors on a device: gives their memory back behind them.
class GivesBackMemory {
 public:
  explicit GivesBackMemory(at::Device device) : device_(device) {}
  GivesBackMemory(const GivesBackMemory&) = delete;
  GivesBackMemory& operator=(const GivesBackMemory&) = delete;
  ~GivesBackMemory() { GiveBackMemory(device_); }

 private:
  const at::Device device_;
};

// FAILED_PRECONDITION if a tensor cannot be made and computed with there: no such GPU, no driver, a
// build without CUDA, a GPU that is lost to this process. RESOURCE_EXHAUSTED: its memory is full.
absl::Status CheckDevice(at::Device device);
// Throws LoadFailure with that: for a worker that begins anew, because its device may be lost.
void RequireDevice(at::Device device);

// Known words: auto (float32 on the CPU, bfloat16 on a GPU), float32, bfloat16, float16.
at::ScalarType ParseDtype(const std::string& text, at::Device device);

// How numbers are computed, e.g. "cpu-f32" or "cuda-bf16": part of every feature key.
std::string NumericsName(at::Device device, at::ScalarType dtype);
// "float32", "bfloat16", "float16".
std::string ArithmeticName(at::ScalarType dtype);

// Makes the calling thread one that owns `device`: its current device, on a GPU a stream of its
// own (as long as it lives, whenever it is called), and the number of threads that its operations
// use. 0: the cores shared by `workers`, but one for a model of few `weight_bytes`, whose
// operations are shorter than the barriers between threads, above all on cores that others use too.
// Returns that number. Streams do not wait for each other: tensors of one such thread are for that
// thread.
int EnterDeviceThread(at::Device device, int threads, int workers, uint64_t weight_bytes);

}  // namespace llava
