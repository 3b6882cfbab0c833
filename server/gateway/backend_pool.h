#pragma once

// The processes of one service behind the gateway.

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/backend.h"
#include "server/runtime/mutex.h"

namespace llava {

// Where the processes of a service are: what --vision and --llm hold.
struct BackendAddress {
  std::string host;
  std::string port;
  // dns:///NAME:PORT: one process behind each address that the name stands for, asked again and
  // again. Otherwise HOST:PORT is one process.
  bool expand = false;
};

// HOST:PORT or dns:///NAME:PORT, several separated by commas. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<std::vector<BackendAddress>> ParseBackendAddresses(std::string_view text);

// Finds the processes and chooses among them. Thread-safe.
//
// Backends are handed out as leases. One whose address is gone gets no new calls and is destroyed
// on the pool's own thread when the last has ended.
class BackendPool {
 public:
  using Serves = std::function<bool(const v1::ModelInfo&)>;

  // `addresses` must parse. For `patience` whoever has never answered may have any model: a wrong
  // address must not do so for ever.
  BackendPool(Backend::Names names, const std::string& addresses, GatewayMetrics& metrics,
              TlsFiles tls = {}, std::chrono::milliseconds patience = std::chrono::minutes(1),
              std::chrono::milliseconds period = std::chrono::milliseconds(500));
  ~BackendPool();
  BackendPool(const BackendPool&) = delete;
  BackendPool& operator=(const BackendPool&) = delete;

  // Begins to ask. `on_change` runs on threads of the pool whenever the state of a process, or what
  // it serves or is to load, has changed.
  void Start(std::function<void()> on_change);

  // The models of all processes that answer, each version once, with what any of them knows
  // (labels) or any process can do (constraints); OK if one of them answers.
  ModelTable table() const;
  // Asks all of them; `done` runs on a thread of the pool after the last answer.
  void Refresh(std::function<void()> done);

  // A process that has such a model. Highest score of hash(key, address) first, so that a session
  // (a picture) finds what was computed for it; the next in order when the first runs clearly more
  // answers than the others, was ejected, asked for patience, is down, or is `except`: unless no
  // other is there. UNAVAILABLE naming what is missing.
  absl::StatusOr<std::shared_ptr<Backend>> Pick(std::string_view key, const Serves& serves,
                                                const Backend* except = nullptr) const;

  std::vector<std::shared_ptr<Backend>> all() const;

 private:
  void Add(const std::string& address, const std::string& authority) LLAVA_REQUIRES(mutex_);
  // A name for which no process has been found, OK if there is none.
  absl::Status EmptyName() const;
  bool InPatience(CondVar::Clock::time_point since) const;
  void OnChange();
  // Looks names up again and again.
  void Loop();
  void LookUp();

  const Backend::Names names_;
  const std::vector<BackendAddress> addresses_;
  GatewayMetrics& metrics_;
  const TlsFiles tls_;
  const std::chrono::milliseconds patience_, period_;
  const CondVar::Clock::time_point made_ = CondVar::Clock::now();
  std::function<void()> on_change_;
  Mutex report_mutex_;  // of two counts the later one is told last

  mutable Mutex mutex_;
  CondVar changed_;
  bool started_ LLAVA_GUARDED_BY(mutex_) = false;
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<Backend>> backends_ LLAVA_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Backend>> retired_ LLAVA_GUARDED_BY(mutex_);
  std::set<std::string> unknown_;  // names not found at the last look; of the thread
  std::thread thread_;             // only if a name must be looked up
};

}  // namespace llava
