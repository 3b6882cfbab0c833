#include "model/text/model_proto.h"

#include <bit>
#include <cmath>
#include <stdexcept>

namespace llava {
namespace {

[[noreturn]] void Fail(const std::string& what) {
  throw std::runtime_error("not a usable SentencePiece tokenizer.model: " + what);
}

// Walks the fields of one protobuf message.
class WireReader {
 public:
  WireReader(std::string_view bytes, const char* message) : rest_(bytes), message_(message) {}

  // Goes to the next field; false at the end.
  bool Next() {
    if (rest_.empty()) return false;
    const uint64_t key = ReadVarint();
    if (key >> 3 == 0 || key >> 3 > 0x1FFFFFFF) Fail(Where() + "impossible field number");
    field_ = static_cast<uint32_t>(key >> 3);
    type_ = static_cast<uint32_t>(key & 7);
    switch (type_) {
      case 0:
        number_ = ReadVarint();
        break;
      case 1:
        Take(8);
        break;
      case 2:
        payload_ = Take(ReadVarint());
        break;
      case 5:
        payload_ = Take(4);
        break;
      default:
        Fail(Where() + "wire type " + std::to_string(type_) + ", which no such file has");
    }
    return true;
  }

  uint32_t field() const { return field_; }
  std::string_view Bytes() const {
    Expect(2);
    return payload_;
  }
  uint64_t Number() const {
    Expect(0);
    return number_;
  }
  bool Bool() const { return Number() != 0; }
  float Float() const {
    Expect(5);
    uint32_t bits = 0;
    for (int i = 3; i >= 0; --i) bits = bits << 8 | static_cast<uint8_t>(payload_[i]);
    return std::bit_cast<float>(bits);
  }

 private:
  std::string Where() const {
    return std::string(message_) + " field " + std::to_string(field_) + ": ";
  }
  void Expect(uint32_t type) const {
    if (type_ != type) {
      Fail(Where() + "wire type " + std::to_string(type_) + " instead of " + std::to_string(type));
    }
  }
  uint64_t ReadVarint() {
    uint64_t value = 0;
    for (size_t i = 0; i < 10 && i < rest_.size(); ++i) {
      const uint8_t byte = static_cast<uint8_t>(rest_[i]);
      value |= uint64_t{byte & 0x7Fu} << (7 * i);
      if (byte < 0x80) {
        rest_.remove_prefix(i + 1);
        return value;
      }
    }
    Fail(Where() + "number without an end; the file is cut short or damaged");
  }
  std::string_view Take(uint64_t count) {
    if (count > rest_.size()) {
      Fail(Where() + std::to_string(count) + " bytes announced, " + std::to_string(rest_.size()) +
           " left; the file is cut short or damaged");
    }
    std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_;
  const char* message_;
  uint32_t field_ = 0, type_ = 0;
  uint64_t number_ = 0;
  std::string_view payload_;
};

ModelProto::Piece ParsePiece(std::string_view bytes, size_t id) {
  ModelProto::Piece piece;
  for (WireReader in(bytes, "SentencePiece"); in.Next();) {
    switch (in.field()) {
      case 1:
        piece.text = in.Bytes();
        break;
      case 2:
        piece.score = in.Float();
        break;
      case 3:
        if (in.Number() < 1 || in.Number() > 6) {
          Fail("piece " + std::to_string(id) + " has type " + std::to_string(in.Number()) +
               ", known are 1 to 6");
        }
        piece.type = static_cast<ModelProto::PieceType>(in.Number());
        break;
    }
  }
  if (piece.text.empty()) Fail("piece " + std::to_string(id) + " is empty");
  if (!std::isfinite(piece.score)) {
    Fail("the score of piece " + std::to_string(id) + " is not a finite number");
  }
  return piece;
}

void ParseTrainerSpec(std::string_view bytes, ModelProto& model) {
  for (WireReader in(bytes, "TrainerSpec"); in.Next();) {
    switch (in.field()) {
      case 3:
        if (in.Number() != 1 && in.Number() != 2) {
          Fail("model type " + std::to_string(in.Number()) +
               " (3 = word, 4 = char); supported are 1 = unigram and 2 = BPE");
        }
        model.model_type = static_cast<ModelProto::ModelType>(in.Number());
        break;
      case 24:
        if (in.Bool()) Fail("treat_whitespace_as_suffix is not supported");
        break;
      case 35:
        model.byte_fallback = in.Bool();
        break;
      case 45:
        model.unk_piece = in.Bytes();
        break;
      case 46:
        model.bos_piece = in.Bytes();
        break;
      case 47:
        model.eos_piece = in.Bytes();
        break;
    }
  }
}

void ParseNormalizerSpec(std::string_view bytes, ModelProto& model) {
  for (WireReader in(bytes, "NormalizerSpec"); in.Next();) {
    switch (in.field()) {
      case 2:
        model.precompiled_charsmap = in.Bytes();
        break;
      case 3:
        model.add_dummy_prefix = in.Bool();
        break;
      case 4:
        model.remove_extra_whitespaces = in.Bool();
        break;
      case 5:
        model.escape_whitespaces = in.Bool();
        break;
    }
  }
}

void RefuseDenormalizer(std::string_view bytes) {
  for (WireReader in(bytes, "NormalizerSpec"); in.Next();) {
    if (in.field() == 2 && !in.Bytes().empty()) Fail("denormalizer rules are not supported");
  }
}

}  // namespace

ModelProto ParseModelProto(std::string_view bytes) {
  ModelProto model;
  for (WireReader in(bytes, "ModelProto"); in.Next();) {
    switch (in.field()) {
      case 1:
        model.pieces.push_back(ParsePiece(in.Bytes(), model.pieces.size()));
        break;
      case 2:
        ParseTrainerSpec(in.Bytes(), model);
        break;
      case 3:
        ParseNormalizerSpec(in.Bytes(), model);
        break;
      case 5:
        RefuseDenormalizer(in.Bytes());
        break;
    }
  }
  if (model.pieces.empty()) Fail("it holds no pieces");
  return model;
}

}  // namespace llava
