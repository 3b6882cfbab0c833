#include "model/train/training_task.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

namespace llava {
namespace {

// Makes `name` the device of this thread. Throws unless a tensor can be made and computed with
// there.
at::Device EnterDevice(const std::string& name) {
  try {
    const at::Device device(name);
    if (device.is_cpu()) return device;
    // Without a number: the first.
    const at::Device numbered(device.type(), device.has_index() ? device.index() : 0);
    (at::zeros({1}, at::TensorOptions(numbered).dtype(at::kFloat)) + 1).item<float>();
    c10::impl::VirtualGuardImpl(numbered.type()).setDevice(numbered);
    return numbered;
  } catch (const c10::Error& error) {
    // The first sentence; lists of what there is otherwise follow.
    const std::string what = error.what_without_backtrace();
    throw std::invalid_argument("setting \"device\" is \"" + name + "\": " +
                                what.substr(0, std::min(what.find(". "), what.find('\n'))));
  }
}

}  // namespace

TaskSettings TaskSettings::From(Recipe& recipe) {
  TaskSettings s;
  s.seed = static_cast<uint64_t>(
      recipe.Int("seed", static_cast<int64_t>(s.seed), "of all that is drawn by chance"));
  s.device = EnterDevice(recipe.Text(
      "device", "cpu",
      "cpu, which repeats a run bit for bit in float32 on as many threads, or a GPU (cuda:0)"));
  s.compute_dtype = recipe.Choice("precision", "fp32", {"fp32", "bf16"},
                                  "dtype of the computation; masters stay in float32") == "bf16"
                        ? at::kBFloat16
                        : at::kFloat;
  if (s.compute_dtype == at::kFloat) {  // all of it, on GPUs too
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowTF32CuDNN(false);
  }
  s.gradient_checkpointing =
      recipe.Flag("gradient_checkpointing", s.gradient_checkpointing,
                  "compute each decoder layer again in the backward pass: less memory");
  s.loader_threads =
      recipe.Int("loader_threads", s.loader_threads, "threads that prepare data", 1, 256);
  s.skip_bad = recipe.Flag("skip_bad", s.skip_bad, "leave bad records out instead of refusing");
  return s;
}

}  // namespace llava
