#pragma once

// Where the functions of model/ops/cuda/kernels.h run in this test program: on the GPU, or emulated
// on the host (emulated_kernels.cc). The same tests are for both.

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

namespace llava::cuda {

at::Device KernelDevice();
// False: the program was built for a GPU and there is none.
bool HasKernelDevice();
// The emulated threads and blocks run from the last to the first; nothing on a GPU.
void RunThreadsBackwards(bool on);
// While on, there is no memory for recordings; false on a GPU, where it does nothing.
bool RefuseGraphs(bool on);

class KernelTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasKernelDevice()) GTEST_SKIP() << "no CUDA device";
  }
};

}  // namespace llava::cuda
