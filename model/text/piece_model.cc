#include "model/text/piece_model.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "model/text/bpe_encoder.h"
#include "model/text/unigram_encoder.h"

namespace llava {
namespace {

using Type = ModelProto::PieceType;

[[noreturn]] void Fail(const std::string& what) {
  throw std::runtime_error("not a usable SentencePiece tokenizer.model: " + what);
}

// Whether text is made of such pieces.
bool IsTextPiece(Type type) {
  return type == Type::kNormal || type == Type::kUserDefined || type == Type::kUnused;
}

// The next "▁" at or after `from` that does not follow another one.
size_t NextWord(std::string_view text, size_t from) {
  size_t mark = text.find(kSpaceMark, from);
  while (mark != text.npos && text.substr(0, mark).ends_with(kSpaceMark)) {
    mark = text.find(kSpaceMark, mark + kSpaceMark.size());
  }
  return std::min(mark, text.size());
}

// The byte of "<0x41>", in the only spelling the tool writes.
std::optional<uint8_t> ParseBytePiece(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const size_t high = kDigits.find(text[3]), low = kDigits.find(text[4]);
  if (high == kDigits.npos || low == kDigits.npos) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

}  // namespace

PieceModel::PieceModel(ModelProto proto) : proto_(std::move(proto)), normalizer_(proto_) {
  // As in the tool: the least positive float is where its search for the maximum begins.
  min_score_ = std::numeric_limits<float>::max();
  max_score_ = std::numeric_limits<float>::min();
  if (proto_.byte_fallback) byte_ids_.assign(256, kNoPiece);
  for (size_t i = 0; i < proto_.pieces.size(); ++i) {
    const ModelProto::Piece& piece = proto_.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    const bool in_text = IsTextPiece(piece.type);
    if (!(in_text ? pieces_ : reserved_).Insert(piece.text, id)) {
      Fail("piece \"" + piece.text + "\" is there twice");
    }
    if (in_text) {
      longest_piece_ = std::max(longest_piece_, piece.text.size());
      // Unused pieces come apart by what was joined last in the whole text.
      words_apart_ &= piece.type != Type::kUnused && NextWord(piece.text, 1) == piece.text.size();
    }
    if (piece.type == Type::kNormal) {
      min_score_ = std::min(min_score_, piece.score);
      max_score_ = std::max(max_score_, piece.score);
    } else if (piece.type == Type::kUnknown) {
      if (unk_id_ != kNoPiece) Fail("two pieces of type unknown");
      unk_id_ = id;
    } else if (piece.type == Type::kByte) {
      if (!proto_.byte_fallback) Fail("byte piece \"" + piece.text + "\" without byte_fallback");
      std::optional<uint8_t> byte = ParseBytePiece(piece.text);
      if (!byte) Fail("\"" + piece.text + "\" is no byte piece, expected <0x00> to <0xFF>");
      byte_ids_[*byte] = id;
    }
  }
  if (unk_id_ == kNoPiece) Fail("no piece of type unknown");
  if (std::count(byte_ids_.begin(), byte_ids_.end(), kNoPiece) > 0) {
    Fail("byte_fallback without all 256 byte pieces");
  }
  if (proto_.model_type == ModelProto::ModelType::kUnigram) {
    Trie::Entries entries;
    for (size_t i = 0; i < proto_.pieces.size(); ++i) {
      const ModelProto::Piece& piece = proto_.pieces[i];
      if (IsTextPiece(piece.type)) entries.emplace_back(piece.text, static_cast<int32_t>(i));
    }
    trie_ = Trie(std::move(entries));
  }
}

int32_t PieceModel::IdOf(std::string_view text) const {
  const int32_t reserved = reserved_.Find(text);
  return reserved != kNoPiece ? reserved : pieces_.Find(text);
}

std::optional<uint8_t> PieceModel::ByteOf(int32_t id) const {
  if (TypeOf(id) != Type::kByte) return std::nullopt;
  return ParseBytePiece(proto_.pieces[id].text);
}

PieceFilter PieceModel::MakeFilter(const std::vector<int32_t>& blocked_ids) const {
  PieceFilter filter;
  filter.blocked.assign(size(), false);
  for (int32_t id : blocked_ids) filter.blocked[id] = true;
  Trie::Entries atomic;
  for (size_t i = 0; i < size(); ++i) {
    const int32_t id = static_cast<int32_t>(i);
    if (IsUserDefined(id) && !filter.blocked[i]) atomic.emplace_back(proto_.pieces[i].text, id);
  }
  filter.atomic = Trie(std::move(atomic));
  return filter;
}

std::vector<PieceRange> PieceModel::Segment(std::string_view normalized,
                                            const PieceFilter& filter) const {
  if (normalized.empty()) return {};
  if (normalized.size() > size_t{1} << 30) {
    throw std::length_error("a text of " + std::to_string(normalized.size()) +
                            " bytes is too long to tokenize; at most 1 GiB");
  }
  if (proto_.model_type == ModelProto::ModelType::kUnigram) {
    return UnigramEncoder(*this, filter, normalized).Run();
  }
  if (!words_apart_) return BpeEncoder(*this, filter, normalized).Run();
  std::vector<PieceRange> out;
  for (size_t begin = 0; begin < normalized.size();) {
    const size_t end = NextWord(normalized, begin + 1);
    for (PieceRange piece :
         BpeEncoder(*this, filter, normalized.substr(begin, end - begin)).Run()) {
      out.push_back({piece.id, begin + piece.begin, begin + piece.end});
    }
    begin = end;
  }
  return out;
}

void PieceModel::Encode(std::string_view text, bool dummy_prefix, const PieceFilter& filter,
                        size_t source_offset, std::vector<TokenRange>& out) const {
  const NormalizedText normalized = normalizer_.Normalize(text, dummy_prefix, filter.atomic);
  bool after_unknown = false;
  for (const PieceRange& piece : Segment(normalized.text, filter)) {
    const size_t begin = source_offset + normalized.source[piece.begin];
    const size_t end = source_offset + normalized.source[piece.end];
    const bool unknown = piece.id == unk_id_;
    if (unknown && proto_.byte_fallback) {
      for (size_t i = piece.begin; i < piece.end; ++i) {
        out.push_back({byte_ids_[static_cast<uint8_t>(normalized.text[i])], begin, end});
      }
    } else if (unknown && after_unknown) {
      out.back().end = end;  // a run of unknown characters is one token
    } else {
      out.push_back({piece.id, begin, end});
    }
    after_unknown = unknown;
  }
}

}  // namespace llava
