#include "model/llava/self_test.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include "model/llava/expand.h"
#include "model/text/labels.h"

namespace llava {
namespace {

// Of other processors and other orders of summation.
constexpr double kFloat32LogProbability = 2e-3, kFloat32Cosine = 1e-5;
// Other arithmetic in 16 bits than the measured one may be off by so much more.
constexpr double kMargin = 4;
constexpr double kLeast16LogProbability = 0.1, kLeast16Cosine = 1e-3;
constexpr double kLeastInt8LogProbability = 0.1, kLeastInt4LogProbability = 0.3;

// Integer weights where the publisher measured none: 0.0004 and 0.003 on the default model, more on
// models that are less sure. Only gross errors are to be found. The first also where packed weights
// are their own reference: other devices round activations otherwise.
constexpr double kInt8LogProbability = 0.25, kInt4LogProbability = 1.5;
// And of a tower, whose worst row of a small picture is far worse than the others.
constexpr double kInt8Cosine = 0.05;

const char* NameOf(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "float32";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      throw std::invalid_argument("no self-test in this arithmetic");
  }
}

const at::Tensor& Part(const SelfTest& test, const char* name) {
  const auto found = test.tensors.find(name);
  if (found == test.tensors.end()) {
    throw std::runtime_error(std::string("the self-test has no tensor \"") + name + "\"");
  }
  return found->second;
}

// `found` if it is within the tolerance of this arithmetic.
double Judge(const SelfTest& test, const std::string& arithmetic, double found, const char* what) {
  auto tolerances = test.tolerances;
  tolerances.try_emplace("int8", kInt8LogProbability);
  tolerances.try_emplace("int4", kInt4LogProbability);
  const auto tolerance = tolerances.find(arithmetic);
  if (tolerance == tolerances.end()) {
    throw std::runtime_error("the self-test has no tolerance for " + arithmetic);
  }
  if (found <= tolerance->second) return found;  // not if it is no number
  std::ostringstream message;
  message << "the self-test fails: " << what << " is off by " << found << " in " << arithmetic
          << ", at most " << tolerance->second
          << " is right: the weights or the arithmetic are not what was published";
  throw std::runtime_error(message.str());
}

std::map<std::string, double> Tolerances(double of_float32, double least16, double measured16) {
  const double of_16 = std::max(least16, kMargin * measured16);
  return {{"float32", of_float32}, {"bfloat16", of_16}, {"float16", of_16}};
}

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) {
    throw std::runtime_error("the self-test is of a model of another shape");
  }
  return (a - b).abs().max().item<double>();
}

double LargestAngle(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) {
    throw std::runtime_error("the self-test is of a tower of another shape");
  }
  return 1 - at::cosine_similarity(a.to(at::kDouble), b.to(at::kDouble), -1).min().item<double>();
}

// A stored test of a language model.
struct LanguageTest {
  explicit LanguageTest(const SelfTest& test)
      : ids_tensor(Part(test, "ids").to(at::kInt).contiguous()),
        labels_tensor(Part(test, "labels").to(at::kLong).contiguous()),
        expected(Part(test, "log_probabilities")) {
    if (test.tensors.contains("features")) features = Pictures(test);
    if (!test.tensors.contains("sizes")) return;
    const at::Tensor stored = test.tensors.at("sizes").to(at::kLong).contiguous();
    if (stored.dim() != 2 || stored.size(1) != 2) {
      throw std::runtime_error("the self-test's sizes are no pairs");
    }
    const auto* sides = stored.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < stored.size(0); ++i) {
      sizes.push_back({static_cast<int>(sides[2 * i]), static_cast<int>(sides[2 * i + 1])});
    }
  }
  static std::vector<at::Tensor> Pictures(const SelfTest& test) {
    const at::Tensor& stored = test.tensors.at("features");
    if (!test.tensors.contains("rows")) return stored.unbind();
    const at::Tensor rows = test.tensors.at("rows").to(at::kLong).contiguous();
    const at::IntArrayRef numbers(rows.const_data_ptr<int64_t>(), rows.numel());
    if (stored.dim() != 2 || rows.dim() != 1 || rows.lt(0).any().item<bool>() ||
        rows.sum().item<int64_t>() != stored.size(0)) {
      throw std::runtime_error("the self-test's rows are not those of its features");
    }
    return stored.split_with_sizes(numbers);
  }
  std::span<const int32_t> ids() const {
    return {ids_tensor.const_data_ptr<int32_t>(), static_cast<size_t>(ids_tensor.numel())};
  }
  std::span<const int64_t> labels() const {
    return {labels_tensor.const_data_ptr<int64_t>(), static_cast<size_t>(labels_tensor.numel())};
  }

  at::Tensor ids_tensor, labels_tensor, expected;
  std::vector<at::Tensor> features;
  std::vector<Resolution> sizes;
};

// Rows of a prompt that foresee a labelled one, and those labels.
struct Targets {
  explicit Targets(std::span<const int64_t> expanded) {
    for (size_t row = 1; row < expanded.size(); ++row) {
      if (expanded[row] == kIgnoreLabel) continue;
      rows.push_back(static_cast<int64_t>(row) - 1);
      labels.push_back(expanded[row]);
    }
    if (rows.empty()) throw std::invalid_argument("a self-test without a labelled id");
  }
  // logits [rows, V] -> [rows] float32 on the CPU.
  at::Tensor LogProbabilities(const at::Tensor& logits) const {
    const at::Tensor index = at::tensor(labels, at::kLong).to(logits.device()).unsqueeze(1);
    return at::log_softmax(logits, -1).gather(1, index).squeeze(1).to(at::kCPU);
  }

  std::vector<int64_t> rows, labels;
};

// Of the labelled ids, float32 on the CPU.
at::Tensor LogProbabilities(const Llava& model, std::span<const int32_t> ids,
                            std::span<const int64_t> labels, std::span<const at::Tensor> features,
                            std::span<const Resolution> sizes) {
  const c10::InferenceMode guard;
  const Targets targets(model.Expand(ids, labels, kIgnoreLabel, sizes));
  const at::Tensor prompt = model.Embed(ids, features, sizes);
  const Segment segment{.tokens = prompt.size(0)};
  const at::Tensor hidden = model.decoder().Forward(prompt, {&segment, 1});
  const at::Device device = model.decoder().device();
  return targets.LogProbabilities(model.decoder().Logits(
      hidden.index_select(0, at::tensor(targets.rows, at::kLong).to(device))));
}

using Piece = std::function<void(const std::function<void()>&)>;

void Alone(const std::function<void()>& compute) { compute(); }

// `at_once` rows in a step, each step in a `piece`.
at::Tensor LogProbabilities(ServingModel& model, std::span<const int32_t> ids,
                            std::span<const int64_t> labels,
                            const std::vector<at::Tensor>& features,
                            const std::vector<Resolution>& sizes,
                            int64_t at_once = std::numeric_limits<int64_t>::max(),
                            const Piece& piece = Alone) {
  const c10::InferenceMode guard;
  PromptRows prompt(model, {ids.begin(), ids.end()}, features, sizes);
  const Targets targets(Expand(model.picture_shape(), ids, labels, kIgnoreLabel, sizes));
  std::vector<int32_t> blocks((prompt.size() + kKvBlockTokens - 1) / kKvBlockTokens);
  if (const int64_t there = model.decoder().num_blocks();
      static_cast<int64_t>(blocks.size()) > there) {
    throw std::invalid_argument(
        "there is room for keys and values of " + std::to_string(there * kKvBlockTokens) +
        " tokens, the model's self-test needs " + std::to_string(prompt.size()) + " (--kv-bytes)");
  }
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<at::Tensor> logits;  // of the targets' rows, in order
  size_t done = 0;
  for (int64_t first = 0; first < prompt.size(); first += at_once) {
    const int64_t count = std::min(at_once, prompt.size() - first);
    std::vector<int64_t> wanted;
    for (; done < targets.rows.size() && targets.rows[done] < first + count; ++done) {
      wanted.push_back(targets.rows[done] - first);
    }
    const StepSequence sequence{.tokens = count, .computed = first, .blocks = blocks};
    piece([&] {
      logits.push_back(model.decoder().Step(prompt.Slice(first, count), {&sequence, 1}, wanted));
    });
  }
  return targets.LogProbabilities(at::cat(logits));
}

// [S, S, 3] uint8 -> [1, 3, S, S]
at::Tensor Pixels(const PreprocessConfig& preprocess, const at::Tensor& picture) {
  const auto channels = [](const std::array<float, 3>& values) {
    return at::tensor(at::ArrayRef<float>(values.data(), 3), at::kFloat).view({3, 1, 1});
  };
  return ((picture.permute({2, 0, 1}).to(at::kFloat) / 255 - channels(preprocess.mean)) /
          channels(preprocess.std))
      .unsqueeze(0);
}

// [S, S, 3] uint8 -> [P + 1, Dv], float32 on the CPU.
at::Tensor HiddenState(const ClipTower& tower, const at::Tensor& picture, int64_t layer) {
  const c10::InferenceMode guard;
  const at::Tensor pixels = Pixels(tower.config().preprocess, picture);
  return tower.Forward(pixels.to(tower.device(), tower.dtype()), layer)
      .squeeze(0)
      .to(at::kCPU, at::kFloat);
}

SelfTest Stored(std::span<const int32_t> ids, std::span<const int64_t> labels,
                const std::vector<at::Tensor>& features, const std::vector<Resolution>& sizes,
                const at::Tensor& log_probabilities) {
  SelfTest test;
  test.tensors["ids"] = at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong);
  test.tensors["labels"] =
      at::tensor(std::vector<int64_t>(labels.begin(), labels.end()), at::kLong);
  std::vector<int64_t> rows;
  for (const at::Tensor& picture : features) rows.push_back(picture.size(0));
  if (std::adjacent_find(rows.begin(), rows.end(), std::not_equal_to<>()) != rows.end()) {
    test.tensors["features"] = at::cat(features).cpu().contiguous();
    test.tensors["rows"] = at::tensor(rows, at::kLong);
  } else if (!features.empty()) {
    test.tensors["features"] = at::stack(features).cpu().contiguous();
  }
  if (!sizes.empty()) {
    std::vector<int64_t> sides;
    for (const Resolution size : sizes) sides.insert(sides.end(), {size.width, size.height});
    test.tensors["sizes"] = at::tensor(sides, at::kLong).view({-1, 2});
  }
  test.tensors["log_probabilities"] = log_probabilities;
  return test;
}

// Packed for the CPU as a service would.
double Int8Or4Error(const LanguageCheckpoint& checkpoint, WeightType type, const SelfTest& test) {
  const LanguageTest stored(test);
  ServingOptions options;
  options.weights = type;
  const PictureShape shape(checkpoint.config.features, checkpoint.tower_patches);
  const auto tokens = static_cast<int64_t>(
      Expand(shape, stored.ids(), stored.labels(), kIgnoreLabel, stored.sizes).size());
  options.kv_bytes = static_cast<uint64_t>(
      (tokens / kKvBlockTokens + 1) * ServingModel::KvBlockBytes(checkpoint, at::kCPU, options));
  options.threads = at::get_num_threads();
  ServingModel model(checkpoint, at::kCPU, options);
  return LargestDifference(
      LogProbabilities(model, stored.ids(), stored.labels(), stored.features, stored.sizes),
      stored.expected);
}

void AddPackedTolerances(const LanguageCheckpoint& checkpoint, SelfTest& test) {
  const auto& tensors = checkpoint.tensors.tensors();
  if (!checkpoint.tensors.Get(tensors.begin()->first).is_cpu()) return;  // a trainer's, elsewhere
  for (const auto& [type, least] : {std::pair{WeightType::kInt8, kLeastInt8LogProbability},
                                    std::pair{WeightType::kInt4, kLeastInt4LogProbability}}) {
    try {
      const double error = Int8Or4Error(checkpoint, type, test);
      test.tolerances[ToString(type)] = std::max(least, kMargin * error);
    } catch (const std::invalid_argument&) {  // its rows do not come in groups
    }
  }
}

}  // namespace

SelfTest MakeSelfTest(const LanguageCheckpoint& checkpoint, std::span<const int32_t> ids,
                      std::span<const int64_t> labels, const std::vector<at::Tensor>& features,
                      at::Device device, const std::vector<Resolution>& sizes) {
  const auto run = [&](at::ScalarType dtype) {
    return LogProbabilities(Llava(checkpoint, device, dtype), ids, labels, features, sizes);
  };
  const at::Tensor exact = run(at::kFloat);
  SelfTest test = Stored(ids, labels, features, sizes, exact);
  test.tolerances = Tolerances(kFloat32LogProbability, kLeast16LogProbability,
                               LargestDifference(run(at::kBFloat16), exact));
  AddPackedTolerances(checkpoint, test);
  return test;
}

SelfTest MakeSelfTest(ServingModel& model, std::span<const int32_t> ids,
                      std::span<const int64_t> labels, const std::vector<at::Tensor>& features) {
  SelfTest test =
      Stored(ids, labels, features, {}, LogProbabilities(model, ids, labels, features, {}));
  const bool integers =
      model.weights() == WeightType::kInt8 || model.weights() == WeightType::kInt4;
  test.tolerances[ToString(model.weights())] =
      integers ? kInt8LogProbability : kLeast16LogProbability;
  return test;
}

double CheckSelfTest(const Llava& model, const SelfTest& test) {
  const LanguageTest stored(test);
  const at::Tensor found =
      LogProbabilities(model, stored.ids(), stored.labels(), stored.features, stored.sizes);
  return Judge(test, NameOf(model.decoder().dtype()), LargestDifference(found, stored.expected),
               "a log-probability");
}

double CheckSelfTest(ServingModel& model, const SelfTest& test, int64_t rows, const Piece& piece) {
  const LanguageTest stored(test);
  const at::Tensor found = LogProbabilities(
      model, stored.ids(), stored.labels(), stored.features, stored.sizes,
      rows > 0 ? rows : std::numeric_limits<int64_t>::max(), piece ? piece : Alone);
  return Judge(test, ToString(model.weights()), LargestDifference(found, stored.expected),
               "a log-probability");
}

SelfTest MakeSelfTest(const TowerCheckpoint& checkpoint, const at::Tensor& picture, int64_t layer,
                      at::Device device) {
  const auto run = [&](at::ScalarType dtype) {
    return HiddenState(ClipTower(checkpoint.config, checkpoint.tensors, device, dtype), picture,
                       layer);
  };
  const at::Tensor exact = run(at::kFloat);
  SelfTest test;
  test.tensors = {{"picture", picture.contiguous()},
                  {"layer", at::tensor({layer}, at::kLong)},
                  {"features", exact.contiguous()}};
  test.tolerances =
      Tolerances(kFloat32Cosine, kLeast16Cosine, LargestAngle(run(at::kBFloat16), exact));
  return test;
}

double CheckSelfTest(const ClipTower& tower, const SelfTest& test) {
  const at::Tensor found =
      HiddenState(tower, Part(test, "picture"), Part(test, "layer").item<int64_t>());
  return Judge(test, NameOf(tower.dtype()), LargestAngle(found, Part(test, "features")),
               "a feature's cosine");
}

double CheckSelfTest(PackedClipTower& tower, const SelfTest& test) {
  const c10::InferenceMode guard;
  const at::Tensor pixels = Pixels(tower.config().preprocess, Part(test, "picture"));
  const at::Tensor found = tower.Forward(pixels, Part(test, "layer").item<int64_t>()).squeeze(0);
  SelfTest known = test;
  known.tolerances.try_emplace("int8", kInt8Cosine);
  const ops::cpu::WeightFormat format = tower.weights().format();
  const char* arithmetic = format == ops::cpu::WeightFormat::kFloat  ? "float32"
                           : format == ops::cpu::WeightFormat::kInt8 ? "int8"
                                                                     : "bfloat16";
  return Judge(known, arithmetic, LargestAngle(found, Part(test, "features")),
               "a feature's cosine");
}

}  // namespace llava
