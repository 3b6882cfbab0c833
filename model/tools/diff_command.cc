// llava-model diff: what changed from one checkpoint to another.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/mapped_tensor.h"
#include "model/tools/commands.h"
#include "model/tools/common.h"

namespace llava {
namespace {

using nlohmann::json;

struct Side {
  std::string path;
  bool tower;
  TensorSource tensors;
  std::map<std::string, std::string> facts;  // everything but tensors
};

Side Open(const std::filesystem::path& path, const std::filesystem::path& named_tower) {
  const CheckpointFolder folder = OpenCheckpointFolder(path, /*verify=*/false);
  Side side;
  side.path = folder.path.string();
  side.tower = folder.is_tower();
  const SettingVisitor add = [&side](const std::string& name, const std::string& text) {
    side.facts[name] = text;
  };
  const OpenOptions options{side.tower || folder.manifest ? std::filesystem::path() : named_tower,
                            "",
                            /*verify=*/false, /*packed=*/true};
  if (side.tower) {
    const TowerCheckpoint tower = OpenTower(folder.path, options);
    side.tensors = tower.tensors;
    VisitSettings(ToJson(tower.config), "config", add);
    return side;
  }
  const LanguageCheckpoint language = OpenLanguage(folder.path, options);
  side.tensors = language.tensors;
  VisitSettings(ToJson(language.config, language.tower_patches), "config", add);
  side.facts["tower"] = ToHex(language.tower_digest);
  side.facts["tokenizer"] = ToHex(language.tokenizer->digest());
  side.facts["chat_template"] = language.chat_template->name() + " " +
                                ToHex(HashBytes(language.chat_template->ToJson())).substr(0, 12);
  return side;
}

bool SameBytes(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

// Of floats: the largest difference, and the norm of the difference by the norm of `a`; piece by
// piece, so that no whole tensor is copied.
json Distance(const at::Tensor& a, const at::Tensor& b) {
  constexpr int64_t kPiece = int64_t{1} << 20;
  const at::Tensor flat_a = a.flatten(), flat_b = b.flatten();
  double largest = 0, difference = 0, norm = 0;
  int64_t changed = 0;
  for (int64_t from = 0; from < flat_a.numel(); from += kPiece) {
    const int64_t count = std::min(kPiece, flat_a.numel() - from);
    const at::Tensor piece_a = flat_a.narrow(0, from, count).to(at::kFloat).contiguous();
    const at::Tensor piece_b = flat_b.narrow(0, from, count).to(at::kFloat).contiguous();
    const float* values_a = piece_a.const_data_ptr<float>();
    const float* values_b = piece_b.const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) {
      const double apart = double{values_b[i]} - double{values_a[i]};
      changed += apart != 0;
      if (!(std::abs(apart) <= largest)) largest = std::abs(apart);  // NaN shows too
      difference += apart * apart;
      norm += double{values_a[i]} * double{values_a[i]};
    }
  }
  json result = {{"max_abs", largest},
                 {"changed_share", static_cast<double>(changed) /
                                       static_cast<double>(std::max<int64_t>(1, flat_a.numel()))}};
  if (norm > 0) result["relative_norm"] = std::sqrt(difference / norm);
  return result;
}

// Nothing (null) if they are the same to the bit.
json Compare(const std::string& name, const TensorSource& from, const TensorSource& to) {
  const TensorInfo &a = from.tensors().at(name), &b = to.tensors().at(name);
  json change = {{"name", name}};
  if (a.shape != b.shape) {
    change.update({{"what", "reshaped"}, {"from", ShapeText(a.shape)}, {"to", ShapeText(b.shape)}});
    return change;
  }
  json result;
  {
    const at::Tensor tensor_a = from.Get(name).contiguous(), tensor_b = to.Get(name).contiguous();
    if (!SameBytes(tensor_a, tensor_b)) {
      change["what"] = a.dtype == b.dtype ? "changed" : "retyped";
      if (a.dtype != b.dtype) {
        change.update({{"from", DtypeName(a.dtype)}, {"to", DtypeName(b.dtype)}});
      }
      // Packed weights are bytes, which have no distance.
      if (at::isFloatingType(a.dtype) && at::isFloatingType(b.dtype)) {
        change.update(Distance(tensor_a, tensor_b));
      }
      result = std::move(change);
    }
  }
  from.Release(name);
  to.Release(name);
  return result;
}

std::string Number(const json& value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value.is_number() ? value.get<double>() : NAN);
  return text;
}

std::string Describe(const json& change) {
  std::string text;
  if (change.contains("from")) {
    text += change["from"].get<std::string>() + " -> " + change["to"].get<std::string>();
  }
  if (change.contains("max_abs")) {
    text += (text.empty() ? "max " : ", max ") + Number(change["max_abs"]);
    if (change.contains("relative_norm")) {
      text += ", relative norm " + Number(change["relative_norm"]);
    }
    text += ", " + Number(100 * change["changed_share"].get<double>()) + " % of the values";
  }
  return text;
}

}  // namespace

void RunDiff(const DiffCommand& command) {
  const Side a = Open(command.a, command.tower), b = Open(command.b, command.tower);
  if (a.tower != b.tower) {
    const Side& tower = a.tower ? a : b;
    const Side& language = a.tower ? b : a;
    throw std::runtime_error(tower.path + ": is a vision tower, " + language.path +
                             " is a language model: there is nothing to compare");
  }
  json settings = json::array(), tensors = json::array();
  std::map<std::string, std::string> facts = a.facts;
  facts.insert(b.facts.begin(), b.facts.end());
  for (const auto& [name, value] : facts) {
    const auto left = a.facts.find(name), right = b.facts.find(name);
    const std::string before = left == a.facts.end() ? "" : left->second;
    const std::string after = right == b.facts.end() ? "" : right->second;
    if (before != after) settings.push_back({{"name", name}, {"from", before}, {"to", after}});
  }
  size_t same = 0;
  for (const auto& [name, info] : a.tensors.tensors()) {
    if (!b.tensors.tensors().contains(name)) {
      tensors.push_back({{"name", name}, {"what", "removed"}, {"from", ShapeText(info.shape)}});
      continue;
    }
    json change = Compare(name, a.tensors, b.tensors);
    change.is_null() ? void(++same) : tensors.push_back(std::move(change));
  }
  for (const auto& [name, info] : b.tensors.tensors()) {
    if (!a.tensors.tensors().contains(name)) {
      tensors.push_back({{"name", name}, {"what", "added"}, {"to", ShapeText(info.shape)}});
    }
  }
  if (command.json) {
    const json result = {{"a", a.path},
                         {"b", b.path},
                         {"settings", settings},
                         {"tensors", tensors},
                         {"same_tensors", same}};
    std::cout << result.dump(2) << "\n";
    return;
  }
  for (const json& setting : settings) {
    std::cout << setting["name"].get<std::string>() << "  " << setting["from"].get<std::string>()
              << " -> " << setting["to"].get<std::string>() << "\n";
  }
  for (const json& change : tensors) {
    const std::string what = change["what"].get<std::string>();
    std::string details;
    if (what == "added") {
      details = change["to"].get<std::string>();
    } else if (what == "removed") {
      details = change["from"].get<std::string>();
    } else {
      details = Describe(change);
    }
    std::printf("%-8s  %-48s  %s\n", what.c_str(), change["name"].get<std::string>().c_str(),
                details.c_str());
  }
  std::printf("%zu of %zu tensors and %zu settings differ\n", tensors.size(), tensors.size() + same,
              settings.size());
}

}  // namespace llava
