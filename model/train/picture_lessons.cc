#include "model/train/picture_lessons.h"

#include <utility>

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include "model/data/scenes/captions.h"
#include "model/data/scenes/category.h"
#include "model/data/scenes/random.h"
#include "model/data/scenes/render.h"
#include "model/image/image.h"

namespace llava {
namespace {

// Purposes of the random streams.
constexpr uint64_t kTrainedScenes = 21, kTrainedCaptions = 22;
constexpr uint64_t kHeldOutScenes = 23, kHeldOutCaptions = 24;

}  // namespace

std::vector<std::string> RegionPhrases::All() const {
  std::vector<std::string> phrases;
  const auto add = [&](const std::string& before) {
    for (int64_t i = 0; i < num_categories_; ++i) phrases.push_back(before + Categories()[i].name);
  };
  add("a small ");
  add("a big ");
  add("part of a ");
  for (const Background& background : kBackgrounds) {
    phrases.push_back(std::string(background.name) + " background");
  }
  return phrases;
}

int64_t RegionPhrases::IndexOf(const SceneCell& cell) const {
  Kind kind = Kind::kBackground;
  if (cell.kind == SceneCell::Kind::kPart) kind = Kind::kPart;
  if (cell.kind == SceneCell::Kind::kCentre) kind = cell.big ? Kind::kBig : Kind::kSmall;
  return static_cast<int64_t>(kind) * num_categories_ + cell.index;
}

PictureLessons::PictureLessons(int num_categories, std::shared_ptr<const Tokenizer> tokenizer,
                               const PreprocessConfig& preprocess, uint64_t seed)
    : num_categories_(num_categories),
      tokenizer_(std::move(tokenizer)),
      preprocess_(preprocess),
      seed_(seed),
      phrases_(num_categories) {
  SceneOptions options;
  options.num_categories = num_categories;
  options.Check();
}

PaddedTexts PictureLessons::Encode(const std::vector<std::string>& texts) const {
  std::vector<std::vector<int32_t>> ids;
  for (const std::string& text : texts) ids.push_back(tokenizer_->EncodePieces(text));
  return PaddedTexts(ids);
}

PictureBatch PictureLessons::Draw(const std::vector<Scene>& scenes, int64_t first,
                                  uint64_t caption_purpose) const {
  // Renderers keep their scaled sprites and are for one thread.
  static thread_local SceneRenderer renderer;
  const auto count = static_cast<int64_t>(scenes.size());
  at::Tensor pixels = at::empty({count, 3, kSceneSide, kSceneSide}, at::kFloat);
  auto* to = pixels.data_ptr<float>();
  std::vector<int64_t> phrases;
  std::vector<std::string> captions;
  for (int64_t i = 0; i < count; ++i) {
    const Scene& scene = scenes[i];
    const std::vector<float> values = NormalizePixels(renderer.Render(scene), preprocess_);
    to = std::copy(values.begin(), values.end(), to);
    for (const SceneCell& cell : LabelCells(scene)) phrases.push_back(phrases_.IndexOf(cell));
    Random random(seed_, static_cast<uint64_t>(first + i), caption_purpose);
    captions.push_back(Caption(scene, random));
  }
  return {std::move(pixels), at::tensor(phrases, at::kLong).view({count, kSceneGrid * kSceneGrid}),
          Encode(captions)};
}

PictureBatch PictureLessons::Train(int64_t first, int64_t count) const {
  SceneOptions options;
  options.num_categories = num_categories_;
  std::vector<Scene> scenes;
  const uint64_t seed = Random(seed_, 0, kTrainedScenes).Bits();
  for (int64_t i = 0; i < count; ++i) scenes.push_back(SampleScene(options, seed, first + i));
  return Draw(scenes, first, kTrainedCaptions);
}

PictureBatch PictureLessons::HeldOut(int64_t first, int64_t count) const {
  SceneOptions options;
  options.num_categories = num_categories_;
  std::vector<Scene> scenes;
  const uint64_t seed = Random(seed_, 0, kHeldOutScenes).Bits();
  for (int64_t i = first; i < first + count; ++i) {
    options.held_out = i % 2 == 0 ? SceneOptions::HeldOut::kTrain : SceneOptions::HeldOut::kPairs;
    scenes.push_back(SampleScene(options, seed, i));
  }
  return Draw(scenes, first, kHeldOutCaptions);
}

}  // namespace llava
