#pragma once

// Rows of the base language model's training: one map of words in the picture's place, and
// independent dialogues about it that all go on from there.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/data/scenes/questions.h"
#include "model/data/scenes/scene.h"
#include "model/nn/segment.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"

namespace llava {

// A turn of a row, for counting per type of question.
struct AskedTurn {
  QuestionType type;
  bool about_picture;
};

// Rows one after the other, as one ragged batch.
struct MapBatch {
  std::vector<Scene> scenes;
  std::vector<int64_t> text_ids;  // all words but those of the maps
  // Per row of the batch: an index of text_ids, or -1 - c for cell c of the maps of all scenes.
  std::vector<int64_t> sources;
  std::vector<Segment> segments;
  // Per trained token: the row that predicts it, its id, its weight, its turn.
  std::vector<int64_t> rows, targets, turn_of;
  std::vector<float> weights;
  std::vector<AskedTurn> turns;
};

// Const after construction, thread-safe.
class MapRows {
 public:
  // `key_weight`: of the words that decide whether an answer is right; other words of answers weigh
  // 1. Dialogues become ids as for every other training (MakeLabels). Throws std::invalid_argument
  // for a template that puts the picture anywhere but in front of the first question.
  MapRows(std::shared_ptr<const Tokenizer> tokenizer,
          std::shared_ptr<const ChatTemplate> chat_template, double key_weight);

  // Adds a row about a scene; dialogues that would make it longer than `most_tokens` are left out.
  void AddScene(const Scene& scene, std::span<const Dialogue> dialogues, int64_t most_tokens,
                MapBatch& batch) const;
  // The same without a picture.
  void AddFacts(std::span<const Dialogue> dialogues, int64_t most_tokens, MapBatch& batch) const;

  // Whether a token counts as a key word.
  bool IsKey(int32_t id) const { return is_key_[id]; }

 private:
  void AddRow(const Scene* scene, std::span<const Dialogue> dialogues, int64_t most_tokens,
              MapBatch& batch) const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  double key_weight_;
  std::vector<bool> is_key_;  // per id
  // What stands in front of every dialogue, with and without a picture.
  std::vector<int32_t> picture_prefix_, text_prefix_;
};

}  // namespace llava
