#include "model/train/vision_task.h"

#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>

#include "model/checkpoint/content_digest.h"
#include "model/checkpoint/memory_tensors.h"
#include "model/data/scenes/random.h"
#include "model/data/scenes/render.h"
#include "model/llava/self_test.h"
#include "model/nn/clip.h"
#include "model/progress/stop_request.h"
#include "model/train/contrast_heads.h"
#include "model/train/fresh_weights.h"
#include "model/train/master_weights.h"
#include "model/train/picture_lessons.h"
#include "model/train/prefetcher.h"

namespace llava {
namespace {

// Purposes of the random streams.
constexpr uint64_t kTowerWeights = 31, kHeadWeights = 32;
constexpr int64_t kPrepared = 4;           // batches
constexpr int64_t kEvaluatedAtOnce = 100;  // pictures
constexpr int64_t kComparedCaptions = 200;
constexpr double kFirstScale = 14, kLargestLogScale = 4.6;  // of cosines, as CLIP has it
// What a patch counts, by the kind of its phrase: centres are what everything is about.
constexpr float kKindWeights[] = {4, 4, 1, 0.3f};

struct VisionSettings {
  int num_categories = kSmallCategorySet;
  std::string tokenizer;
  VisionConfig tower;
  FeatureConfig features;
  int64_t steps = 0, batch = 0, evaluated = 0;
  double learning_rate = 0, weight_decay = 0;
  double region_weight = 0, place_weight = 0, caption_weight = 0;
  static VisionSettings From(Recipe& recipe);
};

VisionSettings VisionSettings::From(Recipe& recipe) {
  VisionSettings s;
  s.tokenizer = recipe.Text("tokenizer", "", "folder of tokenizer.model, for captions");
  if (s.tokenizer.empty()) {
    throw std::invalid_argument("a tower learns from captions: set \"tokenizer\"");
  }
  s.num_categories = static_cast<int>(
      recipe.Int("categories", s.num_categories, "categories of the scenes: 48 or 96", 48, 96));
  s.tower.image_size = kSceneSide;
  s.tower.patch_size = kScenePatch;  // a patch is a cell
  s.tower.preprocess.image_size = kSceneSide;
  s.tower.hidden_size = recipe.Int("tower.width", 160, "width of the tower", 1, 1 << 14);
  s.tower.num_layers = recipe.Int("tower.layers", 5, "blocks of the tower", 1, 256);
  s.tower.num_heads = recipe.Int("tower.heads", 5, "attention heads", 1, 256);
  s.tower.intermediate_size =
      recipe.Int("tower.ffn", 4 * s.tower.hidden_size, "inner width", 1, 1 << 16);
  if (s.tower.hidden_size % s.tower.num_heads != 0) {
    throw std::invalid_argument("tower.width " + std::to_string(s.tower.hidden_size) +
                                " is no multiple of tower.heads " +
                                std::to_string(s.tower.num_heads));
  }
  s.features.select_layer =
      recipe.Int("select_layer", s.features.select_layer,
                 "hidden state whose patches are taught, as the language model will read them",
                 -s.tower.num_layers - 1, s.tower.num_layers);
  s.steps = recipe.Int("steps", 2000, "optimizer steps", 1);
  s.batch = recipe.Int("pictures", 64, "pictures of a micro-batch", 2, 1 << 16);
  s.learning_rate = recipe.Number("learning_rate", 1.5e-3, "peak");
  s.weight_decay = recipe.Number("weight_decay", 0.05, "of matrices; vectors have none");
  s.region_weight = recipe.Number("loss.region", 3, "weight of naming patches");
  s.place_weight = recipe.Number("loss.place", 0.2, "weight of telling row and column");
  s.caption_weight = recipe.Number("loss.caption", 0.3, "weight of finding captions");
  s.evaluated = recipe.Int("evaluation.scenes", 600, "held-out pictures of an evaluation",
                           kComparedCaptions, 1 << 20);
  return s;
}

class VisionTask : public TrainingTask {
 public:
  VisionTask(const VisionSettings& vision, const TaskSettings& task)
      : vision_(vision),
        task_(task),
        tokenizer_(std::make_shared<Tokenizer>(Tokenizer::Load(vision.tokenizer))),
        lessons_(vision.num_categories, tokenizer_, vision.tower.preprocess, task.seed),
        phrases_(lessons_.Encode(lessons_.phrases().All())),
        shape_{.vision_width = vision.tower.hidden_size,
               .vocabulary = tokenizer_->vocab_size(),
               .grid = kSceneGrid},
        fresh_tower_(MemoryTensors(Weights(kTowerWeights).Tower(vision.tower))),
        tower_(vision.tower, fresh_tower_, task.device(), task.compute_dtype),
        tower_weights_(
            {[this](const ParameterVisitor& visit) { tower_.VisitParameters(visit); }},
            fresh_tower_, [](const std::string&) { return true; }, task.compute_dtype),
        fresh_heads_(FreshHeads()),
        heads_(shape_, fresh_heads_, task.device(), task.compute_dtype),
        head_weights_(
            {[this](const ParameterVisitor& visit) { heads_.VisitParameters(visit); }},
            fresh_heads_, [](const std::string&) { return true; }, task.compute_dtype),
        log_scales_(
            at::full({2}, std::log(kFirstScale), at::TensorOptions(task.device()).dtype(at::kFloat))
                .set_requires_grad(true)),
        batches_(
            [this](int64_t index) { return lessons_.Train(index * vision_.batch, vision_.batch); },
            static_cast<int>(task.loader_threads), kPrepared) {
    if (task.gradient_checkpointing) {
      throw std::invalid_argument("gradient_checkpointing: towers are trained without it");
    }
  }

  std::string kind() const override { return "pretrain-vision"; }
  int64_t total_steps() const override { return vision_.steps; }

  std::vector<ParameterGroup> groups() override {
    ParameterGroup matrices{"matrices", {}, vision_.learning_rate, vision_.weight_decay};
    ParameterGroup vectors{"vectors", {}, vision_.learning_rate, 0};
    for (const MasterWeights* weights : {&tower_weights_, &head_weights_}) {
      for (const auto& parameter : weights->masters()) {
        (parameter.second.dim() > 1 ? matrices : vectors).parameters.push_back(parameter);
      }
    }
    vectors.parameters.emplace_back("log_scales", log_scales_);
    return {std::move(matrices), std::move(vectors)};
  }

  MicroBatch Forward(int64_t step, int64_t micro) override {
    const int64_t index = step * task_.accumulation + micro;
    MicroBatch result;
    const PictureBatch batch = batches_.Take(index, &result.waited_seconds);
    Bind();
    const Seen seen = See(batch.pixels);
    const at::Tensor scales = log_scales_.exp();
    const at::Tensor region = RegionLoss(seen, batch, scales[1]);
    const at::Tensor place = PlaceLoss(seen);
    const at::Tensor caption = CaptionLoss(seen, batch, scales[0]);
    result.loss = vision_.region_weight * region + vision_.place_weight * place +
                  vision_.caption_weight * caption;
    result.samples = vision_.batch;
    result.tokens = vision_.batch * (vision_.tower.num_patches() + 1);
    result.figures = {{"region_loss", region.item<double>()},
                      {"place_loss", place.item<double>()},
                      {"caption_loss", caption.item<double>()}};
    result.origin = "pictures from " + std::to_string(index * vision_.batch);
    return result;
  }

  nlohmann::ordered_json Check(std::FILE* progress) override;
  Figures Evaluate() override;
  std::filesystem::path Publish(const std::filesystem::path& root, const std::string& name,
                                const nlohmann::ordered_json& recipe) override;

 private:
  // What the tower makes of pictures.
  struct Seen {
    at::Tensor patches;  // [B, P, Dv], of the selected layer
    at::Tensor whole;    // [B, Dv], of the class token at the end
  };

  FreshWeights Weights(uint64_t purpose) const {
    return FreshWeights(Random(task_.seed, 0, purpose).Bits());
  }
  TensorSource FreshHeads() const {
    FreshWeights weights = Weights(kHeadWeights);
    return MemoryTensors(ContrastHeads::Fresh(shape_, weights));
  }

  void Bind() {
    tower_weights_.Bind();
    head_weights_.Bind();
    at::NoGradGuard guard;
    log_scales_.clamp_(0, kLargestLogScale);
  }

  Seen See(const at::Tensor& pixels) const {
    std::vector<at::Tensor> states;
    states.push_back(tower_.Forward(pixels, vision_.tower.num_layers, &states));
    const int64_t selected = vision_.features.select_layer;
    const at::Tensor& patches =
        states[selected < 0 ? selected + static_cast<int64_t>(states.size()) : selected];
    return {patches.narrow(1, 1, vision_.tower.num_patches()), tower_.ClassFeature(states.back())};
  }

  // Similarity of every patch to every phrase, [B, P, phrases] in float32.
  at::Tensor CompareRegions(const Seen& seen) const {
    return at::matmul(heads_.Regions(seen.patches), heads_.Texts(phrases_).t()).to(at::kFloat);
  }

  at::Tensor RegionLoss(const Seen& seen, const PictureBatch& batch,
                        const at::Tensor& scale) const {
    const at::Tensor phrases = batch.phrases.flatten().to(task_.device());
    const at::Tensor losses = at::cross_entropy_loss((CompareRegions(seen) * scale).flatten(0, 1),
                                                     phrases, std::nullopt, at::Reduction::None);
    const at::Tensor kinds = phrases.floor_divide(vision_.num_categories);
    const at::Tensor weights =
        at::tensor(at::ArrayRef<float>(kKindWeights)).to(task_.device()).index_select(0, kinds);
    return (losses * weights).sum() / weights.sum();
  }

  at::Tensor PlaceLoss(const Seen& seen) const {
    const at::Tensor logits = heads_.Places(seen.patches).to(at::kFloat);
    const at::Tensor index = at::arange(kSceneGrid * kSceneGrid, logits.options().dtype(at::kLong));
    const auto loss = [&](int64_t first, const at::Tensor& targets) {
      return at::cross_entropy_loss(logits.narrow(-1, first, kSceneGrid).flatten(0, 1),
                                    targets.repeat({logits.size(0)}));
    };
    return loss(0, index.floor_divide(kSceneGrid)) + loss(kSceneGrid, index.remainder(kSceneGrid));
  }

  at::Tensor CaptionLoss(const Seen& seen, const PictureBatch& batch,
                         const at::Tensor& scale) const {
    const at::Tensor logits =
        at::matmul(heads_.Pictures(seen.whole), heads_.Texts(batch.captions).t()).to(at::kFloat) *
        scale;
    const at::Tensor own = at::arange(logits.size(0), logits.options().dtype(at::kLong));
    return (at::cross_entropy_loss(logits, own) + at::cross_entropy_loss(logits.t(), own)) / 2;
  }

  const VisionSettings vision_;
  const TaskSettings task_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const PictureLessons lessons_;
  const PaddedTexts phrases_;
  const ContrastShape shape_;
  const TensorSource fresh_tower_;
  ClipTower tower_;
  MasterWeights tower_weights_;
  const TensorSource fresh_heads_;
  ContrastHeads heads_;
  MasterWeights head_weights_;
  at::Tensor log_scales_;             // of captions, of regions
  Prefetcher<PictureBatch> batches_;  // last: its threads use the others
};

// Counts right patches and pictures.
class Score {
 public:
  explicit Score(const RegionPhrases& phrases) : phrases_(phrases) {}

  // A picture of `patches` patches: phrases said and true ones. `pair`: of held-out categories.
  void Add(const int64_t* said, const int64_t* truth, int64_t patches, bool pair) {
    using Kind = RegionPhrases::Kind;
    bool exact = true;  // every centre found and named, and no other
    for (int64_t i = 0; i < patches; ++i) {
      const Kind kind = phrases_.KindOf(truth[i]), said_kind = phrases_.KindOf(said[i]);
      const bool centre = kind == Kind::kSmall || kind == Kind::kBig;
      const bool said_centre = said_kind == Kind::kSmall || said_kind == Kind::kBig;
      const bool named = said_kind != Kind::kBackground && kind != Kind::kBackground &&
                         phrases_.SubjectOf(said[i]) == phrases_.SubjectOf(truth[i]);
      exact &= said_centre == centre && (named || !centre);
      if (centre) Count("centre_category", named);
      if (centre) Count("centre_category_and_size", said[i] == truth[i]);
      if (kind == Kind::kBackground) Count("background", said[i] == truth[i]);
    }
    Count("scene_exact", exact);
    if (pair) Count("scene_exact_pairs", exact);
  }
  void Count(const std::string& name, bool right) {
    auto& [good, all] = counts_[name];
    good += right;
    ++all;
  }
  Figures Shares() const {
    Figures figures;
    for (const auto& [name, count] : counts_) {
      figures.emplace_back(name,
                           static_cast<double>(count.first) / static_cast<double>(count.second));
    }
    return figures;
  }

 private:
  const RegionPhrases& phrases_;
  std::map<std::string, std::pair<int64_t, int64_t>> counts_;  // right, all
};

Figures VisionTask::Evaluate() {
  at::NoGradGuard guard;
  Bind();
  const int64_t patches = vision_.tower.num_patches();
  Score score(lessons_.phrases());
  std::vector<at::Tensor> wholes;  // of the pictures whose captions are sought
  for (int64_t first = 0; first < vision_.evaluated; first += kEvaluatedAtOnce) {
    StopRequest::ThrowIfRequested();
    const int64_t count = std::min(kEvaluatedAtOnce, vision_.evaluated - first);
    const PictureBatch batch = lessons_.HeldOut(first, count);
    const Seen seen = See(batch.pixels);
    const at::Tensor said = CompareRegions(seen).argmax(-1).cpu();
    const at::Tensor places = heads_.Places(seen.patches).to(at::kFloat).cpu();
    const at::Tensor rows = places.narrow(-1, 0, kSceneGrid).argmax(-1);
    const at::Tensor place =
        rows * kSceneGrid + places.narrow(-1, kSceneGrid, kSceneGrid).argmax(-1);
    for (int64_t i = 0; i < count; ++i) {
      const auto of_picture = [&](const at::Tensor& x) {
        return x.const_data_ptr<int64_t>() + i * patches;
      };
      score.Add(of_picture(said), of_picture(batch.phrases), patches, (first + i) % 2 != 0);
      for (int64_t k = 0; k < patches; ++k) score.Count("place", of_picture(place)[k] == k);
    }
    if (first < kComparedCaptions) wholes.push_back(heads_.Pictures(seen.whole));
  }
  // Which of the captions fits best: chance is 1 in so many.
  const PictureBatch compared = lessons_.HeldOut(0, kComparedCaptions);
  const at::Tensor best = at::matmul(at::cat(wholes).narrow(0, 0, kComparedCaptions),
                                     heads_.Texts(compared.captions).t())
                              .argmax(1)
                              .cpu();
  for (int64_t i = 0; i < kComparedCaptions; ++i) {
    score.Count("caption_of_200", best.const_data_ptr<int64_t>()[i] == i);
  }
  return score.Shares();
}

nlohmann::ordered_json VisionTask::Check(std::FILE*) {
  nlohmann::ordered_json result;
  const auto count = [](const MasterWeights& weights) {
    int64_t parameters = 0;
    for (const auto& [name, parameter] : weights.masters()) parameters += parameter.numel();
    return parameters;
  };
  result["tower_parameters"] = count(tower_weights_);
  result["other_parameters"] = count(head_weights_) + log_scales_.numel();
  const PictureBatch batch = lessons_.Train(0, vision_.batch);
  std::array<int64_t, 4> kinds{};
  const auto* phrases = batch.phrases.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch.phrases.numel(); ++i) {
    ++kinds[static_cast<size_t>(lessons_.phrases().KindOf(phrases[i]))];
  }
  result["first_batch"] = {
      {"pictures", vision_.batch},      {"patches_small", kinds[0]},
      {"patches_big", kinds[1]},        {"patches_part", kinds[2]},
      {"patches_background", kinds[3]}, {"longest_caption_tokens", batch.captions.ids.size(1)}};
  return result;
}

std::filesystem::path VisionTask::Publish(const std::filesystem::path& root,
                                          const std::string& name,
                                          const nlohmann::ordered_json& recipe) {
  NamedTensors tensors;
  for (const auto& [parameter, master] : tower_weights_.masters()) {
    tensors[parameter] = master.detach().cpu().to(at::kBFloat16);
  }
  TowerCheckpoint checkpoint;
  checkpoint.name = name;
  checkpoint.config = vision_.tower;
  checkpoint.tensors = MemoryTensors(std::move(tensors));
  checkpoint.digest = DigestTower(checkpoint.config, checkpoint.tensors);
  const Image picture = SceneRenderer().Render(SampleScene({}, task_.seed, 0));
  checkpoint.self_test = MakeSelfTest(
      checkpoint,
      at::tensor(at::ArrayRef<uint8_t>(picture.rgb), at::kByte).view({kSceneSide, kSceneSide, 3}),
      vision_.features.select_layer);
  return PublishTower(checkpoint, root, name, recipe.dump());
}

}  // namespace

std::unique_ptr<TrainingTask> MakeVisionTask(Recipe& recipe, const TaskSettings& settings) {
  settings.RequireOneDevice("pretrain-vision");
  return std::make_unique<VisionTask>(VisionSettings::From(recipe), settings);
}

}  // namespace llava
