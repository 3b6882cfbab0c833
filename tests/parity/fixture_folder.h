#pragma once

// The folder of expected values that parity is measured against: files, tolerances, models.

#include <filesystem>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/tensor_file.h"
#include "model/config/model_config.h"
#include "model/llava/llava.h"
#include "model/nn/clip.h"
#include "model/text/tokenizer.h"

namespace llava {

// How far a value may be off: |found - expected| <= atol + rtol * |expected|.
struct Tolerance {
  double atol = 0, rtol = 0;
};

// The one folder under test. Files are read once and kept.
class FixtureFolder {
 public:
  // $LLAVA_FIXTURES or tests/fixtures; the device is $LLAVA_PARITY_DEVICE or cpu.
  static const FixtureFolder& Get();

  const std::filesystem::path& root() const { return root_; }
  at::Device device() const { return device_; }

  // expected/<name>.json
  const nlohmann::json& Json(const std::string& name) const;
  // expected/<name>.safetensors
  const TensorFile& Tensors(const std::string& name) const;
  // A tensor of it on the device; throws std::out_of_range if there is none.
  at::Tensor Expected(const std::string& file, const std::string& name) const;

  // tolerances.json: the first rule whose pattern is found in `path`, else the default.
  Tolerance ToleranceOf(const std::string& path) const;

  // Z_v of a picture of images.safetensors ("pad/<image>" pixel values), by the tower of the
  // llava-hf checkpoint. Cached. [P, Dv].
  at::Tensor Features(const std::string& image) const;
  // The models of the folder in float32 on the device, made once: "tiny-llava", "orig-f32" ...
  const Llava& Language(const std::string& folder) const;
  const ClipTower& Tower(const std::string& folder) const;
  // A language model of its own, to be changed by training.
  Llava LoadLanguage(const std::string& folder, at::ScalarType dtype = at::kFloat) const;
  LanguageCheckpoint OpenLanguage(const std::string& folder) const;
  // A tokenizer over the folder's tokenizer.model without added tokens.
  const Tokenizer& PlainTokenizer(bool legacy) const;

 private:
  explicit FixtureFolder(std::filesystem::path root, at::Device device);

  struct Rule {
    std::regex pattern;
    Tolerance tolerance;
  };
  std::filesystem::path root_;
  at::Device device_;
  std::vector<Rule> rules_;
  Tolerance default_;
  mutable std::map<std::string, nlohmann::json> jsons_;
  mutable std::map<std::string, std::unique_ptr<TensorFile>> files_;
  mutable std::map<std::string, at::Tensor> features_;
  mutable std::map<std::string, std::unique_ptr<Llava>> languages_;
  mutable std::map<std::string, std::unique_ptr<ClipTower>> towers_;
  mutable std::map<bool, std::unique_ptr<Tokenizer>> tokenizers_;
};

// Compares within the folder's tolerance for `path` and says where and how far the worst value is
// off. Shapes must be equal; dtype and device may differ.
testing::AssertionResult IsNear(const std::string& path, const at::Tensor& found,
                                const at::Tensor& expected);
testing::AssertionResult IsNear(const std::string& path, double found, double expected);

// A list of numbers of a JSON file.
std::vector<int32_t> IdsOf(const nlohmann::json& list);

}  // namespace llava
