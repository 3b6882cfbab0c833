#pragma once

#include <cstdint>
#include <string>

#include "model/config/model_config.h"
#include "model/train/map_lessons.h"
#include "model/train/recipe.h"

namespace llava {

// What a run of `llava-train pretrain-lm` reads from its recipe.
struct LanguageSettings {
  DecoderConfig decoder;  // all but the ids of the vocabulary
  LessonSettings lessons;
  int64_t steps = 0, accumulation = 1;
  double learning_rate = 0, weight_decay = 0;
  double map_noise = 0;
  std::string tokenizer, chat_template, tower, text_map;
  ImageMode image_mode = ImageMode::kCrop;
  int64_t evaluated_scenes = 0, greedy_questions = 0;
  static LanguageSettings From(Recipe& recipe);
};

}  // namespace llava
