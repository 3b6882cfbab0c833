#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/train/map_lessons.h"
#include "model/train/recipe.h"

namespace llava {

// What a run of `llava-train pretrain-lm` reads from its recipe.
struct LanguageSettings {
  // The model and the file of its text map to go on from; null and empty: from nothing.
  std::shared_ptr<const LanguageCheckpoint> start;
  std::string start_text_map;
  DecoderConfig decoder;  // all but the ids of the vocabulary
  LessonSettings lessons;
  int64_t steps = 0;
  double learning_rate = 0, weight_decay = 0;
  double map_noise = 0;
  std::string tokenizer, chat_template, tower, text_map;
  ImageMode image_mode = ImageMode::kCrop;
  int64_t evaluated_scenes = 0, greedy_questions = 0;
  static LanguageSettings From(Recipe& recipe);
};

}  // namespace llava
