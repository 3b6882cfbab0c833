#pragma once

// Bytes of the journal of running answers (docs/durability.md).

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "llava/v1/llm.pb.h"
#include "llava/v1/types.pb.h"

namespace llava {

// All that is needed to go on with an answer.
struct JournalledAnswer {
  // Given by the journal; never used twice in a folder.
  uint64_t id = 0;
  std::string session_id, turn_id;
  // Of the run that wrote the text: an answer made anew was asked later, in microseconds.
  std::chrono::system_clock::time_point asked;
  uint64_t seed = 0;
  v1::ModelVersion model;
  std::string text;
  v1::TokenIds tokens;
  // Workers that died while they wrote it.
  uint32_t deaths = 0;
  // Length of the text each time that a later process took it up.
  std::vector<uint64_t> taken_up;
};

// One entry of a segment.
struct JournalRecord {
  enum class Kind : uint8_t {
    kAnswer = 1,  // an answer with all there is of it so far
    kText = 2,    // more of it
    kDeath = 3,   // its worker died
    kEnd = 4      // the store has it
  };
  Kind kind = Kind::kEnd;
  uint64_t id = 0;
  JournalledAnswer answer;  // of kAnswer, without `id`
  // Of kText. Views into what was parsed.
  uint64_t offset = 0;
  uint32_t token_offset = 0;
  std::string_view text;
  std::vector<int32_t> token_ids;
};

// A piece of an answer, with the lengths of text and ids in front of it.
struct JournalText {
  uint64_t offset = 0;
  int token_offset = 0;
  std::string_view text;
  const google::protobuf::RepeatedField<int32_t>& token_ids;
};

// Eight bytes at the begin of a segment; the last two are the version of the format.
inline constexpr std::string_view kJournalMagic = "LLAVAJ02";
// The same, but for when an answer was asked: that is 1970.
inline constexpr std::string_view kOldJournalMagic = "LLAVAJ01";

// A whole record: size and CRC-32C of the payload, payload.
std::string EncodeAnswer(const JournalledAnswer& answer);
std::string EncodeText(uint64_t id, const JournalText& piece);
std::string EncodeDeath(uint64_t id);
std::string EncodeEnd(uint64_t id);

// Takes the first record off `bytes`; nothing when none is whole and sound.
std::optional<JournalRecord> TakeRecord(std::string_view& bytes);

}  // namespace llava
