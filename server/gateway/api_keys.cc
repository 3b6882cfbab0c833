#include "server/gateway/api_keys.h"

#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/gateway/keys_file.h"
#include "server/runtime/logging.h"
#include "server/runtime/request_id.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kWatchPeriod{1};
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxKeys = 10'000;

absl::Status At(const YAML::Mark& mark, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat("line ", mark.line + 1, ": ", message));
}

absl::StatusOr<int64_t> Number(const YAML::Node& node, const std::string& field, int64_t low,
                               int64_t high) {
  int64_t number = 0;
  if (node.IsScalar() && absl::SimpleAtoi(node.Scalar(), &number) && number >= low &&
      number <= high) {
    return number;
  }
  return At(node.Mark(), absl::StrCat(field, " is not a whole number from ", low, " to ", high));
}

absl::Status ReadHash(const YAML::Node& node, ApiKey& key) {
  try {
    if (!node.IsScalar()) throw std::invalid_argument("");
    key.hashes.push_back(FromHex(node.Scalar()));
    return absl::OkStatus();
  } catch (const std::invalid_argument&) {
    return At(node.Mark(), "sha256 is not 64 hex digits");
  }
}

absl::Status ReadHashes(const YAML::Node& node, ApiKey& key) {
  if (!node.IsSequence()) return ReadHash(node, key);
  for (const YAML::Node& each : node) {
    if (auto status = ReadHash(each, key); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadField(const std::string& field, const YAML::Node& value, ApiKey& key) {
  if (field == "sha256") return ReadHashes(value, key);
  if (field == "weight") {
    const auto weight = Number(value, field, 1, 1'000'000);
    if (weight.ok()) key.weight = static_cast<uint32_t>(*weight);
    return weight.status();
  }
  for (const KeyLimitField& limit : kKeyLimitFields) {
    if (field != limit.name) continue;
    const auto number = Number(value, field, 0, std::numeric_limits<int64_t>::max());
    if (number.ok()) key.limits.*limit.member = *number;
    return number.status();
  }
  if (!value.IsScalar()) return At(value.Mark(), absl::StrCat(field, " is not a single value"));
  if (field == "name") {
    key.name = value.Scalar();
    const auto status = CheckKeyName(key.name);
    return status.ok() ? status : At(value.Mark(), std::string(status.message()));
  }
  if (field == "role") {
    const auto role = ParseKeyRole(value.Scalar());
    if (!role.ok()) return At(value.Mark(), std::string(role.status().message()));
    key.role = *role;
    return absl::OkStatus();
  }
  return At(value.Mark(), absl::StrCat("unknown field \"", field, "\""));
}

absl::StatusOr<ApiKey> ReadKey(const YAML::Node& node) {
  if (!node.IsMap()) return At(node.Mark(), "is not a key: {name: ..., sha256: ...}");
  ApiKey key;
  std::set<std::string> seen;
  for (const auto& item : node) {
    if (!item.first.IsScalar()) return At(item.first.Mark(), "a field has no name");
    const std::string field = absl::StrReplaceAll(item.first.Scalar(), {{"_", "-"}});
    if (!seen.insert(field).second) return At(item.first.Mark(), field + " stands there twice");
    if (auto status = ReadField(field, item.second, key); !status.ok()) return status;
  }
  if (key.name.empty()) return At(node.Mark(), "a key has no name");
  if (key.hashes.empty()) return At(node.Mark(), absl::StrCat(key.name, " has no sha256"));
  return key;
}

}  // namespace

std::string ToString(KeyRole role) {
  switch (role) {
    case KeyRole::kMonitor:
      return "monitor";
    case KeyRole::kUser:
      return "user";
    case KeyRole::kAdmin:
      break;
  }
  return "admin";
}

absl::StatusOr<KeyRole> ParseKeyRole(std::string_view text) {
  for (const KeyRole role : {KeyRole::kMonitor, KeyRole::kUser, KeyRole::kAdmin}) {
    if (ToString(role) == text) return role;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("role \"", std::string(text), "\" is not one of: user, admin, monitor"));
}

absl::Status CheckKeyName(std::string_view name) {
  const bool good = !name.empty() && name.size() <= kMaxNameBytes &&
                    std::all_of(name.begin(), name.end(), [](unsigned char c) {
                      return absl::ascii_isalnum(c) || std::strchr("._-@", c) != nullptr;
                    });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a name has 1 to ", kMaxNameBytes, " letters, digits and . _ - @"));
}

const std::string& Caller::name() const {
  static const std::string nobody;
  return key_ ? key_->name : nobody;
}

const KeyLimits& Caller::limits() const {
  static const KeyLimits none;
  return key_ ? key_->limits : none;
}

absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& text) {
  std::vector<ApiKey> keys;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    // Also what a half-written file looks like.
    if (documents.empty() || documents[0].IsNull())
      return absl::InvalidArgumentError("is empty; write [] to let nobody in");
    if (documents.size() > 1) return At(documents[1].Mark(), "a second list begins here");
    const YAML::Node& root = documents[0];
    if (!root.IsSequence()) return At(root.Mark(), "is not a list of keys");
    if (root.size() > kMaxKeys) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", root.size(), " keys, allowed are ", kMaxKeys));
    }
    std::set<std::string> names;
    std::set<Sha256Digest> hashes;
    for (const YAML::Node& node : root) {
      auto key = ReadKey(node);
      if (!key.ok()) return key.status();
      if (!names.insert(key->name).second) {
        return At(node.Mark(), absl::StrCat(key->name, " stands there twice"));
      }
      for (const Sha256Digest& hash : key->hashes) {
        if (!hashes.insert(hash).second) {
          return At(node.Mark(), absl::StrCat(key->name, " has the key of another name"));
        }
      }
      keys.push_back(*std::move(key));
    }
  } catch (const YAML::Exception& error) {
    return At(error.mark, error.msg);
  }
  return keys;
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Open(const std::string& path, Metrics& metrics) {
  std::unique_ptr<ApiKeys> keys(new ApiKeys(path, metrics));
  if (path.empty()) return keys;
  keys->signature_ = keys->Signature();
  if (auto status = keys->Read(); !status.ok()) return status;
  keys->thread_ = std::thread([raw = keys.get()] { raw->Watch(); });
  return keys;
}

ApiKeys::ApiKeys(std::string path, Metrics& metrics)
    : path_(std::move(path)),
      salt_(RandomId()),
      count_(metrics.Gauge("llava_gateway_api_keys", "API keys that let somebody in.")),
      reads_(metrics.Counter("llava_gateway_keys_file_reads_total",
                             "Times that the keys file was read.", {{"result", "ok"}})),
      failed_reads_(metrics.Counter("llava_gateway_keys_file_reads_total",
                                    "Times that the keys file was read.", {{"result", "failed"}})),
      file_ok_(metrics.Gauge("llava_gateway_keys_file_ok",
                             "0 while the keys file does not read well and the old keys stay.")),
      keys_(std::make_shared<const Names>()),
      index_(std::make_shared<const Index>()) {
  file_ok_.Set(1);
}

ApiKeys::~ApiKeys() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

size_t ApiKeys::size() const {
  MutexLock lock(mutex_);
  return keys_->size();
}

std::shared_ptr<const ApiKey> ApiKeys::Find(std::string_view name) const {
  std::shared_ptr<const Names> keys;
  {
    MutexLock lock(mutex_);
    keys = keys_;
  }
  const auto found = keys->find(name);
  return found == keys->end() ? nullptr : found->second;
}

KeyLimits ApiKeys::LimitsOf(std::string_view name) const {
  const auto key = Find(name);
  return key ? key->limits : KeyLimits();
}

Caller ApiKeys::Named(const std::string& name, uint32_t weight) const {
  if (name.empty()) return Caller();
  if (auto known = Find(name)) return Caller(std::move(known));
  auto key = std::make_shared<ApiKey>();
  key->name = name;
  key->weight = weight;
  return Caller(std::move(key));
}

std::string ApiKeys::Signature() const {
  struct stat info;
  if (stat(path_.c_str(), &info) != 0) return absl::StrCat("error ", errno);
  return absl::StrCat(info.st_dev, " ", info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec,
                      ".", info.st_mtim.tv_nsec, " ", info.st_ctim.tv_sec, ".",
                      info.st_ctim.tv_nsec);
}

Sha256Digest ApiKeys::Salted(const Sha256Digest& hash) const {
  return HashBytes(salt_ + ToBytes(hash));
}

absl::Status ApiKeys::Read() {
  auto keys = ReadApiKeys(path_);
  if (!keys.ok()) {
    failed_reads_.Increment();
    file_ok_.Set(0);
    return keys.status();
  }
  auto names = std::make_shared<Names>();
  auto index = std::make_shared<Index>();
  for (ApiKey& each : *keys) {
    const auto key = std::make_shared<const ApiKey>(std::move(each));
    for (const Sha256Digest& hash : key->hashes) (*index)[Salted(hash)] = key;
    names->emplace(key->name, key);
  }
  reads_.Increment();
  file_ok_.Set(1);
  count_.Set(static_cast<double>(names->size()));
  MutexLock lock(mutex_);
  keys_ = std::move(names);
  index_ = std::move(index);
  return absl::OkStatus();
}

void ApiKeys::Watch() {
  while (true) {
    {
      MutexLock lock(mutex_);
      const auto deadline = CondVar::Clock::now() + kWatchPeriod;
      while (!stopping_ && changed_.WaitUntil(mutex_, deadline)) {
      }
      if (stopping_) return;
    }
    std::string signature = Signature();
    // What could not be read at all may be readable without a change that is seen here.
    if (signature == signature_ && (read_.ok() || absl::IsInvalidArgument(read_))) continue;
    signature_ = std::move(signature);
    const absl::Status before = std::exchange(read_, Read());
    if (read_.ok()) {
      LogInfo("keys file read again", {{"keys", absl::StrCat(size())}});
    } else if (read_ != before) {
      LogError("keys file is broken; the old keys stay", {{"error", std::string(read_.message())}});
    }
  }
}

absl::StatusOr<Caller> ApiKeys::Identify(std::string_view authorization) const {
  if (!required()) return Caller();
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.empty()) {
    return absl::UnauthenticatedError(
        "this gateway asks for an API key; send the header \"authorization: Bearer <key>\"");
  }
  if (authorization.size() < kScheme.size() ||
      !absl::EqualsIgnoreCase(absl::string_view(authorization.data(), kScheme.size()),
                              absl::string_view(kScheme.data(), kScheme.size()))) {
    return absl::UnauthenticatedError(
        "the authorization header is not of the form \"Bearer <key>\"");
  }
  authorization.remove_prefix(kScheme.size());
  std::shared_ptr<const Index> index;
  {
    MutexLock lock(mutex_);
    index = index_;
  }
  const auto found = index->find(Salted(HashBytes(authorization)));
  if (found == index->end()) {
    return absl::UnauthenticatedError("this API key is not known here; was it revoked?");
  }
  return Caller(found->second);
}

absl::Status MayReadMetrics(const ApiKeys& keys, std::string_view authorization) {
  const auto caller = keys.Identify(authorization);
  if (!caller.ok()) return caller.status();
  if (caller->role() != KeyRole::kUser) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("the API key \"", caller->name(),
                   "\" has the role user; metrics need the role monitor or admin"));
}

}  // namespace llava
