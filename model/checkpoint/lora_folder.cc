#include "model/checkpoint/lora_folder.h"

#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "model/checkpoint/json_object.h"
#include "model/checkpoint/low_rank.h"
#include "model/checkpoint/mapped_tensor.h"
#include "model/checkpoint/tensor_names.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Part = TensorName::Part;

constexpr const char* kConfig = "adapter_config.json";
constexpr const char* kTrainedWhole = "non_lora_trainables.bin";

[[noreturn]] void Fail(const fs::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what);
}

// Settings with which W + scale B A would not be what was trained.
void RefuseOthers(const JsonObject& config) {
  if (const std::string type = config.Text("peft_type", "LORA"); type != "LORA") {
    config.Fail("peft_type", "is \"" + type + "\"; LORA is supported");
  }
  if (const std::string bias = config.Text("bias", "none"); bias != "none") {
    config.Fail("bias", "is \"" + bias + "\"; none is supported");
  }
  for (const char* key : {"fan_in_fan_out", "use_dora", "use_qalora", "use_bdlora", "lora_bias",
                          "alpha_pattern", "layer_replication", "trainable_token_indices",
                          "target_parameters", "alora_invocation_tokens"}) {
    if (!config.Has(key)) continue;
    const auto& value = config.At(key);
    if (value == false || (value.is_structured() && value.empty())) continue;
    config.Fail(key, "is " + value.dump() + ", which is not supported");
  }
  // These take something off the base's own weights when training begins.
  if (!config.Has("init_lora_weights") || !config.At("init_lora_weights").is_string()) return;
  const std::string init = config.Text("init_lora_weights");
  for (const char* keeps : {"gaussian", "eva", "orthogonal"}) {
    if (init == keeps) return;
  }
  config.Fail("init_lora_weights", "is \"" + init +
                                       "\", whose adapters belong to a base of their own; convert "
                                       "it to a plain one with PEFT first");
}

fs::path BaseOf(const fs::path& path, const JsonObject& config, const OpenOptions& options) {
  if (!options.base.empty()) return options.base;
  const std::string name = config.Text("base_model_name_or_path", "");
  const fs::path beside = path / name;  // an absolute name stays as it is
  if (!name.empty() && fs::is_directory(beside)) return beside;
  Fail(path, "is a LoRA adapter, whose base \"" + name +
                 "\" is no folder here: name it (llava-model publish --base FOLDER)");
}

std::shared_ptr<const TensorFile> AdapterFile(const fs::path& path) {
  for (const char* name : {"adapter_model.safetensors", "adapter_model.bin"}) {
    if (fs::exists(path / name)) return TensorFile::Open(path / name);
  }
  Fail(path, "is a LoRA adapter without adapter_model.safetensors or adapter_model.bin");
}

bool TakePrefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// The name that the model had for it. PEFT puts "base_model.model." in front.
std::string Unwrapped(const std::string& stored) {
  std::string_view name = stored;
  if (TakePrefix(name, "base_model.")) {
    if (name.starts_with("model.model.") || name.starts_with("model.lm_head.")) {
      TakePrefix(name, "model.");
    }
  }
  return std::string(name);
}

// A name of PEFT's: of a factor ("...q_proj.lora_A.weight", in older files
// "...q_proj.lora_A.default.weight"), with the name of its matrix.
struct FactorName {
  bool is_a;
  std::string matrix;
};
std::optional<FactorName> FactorOf(const std::string& stored) {
  for (const bool is_a : {true, false}) {
    const std::string mark = is_a ? ".lora_A." : ".lora_B.";
    const size_t at = stored.find(mark);
    if (at == stored.npos) continue;
    const std::string rest = stored.substr(at + mark.size());
    if (rest != "weight" && rest != "default.weight") continue;
    return FactorName{is_a, stored.substr(0, at) + ".weight"};
  }
  return std::nullopt;
}

// What lies in the adapter's files, by where it goes.
class AdapterTensors {
 public:
  explicit AdapterTensors(const fs::path& path) : path_(path) {}

  void Sort(const std::shared_ptr<const TensorFile>& file) {
    for (const auto& [stored, info] : file->tensors()) {
      const auto factor = FactorOf(stored);
      if (!factor && stored.find("lora_") != stored.npos) {
        Fail(path_, "its tensor " + stored + " is not supported: only matrices have factors here");
      }
      const TensorName name = FromLlavaName(Unwrapped(factor ? factor->matrix : stored));
      if (name.part == Part::kIgnored) continue;
      Of& of = name.part == Part::kTower ? tower_ : language_;
      if (!factor) {
        of.whole.Add(name.canonical, file, stored);
        continue;
      }
      const std::string own = name.canonical + (factor->is_a ? ".A" : ".B");
      of.factors.Add(own, file, stored);
      LowRankFactors& factors = of.by_matrix[name.canonical];
      (factor->is_a ? factors.a : factors.b) = own;
    }
  }

  // Into the tensors of the base. `alpha`, `rank_stabilized`: as PEFT scales.
  void Merge(TensorSource& language, TensorSource& tower, double alpha, bool rank_stabilized) {
    MergeOf(language_, language, alpha, rank_stabilized);
    MergeOf(tower_, tower, alpha, rank_stabilized);
  }

 private:
  struct Of {
    TensorSource factors, whole;
    std::map<std::string, LowRankFactors> by_matrix;
  };

  void MergeOf(Of& of, TensorSource& tensors, double alpha, bool rank_stabilized) {
    tensors.Put(of.whole);
    for (auto& [matrix, factors] : of.by_matrix) {
      if (factors.a.empty() || factors.b.empty()) {
        Fail(path_, matrix + " has one factor of two: " +
                        (factors.a.empty() ? "lora_A" : "lora_B") + " is missing");
      }
      const auto& shape = of.factors.tensors().at(factors.a).shape;
      const auto rank = static_cast<double>(shape.empty() ? 0 : shape[0]);
      if (rank < 1) Fail(path_, matrix + " has factors of shape " + ShapeText(shape));
      factors.scale = alpha / (rank_stabilized ? std::sqrt(rank) : rank);
    }
    try {
      AddLowRank(tensors, of.factors, std::move(of.by_matrix));
    } catch (const std::runtime_error& error) {
      Fail(path_, error.what());
    }
  }

  const fs::path path_;
  Of language_, tower_;
};

}  // namespace

bool IsLoraFolder(const fs::path& path) { return fs::exists(path / kConfig); }

CheckpointFolder OpenLoraFolder(const fs::path& path, const OpenOptions& options) {
  const JsonObject adapter = JsonObject::Read(path / kConfig);
  RefuseOthers(adapter);
  const fs::path base = BaseOf(path, adapter, options);
  if (IsLoraFolder(base)) Fail(path, "its base " + base.string() + " is a LoRA adapter itself");
  CheckpointFolder folder = OpenCheckpointFolder(base, OpenOptions{});
  if (folder.layout == Layout::kRepository || folder.layout == Layout::kClip) {
    Fail(path, "its base " + base.string() + " is of the layout " + ToString(folder.layout) +
                   "; an adapter of PEFT needs the published one");
  }
  folder.base = folder.path;
  folder.path = path;
  // LLaVA writes the settings of the whole model beside an adapter, whose base may know no
  // pictures.
  if (fs::exists(path / "config.json")) {
    folder.config = JsonObject::Read(path / "config.json");
    folder.layout = LayoutOf(path, folder.config);
  }
  AdapterTensors tensors(path);
  tensors.Sort(AdapterFile(path));
  if (fs::exists(path / kTrainedWhole)) tensors.Sort(TensorFile::Open(path / kTrainedWhole));
  tensors.Merge(folder.language, folder.tower, adapter.Number("lora_alpha", 8),
                adapter.Bool("use_rslora", false));
  return folder;
}

}  // namespace llava
