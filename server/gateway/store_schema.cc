#include "server/gateway/store_schema.h"

#include <cstdint>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

// Entry i brings version i to i + 1; entries are never changed once released. Times are
// microseconds since 1970. `seed` and versions are unsigned numbers stored in SQLite's signed 64
// bits. `sampling`, `usage` and `timings` are messages of llava.v1.
constexpr const char* kMigrations[] = {
    R"sql(
CREATE TABLE sessions (
  id TEXT PRIMARY KEY,
  model TEXT NOT NULL,
  system_prompt TEXT,
  sampling BLOB,
  title TEXT NOT NULL,
  context_overflow INTEGER NOT NULL,
  created_us INTEGER NOT NULL,
  used_us INTEGER NOT NULL
);
CREATE INDEX sessions_by_use ON sessions (used_us, id);

CREATE TABLE session_metadata (
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (session_id, key)
) WITHOUT ROWID;

CREATE TABLE images (
  id TEXT PRIMARY KEY,
  format TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL
);

CREATE TABLE session_images (
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  image_id TEXT NOT NULL REFERENCES images (id),
  PRIMARY KEY (session_id, image_id)
) WITHOUT ROWID;
CREATE INDEX session_images_by_image ON session_images (image_id);

CREATE TABLE turns (
  id TEXT PRIMARY KEY,
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  state INTEGER NOT NULL,
  user_text TEXT NOT NULL,
  model_name TEXT NOT NULL,
  model_version INTEGER NOT NULL,
  model_digest BLOB NOT NULL,
  seed INTEGER NOT NULL,
  sampling BLOB NOT NULL,
  answer_text TEXT NOT NULL DEFAULT '',
  tokenizer_digest BLOB,
  token_ids BLOB,
  finish_reason INTEGER NOT NULL DEFAULT 0,
  error_message TEXT NOT NULL DEFAULT '',
  usage BLOB,
  timings BLOB,
  created_us INTEGER NOT NULL,
  finished_us INTEGER,
  UNIQUE (session_id, number)
);
CREATE INDEX turns_running ON turns (state) WHERE state = 1;

CREATE TABLE turn_images (
  turn_id TEXT NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  image_id TEXT NOT NULL REFERENCES images (id),
  PRIMARY KEY (turn_id, position)
) WITHOUT ROWID;
CREATE INDEX turn_images_by_image ON turn_images (image_id);
)sql",
    // `error_code`: of absl. `taken_up`: 64-bit numbers. `idle_expiry_us` 0: the gateway's default.
    R"sql(
ALTER TABLE turns ADD COLUMN error_code INTEGER NOT NULL DEFAULT 0;
ALTER TABLE turns ADD COLUMN taken_up BLOB;
ALTER TABLE turns ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN idle_expiry_us INTEGER NOT NULL DEFAULT 0;

CREATE TABLE idempotency_keys (
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  request_hash BLOB NOT NULL,
  turn_id TEXT NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
  created_us INTEGER NOT NULL,
  PRIMARY KEY (session_id, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_us);
CREATE INDEX idempotency_keys_by_turn ON idempotency_keys (turn_id);
)sql",
    // Name of the API key that made the session; '' = made without keys.
    R"sql(
ALTER TABLE sessions ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX sessions_by_owner ON sessions (owner, used_us, id);
)sql",
    // What a running turn was admitted with, so that a later process can admit it likewise.
    // `key_name`: API key; `deadline_us` NULL: the caller set none; `tries`: later processes that
    // may have died of it. The key of a request stands with its turn: one tree less to write.
    R"sql(
CREATE TABLE running_turns (
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  turn_id TEXT NOT NULL,
  key_name TEXT NOT NULL,
  weight INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  asked_us INTEGER NOT NULL,
  deadline_us INTEGER,
  tries INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (session_id, turn_id)
) WITHOUT ROWID;
INSERT INTO running_turns
  SELECT session_id, turns.id, owner, 1, 0, 0, strftime('%s', 'now') * 1000000, NULL, 0
  FROM turns JOIN sessions ON sessions.id = session_id WHERE state = 1;
DROP INDEX turns_running;

ALTER TABLE turns ADD COLUMN request_key TEXT;
ALTER TABLE turns ADD COLUMN request_hash BLOB;
UPDATE turns SET (request_key, request_hash) =
  (SELECT key, idempotency_keys.request_hash FROM idempotency_keys WHERE turn_id = turns.id)
  WHERE id IN (SELECT turn_id FROM idempotency_keys);
DROP TABLE idempotency_keys;
CREATE INDEX turns_by_request ON turns (session_id, request_key) WHERE request_key IS NOT NULL;
)sql",
    // Whoever looks for a request's turn reads all turns of its session anyway: one tree less.
    "DROP INDEX turns_by_request;",
    // Turns before `context_from` are in no prompt any more, and none of them is read for one;
    // `kept_image` is the last picture of those. The turns of a request are found without them.
    // `on_disconnect`: of llava.v1.
    R"sql(
ALTER TABLE sessions ADD COLUMN context_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN kept_image TEXT;
UPDATE sessions SET context_from =
  (SELECT max(number) + 1 FROM turns WHERE session_id = sessions.id AND dropped)
  WHERE id IN (SELECT session_id FROM turns WHERE dropped);
UPDATE sessions SET kept_image =
  (SELECT image_id FROM turns JOIN turn_images ON turn_id = turns.id
   WHERE session_id = sessions.id AND dropped ORDER BY number DESC, position DESC LIMIT 1)
  WHERE context_from > 0;
CREATE INDEX turns_by_request ON turns (session_id, request_key) WHERE request_key IS NOT NULL;
ALTER TABLE running_turns ADD COLUMN on_disconnect INTEGER NOT NULL DEFAULT 0;
)sql",
    // Who looks for expired sessions, every ten seconds, reads those alone. A session stands in one
    // of both.
    R"sql(
CREATE INDEX sessions_by_own_expiry ON sessions (used_us + idle_expiry_us)
  WHERE idle_expiry_us > 0;
CREATE INDEX sessions_by_default_expiry ON sessions (used_us) WHERE idle_expiry_us = 0;
)sql",
};

}  // namespace

absl::Status MigrateStore(SqlDatabase& database, int64_t newest) {
  if (newest == 0) newest = std::size(kMigrations);
  if (auto status = database.Script("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER)");
      !status.ok()) {
    return status;
  }
  int64_t version = 0;
  if (auto status = database.Query("SELECT max(version) FROM schema_version", {},
                                   [&](const SqlRow& row) { version = row.Int(0); });
      !status.ok()) {
    return status;
  }
  if (version > newest) {
    return absl::FailedPreconditionError(
        absl::StrCat("the session store has schema version ", version, ", this program knows ",
                     newest, "; start a newer llava-gateway or name another --data-dir"));
  }
  for (; version < newest; ++version) {
    const auto status = database.Script(
        absl::StrCat("BEGIN;", kMigrations[version], "DELETE FROM schema_version;",
                     "INSERT INTO schema_version VALUES (", version + 1, "); COMMIT;"));
    if (!status.ok()) {
      (void)database.Script("ROLLBACK");
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace llava
