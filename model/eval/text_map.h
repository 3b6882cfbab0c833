#pragma once

// Scenes without an eye: what stands in each cell, written with the language model's own word
// embeddings where a picture's image tokens would stand. Base language models learn on such maps,
// and evaluation uses them as the oracle that a tower could at best equal.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/data/scenes/scene.h"
#include "model/nn/llama.h"
#include "model/text/tokenizer.h"

namespace llava {

// Per cell: the embedding of its word (category at a centre, "<part>" where an object reaches,
// colour of the background elsewhere), at centres also 0.7 times that of "small" or "big", and
// learned vectors of row and column.
class TextMap {
 public:
  // New: row and column vectors drawn from `seed` with this deviation, leaves that require
  // gradients. Throws std::invalid_argument naming the words that are not one piece of the
  // tokenizer; categories from `num_categories` on may be longer, as long as no scene has them.
  TextMap(const Tokenizer& tokenizer, int64_t width, uint64_t seed, double deviation,
          int num_categories = kSmallCategorySet);
  // From a file that Save wrote; throws std::runtime_error naming it.
  TextMap(const Tokenizer& tokenizer, const std::filesystem::path& file);
  void Save(const std::filesystem::path& file) const;

  // Takes row and column vectors to `device`; leaves stay leaves, but others. Before training.
  void MoveTo(at::Device device);

  // [B, kSceneGrid * kSceneGrid, D], in the dtype of the embeddings; differentiable. Throws
  // std::invalid_argument for a scene with a category that is no word of the tokenizer.
  at::Tensor Embed(const LlamaDecoder& decoder, std::span<const Scene> scenes) const {
    return WithPlaces(EmbedWords(decoder, scenes));
  }
  // Embed in two parts, for those who put noise between: the words, then the vectors of places.
  at::Tensor EmbedWords(const LlamaDecoder& decoder, std::span<const Scene> scenes) const;
  at::Tensor WithPlaces(const at::Tensor& words) const;

  // "rows" and "columns", each [kSceneGrid, D]: for training.
  const std::vector<std::pair<std::string, at::Tensor>>& parameters() const { return parameters_; }

 private:
  struct Words {
    std::vector<int32_t> categories, backgrounds;  // -1: not one piece
    int32_t part = 0, small = 0, big = 0;
  };
  static Words FindWords(const Tokenizer& tokenizer, int num_categories);

  Words words_;
  std::vector<std::pair<std::string, at::Tensor>> parameters_;
};

}  // namespace llava
