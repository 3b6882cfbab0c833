// Sessions and pictures of the store.

#include <charconv>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "server/gateway/store_tables.h"

namespace llava {
namespace {

using google::protobuf::util::TimeUtil;

constexpr char kSessionColumns[] =
    "SELECT id, model, system_prompt, sampling, title, context_overflow, created_us, used_us,"
    " owner, (SELECT max(number) FROM turns WHERE session_id = sessions.id), idle_expiry_us"
    " FROM sessions ";

v1::Session ReadSession(const SqlRow& row) {
  v1::Session session;
  session.set_id(row.Text(0));
  session.set_model(row.Text(1));
  if (!row.IsNull(2)) session.set_system_prompt(row.Text(2));
  if (!row.IsNull(3)) session.mutable_sampling()->ParseFromString(row.Text(3));
  session.set_title(row.Text(4));
  session.set_context_overflow(static_cast<v1::ContextOverflow>(row.Int(5)));
  *session.mutable_create_time() = TimeUtil::MicrosecondsToTimestamp(row.Int(6));
  *session.mutable_last_used_time() = TimeUtil::MicrosecondsToTimestamp(row.Int(7));
  session.set_owner(row.Text(8));
  session.set_turn_count(static_cast<uint32_t>(row.Int(9)));
  if (row.Int(10) > 0) {
    *session.mutable_idle_expiry() = TimeUtil::MicrosecondsToDuration(row.Int(10));
  }
  return session;
}

// NULL when unset, so that "" stays a real system text.
SqlValue SystemPrompt(const v1::Session& session) {
  if (!session.has_system_prompt()) return nullptr;
  return std::string_view(session.system_prompt());
}

int64_t IdleExpiry(const v1::Session& session) {
  return TimeUtil::DurationToMicroseconds(session.idle_expiry());
}

absl::Status TooMuch(const std::string& owner, const std::string& what, int64_t limit) {
  return absl::ResourceExhaustedError(absl::StrCat("the API key \"", owner, "\" keeps ", what,
                                                   ", allowed are ", limit,
                                                   "; make room with DeleteSession"));
}

}  // namespace

absl::Status NoSession(const std::string& id) {
  return absl::NotFoundError(absl::StrCat(
      "no session \"", id, "\": it was deleted or never made; begin one with CreateSession"));
}

KeyLimits StoreTables::LimitsOf(const std::string& owner) const {
  return limits_.of_owner && !owner.empty() ? limits_.of_owner(owner) : KeyLimits();
}

absl::Status StoreTables::CheckPictures(const std::string& owner, const v1::ImageInfo& image) {
  const KeyLimits limits = LimitsOf(owner);
  if (limits.pictures == 0 && limits.picture_bytes == 0) return absl::OkStatus();
  int64_t count = 0, bytes = 0;
  auto status = database_.Query(
      "SELECT count(*), coalesce(sum(size_bytes), 0) FROM images WHERE id <> ? AND id IN"
      " (SELECT image_id FROM session_images JOIN sessions ON sessions.id = session_id"
      " WHERE owner = ?)",
      {image.id(), owner}, [&](const SqlRow& row) {
        count = row.Int(0);
        bytes = row.Int(1);
      });
  if (!status.ok()) return status;
  const int64_t all_bytes = bytes + static_cast<int64_t>(image.size_bytes());
  if (limits.pictures > 0 && count >= limits.pictures) {
    return TooMuch(owner, absl::StrCat(count, " pictures"), limits.pictures);
  }
  if (limits.picture_bytes > 0 && all_bytes > limits.picture_bytes) {
    return TooMuch(owner, absl::StrCat(bytes, " bytes of pictures, with this one ", all_bytes),
                   limits.picture_bytes);
  }
  return absl::OkStatus();
}

absl::Status StoreTables::InsertSession(const v1::Session& session, int64_t now_us) {
  if (const int64_t limit = LimitsOf(session.owner()).sessions; limit > 0) {
    int64_t count = 0;
    auto counted =
        database_.Query("SELECT count(*) FROM sessions WHERE owner = ?", {session.owner()},
                        [&](const SqlRow& row) { count = row.Int(0); });
    if (!counted.ok()) return counted;
    if (count >= limit) return TooMuch(session.owner(), absl::StrCat(count, " sessions"), limit);
  }
  const std::string sampling = session.sampling().SerializeAsString();
  auto status = database_.Query(
      "INSERT INTO sessions (id, model, system_prompt, sampling, title, context_overflow,"
      " created_us, used_us, owner, idle_expiry_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      {session.id(), session.model(), SystemPrompt(session),
       session.has_sampling() ? SqlValue(SqlBlob{sampling}) : SqlValue(nullptr), session.title(),
       int64_t{session.context_overflow()}, now_us, now_us, session.owner(), IdleExpiry(session)});
  return status.ok() ? WriteMetadata(session) : status;
}

absl::Status StoreTables::WriteMetadata(const v1::Session& session) {
  if (auto status =
          database_.Query("DELETE FROM session_metadata WHERE session_id = ?", {session.id()});
      !status.ok()) {
    return status;
  }
  for (const auto& [key, value] : session.metadata()) {
    auto status = database_.Query("INSERT INTO session_metadata VALUES (?, ?, ?)",
                                  {session.id(), key, value});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Session> StoreTables::FindSession(const std::string& id) {
  std::optional<v1::Session> session;
  auto status = database_.Query(absl::StrCat(kSessionColumns, "WHERE id = ?"), {id},
                                [&](const SqlRow& row) { session = ReadSession(row); });
  if (!status.ok()) return status;
  if (!session) return NoSession(id);
  if (const auto used = used_us_.find(id); used != used_us_.end()) {
    *session->mutable_last_used_time() = TimeUtil::MicrosecondsToTimestamp(used->second);
  }
  status = database_.Query(
      "SELECT key, value FROM session_metadata WHERE session_id = ?", {id},
      [&](const SqlRow& row) { (*session->mutable_metadata())[row.Text(0)] = row.Text(1); });
  if (!status.ok()) return status;
  return *std::move(session);
}

absl::StatusOr<SessionPage> StoreTables::PageOfSessions(const std::optional<std::string>& owner,
                                                        uint32_t page_size,
                                                        const std::string& page_token) {
  // A token is "<used_us>:<id>" of the last session of the page before.
  int64_t used_us = INT64_MAX;
  std::string id;
  if (!page_token.empty()) {
    const size_t colon = page_token.find(':');
    const char* end = page_token.data() + (colon == std::string::npos ? 0 : colon);
    const auto parsed = std::from_chars(page_token.data(), end, used_us);
    if (parsed.ec != std::errc() || parsed.ptr != end) {
      return absl::InvalidArgumentError(
          "page_token is not one of ListSessions; pass next_page_token as it came");
    }
    id = page_token.substr(colon + 1);
  }
  // When they were last used as the order has it: what was done since the last WriteUses is not in
  // it yet.
  std::vector<std::pair<std::string, int64_t>> found;
  SessionPage page;
  const auto take = [&](const SqlRow& row) { found.emplace_back(row.Text(0), row.Int(7)); };
  const std::string before = "(used_us, id) < (?, ?) ORDER BY used_us DESC, id DESC LIMIT ?";
  const int64_t limit = int64_t{page_size} + 1;
  auto status = owner
                    ? database_.Query(absl::StrCat(kSessionColumns, "WHERE owner = ? AND ", before),
                                      {*owner, used_us, id, limit}, take)
                    : database_.Query(absl::StrCat(kSessionColumns, "WHERE ", before),
                                      {used_us, id, limit}, take);
  if (!status.ok()) return status;
  bool more = found.size() > page_size;
  if (more) found.pop_back();
  uint64_t bytes = 0;
  for (const auto& [each, used] : found) {
    auto session = FindSession(each);
    if (!session.ok()) return session.status();
    bytes += session->ByteSizeLong();
    if (bytes > kPageBytes && !page.sessions.empty()) {
      more = true;
      break;
    }
    page.sessions.push_back(*std::move(session));
  }
  if (more) {
    const auto& [last, used] = found[page.sessions.size() - 1];
    page.next_page_token = absl::StrCat(used, ":", last);
  }
  return page;
}

absl::StatusOr<v1::Session> StoreTables::ChangeSession(const v1::Session& changes,
                                                       const google::protobuf::FieldMask& mask) {
  auto found = FindSession(changes.id());
  if (!found.ok()) return found;
  v1::Session session = *std::move(found);
  for (const std::string& path : mask.paths()) {
    if (path == "title") {
      session.set_title(changes.title());
    } else if (path == "metadata") {
      *session.mutable_metadata() = changes.metadata();
    } else if (path == "system_prompt") {
      session.clear_system_prompt();
      if (changes.has_system_prompt()) session.set_system_prompt(changes.system_prompt());
    } else if (path == "sampling") {
      session.clear_sampling();
      if (changes.has_sampling()) *session.mutable_sampling() = changes.sampling();
    } else if (path == "idle_expiry") {
      session.clear_idle_expiry();
      if (IdleExpiry(changes) > 0) *session.mutable_idle_expiry() = changes.idle_expiry();
    } else if (path == "context_overflow") {
      session.set_context_overflow(changes.context_overflow());
    } else {
      return absl::InternalError(absl::StrCat("no rule to change Session.", path));
    }
  }
  const std::string sampling = session.sampling().SerializeAsString();
  auto status = database_.Query(
      "UPDATE sessions SET system_prompt = ?, sampling = ?, title = ?, context_overflow = ?,"
      " idle_expiry_us = ? WHERE id = ?",
      {SystemPrompt(session),
       session.has_sampling() ? SqlValue(SqlBlob{sampling}) : SqlValue(nullptr), session.title(),
       int64_t{session.context_overflow()}, IdleExpiry(session), session.id()});
  if (status.ok()) status = WriteMetadata(session);
  if (!status.ok()) return status;
  return session;
}

absl::StatusOr<std::vector<std::string>> StoreTables::RemoveSession(const std::string& id) {
  std::vector<std::string> last_of;
  auto status = database_.Query(
      "SELECT image_id FROM session_images AS mine WHERE session_id = ? AND NOT EXISTS"
      " (SELECT 1 FROM session_images WHERE image_id = mine.image_id AND session_id <> ?)",
      {id, id}, [&](const SqlRow& row) { last_of.push_back(row.Text(0)); });
  if (status.ok()) status = database_.Query("DELETE FROM sessions WHERE id = ?", {id});
  if (!status.ok()) return status;
  if (database_.changes() == 0) return NoSession(id);
  used_us_.erase(id);
  for (const std::string& image : last_of) {
    status = database_.Query("DELETE FROM images WHERE id = ?", {image});
    if (!status.ok()) return status;
  }
  return last_of;
}

// The conditions are those of the two indexes by expiry, word for word.
const char StoreTables::kExpiredSessions[] =
    "SELECT session FROM (SELECT id AS session, ?1 AS expiry FROM sessions"
    "  WHERE ?1 > 0 AND idle_expiry_us = 0 AND used_us <= ?2 - ?1"
    " UNION ALL SELECT id, idle_expiry_us FROM sessions"
    "  WHERE idle_expiry_us > 0 AND used_us + idle_expiry_us <= ?2)"
    " WHERE NOT EXISTS (SELECT 1 FROM running_turns WHERE session_id = session)"
    " AND NOT EXISTS (SELECT 1 FROM turns WHERE session_id = session"
    "  AND max(created_us, coalesce(finished_us, 0)) + expiry > ?2) LIMIT ?3";

absl::StatusOr<std::vector<std::string>> StoreTables::ExpiredSessions(int64_t now_us,
                                                                      int64_t default_expiry_us,
                                                                      int64_t limit) {
  std::vector<std::string> ids;
  auto status = database_.Query(kExpiredSessions, {default_expiry_us, now_us, limit},
                                [&](const SqlRow& row) { ids.push_back(row.Text(0)); });
  if (!status.ok()) return status;
  return ids;
}

absl::Status StoreTables::WriteUses() {
  for (const auto& [id, used_us] : used_us_) {
    auto status = database_.Query("UPDATE sessions SET used_us = ? WHERE id = ?", {used_us, id});
    if (!status.ok()) return status;
    written_us_[id] = used_us;
  }
  used_us_.clear();
  return absl::OkStatus();
}

void StoreTables::EndTransaction(bool committed) {
  if (!committed) used_us_.merge(written_us_);  // keeps what came later
  written_us_.clear();
}

absl::Status StoreTables::InsertImage(const std::string& session_id, const StoredImage& image,
                                      int64_t now_us) {
  const auto session = FindSession(session_id);
  if (!session.ok()) return session.status();
  const v1::ImageInfo& info = image.info;
  int64_t others = 0;
  auto status = CheckPictures(session->owner(), info);
  if (!status.ok()) return status;
  status =
      database_.Query("SELECT count(*) FROM session_images WHERE session_id = ? AND image_id <> ?",
                      {session_id, info.id()}, [&](const SqlRow& row) { others = row.Int(0); });
  if (!status.ok()) return status;
  if (limits_.images_per_session > 0 && others >= limits_.images_per_session) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this session has ", others, " pictures, allowed are ",
                     limits_.images_per_session, "; begin another with CreateSession"));
  }
  const auto written = files_.Write(info.id(), *image.bytes);
  if (!written.ok()) return written.status();
  if (*written) new_files_.push_back(info.id());
  status = database_.Query("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?)",
                           {info.id(), info.format(), static_cast<int64_t>(info.size_bytes()),
                            int64_t{info.width()}, int64_t{info.height()}});
  if (!status.ok()) return status;
  status = database_.Query("INSERT OR IGNORE INTO session_images VALUES (?, ?)",
                           {session_id, info.id()});
  if (status.ok()) used_us_[session_id] = now_us;
  return status;
}

std::vector<std::string> StoreTables::TakeNewFiles() { return std::exchange(new_files_, {}); }

absl::StatusOr<bool> StoreTables::HasImage(const std::string& id) {
  bool found = false;
  auto status = database_.Query("SELECT 1 FROM images WHERE id = ?", {id},
                                [&](const SqlRow&) { found = true; });
  if (!status.ok()) return status;
  return found;
}

absl::StatusOr<std::set<std::string>> StoreTables::ImageIds() {
  std::set<std::string> ids;
  auto status = database_.Query("SELECT id FROM images", {},
                                [&](const SqlRow& row) { ids.insert(row.Text(0)); });
  if (!status.ok()) return status;
  return ids;
}

absl::StatusOr<int64_t> StoreTables::CountSessions() {
  int64_t count = 0;
  auto status = database_.Query("SELECT count(*) FROM sessions", {},
                                [&](const SqlRow& row) { count = row.Int(0); });
  if (!status.ok()) return status;
  return count;
}

}  // namespace llava
