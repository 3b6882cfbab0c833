#include "server/gateway/backend_pool.h"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/gateway/model_choice.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kLookUpPeriod{5};
// A process is full for its sessions once it runs so many answers, and a quarter more than the
// average ("consistent hashing with bounded loads"): fewer share a step of the engine at no cost,
// and moving a conversation costs its cached prefix.
constexpr int kFewAnswers = 8;
constexpr double kAboveAverage = 1.25;

// FNV-1a, mixed: neighbouring keys must not score alike.
uint64_t Score(std::string_view key, std::string_view address) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const std::string_view part : {key, std::string_view("\0", 1), address}) {
    for (const char c : part) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  hash ^= hash >> 33;
  hash *= 0xff51afd7ed558ccd;
  return hash ^ (hash >> 33);
}

// HOST:PORT of each address that the name stands for; empty if the lookup fails.
std::set<std::string> LookUpName(const std::string& name, const std::string& port) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (getaddrinfo(name.c_str(), port.c_str(), &hints, &list) != 0) return {};
  std::set<std::string> found;
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    char host[NI_MAXHOST];
    if (getnameinfo(each->ai_addr, each->ai_addrlen, host, sizeof host, nullptr, 0,
                    NI_NUMERICHOST) != 0) {
      continue;
    }
    found.insert(each->ai_family == AF_INET6 ? absl::StrCat("[", host, "]:", port)
                                             : absl::StrCat(host, ":", port));
  }
  freeaddrinfo(list);
  return found;
}

}  // namespace

absl::StatusOr<std::vector<BackendAddress>> ParseBackendAddresses(std::string_view text) {
  std::vector<BackendAddress> addresses;
  const absl::string_view all(text.data(), text.size());
  for (absl::string_view part : absl::StrSplit(all, ',')) {
    const absl::string_view whole = part;
    BackendAddress address;
    address.expand = absl::ConsumePrefix(&part, "dns:///");
    const size_t colon = part.rfind(':');
    int port = 0;
    if (colon != absl::string_view::npos && colon > 0) {
      const char* end = part.data() + part.size();
      const auto parsed = std::from_chars(part.data() + colon + 1, end, port);
      if (parsed.ec != std::errc() || parsed.ptr != end) port = 0;
    }
    if (port < 1 || port > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat(whole.empty() ? "an empty address" : whole,
                       " is not HOST:PORT (e.g. 127.0.0.1:8011) or dns:///NAME:PORT"));
    }
    address.host = std::string(part.substr(0, colon));
    address.port = std::string(part.substr(colon + 1));
    addresses.push_back(std::move(address));
  }
  return addresses;
}

BackendPool::BackendPool(Backend::Names names, const std::string& addresses,
                         GatewayMetrics& metrics, TlsFiles tls, std::chrono::milliseconds patience,
                         std::chrono::milliseconds period)
    : names_(std::move(names)),
      addresses_(ParseBackendAddresses(addresses).value()),
      metrics_(metrics),
      tls_(std::move(tls)),
      patience_(patience),
      period_(period) {
  MutexLock lock(mutex_);
  for (const BackendAddress& address : addresses_) {
    if (!address.expand) Add(absl::StrCat(address.host, ":", address.port), "");
  }
  metrics_.SetBackends(names_.service, 0, static_cast<int>(backends_.size()));
}

BackendPool::~BackendPool() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void BackendPool::Add(const std::string& address, const std::string& authority) {
  for (const auto& backend : backends_) {
    if (backend->address() == address) return;
  }
  backends_.push_back(
      std::make_unique<Backend>(names_, address, metrics_, tls_, period_, authority));
  if (started_) backends_.back()->Start([this] { OnChange(); });
}

void BackendPool::Start(std::function<void()> on_change) {
  on_change_ = std::move(on_change);
  {
    MutexLock lock(mutex_);
    started_ = true;
    for (const auto& backend : backends_) backend->Start([this] { OnChange(); });
  }
  const bool look_up = std::any_of(addresses_.begin(), addresses_.end(),
                                   [](const BackendAddress& address) { return address.expand; });
  if (look_up) thread_ = std::thread([this] { Loop(); });
}

std::vector<std::shared_ptr<Backend>> BackendPool::all() const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<Backend>> leases;
  if (stopping_) return leases;  // they end one after the other, while others still ask
  for (const auto& backend : backends_) leases.push_back(backend->Lease());
  return leases;
}

void BackendPool::OnChange() {
  {
    MutexLock lock(mutex_);
    if (stopping_) return;
  }
  {
    MutexLock lock(report_mutex_);
    int up = 0, down = 0;
    for (const auto& backend : all()) ++(backend->up() ? up : down);
    metrics_.SetBackends(names_.service, up, down);
  }
  on_change_();
}

void BackendPool::Loop() {
  while (true) {
    LookUp();
    // What nobody uses any more ends here, without the lock: its thread may ask for it.
    std::vector<std::unique_ptr<Backend>> gone;
    MutexLock lock(mutex_);
    if (stopping_) return;
    changed_.WaitUntil(mutex_, CondVar::Clock::now() + kLookUpPeriod);
    if (stopping_) return;
    std::erase_if(retired_, [&](std::unique_ptr<Backend>& backend) {
      if (!backend->idle()) return false;
      gone.push_back(std::move(backend));
      return true;
    });
  }
}

void BackendPool::LookUp() {
  bool changed = false;
  for (const BackendAddress& address : addresses_) {
    if (!address.expand) continue;
    const auto found = LookUpName(address.host, address.port);
    // A name server that is down does not mean that the services are.
    if (found.empty() != unknown_.contains(address.host)) {
      const LogFields fields = {{"backend", names_.service}, {"name", address.host}};
      found.empty() ? LogWarning("name not found", fields) : LogInfo("name found again", fields);
    }
    if (found.empty()) {
      unknown_.insert(address.host);
      continue;
    }
    unknown_.erase(address.host);
    const std::string authority = absl::StrCat(address.host, ":", address.port);
    MutexLock lock(mutex_);
    for (const std::string& each : found) {
      const size_t before = backends_.size();
      Add(each, authority);
      changed |= backends_.size() != before;
    }
    std::erase_if(backends_, [&](std::unique_ptr<Backend>& backend) {
      if (backend->authority() != authority || found.contains(backend->address())) return false;
      LogInfo("service is gone from its name",
              {{"backend", names_.service}, {"address", backend->address()}});
      retired_.push_back(std::move(backend));
      changed = true;
      return true;
    });
  }
  if (changed) OnChange();
}

absl::Status BackendPool::EmptyName() const {
  MutexLock lock(mutex_);
  for (const BackendAddress& address : addresses_) {
    const std::string authority = absl::StrCat(address.host, ":", address.port);
    if (!address.expand || std::any_of(backends_.begin(), backends_.end(), [&](const auto& each) {
          return each->authority() == authority;
        })) {
      continue;
    }
    return OverloadedError(absl::StrCat("the name ", address.host, " of the ", names_.service,
                                        " service stands for no address yet; check ", names_.flag),
                           std::chrono::seconds(1));
  }
  return absl::OkStatus();
}

bool BackendPool::InPatience(CondVar::Clock::time_point since) const {
  return CondVar::Clock::now() < since + patience_;
}

ModelTable BackendPool::table() const {
  ModelTable joined;
  const auto key = [](const v1::ModelInfo& model) {
    return std::pair(static_cast<int>(model.kind()), IdOf(model.model()));
  };
  std::map<decltype(key(v1::ModelInfo())), size_t> seen;
  const absl::Status empty_name = EmptyName();  // first: a process that comes now is in both
  const auto backends = all();
  if (backends.empty()) {
    joined.status = !empty_name.ok() ? empty_name
                                     : OverloadedError("the gateway ends", std::chrono::seconds(1));
  }
  if (InPatience(made_)) joined.unheard = empty_name;
  int down = 0;
  for (const auto& backend : backends) {
    const bool may_have_any = !backend->heard() && InPatience(backend->made());  // before it
    ModelTable table = backend->table();
    if (may_have_any && joined.unheard.ok()) joined.unheard = table.status;
    if (table.status.ok()) {
      joined.status = absl::OkStatus();
    } else {
      // Not one of several that are down, but all of them, is worth telling.
      if (down++ == 0 && !joined.status.ok()) joined.status = table.status;
      if (backends.size() > 1) {
        if (joined.away_status.ok()) joined.away_status = table.status;
        std::move(table.models.begin(), table.models.end(), std::back_inserter(joined.away));
        std::move(table.away.begin(), table.away.end(), std::back_inserter(joined.away));
        continue;
      }
    }
    if (joined.away_status.ok()) joined.away_status = table.away_status;
    std::move(table.away.begin(), table.away.end(), std::back_inserter(joined.away));
    for (v1::ModelInfo& model : table.models) {
      const auto [place, added] = seen.emplace(key(model), joined.models.size());
      if (added) {
        joined.models.push_back(std::move(model));
        continue;
      }
      v1::ModelInfo& known = joined.models[place->second];
      // While services are updated some can do it and some cannot yet: PickLlm knows which.
      if (model.constrains_output()) known.set_constrains_output(true);
      auto& labels = *known.mutable_labels();
      for (const std::string& label : model.labels()) {
        if (std::find(labels.begin(), labels.end(), label) == labels.end()) *labels.Add() = label;
      }
    }
  }
  std::erase_if(joined.away, [&](const v1::ModelInfo& model) {
    const auto served = seen.find(key(model));
    if (served == seen.end()) return false;
    // What only the one can do that is down is worth waiting for.
    if (model.constrains_output()) joined.models[served->second].set_constrains_output(true);
    return true;
  });
  return joined;
}

void BackendPool::Refresh(std::function<void()> done) {
  const auto backends = all();
  if (backends.empty()) return done();
  auto left = std::make_shared<std::atomic<size_t>>(backends.size());
  for (const auto& backend : backends) {
    backend->Refresh([left, done] {
      if (--*left == 0) done();
    });
  }
}

absl::StatusOr<std::shared_ptr<Backend>> BackendPool::Pick(std::string_view key,
                                                           const Serves& serves,
                                                           const Backend* except) const {
  struct Candidate {
    std::shared_ptr<Backend> backend;
    uint64_t score;
    int running;
    bool up;
    int rank = 0;  // the lowest is chosen
  };
  std::vector<Candidate> candidates;
  absl::Status why =
      OverloadedError(absl::StrCat("no ", names_.service, " service has that model any more"),
                      std::chrono::seconds(1));
  int total = 0;
  for (auto& backend : all()) {
    const ModelTable table = backend->table();
    if (!table.status.ok()) why = table.status;
    if (!std::any_of(table.models.begin(), table.models.end(), serves)) continue;
    const int running = backend->running.load();
    total += running;
    const uint64_t score = Score(key, backend->address());
    candidates.push_back({std::move(backend), score, running, table.status.ok()});
  }
  if (candidates.empty()) return why;
  const double full = std::max<double>(
      kFewAnswers, kAboveAverage * (total + 1) / static_cast<double>(candidates.size()));
  // The less willing are better than none.
  for (Candidate& each : candidates) {
    const bool other = each.backend.get() != except;
    if (!each.up) {  // it may be back before it is asked again, and the call itself tells best
      each.rank = other ? 4 : 5;
    } else if (!other) {
      each.rank = 3;
    } else if (!each.backend->willing()) {
      each.rank = 2;
    } else {
      each.rank = each.running < full ? 0 : 1;
    }
  }
  return std::min_element(candidates.begin(), candidates.end(),
                          [](const Candidate& a, const Candidate& b) {
                            return a.rank != b.rank ? a.rank < b.rank : a.score > b.score;
                          })
      ->backend;
}

}  // namespace llava
