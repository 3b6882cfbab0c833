#include "model/train/training_task.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include "model/ops/feature.h"

namespace llava {
namespace {

// Throws unless a tensor can be made and computed with there.
void TryDevice(at::Device device) {
  if (device.is_cpu()) return;
  if (device.is_cuda() && !ops::BuiltWithCuda()) {
    throw std::invalid_argument("setting \"device\" is \"" + device.str() +
                                "\": this build has no CUDA, that of the preset cuda has");
  }
  (at::zeros({1}, at::TensorOptions(device).dtype(at::kFloat)) + 1).item<float>();
}

// Without a number: the first.
at::Device Numbered(at::Device device) {
  if (device.is_cpu()) return device;
  return {device.type(), device.has_index() ? device.index() : c10::DeviceIndex{0}};
}

// "cpu", "cuda:1", "cuda:0,cuda:2", "cuda:all". The first becomes the device of this thread.
std::vector<at::Device> EnterDevices(const std::string& setting) {
  try {
    std::vector<at::Device> devices;
    constexpr std::string_view kAll = ":all";
    if (setting.ends_with(kAll)) {
      const at::Device first(setting.substr(0, setting.size() - kAll.size()));
      TryDevice(Numbered(first));  // there may be none to count
      const c10::impl::VirtualGuardImpl guard(first.type());
      for (c10::DeviceIndex i = 0; i < guard.deviceCount(); ++i) {
        devices.emplace_back(first.type(), i);
      }
    } else {
      std::istringstream names(setting);
      for (std::string name; std::getline(names, name, ',');) {
        devices.push_back(Numbered(at::Device(name)));
      }
    }
    if (devices.empty()) throw std::invalid_argument("setting \"device\" is empty");
    const at::Device first = devices.front();
    for (const at::Device device : devices) {
      if (device.type() != first.type()) {
        throw std::invalid_argument("setting \"device\" is \"" + setting +
                                    "\": name devices of one kind");
      }
      TryDevice(device);
    }
    if (!first.is_cpu()) c10::impl::VirtualGuardImpl(first.type()).setDevice(first);
    return devices;
  } catch (const c10::Error& error) {
    // The first sentence; lists of what there is otherwise follow.
    const std::string what = error.what_without_backtrace();
    throw std::invalid_argument("setting \"device\" is \"" + setting + "\": " +
                                what.substr(0, std::min(what.find(". "), what.find('\n'))));
  }
}

}  // namespace

int64_t ReadAccumulation(Recipe& recipe) {
  return recipe.Int("accumulation", 1, "micro-batches a step", 1, 1 << 20);
}

TaskSettings TaskSettings::From(Recipe& recipe) {
  TaskSettings s;
  s.accumulation = ReadAccumulation(recipe);
  s.seed = static_cast<uint64_t>(
      recipe.Int("seed", static_cast<int64_t>(s.seed), "of all that is drawn by chance"));
  s.devices = EnterDevices(recipe.Text(
      "device", "cpu",
      "cpu, which repeats a run bit for bit in float32 on as many threads, a GPU (cuda:0), or "
      "several that share a step's micro-batches (cuda:0,cuda:1; cuda:all)"));
  s.offload = recipe.Flag("offload", s.offload,
                          "float32 masters and AdamW in the host's memory: a GPU keeps 2 bytes a "
                          "parameter instead of 18");
  s.compute_dtype = recipe.Choice<at::ScalarType>(
      "precision", "fp32", {{"fp32", at::kFloat}, {"bf16", at::kBFloat16}},
      "dtype of the computation; masters stay in float32");
  if (s.compute_dtype == at::kFloat) {  // all of it, on GPUs too
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowTF32CuDNN(false);
  } else {  // what stays in float32, as a head tied to the embeddings, is still finer than bf16
    at::globalContext().setAllowTF32CuBLAS(true);
  }
  s.gradient_checkpointing =
      recipe.Flag("gradient_checkpointing", s.gradient_checkpointing,
                  "compute each decoder layer again in the backward pass: less memory");
  s.loader_threads =
      recipe.Int("loader_threads", s.loader_threads, "threads that prepare data", 1, 256);
  s.skip_bad = recipe.Flag("skip_bad", s.skip_bad, "leave bad records out instead of refusing");
  return s;
}

void TaskSettings::RequireOneDevice(const std::string& kind) const {
  if (devices.size() > 1) {
    throw std::invalid_argument("setting \"device\" names " + std::to_string(devices.size()) +
                                " devices: `" + kind + "` trains on one");
  }
  if (offload) throw std::invalid_argument("setting \"offload\" is not for `" + kind + "`");
}

}  // namespace llava
