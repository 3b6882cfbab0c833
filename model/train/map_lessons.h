#pragma once

// What the base language model learns from, batch by batch: first many short questions about each
// map, then dialogues as people have them and facts without a picture.

#include <cstdint>
#include <memory>
#include <vector>

#include "model/data/scenes/questions.h"
#include "model/data/scenes/scene.h"
#include "model/train/map_rows.h"
#include "model/train/recipe.h"

namespace llava {

struct LessonSettings {
  int num_categories = kSmallCategorySet;
  double repeats = 0.5;        // of the scenes of training: SceneOptions::repeats
  int64_t rows = 40;           // with a map, a batch
  int64_t most_tokens = 165;   // of a row
  int64_t dense_steps = 2500;  // steps before natural dialogues begin
  int64_t questions = 13;      // of a row in those steps
  std::vector<TypeWeight> dense_types;
  double dense_share = 0;     // of the rows afterwards that stay as they were
  int64_t dialogues = 11;     // of a row afterwards
  double fact_share = 0.125;  // rows of facts, as a share of `rows`
  int64_t facts = 12;         // of a row of facts
  double key_weight = 3;
  static LessonSettings From(Recipe& recipe);
};

// Const after construction, thread-safe.
class MapLessons {
 public:
  MapLessons(const LessonSettings& settings, std::shared_ptr<const Tokenizer> tokenizer,
             std::shared_ptr<const ChatTemplate> chat_template, uint64_t seed);

  // Batch number `index` of those that belong to step `step`: a pure function of the two and what
  // the constructor was given.
  MapBatch Make(int64_t step, int64_t index) const;

  // One row for each of `count` held-out scenes from number `first` on, every second of them with a
  // held-out pair, with one question of every type that it allows and a chain.
  MapBatch HeldOut(int64_t first, int64_t count) const;
  // Questions about the same scenes, up to `each` of a type.
  struct Question {
    Scene scene;
    Turn turn;
  };
  std::vector<Question> HeldOutQuestions(int64_t each) const;

  const MapRows& rows() const { return rows_; }

 private:
  Scene HeldOutScene(int64_t number) const;
  std::vector<Dialogue> AskDensely(const Scene& scene, Random& random) const;

  LessonSettings settings_;
  MapRows rows_;
  Questioner questioner_;
  uint64_t seed_;
};

}  // namespace llava
