#pragma once

// What the paper's two stages read from the recipe.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <c10/core/ScalarType.h>

#include "model/config/model_config.h"
#include "model/data/instructions/sample_encoder.h"
#include "model/nn/low_rank.h"
#include "model/train/recipe.h"
#include "model/train/row_plan.h"

namespace llava {

enum class InstructionStage {
  kAlign,     // 1: the projector learns, tower and decoder are frozen
  kFinetune,  // 2: projector and decoder learn, the tower is frozen
};

struct InstructionSettings {
  enum class ProjectorInit {
    kKeep,   // the model's, or the file's
    kFresh,  // as PyTorch draws linear layers
    kSmall,  // the same with a small last layer: image tokens begin near the size of words
  };

  // All settings, none checked against files: `llava-train describe` needs none. Throws as Recipe.
  static InstructionSettings From(Recipe& recipe, InstructionStage stage);

  InstructionStage stage;
  std::filesystem::path model, tower;
  std::string chat_template;  // empty: the model's own
  ProjectorInit projector_init;
  std::string projector_type;            // empty: the model's
  std::filesystem::path projector_from;  // mm_projector file; empty: none
  std::optional<int64_t> select_layer;   // none: the model's
  std::optional<ImageMode> image_mode;   // none: the model's
  std::vector<Resolution> grid;          // canvases of the anyres mode; none: the model's

  std::vector<std::filesystem::path> data, held_out_data;
  std::filesystem::path images, held_out_images;
  int64_t held_out_records;  // 0: all
  ImageOrder image_order;
  LabelRule labels;
  int64_t max_tokens;  // 0: as many as the model has positions

  double epochs;
  int64_t steps;  // 0: by epochs
  int64_t batch_size;
  RowOrder order;
  bool pack;
  int64_t row_tokens;  // 0: max_tokens

  std::optional<LowRankOptions> lora;  // none: the decoder's own weights learn
  double learning_rate, projector_learning_rate, weight_decay;

  int64_t cache_bytes;
  std::filesystem::path cache_file;
  at::ScalarType published_dtype;
};

}  // namespace llava
