#pragma once

// The parts of a SentencePiece `tokenizer.model` (a protobuf ModelProto) that encoding needs.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

struct ModelProto {
  enum class PieceType {  // values of the file
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  enum class ModelType { kUnigram = 1, kBpe = 2 };

  std::vector<Piece> pieces;  // by id
  ModelType model_type = ModelType::kUnigram;
  bool byte_fallback = false;
  std::string unk_piece = "<unk>", bos_piece = "<s>", eos_piece = "</s>";
  // Normalisation.
  std::string precompiled_charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Throws std::runtime_error for broken files and for what is not supported (word and char models,
// white space as suffix, denormalisation), telling which.
ModelProto ParseModelProto(std::string_view bytes);

}  // namespace llava
