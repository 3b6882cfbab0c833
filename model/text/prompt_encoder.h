#pragma once

// A prompt of several spans -> tokens, by LLaMA's rules for special tokens and dummy prefixes.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/text/piece_model.h"
#include "model/text/tokenizer.h"

namespace llava {

// One prompt, one thread. All arguments of the constructor must outlive it.
class PromptEncoder {
 public:
  // `specials`: literal text -> id. `filter` keeps special pieces from coming out of plain text.
  PromptEncoder(const PieceModel& model, const Trie& specials, const PieceFilter& filter,
                const TokenizerOptions& options);

  // `bos_id`: begins the prompt unless it is -1. Places count bytes in the joined texts of `spans`.
  std::vector<TokenRange> Encode(std::span<const PromptSpan> spans, int32_t bos_id);

 private:
  // Text between two special tokens (or pictures, or verbatim ids) is one SentencePiece text,
  // whoever wrote its parts.
  void AddTrusted(std::string_view text);
  void AddPlain(std::string_view text);
  void AddSpecial(int32_t id, size_t source_size);
  void AddTokens(std::span<const int32_t> ids);
  void Flush();

  const PieceModel& model_;
  const Trie& specials_;
  const PieceFilter& filter_;
  const TokenizerOptions& options_;
  std::vector<TokenRange> out_;
  std::string plain_;       // not yet encoded
  size_t plain_begin_ = 0;  // its place
  size_t position_ = 0;     // bytes of the spans read so far
  bool at_start_ = true;    // of a text
  bool after_special_ = false;
};

}  // namespace llava
