#include "tests/parity/fixture_folder.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>

namespace llava {
namespace {

std::string EnvironmentOr(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

Tolerance ToTolerance(const nlohmann::json& json) {
  return {json.at("atol").get<double>(), json.at("rtol").get<double>()};
}

}  // namespace

const FixtureFolder& FixtureFolder::Get() {
  static const FixtureFolder* folder = [] {
    // Expected values are true float32: no TF32 in matrix products on a GPU.
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowTF32CuDNN(false);
    return new FixtureFolder(FixturesDir(),
                             at::Device(EnvironmentOr("LLAVA_PARITY_DEVICE", "cpu")));
  }();
  return *folder;
}

FixtureFolder::FixtureFolder(std::filesystem::path root, at::Device device)
    : root_(std::move(root)), device_(device) {
  const auto tolerances = nlohmann::json::parse(ReadBytes(root_ / "tolerances.json"));
  default_ = ToTolerance(tolerances.at("default"));
  for (const nlohmann::json& rule : tolerances.at("rules")) {
    rules_.push_back({std::regex(rule.at("match").get<std::string>()), ToTolerance(rule)});
  }
}

const nlohmann::json& FixtureFolder::Json(const std::string& name) const {
  const auto [place, is_new] = jsons_.try_emplace(name);
  if (is_new) {
    place->second = nlohmann::json::parse(ReadBytes(root_ / "expected" / (name + ".json")));
  }
  return place->second;
}

const TensorFile& FixtureFolder::Tensors(const std::string& name) const {
  std::unique_ptr<TensorFile>& file = files_[name];
  if (!file) file = TensorFile::Open(root_ / "expected" / (name + ".safetensors"));
  return *file;
}

at::Tensor FixtureFolder::Expected(const std::string& file, const std::string& name) const {
  return Tensors(file).Get(name).to(device_);
}

Tolerance FixtureFolder::ToleranceOf(const std::string& path) const {
  for (const Rule& rule : rules_) {
    if (std::regex_search(path, rule.pattern)) return rule.tolerance;
  }
  return default_;
}

at::Tensor FixtureFolder::Features(const std::string& image) const {
  at::Tensor& features = features_[image];
  if (!features.defined()) {
    at::NoGradGuard guard;
    features = Tower("tiny-llava")
                   .Features(Expected("images", "pad/" + image).unsqueeze(0),
                             Language("tiny-llava").config().features)[0];
  }
  return features;
}

const Llava& FixtureFolder::Language(const std::string& folder) const {
  std::unique_ptr<Llava>& model = languages_[folder];
  if (!model) model = std::make_unique<Llava>(LoadLanguage(folder));
  return *model;
}

const ClipTower& FixtureFolder::Tower(const std::string& folder) const {
  std::unique_ptr<ClipTower>& tower = towers_[folder];
  if (!tower) {
    const TowerCheckpoint checkpoint = OpenTower(root_ / folder);
    tower = std::make_unique<ClipTower>(checkpoint.config, checkpoint.tensors, device_, at::kFloat);
  }
  return *tower;
}

LanguageCheckpoint FixtureFolder::OpenLanguage(const std::string& folder) const {
  return llava::OpenLanguage(root_ / folder);
}

Llava FixtureFolder::LoadLanguage(const std::string& folder, at::ScalarType dtype) const {
  return Llava(OpenLanguage(folder), device_, dtype);
}

const Tokenizer& FixtureFolder::PlainTokenizer(bool legacy) const {
  std::unique_ptr<Tokenizer>& tokenizer = tokenizers_[legacy];
  if (!tokenizer) {
    TokenizerOptions options;
    options.legacy = legacy;
    tokenizer =
        std::make_unique<Tokenizer>(ReadBytes(root_ / "orig-f32" / "tokenizer.model"), options);
  }
  return *tokenizer;
}

testing::AssertionResult IsNear(const std::string& path, const at::Tensor& found,
                                const at::Tensor& expected) {
  if (found.sizes() != expected.sizes()) {
    return testing::AssertionFailure()
           << path << ": shape " << found.sizes() << ", expected " << expected.sizes();
  }
  const Tolerance tolerance = FixtureFolder::Get().ToleranceOf(path);
  const at::Tensor x = found.detach().cpu().to(at::kDouble).flatten();
  const at::Tensor y = expected.detach().cpu().to(at::kDouble).flatten();
  if (x.numel() == 0) return testing::AssertionSuccess();
  // By how much the allowance is exceeded; NaN counts as infinitely far.
  const at::Tensor excess = at::nan_to_num(
      (x - y).abs() - tolerance.rtol * y.abs() - tolerance.atol, INFINITY, INFINITY, -INFINITY);
  const int64_t worst = excess.argmax().item<int64_t>();
  if (excess[worst].item<double>() <= 0) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << path << ": element " << worst << " of " << x.numel() << " is "
         << x[worst].item<double>() << ", expected " << y[worst].item<double>() << " (atol "
         << tolerance.atol << ", rtol " << tolerance.rtol << "); "
         << excess.gt(0).sum().item<int64_t>() << " elements are off";
}

testing::AssertionResult IsNear(const std::string& path, double found, double expected) {
  const Tolerance tolerance = FixtureFolder::Get().ToleranceOf(path);
  if (std::abs(found - expected) <= tolerance.atol + tolerance.rtol * std::abs(expected)) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << path << ": " << found << ", expected " << expected << " (atol " << tolerance.atol
         << ", rtol " << tolerance.rtol << ")";
}

std::vector<int32_t> IdsOf(const nlohmann::json& list) { return list.get<std::vector<int32_t>>(); }

}  // namespace llava
