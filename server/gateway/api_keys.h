#pragma once

// Who may come in: named API keys, of which only hashes are kept (docs/access.md has the format).

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/digest/sha256.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"

namespace llava {

// kMonitor reads metrics and sees no conversation, kUser sees its own, kAdmin all.
enum class KeyRole { kMonitor, kUser, kAdmin };

// What the holder of a key may use at most; 0 = as much as there is.
struct KeyLimits {
  int64_t requests_per_minute = 0;  // of what makes work: TurnGate::Enter, ChargeRequest
  int64_t tokens_per_minute = 0;    // of prompts and answers
  int64_t concurrent_turns = 0;     // running and waiting
  int64_t sessions = 0;
  int64_t turns_per_session = 0;
  int64_t pictures = 0;       // stored in all of its sessions
  int64_t picture_bytes = 0;  // the same in bytes
};

// By their names in the keys file and on the command line.
struct KeyLimitField {
  const char* name;
  int64_t KeyLimits::*member;
  const char* help;
};
inline constexpr KeyLimitField kKeyLimitFields[] = {
    {"requests-per-minute", &KeyLimits::requests_per_minute,
     "Questions, uploads and counts of tokens together; 0: any number"},
    {"tokens-per-minute", &KeyLimits::tokens_per_minute, "Of prompts and answers"},
    {"concurrent-turns", &KeyLimits::concurrent_turns, "Answers under way and questions that wait"},
    {"sessions", &KeyLimits::sessions, "Sessions kept"},
    {"turns-per-session", &KeyLimits::turns_per_session, "Turns of one session"},
    {"pictures", &KeyLimits::pictures, "Pictures kept"},
    {"picture-bytes", &KeyLimits::picture_bytes, "Bytes of pictures kept"}};

// An entry of the keys file. Immutable.
struct ApiKey {
  std::string name;                  // owner of what it makes; unique
  std::vector<Sha256Digest> hashes;  // of the key's text; several while one replaces another
  KeyRole role = KeyRole::kUser;
  uint32_t weight = 1;  // share when the gateway is full
  KeyLimits limits;
};

// On whose behalf a call runs. Cheap to copy; keeps what was true when the call came.
class Caller {
 public:
  // Everybody, at a gateway without keys.
  Caller() = default;
  explicit Caller(std::shared_ptr<const ApiKey> key) : key_(std::move(key)) {}

  // Empty without keys.
  const std::string& name() const;
  // Sees and may do everything.
  bool is_admin() const { return !key_ || key_->role == KeyRole::kAdmin; }
  KeyRole role() const { return key_ ? key_->role : KeyRole::kAdmin; }
  uint32_t weight() const { return key_ ? key_->weight : 1; }
  const KeyLimits& limits() const;

 private:
  std::shared_ptr<const ApiKey> key_;
};

// Reads a keys file's text. INVALID_ARGUMENT with line and reason.
absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& text);
std::string ToString(KeyRole role);
// NOT_FOUND, INVALID_ARGUMENT.
absl::StatusOr<KeyRole> ParseKeyRole(std::string_view text);
// Letters, digits and ._-@, 1 to 64 of them: names stand in metrics and logs.
absl::Status CheckKeyName(std::string_view name);

// The keys of a gateway. Reads the file again within a second of a change; a file that does not
// read well changes nothing but a log line and a metric. Thread-safe.
class ApiKeys {
 public:
  // An empty path: no keys, everybody comes in. `metrics` must outlive it.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Open(const std::string& path, Metrics& metrics);
  ~ApiKeys();
  ApiKeys(const ApiKeys&) = delete;
  ApiKeys& operator=(const ApiKeys&) = delete;

  bool required() const { return !path_.empty(); }
  // `authorization` is the header's value, "Bearer <key>"; empty if there is none. UNAUTHENTICATED.
  absl::StatusOr<Caller> Identify(std::string_view authorization) const;
  // Those of a key by name; none if there is no such key (any more).
  KeyLimits LimitsOf(std::string_view name) const;
  // Who asked with the key of that name, now that he is not there to show it: with the key's limits
  // of today, or, if there is no such key any more, with this weight and no limits.
  Caller Named(const std::string& name, uint32_t weight) const;
  size_t size() const;

 private:
  using Names = std::map<std::string, std::shared_ptr<const ApiKey>, std::less<>>;
  // By hash of the key under a salt of this process: so the time of a search tells a stranger
  // nothing about the hashes that are kept.
  using Index = std::map<Sha256Digest, std::shared_ptr<const ApiKey>>;

  ApiKeys(std::string path, Metrics& metrics);
  absl::Status Read();
  void Watch();
  // Changes with every change of the file's content that a writer can make by rename or in place,
  // and of who may read it.
  std::string Signature() const;
  Sha256Digest Salted(const Sha256Digest& hash) const;
  // Null: there is none of that name.
  std::shared_ptr<const ApiKey> Find(std::string_view name) const;

  const std::string path_;
  const std::string salt_;
  prometheus::Gauge& count_;
  prometheus::Counter& reads_;
  prometheus::Counter& failed_reads_;
  prometheus::Gauge& file_ok_;

  mutable Mutex mutex_;
  CondVar changed_;
  std::shared_ptr<const Names> keys_ LLAVA_GUARDED_BY(mutex_);
  std::shared_ptr<const Index> index_ LLAVA_GUARDED_BY(mutex_);
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  std::string signature_;  // of the last file read; Open, then the thread
  absl::Status read_;      // how that went
  std::thread thread_;     // last: uses all of the above
};

// PERMISSION_DENIED for keys of users: the metrics name all keys.
absl::Status MayReadMetrics(const ApiKeys& keys, std::string_view authorization);

}  // namespace llava
