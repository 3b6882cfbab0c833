#include "model/train/instruction_settings.h"

#include <charconv>
#include <sstream>
#include <stdexcept>

namespace llava {
namespace {

constexpr double kLoraDropout = 0.05;

std::vector<std::filesystem::path> Paths(const std::string& list) {
  std::vector<std::filesystem::path> paths;
  std::istringstream stream(list);
  for (std::string path; std::getline(stream, path, ',');) {
    if (!path.empty()) paths.emplace_back(path);
  }
  return paths;
}

// "336x672,672x336", width first.
std::vector<Resolution> Canvases(const std::string& list) {
  std::vector<Resolution> canvases;
  std::istringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) {
    Resolution canvas;
    const char *begin = item.data(), *end = begin + item.size();
    const auto width = std::from_chars(begin, end, canvas.width);
    const bool cross = width.ec == std::errc() && width.ptr != end && *width.ptr == 'x';
    const auto height = cross ? std::from_chars(width.ptr + 1, end, canvas.height) : width;
    if (!cross || height.ec != std::errc() || height.ptr != end) {
      throw std::invalid_argument("setting \"grid\" has the canvas \"" + item +
                                  "\"; expected width x height, as 336x672");
    }
    canvases.push_back(canvas);
  }
  return canvases;
}

void ReadModel(Recipe& recipe, InstructionSettings& s) {
  using Init = InstructionSettings::ProjectorInit;
  s.model = recipe.Text("model", "", "folder of the language model to start from");
  s.tower = recipe.Text("tower", "", "folder of the vision tower; empty: inside the model");
  s.chat_template = recipe.Text("chat_template", "",
                                "name of a built-in template or its file; empty: the model's own");
  s.projector_from =
      recipe.Text("projector.from", "",
                  "file with a projector to start from, as mm_projector.bin; empty: none");
  const bool fresh = s.stage == InstructionStage::kAlign && s.projector_from.empty();
  s.projector_init = recipe.Choice<Init>(
      "projector.init", fresh ? "fresh" : "keep",
      {{"keep", Init::kKeep}, {"fresh", Init::kFresh}, {"small", Init::kSmall}},
      "what the projector starts as: as it is, drawn as PyTorch does, or so with a small last "
      "layer");
  s.projector_type = recipe.Text(
      "projector.type", "", "of a fresh projector: linear, mlp2x_gelu, ...; empty: the model's");
  s.select_layer = recipe.OptionalInt(
      "select_layer", "hidden state of the tower that a fresh projector reads; null: the model's",
      -10'000, 10'000);
  s.image_mode = recipe.Choice<std::optional<ImageMode>>(
      "image_mode", "model",
      {{"model", std::nullopt},
       {"crop", ImageMode::kCrop},
       {"pad", ImageMode::kPad},
       {"anyres", ImageMode::kAnyres}},
      "how pictures are made square; anyres: in tiles, as LLaVA-1.6 has them");
  s.grid = Canvases(
      recipe.Text("grid", "",
                  "canvases of anyres in pixels, width x height, separated by commas, as "
                  "336x672,672x336; empty: the model's, or those of LLaVA-1.6 for tiles of the "
                  "tower's size"));
}

void ReadData(Recipe& recipe, InstructionSettings& s) {
  s.data = Paths(recipe.Text("data", "", "LLaVA JSON files, separated by commas"));
  const std::string images = recipe.Text("images", "", "folder of the pictures named in the data");
  s.images = images;
  s.held_out_data =
      Paths(recipe.Text("held_out_data", "", "LLaVA JSON files to evaluate on; empty: none"));
  s.held_out_images = recipe.Text("held_out_images", images, "folder of their pictures");
  s.held_out_records =
      recipe.Int("held_out_records", 0, "records to evaluate on, the first ones; 0: all");
  s.labels = recipe.Choice<LabelRule>(
      "labels", "ours", {{"ours", LabelRule::kAnswers}, {"published", LabelRule::kPublished}},
      "where the loss is taken: on answers with their stop mark, or as the published script's "
      "arithmetic has it, with its faults");
  s.image_order = recipe.Choice<ImageOrder>(
      "image_order", s.labels == LabelRule::kAnswers ? "random" : "front",
      {{"random", ImageOrder::kRandom},
       {"as_data", ImageOrder::kAsData},
       {"front", ImageOrder::kFront}},
      "where a question's picture stands; random: before or behind its text");
  s.max_tokens = recipe.Int("max_tokens", 0,
                            "longest sample, image tokens included; later turns that do not fit "
                            "are left out; 0: the model's positions",
                            0, INT32_MAX);
}

void ReadLora(Recipe& recipe, InstructionSettings& s) {
  const int64_t rank = recipe.Int("lora.rank", 0,
                                  "train adapters of this rank (LoRA) instead of the decoder's "
                                  "weights, as LLaVA-1.5's 128; 0: the weights themselves",
                                  0, 1 << 16);
  LowRankOptions lora;
  lora.rank = rank;
  lora.alpha = recipe.Number("lora.alpha", 2 * static_cast<double>(rank),
                             "what adapters add counts alpha / rank times", 0, 1e6);
  lora.dropout =
      recipe.Number("lora.dropout", kLoraDropout, "share of an adapter's inputs left out", 0, 0.99);
  if (rank > 0) {
    s.lora = lora;
  } else if (lora.alpha != 0 || lora.dropout != kLoraDropout) {
    throw std::invalid_argument(
        "settings \"lora.alpha\" and \"lora.dropout\" are for adapters: set lora.rank too");
  }
}

void ReadCourse(Recipe& recipe, InstructionSettings& s) {
  const bool align = s.stage == InstructionStage::kAlign;
  s.epochs = recipe.Number("epochs", align ? 1 : 3, "passes over the data", 1e-9, 1e6);
  s.steps = recipe.Int("steps", 0, "optimizer steps; 0: by epochs");
  s.batch_size = recipe.Int("batch_size", align ? 16 : 4, "rows of a micro-batch", 1, 1 << 20);
  s.order = recipe.Choice<RowOrder>(
      "order", "shuffled",
      {{"shuffled", RowOrder::kShuffled},
       {"as_data", RowOrder::kAsData},
       {"by_length", RowOrder::kByLength}},
      "of the rows; by_length: neighbours are of one kind and about equally long");
  s.pack = recipe.Choice<bool>("packing", "none", {{"none", false}, {"picture", true}},
                               "what shares a row: nothing, or records of one picture that stand "
                               "together in the data");
  s.row_tokens = recipe.Int("packing_tokens", 0, "most tokens of such a row; 0: max_tokens");
  if (!align) ReadLora(recipe, s);
  // With adapters as LLaVA-1.5 was trained with them.
  s.learning_rate = recipe.Number("learning_rate",
                                  align    ? 2e-3
                                  : s.lora ? 2e-4
                                           : 2e-5,
                                  "peak", 0, 1e3);
  s.projector_learning_rate =
      recipe.Number("projector.learning_rate", s.lora ? s.learning_rate / 10 : s.learning_rate,
                    "peak, of the projector", 0, 1e3);
  s.weight_decay = recipe.Number("weight_decay", 0, "of matrices; biases and norms have none");
}

}  // namespace

InstructionSettings InstructionSettings::From(Recipe& recipe, InstructionStage stage) {
  InstructionSettings s;
  s.stage = stage;
  ReadModel(recipe, s);
  ReadData(recipe, s);
  ReadCourse(recipe, s);
  const bool again = s.steps == 0 && s.epochs > 1;
  s.cache_bytes = recipe.Int("feature_cache.memory_mib", again ? 1024 : 0,
                             "memory for features of the frozen tower, MiB; 0: none", 0, 1 << 24)
                  << 20;
  s.cache_file = recipe.Text("feature_cache.file", "",
                             "file that keeps features for later runs as well; empty: none");
  s.published_dtype = recipe.Choice<at::ScalarType>(
      "publish.dtype", "bf16", {{"bf16", at::kBFloat16}, {"fp32", at::kFloat}},
      "of the trained tensors in the published model");
  return s;
}

}  // namespace llava
