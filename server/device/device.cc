#include "server/device/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "model/ops/feature.h"
#include "model/ops/thread_stream.h"
#include "server/device/load_failure.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// Below it, two threads answered a tenth as fast as one while other programs kept the cores busy.
constexpr uint64_t kSmallModelBytes = 32u << 20;

}  // namespace

absl::StatusOr<std::vector<at::Device>> ParseDevices(const std::string& text) {
  std::vector<at::Device> devices;
  for (const auto piece : absl::StrSplit(text, ',')) {
    const std::string word(piece);
    try {
      at::Device device(word);
      if (device.is_cuda() && !device.has_index()) device.set_index(0);
      if (!device.is_cpu() && !device.is_cuda()) throw std::invalid_argument("other kind");
      devices.push_back(device);
    } catch (const std::exception&) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", word, "\" is not a device: cpu or cuda:N is expected"));
    }
    if (devices.back().type() != devices.front().type()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\" mixes kinds of devices: run one process for each kind"));
    }
  }
  return devices;
}

uint64_t DeviceMemoryBudget(const std::string& text) {
  const auto devices = ParseDevices(text);
  if (!devices.ok() || devices->front().is_cpu() || !at::globalContext().hasCUDA()) return 0;
  std::set<c10::DeviceIndex> asked;
  uint64_t least = std::numeric_limits<uint64_t>::max();
  try {
    at::globalContext().lazyInitDevice(at::kCUDA);
    for (const at::Device device : *devices) {
      if (!asked.insert(device.index()).second) continue;
      const auto [free, total] =
          at::getDeviceAllocator(device.type())->getMemoryInfo(device.index());
      least = std::min<uint64_t>(least, free);
    }
  } catch (const std::exception&) {
    return 0;
  }
  return least / 10 * 9 * asked.size();
}

absl::Status CheckDevice(at::Device device) {
  if (device.is_cuda() && !at::globalContext().hasCUDA()) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot use ", device.str(), ": ",
                     ops::BuiltWithCuda() ? "CUDA finds no GPU on this machine, or no driver for it"
                                          : "this build has no CUDA, that of the preset cuda has",
                     "; use --device cpu"));
  }
  try {
    const at::Tensor probe = at::ones({2}, at::TensorOptions(device));
    if (probe.sum().item<float>() == 2) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(device.str(), " computes 1 + 1 wrongly"));
  } catch (...) {
    const absl::Status status = FromException(std::current_exception());
    const std::string why = absl::StrCat("cannot use ", device.str(), ": ", status.message());
    return absl::IsResourceExhausted(status) ? absl::ResourceExhaustedError(why)
                                             : absl::FailedPreconditionError(why);
  }
}

void RequireDevice(at::Device device) {
  if (auto status = CheckDevice(device); !status.ok()) throw LoadFailure(std::move(status));
}

void GiveBackMemory(at::Device device) {
  if (device.is_cpu()) return;
  try {
    c10::getDeviceAllocator(device.type())->emptyCache();
  } catch (const std::exception&) {  // a device that is lost, which others tell
  }
}

at::ScalarType ParseDtype(const std::string& text, at::Device device) {
  if (text == "float32") return at::kFloat;
  if (text == "bfloat16") return at::kBFloat16;
  if (text == "float16") return at::kHalf;
  return device.is_cpu() ? at::kFloat : at::kBFloat16;
}

std::string NumericsName(at::Device device, at::ScalarType dtype) {
  const char* name = dtype == at::kFloat ? "f32" : dtype == at::kHalf ? "f16" : "bf16";
  return absl::StrCat(device.is_cpu() ? "cpu" : "cuda", "-", name);
}

std::string ArithmeticName(at::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : dtype == at::kHalf ? "float16" : "bfloat16";
}

int EnterDeviceThread(at::Device device, int threads, int workers, uint64_t weight_bytes) {
  if (device.is_cuda()) {
    const c10::impl::VirtualGuardImpl guard(device.type());
    guard.setDevice(device);
    guard.exchangeStream(ops::ThreadStream<c10::Stream>(
        device.index(), [&] { return guard.getStreamFromGlobalPool(device); }));
  }
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int share = weight_bytes < kSmallModelBytes ? 1 : cores / std::max(1, workers);
  const int chosen = threads > 0 ? threads : std::max(1, share);
  at::set_num_threads(chosen);
  return chosen;
}

}  // namespace llava
