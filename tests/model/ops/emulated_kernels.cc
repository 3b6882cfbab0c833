// The functions of model/ops/cuda/kernels.h and runtime.h on the host: the bodies of the kernels
// run on HostBlocks, on tensors of the CPU.

#include <functional>
#include <utility>

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "model/ops/cuda/runtime.h"
#include "tests/model/ops/host_block.h"
#include "tests/model/ops/kernel_device.h"

namespace llava::cuda {
namespace {
bool no_graphs = false;
}

at::Device KernelDevice() { return at::kCPU; }
bool HasKernelDevice() { return true; }
void RunThreadsBackwards(bool on) { backwards = on; }
bool RefuseGraphs(bool on) {
  no_graphs = on;
  return true;
}

void AddRmsNorm(Element element, const AddRmsNormArgs& args, int64_t rows, Stream) {
  DispatchAddRmsNorm(HostLauncher(), element, args, rows);
}
void RopeToCache(Element element, const RopeToCacheArgs& args, int64_t rows, Stream) {
  DispatchRopeToCache(HostLauncher(), element, args, rows);
}
void SwiGlu(Element element, const SwiGluArgs& args, int64_t rows, Stream) {
  DispatchSwiGlu(HostLauncher(), element, args, rows);
}
void QuickGelu(Element element, const QuickGeluArgs& args, Stream) {
  DispatchQuickGelu(HostLauncher(), element, args);
}
void PagedAttention(Element element, const PagedAttentionArgs& args, int64_t sequences, Stream) {
  DispatchPagedAttention(HostLauncher(), element, args, sequences);
}
bool HasPagedAttention(int64_t head_dim) { return CanAttend(head_dim); }
void MultiplyPacked(const PackedProductArgs& args, Stream) {
  DispatchPackedProduct(HostLauncher(), args);
}
void MultiplyPackedTiles(const PackedProductArgs& args, float* partial, Stream) {
  DispatchPackedTiles(HostLauncher(), args, partial);
}
bool StreamsPacked(const PackedProductArgs& args) { return CanStream(args); }
void MultiplyPackedStream(const PackedProductArgs& args, Stream) {
  DispatchPackedStream(HostLauncher(), args);
}
void MultiplyRow(const RowProductArgs& args, Stream) { DispatchRowProduct(HostLauncher(), args); }
int SlicesOf(const PackedWeights& weight) { return TileSlices(weight); }
void Unpack(Element element, const PackedWeights& weight, void* out, Stream) {
  DispatchUnpack(HostLauncher(), element, weight, out);
}

void SampleTokens(const SampleArgs& args, int64_t count, Stream) {
  DispatchSample(HostLauncher(), args, count);
}
void SetOverlap(bool) {}

Stream CurrentStream(at::Device) { return nullptr; }
at::Tensor HostBuffer(at::IntArrayRef shape, at::ScalarType dtype, at::Device) {
  return at::empty(shape, dtype);
}

at::Tensor Download(const at::Tensor& tensor) { return tensor.clone(); }

struct Graph::State {
  std::function<void()> work;
};
void Graph::Delete::operator()(State* state) const { delete state; }
Graph::Graph(std::function<void()> work, at::Device, const Graph*)
    : state_(new State{std::move(work)}) {
  TORCH_CHECK_WITH(OutOfMemoryError, !no_graphs, "no memory for a recording");
  state_->work();
}
Graph::~Graph() = default;
void Graph::Run() { state_->work(); }

}  // namespace llava::cuda
