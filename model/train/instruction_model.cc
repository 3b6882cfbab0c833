#include "model/train/instruction_model.h"

#include <cmath>
#include <map>
#include <stdexcept>
#include <string_view>

#include <ATen/ops/zeros.h>

#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/low_rank.h"
#include "model/checkpoint/memory_tensors.h"
#include "model/checkpoint/tensor_names.h"
#include "model/config/picture_shape.h"
#include "model/train/fresh_weights.h"

namespace llava {
namespace {

using Init = InstructionSettings::ProjectorInit;

constexpr std::string_view kProjector = "model.mm_projector.";

void DrawProjector(InstructionModel& model, const InstructionSettings& settings, uint64_t seed) {
  ProjectorConfig& config = model.language.config.projector;
  if (!settings.projector_type.empty()) {
    config.depth = ProjectorConfig::DepthOf(settings.projector_type);
  }
  std::vector<std::string> old;
  for (const auto& [name, info] : model.language.tensors.tensors()) {
    if (name.starts_with(kProjector)) old.push_back(name);
  }
  for (const std::string& name : old) model.language.tensors.Remove(name);
  const double last_layer = settings.projector_init == Init::kSmall ? FreshWeights::kSmallLayer : 1;
  ReplaceTensors(model.language.tensors, FreshWeights(seed).Projector(config, last_layer));
}

// The tower a language model was trained with need not be the one it is trained with now, if its
// projector is new.
void Pair(InstructionModel& model, const InstructionSettings& settings) {
  const bool kept = settings.projector_init == Init::kKeep && settings.projector_from.empty();
  if (kept && model.language.tower_digest != model.tower.digest) {
    throw std::invalid_argument(
        settings.model.string() + ": its projector was trained with the tower " +
        ToHex(model.language.tower_digest) + ", not with this one, " + ToHex(model.tower.digest) +
        "; name that tower, or let the projector start anew (projector.init=fresh)");
  }
  model.language.tower_digest = model.tower.digest;
  model.language.tower_patches = model.tower.config.num_patches();
  model.language.config.projector.in_width = model.tower.config.hidden_size;
}

void ChooseFeatures(InstructionModel& model, const InstructionSettings& settings) {
  FeatureConfig& features = model.language.config.features;
  const int64_t layer = settings.select_layer.value_or(features.select_layer);
  const int64_t layers = model.tower.config.num_layers;
  if (layer > layers || layer < -layers - 1) {
    throw std::invalid_argument(
        (settings.select_layer ? "setting \"select_layer\" is "
                               : settings.model.string() + ": reads the tower's layer ") +
        std::to_string(layer) + ", the tower has layers from 0 to " + std::to_string(layers) +
        (settings.select_layer ? "" : ": set \"select_layer\""));
  }
  if (layer != features.select_layer && settings.projector_init == Init::kKeep &&
      settings.projector_from.empty()) {
    throw std::invalid_argument(
        "setting \"select_layer\" names another layer than the projector was trained on (" +
        std::to_string(features.select_layer) + "): let it start anew (projector.init=fresh)");
  }
  features.select_layer = layer;
}

// A model that did not read tiles gets a newline: as the reference draws it.
void ChooseTiles(InstructionModel& model, const InstructionSettings& settings, uint64_t seed) {
  constexpr uint64_t kOfNewline = 0x6e6577;  // other numbers than the projector's
  LanguageCheckpoint& language = model.language;
  FeatureConfig& features = language.config.features;
  if (settings.image_mode) features.image_mode = *settings.image_mode;
  const bool has_newline = language.tensors.tensors().contains(kImageNewline);
  if (features.image_mode != ImageMode::kAnyres) {
    if (!settings.grid.empty()) {
      throw std::invalid_argument(
          "setting \"grid\" is for pictures in tiles: set image_mode=anyres too");
    }
    features.grid.clear();
    features.tile_size = 0;
    if (has_newline) language.tensors.Remove(kImageNewline);
    return;
  }
  if (!settings.grid.empty() || features.grid.empty()) {
    features.tile_size = model.tower.config.image_size;
    features.grid =
        settings.grid.empty() ? PublishedGrid(static_cast<int>(features.tile_size)) : settings.grid;
  }
  try {
    CheckPair(language.config, model.tower.config, settings.model.string());
  } catch (
      const std::runtime_error& wrong) {  // of the tiles, or they have no place for the class token
    const bool of_tiles = features.select_feature == SelectFeature::kPatch;
    throw std::invalid_argument(
        std::string(wrong.what()) +
        (of_tiles ? "; setting \"grid\" names canvases of this tower's tiles" : ""));
  }
  if (has_newline) return;
  const int64_t width = language.config.decoder.hidden_size;
  FreshWeights weights(seed + kOfNewline);
  ReplaceTensors(
      language.tensors,
      {{kImageNewline, weights.Normal({width}, 1 / std::sqrt(static_cast<double>(width)))}});
}

}  // namespace

InstructionModel OpenInstructionModel(const InstructionSettings& settings, uint64_t seed,
                                      const std::optional<RunStart>& began) {
  if (settings.model.empty()) {
    throw std::invalid_argument("setting \"model\" is missing: the folder of a language model");
  }
  const bool kept = settings.projector_init == Init::kKeep;
  if (!kept && !settings.projector_from.empty()) {
    throw std::invalid_argument(
        "projector.from names a projector to start from, projector.init "
        "asks for a new one: set one of them");
  }
  if (kept && !settings.projector_type.empty()) {
    throw std::invalid_argument(
        "setting \"projector.type\" is for a new projector: set projector.init=fresh too");
  }
  InstructionModel model;
  model.start.model = PartOf(settings.model, began ? &began->model : nullptr);
  const std::filesystem::path& of_model = model.start.model.folder;
  const CheckpointFolder folder = OpenCheckpointFolder(of_model, /*verify=*/false);
  if (folder.layout == Layout::kRepository && settings.tower.empty()) {
    throw std::invalid_argument(settings.model.string() +
                                ": its tower is an entry of its own: set \"tower\"");
  }
  const bool alone = folder.layout == Layout::kDecoder;
  if (alone && settings.tower.empty()) {
    throw std::invalid_argument(settings.model.string() +
                                ": is a language model alone: set \"tower\", a folder with CLIP");
  }
  if (alone && kept && settings.projector_from.empty()) {
    throw std::invalid_argument(settings.model.string() +
                                ": is a language model without a projector: name one that was "
                                "aligned with it (projector.from), or let it start anew "
                                "(projector.init=fresh)");
  }
  const bool names_tower = (alone || folder.layout == Layout::kOriginal) && !settings.tower.empty();
  if (!settings.tower.empty()) {
    model.start.tower = PartOf(settings.tower, began ? &began->tower : nullptr);
  }
  const std::filesystem::path& of_own_tower = model.start.tower.folder;
  OpenOptions of_language, of_tower;
  if (names_tower) of_language.tower = of_tower.tower = of_own_tower;
  of_language.without_projector = alone;
  model.language = OpenLanguage(of_model, of_language);
  model.tower = settings.tower.empty() || names_tower ? OpenTower(of_model, of_tower)
                                                      : OpenTower(of_own_tower);
  model.start.model.digest = model.language.digest;
  model.start.model.exact = model.language.in_repository;
  model.start.tower.digest = model.tower.digest;
  Pair(model, settings);
  ChooseFeatures(model, settings);
  ChooseTiles(model, settings, seed);
  if (!kept) DrawProjector(model, settings, seed);
  if (!settings.projector_from.empty()) OverlayProjector(model.language, settings.projector_from);

  model.chat_template = model.language.chat_template;
  model.tokenizer = model.language.tokenizer;
  if (!settings.chat_template.empty()) {
    OpenOptions other = of_language;
    other.chat_template = settings.chat_template;
    other.verify = false;  // again
    const LanguageCheckpoint told = OpenLanguage(of_model, other);
    model.chat_template = told.chat_template;
    model.tokenizer = told.tokenizer;
    if (!model.chat_template->drops_questions()) {
      model.language.chat_template = model.chat_template;
      model.language.tokenizer = model.tokenizer;
    }
  }
  return model;
}

TensorSource FreshAdapters(const LanguageCheckpoint& language, int64_t rank, uint64_t seed) {
  constexpr uint64_t kOfAdapters = 0x4c6f5241;  // other numbers than the projector's
  constexpr std::string_view kWeight = ".weight";
  FreshWeights weights(seed + kOfAdapters);
  NamedTensors tensors;
  for (const auto& [matrix, factors] : LowRankAdapters::Factors(language.config.decoder)) {
    const std::vector<int64_t>& shape = language.tensors.tensors().at(matrix).shape;
    const std::string a = factors[0].substr(0, factors[0].size() - kWeight.size());
    weights.Linear(a, rank, shape[1], /*bias=*/false, tensors);
    tensors[factors[1]] = at::zeros({shape[0], rank}, at::kFloat);
  }
  return MemoryTensors(std::move(tensors));
}

LanguageCheckpoint WithTrained(LanguageCheckpoint checkpoint,
                               const std::vector<std::pair<std::string, at::Tensor>>& trained,
                               const std::optional<LowRankOptions>& lora, at::ScalarType dtype) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [tensor, value] : trained) tensors[tensor] = value.detach().cpu();
  if (lora) {
    std::map<std::string, at::Tensor> adapters;
    std::map<std::string, LowRankFactors> factors;
    for (const auto& [matrix, names] : LowRankAdapters::Factors(checkpoint.config.decoder)) {
      for (const std::string& name : names) adapters.insert(tensors.extract(name));
      factors[matrix] = {.a = names[0], .b = names[1], .scale = lora->scale()};
    }
    AddLowRank(checkpoint.tensors, MemoryTensors(std::move(adapters)), std::move(factors), dtype);
  }
  for (auto& [name, tensor] : tensors) tensor = tensor.to(dtype).contiguous();
  ReplaceTensors(checkpoint.tensors, std::move(tensors));
  checkpoint.self_test.reset();  // of the old weights
  return checkpoint;
}

}  // namespace llava
