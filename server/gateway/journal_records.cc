#include "server/gateway/journal_records.h"

#include <cstring>
#include <utility>

#include "server/runtime/crc32c.h"

namespace llava {
namespace {

// Size and CRC in front of each payload.
constexpr size_t kFrameBytes = 2 * sizeof(uint32_t);

// Numbers are little-endian, the byte order of every machine this runs on.
class Writer {
 public:
  Writer(JournalRecord::Kind kind, uint64_t id, size_t expected_bytes = 0) {
    bytes_.reserve(kFrameBytes + 32 + expected_bytes);
    bytes_.append(kFrameBytes, '\0');
    Number(static_cast<uint8_t>(kind));
    Number(id);
  }

  template <typename T>
  void Number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void Text(std::string_view text) {
    Number(static_cast<uint32_t>(text.size()));
    bytes_ += text;
  }
  template <typename T>
  void Numbers(const T* values, size_t count) {
    Text({reinterpret_cast<const char*>(values), count * sizeof(T)});
  }

  std::string Finish() && {
    const std::string_view payload = std::string_view(bytes_).substr(kFrameBytes);
    const auto size = static_cast<uint32_t>(payload.size());
    const uint32_t crc = Crc32c(payload);
    std::memcpy(bytes_.data(), &size, sizeof(size));
    std::memcpy(bytes_.data() + sizeof(size), &crc, sizeof(crc));
    return std::move(bytes_);
  }

 private:
  std::string bytes_;
};

// Reads of a payload that is too short give zeros and leave `ok` false.
struct Reader {
  std::string_view bytes;
  bool ok = true;

  template <typename T>
  T Number() {
    T value{};
    if (bytes.size() < sizeof(T)) {
      ok = false;
      return value;
    }
    std::memcpy(&value, bytes.data(), sizeof(T));
    bytes.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view Text() {
    const auto size = Number<uint32_t>();
    if (bytes.size() < size) {
      ok = false;
      return {};
    }
    const std::string_view text = bytes.substr(0, size);
    bytes.remove_prefix(size);
    return text;
  }
  template <typename T>
  std::vector<T> Numbers() {
    const std::string_view packed = Text();
    std::vector<T> values(packed.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), packed.data(), values.size() * sizeof(T));
    return values;
  }
};

JournalledAnswer ReadAnswer(Reader& reader) {
  JournalledAnswer answer;
  answer.session_id = reader.Text();
  answer.turn_id = reader.Text();
  answer.seed = reader.Number<uint64_t>();
  const std::string_view model = reader.Text();
  if (!answer.model.ParseFromArray(model.data(), static_cast<int>(model.size()))) {
    reader.ok = false;
  }
  answer.text = reader.Text();
  answer.tokens.set_tokenizer_digest(std::string(reader.Text()));
  const auto ids = reader.Numbers<int32_t>();
  answer.tokens.mutable_ids()->Assign(ids.begin(), ids.end());
  answer.deaths = reader.Number<uint32_t>();
  answer.taken_up = reader.Numbers<uint64_t>();
  if (!reader.bytes.empty()) {  // else of an old file
    answer.asked += std::chrono::microseconds(reader.Number<int64_t>());
  }
  return answer;
}

}  // namespace

std::string EncodeAnswer(const JournalledAnswer& answer) {
  const auto& ids = answer.tokens.ids();
  Writer writer(JournalRecord::Kind::kAnswer, answer.id,
                answer.text.size() + static_cast<size_t>(ids.size()) * sizeof(int32_t) + 256);
  writer.Text(answer.session_id);
  writer.Text(answer.turn_id);
  writer.Number(answer.seed);
  writer.Text(answer.model.SerializeAsString());
  writer.Text(answer.text);
  writer.Text(answer.tokens.tokenizer_digest());
  writer.Numbers(ids.data(), static_cast<size_t>(ids.size()));
  writer.Number(answer.deaths);
  writer.Numbers(answer.taken_up.data(), answer.taken_up.size());
  writer.Number(
      int64_t{std::chrono::duration_cast<std::chrono::microseconds>(answer.asked.time_since_epoch())
                  .count()});
  return std::move(writer).Finish();
}

std::string EncodeText(uint64_t id, const JournalText& piece) {
  const auto count = static_cast<size_t>(piece.token_ids.size());
  Writer writer(JournalRecord::Kind::kText, id, piece.text.size() + count * sizeof(int32_t));
  writer.Number(piece.offset);
  writer.Number(static_cast<uint32_t>(piece.token_offset));
  writer.Text(piece.text);
  writer.Numbers(piece.token_ids.data(), count);
  return std::move(writer).Finish();
}

std::string EncodeDeath(uint64_t id) { return Writer(JournalRecord::Kind::kDeath, id).Finish(); }

std::string EncodeEnd(uint64_t id) { return Writer(JournalRecord::Kind::kEnd, id).Finish(); }

std::optional<JournalRecord> TakeRecord(std::string_view& bytes) {
  Reader frame{bytes};
  const auto size = frame.Number<uint32_t>();
  const auto crc = frame.Number<uint32_t>();
  if (!frame.ok || frame.bytes.size() < size) return std::nullopt;
  Reader reader{frame.bytes.substr(0, size)};
  if (Crc32c(reader.bytes) != crc) return std::nullopt;

  JournalRecord record;
  record.kind = static_cast<JournalRecord::Kind>(reader.Number<uint8_t>());
  record.id = reader.Number<uint64_t>();
  switch (record.kind) {
    case JournalRecord::Kind::kAnswer:
      record.answer = ReadAnswer(reader);
      break;
    case JournalRecord::Kind::kText:
      record.offset = reader.Number<uint64_t>();
      record.token_offset = reader.Number<uint32_t>();
      record.text = reader.Text();
      record.token_ids = reader.Numbers<int32_t>();
      break;
    case JournalRecord::Kind::kDeath:
    case JournalRecord::Kind::kEnd:
      break;
    default:
      return std::nullopt;
  }
  if (!reader.ok || !reader.bytes.empty()) return std::nullopt;
  bytes.remove_prefix(kFrameBytes + size);
  return record;
}

}  // namespace llava
