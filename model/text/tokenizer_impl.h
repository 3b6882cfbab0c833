#pragma once

// What a Tokenizer holds; shared by the files that implement it.

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/text/piece_model.h"
#include "model/text/tokenizer.h"

namespace llava {

struct Tokenizer::Impl {
  Impl(std::shared_ptr<const std::string> model_bytes, std::shared_ptr<const PieceModel> model,
       TokenizerOptions options);

  // The bytes of a token (see TokenBytes) without the dummy prefix where `first` is set; `first` is
  // cleared once text has begun.
  std::string TextBytes(int32_t id, bool& first) const;
  bool IsSpecial(int32_t id) const;
  void CheckId(int32_t id) const;  // throws std::out_of_range
  bool IsGap(int32_t id) const;    // of those that CheckId knows
  std::string ConfigJson() const;

  std::shared_ptr<const std::string> model_bytes;
  std::shared_ptr<const PieceModel> model;
  TokenizerOptions options;                            // added_tokens by id
  std::unordered_map<std::string, int32_t> added_ids;  // of options.added_tokens
  std::unordered_map<int32_t, std::string> added_texts;
  Trie specials;            // literal text -> id
  PieceFilter everything;   // for pure SentencePiece encoding
  PieceFilter no_specials;  // for text: special pieces blocked
  int32_t bos_id = -1, eos_id = -1;
  int32_t vocab_size = 0;
  Sha256Digest digest;
};

}  // namespace llava
