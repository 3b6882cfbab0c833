#pragma once

// Pictures for the training of towers, drawn as they are needed, with what stands in each patch and
// a caption.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/config/model_config.h"
#include "model/data/scenes/scene.h"
#include "model/text/tokenizer.h"
#include "model/train/contrast_heads.h"

namespace llava {

// What a patch can be called: "a small lion", "a big lion", "part of a lion" for all categories in
// this order of kinds, then "white background".
class RegionPhrases {
 public:
  enum class Kind { kSmall, kBig, kPart, kBackground };

  explicit RegionPhrases(int num_categories) : num_categories_(num_categories) {}

  std::vector<std::string> All() const;
  int64_t IndexOf(const SceneCell& cell) const;
  Kind KindOf(int64_t phrase) const {
    return static_cast<Kind>(std::min<int64_t>(phrase / num_categories_, 3));
  }
  // Number of the category (or background) that a phrase tells of.
  int64_t SubjectOf(int64_t phrase) const {
    return phrase - static_cast<int64_t>(KindOf(phrase)) * num_categories_;
  }

 private:
  int64_t num_categories_;
};

struct PictureBatch {
  at::Tensor pixels;   // [B, 3, S, S] float32, normalised
  at::Tensor phrases;  // [B, P] int64, of each patch
  PaddedTexts captions;
};

// Const after construction, thread-safe.
class PictureLessons {
 public:
  // Throws std::invalid_argument for a number of categories that there is no set of.
  PictureLessons(int num_categories, std::shared_ptr<const Tokenizer> tokenizer,
                 const PreprocessConfig& preprocess, uint64_t seed);

  // Pictures `first` .. `first + count - 1` of an endless sequence.
  PictureBatch Train(int64_t first, int64_t count) const;
  // The same of held-out scenes, every second one with a held-out pair.
  PictureBatch HeldOut(int64_t first, int64_t count) const;

  const RegionPhrases& phrases() const { return phrases_; }
  PaddedTexts Encode(const std::vector<std::string>& texts) const;

 private:
  PictureBatch Draw(const std::vector<Scene>& scenes, int64_t first,
                    uint64_t caption_purpose) const;

  int num_categories_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  PreprocessConfig preprocess_;
  uint64_t seed_;
  RegionPhrases phrases_;
};

}  // namespace llava
