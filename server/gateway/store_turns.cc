// Turns of the store.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "server/gateway/store_tables.h"

namespace llava {
namespace {

using google::protobuf::util::TimeUtil;

// For so long a request sent again is known as the same.
constexpr int64_t kRepeatableUs = int64_t{24} * 3600 * 1'000'000;

// Token ids as little-endian 32-bit numbers, the byte order of every machine this runs on.
std::string PackIds(const v1::TokenIds& tokens) {
  return std::string(reinterpret_cast<const char*>(tokens.ids().data()),
                     tokens.ids_size() * sizeof(int32_t));
}

std::string PackLengths(const std::vector<uint64_t>& lengths) {
  return std::string(reinterpret_cast<const char*>(lengths.data()),
                     lengths.size() * sizeof(uint64_t));
}

std::vector<uint64_t> UnpackLengths(const std::string& packed) {
  std::vector<uint64_t> lengths(packed.size() / sizeof(uint64_t));
  if (!lengths.empty()) {
    std::memcpy(lengths.data(), packed.data(), lengths.size() * sizeof(uint64_t));
  }
  return lengths;
}

v1::TokenIds UnpackIds(std::string digest, const std::string& packed) {
  v1::TokenIds tokens;
  tokens.set_tokenizer_digest(std::move(digest));
  if (packed.size() < sizeof(int32_t)) return tokens;  // an empty field has no memory to copy to
  tokens.mutable_ids()->Resize(static_cast<int>(packed.size() / sizeof(int32_t)), 0);
  std::memcpy(tokens.mutable_ids()->mutable_data(), packed.data(),
              tokens.ids_size() * sizeof(int32_t));
  return tokens;
}

int64_t MicrosOf(TurnTerms::Time time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

TurnTerms::Time TimeOf(int64_t micros) {
  return TurnTerms::Time(std::chrono::microseconds(micros));
}

StoredTurn ReadTurn(const SqlRow& row) {
  StoredTurn stored;
  v1::Turn& turn = stored.turn;
  turn.set_id(row.Text(0));
  turn.set_session_id(row.Text(1));
  turn.set_number(static_cast<uint32_t>(row.Int(2)));
  turn.set_state(static_cast<v1::TurnState>(row.Int(3)));
  turn.set_user_text(row.Text(4));
  turn.mutable_model()->set_name(row.Text(5));
  turn.mutable_model()->set_version(static_cast<uint64_t>(row.Int(6)));
  turn.mutable_model()->set_digest(row.Text(7));
  turn.set_seed(static_cast<uint64_t>(row.Int(8)));
  turn.set_answer_text(row.Text(9));
  stored.tokens = UnpackIds(row.Text(10), row.Text(11));
  turn.set_finish_reason(static_cast<v1::FinishReason>(row.Int(12)));
  turn.set_error_message(row.Text(13));
  if (!row.IsNull(14)) turn.mutable_usage()->ParseFromString(row.Text(14));
  if (!row.IsNull(15)) turn.mutable_timings()->ParseFromString(row.Text(15));
  *turn.mutable_create_time() = TimeUtil::MicrosecondsToTimestamp(row.Int(16));
  if (!row.IsNull(17)) {
    *turn.mutable_finish_time() = TimeUtil::MicrosecondsToTimestamp(row.Int(17));
  }
  stored.error_code = static_cast<absl::StatusCode>(row.Int(18));
  stored.taken_up = UnpackLengths(row.Text(19));
  turn.set_dropped_from_context(row.Int(20) != 0);
  return stored;
}

v1::ImageInfo ReadImage(const SqlRow& row) {
  v1::ImageInfo info;
  info.set_id(row.Text(0));
  info.set_format(row.Text(1));
  info.set_size_bytes(static_cast<uint64_t>(row.Int(2)));
  info.set_width(static_cast<uint32_t>(row.Int(3)));
  info.set_height(static_cast<uint32_t>(row.Int(4)));
  return info;
}

}  // namespace

absl::Status RequestKeyTaken(const std::string& turn_id) {
  return absl::InvalidArgumentError(
      absl::StrCat("idempotency_key was used for turn ", turn_id,
                   ", which asked something else; take a new key for a new question"));
}

absl::Status NoPicture(size_t index, const std::string& id) {
  return absl::NotFoundError(absl::StrCat("images[", index, "]: this session has no picture \"", id,
                                          "\"; send it again with UploadImage or as data"));
}

absl::Status CheckPictures(const std::vector<StoredImage>& images,
                           const std::set<std::string>& known) {
  std::set<std::string> sent;
  for (size_t i = 0; i < images.size(); ++i) {
    const std::string& id = images[i].info.id();
    if (images[i].bytes) sent.insert(id);
    if (!known.contains(id) && !sent.contains(id)) return NoPicture(i, id);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredTurn>> StoreTables::ReadTurns(const std::string& session_id,
                                                               int64_t first, int64_t limit,
                                                               Texts texts) {
  // Of a long text that is not wanted nothing is read.
  constexpr char kOfPrompt[] =
      "CASE WHEN answer_text <> '' AND NOT dropped OR state = 1"
      " OR number = (SELECT max(number) FROM turns WHERE session_id = ?1)"
      " THEN user_text ELSE '' END";
  std::vector<StoredTurn> turns;
  auto status = database_.Query(
      absl::StrCat(
          "SELECT id, session_id, number, state, ", texts == Texts::kAll ? "user_text" : kOfPrompt,
          ", model_name, model_version, model_digest,"
          " seed, answer_text, tokenizer_digest, token_ids, finish_reason, error_message, usage,"
          " timings, created_us, finished_us, error_code, taken_up, dropped FROM turns"
          " WHERE session_id = ?1 AND number >= ?2 ORDER BY number LIMIT ?3"),
      {session_id, first, limit}, [&](const SqlRow& row) { turns.push_back(ReadTurn(row)); });
  if (!status.ok()) return status;
  if (turns.empty()) return turns;
  auto stored = turns.begin();
  status = database_.Query(
      "SELECT images.id, format, size_bytes, width, height, number FROM turns"
      " CROSS JOIN turn_images ON turn_id = turns.id CROSS JOIN images ON images.id = image_id"
      " WHERE session_id = ? AND number BETWEEN ? AND ? ORDER BY number, position",
      {session_id, int64_t{turns.front().turn.number()}, int64_t{turns.back().turn.number()}},
      [&](const SqlRow& row) {
        while (stored->turn.number() != row.Int(5)) ++stored;
        *stored->turn.add_images() = ReadImage(row);
      });
  if (!status.ok()) return status;
  return turns;
}

absl::StatusOr<TurnPage> StoreTables::PageOfTurns(const std::string& session_id, uint32_t page_size,
                                                  const std::string& page_token) {
  int64_t first = 1;
  if (!page_token.empty()) {  // the number of the next turn
    const char* end = page_token.data() + page_token.size();
    const auto parsed = std::from_chars(page_token.data(), end, first);
    if (parsed.ec != std::errc() || parsed.ptr != end) {
      return absl::InvalidArgumentError(
          "page_token is not one of ListTurns; pass next_page_token as it came");
    }
  }
  if (auto session = FindSession(session_id); !session.ok()) return session.status();
  TurnPage page;
  uint64_t bytes = 0;
  // One by one: what is beyond the page may be large.
  while (true) {
    auto turns = ReadTurns(session_id, first, 1);
    if (!turns.ok()) return turns.status();
    if (turns->empty()) return page;
    v1::Turn& turn = turns->front().turn;
    bytes += turn.ByteSizeLong();
    if (page.turns.size() == page_size || (bytes > kPageBytes && !page.turns.empty())) {
      page.next_page_token = absl::StrCat(turn.number());
      return page;
    }
    first = int64_t{turn.number()} + 1;
    page.turns.push_back(std::move(turn));
  }
}

absl::StatusOr<Conversation> StoreTables::FindConversation(const std::string& session_id) {
  auto session = FindSession(session_id);
  if (!session.ok()) return session.status();
  Conversation conversation;
  conversation.session = *std::move(session);
  int64_t first = 0;
  auto status = database_.Query("SELECT context_from, kept_image FROM sessions WHERE id = ?",
                                {session_id}, [&](const SqlRow& row) {
                                  first = row.Int(0);
                                  conversation.kept_image = row.Text(1);
                                });
  if (!status.ok()) return status;
  auto turns = ReadTurns(session_id, first, INT64_MAX, Texts::kOfPrompt);
  if (!turns.ok()) return turns.status();
  conversation.turns = *std::move(turns);
  status = database_.Query("SELECT image_id FROM session_images WHERE session_id = ?", {session_id},
                           [&](const SqlRow& row) { conversation.images.insert(row.Text(0)); });
  if (!status.ok()) return status;
  return conversation;
}

absl::StatusOr<StoredTurn> StoreTables::FindTurn(const std::string& session_id,
                                                 const std::string& turn_id) {
  if (auto session = FindSession(session_id); !session.ok()) return session.status();
  std::optional<int64_t> number;
  auto status =
      database_.Query("SELECT number FROM turns WHERE id = ? AND session_id = ?",
                      {turn_id, session_id}, [&](const SqlRow& row) { number = row.Int(0); });
  if (!status.ok()) return status;
  if (!number) {
    return absl::NotFoundError(absl::StrCat("no turn \"", turn_id, "\" in session \"", session_id,
                                            "\"; ListTurns names those there are"));
  }
  auto turns = ReadTurns(session_id, *number, 1);
  if (!turns.ok()) return turns.status();
  return std::move(turns->front());
}

absl::StatusOr<std::string> StoreTables::FindRepeated(const std::string& session_id,
                                                      const RequestKey& request, int64_t now_us) {
  std::string turn_id, hash;
  auto status = database_.Query(
      "SELECT id, request_hash FROM turns INDEXED BY turns_by_request"
      " WHERE session_id = ? AND request_key = ? AND created_us > ? ORDER BY number DESC LIMIT 1",
      {session_id, request.key, now_us - kRepeatableUs}, [&](const SqlRow& row) {
        turn_id = row.Text(0);
        hash = row.Text(1);
      });
  if (!status.ok()) return status;
  if (!turn_id.empty() && hash != request.hash) return RequestKeyTaken(turn_id);
  return turn_id;
}

absl::Status StoreTables::AttachImages(const NewTurn& turn, int64_t now_us) {
  for (size_t i = 0; i < turn.images.size(); ++i) {
    const std::string& id = turn.images[i].info.id();
    if (turn.images[i].bytes) {
      auto status = InsertImage(turn.session_id, turn.images[i], now_us);
      if (!status.ok()) return status;
    }
    bool held = false;
    auto status =
        database_.Query("SELECT 1 FROM session_images WHERE session_id = ? AND image_id = ?",
                        {turn.session_id, id}, [&](const SqlRow&) { held = true; });
    if (!status.ok()) return status;
    if (!held) return NoPicture(i, id);
    status = database_.Query("INSERT INTO turn_images VALUES (?, ?, ?)",
                             {turn.id, static_cast<int64_t>(i), id});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> StoreTables::InsertTurn(const NewTurn& turn, int64_t now_us) {
  std::optional<std::string> owner;
  int64_t count = 0;  // turns go with their session only: the last number
  auto status = database_.Query(
      "SELECT owner, (SELECT max(number) FROM turns WHERE session_id = sessions.id)"
      " FROM sessions WHERE id = ?",
      {turn.session_id}, [&](const SqlRow& row) {
        owner = row.Text(0);
        count = row.Int(1);
      });
  if (!status.ok()) return status;
  if (!owner) return NoSession(turn.session_id);
  int64_t limit = limits_.turns_per_session;
  if (const int64_t own = LimitsOf(*owner).turns_per_session; own > 0) {
    limit = limit > 0 ? std::min(limit, own) : own;
  }
  if (limit > 0 && count >= limit) {
    return absl::ResourceExhaustedError(absl::StrCat("this session has ", count,
                                                     " turns, allowed are ", limit,
                                                     "; begin another with CreateSession"));
  }
  const std::string sampling = turn.sampling.SerializeAsString();
  const bool keyed = !turn.request.key.empty();
  status = database_.Query(
      "INSERT INTO turns (id, session_id, number, state, user_text, model_name, model_version,"
      " model_digest, seed, sampling, created_us, request_key, request_hash)"
      " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      {turn.id, turn.session_id, count + 1, int64_t{v1::TURN_STATE_RUNNING}, turn.user_text,
       turn.model.name(), static_cast<int64_t>(turn.model.version()), SqlBlob{turn.model.digest()},
       static_cast<int64_t>(turn.seed), SqlBlob{sampling}, now_us,
       keyed ? SqlValue(std::string_view(turn.request.key)) : SqlValue(nullptr),
       keyed ? SqlValue(SqlBlob{turn.request.hash}) : SqlValue(nullptr)});
  if (status.ok()) status = AttachImages(turn, now_us);
  if (status.ok()) status = FinishBegin(turn, now_us);
  if (!status.ok()) return status;
  return static_cast<uint32_t>(count + 1);
}

absl::Status StoreTables::FinishBegin(const NewTurn& turn, int64_t now_us) {
  const TurnTerms& terms = turn.terms;
  auto status = database_.Query(
      "INSERT OR REPLACE INTO running_turns (session_id, turn_id, key_name, weight, priority,"
      " tokens, asked_us, deadline_us, on_disconnect) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
      {turn.session_id, turn.id, terms.key_name, int64_t{terms.weight}, int64_t{terms.priority},
       static_cast<int64_t>(terms.tokens), MicrosOf(terms.asked),
       terms.deadline == TurnTerms::Time::max() ? SqlValue(nullptr) : MicrosOf(terms.deadline),
       int64_t{terms.on_disconnect}});
  // The oldest are dropped first, so that all before one are out of prompts as well.
  for (const std::string& id : turn.dropped_turns) {
    if (status.ok()) status = database_.Query("UPDATE turns SET dropped = 1 WHERE id = ?", {id});
    if (!status.ok()) break;
    status = database_.Query(
        "UPDATE sessions SET context_from = coalesce((SELECT number + 1 FROM turns WHERE id = ?2"
        " AND session_id = ?1), context_from), kept_image = coalesce((SELECT image_id"
        " FROM turn_images WHERE turn_id = ?2 ORDER BY position DESC LIMIT 1), kept_image)"
        " WHERE id = ?1",
        {turn.session_id, id});
  }
  used_us_[turn.session_id] = now_us;
  return status;
}

absl::StatusOr<uint32_t> StoreTables::RestartTurn(const NewTurn& turn, int64_t now_us) {
  const std::string sampling = turn.sampling.SerializeAsString();
  const std::string taken_up = PackLengths(turn.taken_up);
  auto stored = FindTurn(turn.session_id, turn.id);
  if (!stored.ok()) return stored.status();
  auto status = database_.Query(
      "UPDATE turns SET state = ?, model_name = ?, model_version = ?, model_digest = ?, seed = ?,"
      " sampling = ?, answer_text = '', tokenizer_digest = NULL, token_ids = NULL,"
      " finish_reason = 0, error_code = 0, error_message = '', usage = NULL, timings = NULL,"
      " finished_us = NULL, taken_up = ?"
      " WHERE id = ? AND session_id = ?",
      {int64_t{v1::TURN_STATE_RUNNING}, turn.model.name(),
       static_cast<int64_t>(turn.model.version()), SqlBlob{turn.model.digest()},
       static_cast<int64_t>(turn.seed), SqlBlob{sampling}, SqlBlob{taken_up}, turn.id,
       turn.session_id});
  if (status.ok()) status = FinishBegin(turn, now_us);
  if (!status.ok()) return status;
  return stored->turn.number();
}

absl::Status StoreTables::SetTries(const std::string& session_id, const std::string& turn_id,
                                   uint32_t tries, const std::vector<uint64_t>& taken_up) {
  auto status =
      database_.Query("UPDATE running_turns SET tries = ? WHERE session_id = ? AND turn_id = ?",
                      {int64_t{tries}, session_id, turn_id});
  if (!status.ok() || database_.changes() == 0) return status;
  const std::string lengths = PackLengths(taken_up);
  return database_.Query("UPDATE turns SET taken_up = ? WHERE id = ? AND session_id = ?",
                         {SqlBlob{lengths}, turn_id, session_id});
}

absl::Status StoreTables::EndTurn(const TurnResult& result, int64_t now_us) {
  const std::string ids = PackIds(result.tokens);
  const std::string usage = result.usage.SerializeAsString();
  const std::string timings = result.timings.SerializeAsString();
  const std::string taken_up = PackLengths(result.taken_up);
  auto status = database_.Query(
      "UPDATE turns SET state = ?, finish_reason = ?, error_message = ?, answer_text = ?,"
      " tokenizer_digest = ?, token_ids = ?, model_name = ?, model_version = ?, model_digest = ?,"
      " usage = ?, timings = ?, finished_us = ?, error_code = ?, taken_up = ?"
      " WHERE id = ? AND session_id = ?",
      {int64_t{result.state}, int64_t{result.reason}, result.error_message, result.answer_text,
       SqlBlob{result.tokens.tokenizer_digest()}, SqlBlob{ids}, result.model.name(),
       static_cast<int64_t>(result.model.version()), SqlBlob{result.model.digest()}, SqlBlob{usage},
       SqlBlob{timings}, now_us, static_cast<int64_t>(result.error_code), SqlBlob{taken_up},
       result.turn_id, result.session_id});
  if (!status.ok() || database_.changes() == 0) return status;
  used_us_[result.session_id] = now_us;
  status = database_.Query("DELETE FROM running_turns WHERE session_id = ? AND turn_id = ?",
                           {result.session_id, result.turn_id});
  // Nothing was told: the same request is worth another try.
  if (status.ok() && !result.is_answer()) {
    status = database_.Query(
        "UPDATE turns SET request_key = NULL, request_hash = NULL WHERE id = ?", {result.turn_id});
  }
  return status;
}

absl::StatusOr<std::vector<UnfinishedTurn>> StoreTables::UnfinishedTurns() {
  std::vector<UnfinishedTurn> turns;
  auto status = database_.Query(
      "SELECT turns.session_id, id, number, model_name, model_version, model_digest, sampling,"
      " request_key, request_hash, key_name, weight, priority, tokens, asked_us, deadline_us,"
      " tries, seed, on_disconnect, taken_up FROM running_turns JOIN turns ON id = turn_id"
      " ORDER BY asked_us, turns.created_us",
      {}, [&](const SqlRow& row) {
        UnfinishedTurn& turn = turns.emplace_back();
        turn.session_id = row.Text(0);
        turn.turn_id = row.Text(1);
        turn.number = static_cast<uint32_t>(row.Int(2));
        turn.model.set_name(row.Text(3));
        turn.model.set_version(static_cast<uint64_t>(row.Int(4)));
        turn.model.set_digest(row.Text(5));
        turn.sampling.ParseFromString(row.Text(6));
        turn.sampling.set_seed(static_cast<uint64_t>(row.Int(16)));
        turn.request = {row.Text(7), row.Text(8)};
        turn.terms.key_name = row.Text(9);
        turn.terms.weight = static_cast<uint32_t>(row.Int(10));
        turn.terms.priority = static_cast<int32_t>(row.Int(11));
        turn.terms.tokens = static_cast<uint64_t>(row.Int(12));
        turn.terms.asked = TimeOf(row.Int(13));
        if (!row.IsNull(14)) turn.terms.deadline = TimeOf(row.Int(14));
        turn.tries = static_cast<uint32_t>(row.Int(15));
        turn.terms.on_disconnect = static_cast<v1::OnDisconnect>(row.Int(17));
        turn.taken_up = UnpackLengths(row.Text(18));
      });
  if (!status.ok()) return status;
  return turns;
}

}  // namespace llava
