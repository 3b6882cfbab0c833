#pragma once

// A SentencePiece model at work: vocabulary, and text -> pieces exactly as the sentencepiece tool
// does it, with the place in the text that each piece comes from.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/text/model_proto.h"
#include "model/text/normalizer.h"
#include "model/text/piece_table.h"
#include "model/text/tokenizer.h"
#include "model/text/trie.h"

namespace llava {

// A piece of a normalised text, bytes [begin, end) of it.
struct PieceRange {
  int32_t id;
  size_t begin, end;
};

// What an encoding may use of a vocabulary.
struct PieceFilter {
  std::vector<bool> blocked;  // by id: pieces that must not come out
  Trie atomic;                // user-defined pieces, never split or merged
};

// Const after construction, thread-safe. Not to be moved: it refers to its own texts.
class PieceModel {
 public:
  explicit PieceModel(ModelProto proto);
  PieceModel(const PieceModel&) = delete;
  PieceModel& operator=(const PieceModel&) = delete;

  const ModelProto& proto() const { return proto_; }
  size_t size() const { return proto_.pieces.size(); }
  int32_t unk_id() const { return unk_id_; }
  ModelProto::PieceType TypeOf(int32_t id) const { return proto_.pieces[id].type; }
  // Any piece by its text, kNoPiece if there is none.
  int32_t IdOf(std::string_view text) const;
  // The byte of a byte piece.
  std::optional<uint8_t> ByteOf(int32_t id) const;

  // Blocks `ids`; the text of a blocked piece becomes characters or bytes.
  PieceFilter MakeFilter(const std::vector<int32_t>& blocked_ids) const;

  // Appends the tokens of `text` to `out`, `source_offset` added to their places. Time is
  // O(n log n). Throws std::length_error above 1 GiB.
  void Encode(std::string_view text, bool dummy_prefix, const PieceFilter& filter,
              size_t source_offset, std::vector<TokenRange>& out) const;

 private:
  friend class BpeEncoder;
  friend class UnigramEncoder;

  bool IsUnused(int32_t id) const { return TypeOf(id) == ModelProto::PieceType::kUnused; }
  bool IsUserDefined(int32_t id) const { return TypeOf(id) == ModelProto::PieceType::kUserDefined; }
  std::vector<PieceRange> Segment(std::string_view normalized, const PieceFilter& filter) const;

  ModelProto proto_;
  Normalizer normalizer_;
  // By text: pieces that text is made of (normal, user-defined, unused) and the others, which text
  // never is made of.
  PieceTable pieces_, reserved_;
  size_t longest_piece_ = 0;
  // No piece goes on after a "▁" within it, so that words can be encoded one by one.
  bool words_apart_ = true;
  Trie trie_;  // of pieces_, for unigram
  float min_score_ = 0, max_score_ = 0;
  int32_t unk_id_ = kNoPiece;
  std::vector<int32_t> byte_ids_;  // 256 with byte fallback, else none
};

}  // namespace llava
