#pragma once

// What every service process has: a gRPC server with health and reflection, a metrics port with
// probes, an orderly end.

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/runtime/exit_code.h"
#include "server/runtime/grpc_listener.h"
#include "server/runtime/http_server.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/reflection_guard.h"
#include "server/runtime/settings.h"
#include "server/runtime/tls.h"

namespace llava {

struct ProcessOptions {
  std::string host = "127.0.0.1";
  int port = 0;           // gRPC; 0 = a free one, printed at start
  int metrics_port = 0;   // HTTP: /metrics /livez /readyz
  bool insecure = false;  // let strangers in on an address that they can reach
  TlsFiles tls;           // of both ports
  std::chrono::milliseconds drain_timeout{30'000};
  uint64_t max_message_bytes = 32u << 20;
  int max_streams = 0;  // calls at a time on one gRPC connection; 0: any
  // A gRPC client that said nothing for so long is asked whether it is there, and is cut off when
  // it does not answer for so long: of one that went without a word nothing else tells.
  std::chrono::milliseconds ping_after{60'000}, ping_timeout{20'000};
  // For a new connection to become one of gRPC; else it is closed.
  std::chrono::milliseconds handshake_timeout{20'000};
  int max_connections = 0;  // to the gRPC port, at a time; 0: what the limit of open files leaves
  std::string log_level = "info";
  std::string log_format = "text";

  // Declares the settings above. `keeps_strangers_out`, asked when all are read: does the process
  // let in only who has a key, or listen nowhere? Without that or client certificates, an address
  // that strangers can reach needs --insecure.
  void Declare(Settings& settings, std::function<bool()> keeps_strangers_out = {});
  bool on_loopback() const;
};

// What the process itself serves to callers; an empty guard lets everybody in.
struct AccessGuards {
  AccessGuard reflection;
  AccessGuard metrics;
};

// Counts work under way and refuses new work once draining. Thread-safe.
class Admission {
 public:
  // False when draining; else the caller calls Leave once.
  bool Enter();
  void Leave();
  bool draining() const { return draining_; }
  int in_flight() const;
  void StartDraining() { draining_ = true; }
  // True when nothing is under way before `deadline`.
  bool WaitUntilIdle(CondVar::Clock::time_point deadline);

 private:
  std::atomic<bool> draining_ = false;
  mutable Mutex mutex_;
  CondVar idle_;
  int in_flight_ LLAVA_GUARDED_BY(mutex_) = 0;
};

// Order of calls: constructor (first thing in main, before any thread: it blocks the signals, and
// raises the limit of open files), Start, SetReady when the model is warm, Run.
class ServiceProcess {
 public:
  ServiceProcess(std::string program, ProcessOptions options, Metrics& metrics);
  ~ServiceProcess();

  // Binds both ports and serves; health says NOT_SERVING and /readyz 503 until SetReady. `services`
  // must outlive this object. A kExit code in case of failure after an error line, else 0.
  int Start(const std::vector<grpc::Service*>& services,
            const std::vector<std::string>& health_names, AccessGuards guards = {});

  // Health of "" and of the names of Start; `reason` is shown by /readyz while not ready.
  void SetReady(bool ready, const std::string& reason = "");
  // The next SetReady that says so calls this, once, on its thread.
  void WhenReady(std::function<void()> call);
  // Health of one more name, e.g. a model. Not ready at all means no name serves.
  void SetHealth(const std::string& name, bool serving);

  // A device is lost to this process for good: from now on /livez says 503 and why, and Run ends as
  // after a signal, with kExitDeviceLost. Thread-safe.
  void Fail(const std::string& reason);

  // Of Fail; empty: none has come. Thread-safe.
  std::string fault() const;

  // SIGTERM, SIGINT or Fail has come: Run would end at once. For whatever waits before Run.
  bool EndAsked() const;

  // Waits for SIGTERM, SIGINT or Fail, then: not ready, `on_drain` (refuse new work), wait for work
  // under way up to drain_timeout, `on_stop` (cancel the rest), close. A second signal ends the
  // process at once with 128 + its number (after Fail, too, the first one does not). Returns the
  // exit code.
  int Run(const std::function<void()>& on_drain = {}, const std::function<void()>& on_stop = {});

  // For the options of HTTP servers of the process; none without TLS.
  prometheus::Counter* failed_handshakes() const { return failed_handshakes_; }
  // /metrics, which `metrics` guards, /livez, /health and /readyz, for other servers of the
  // process. After Start.
  std::map<std::string, HttpServer::Page> pages(AccessGuard metrics) const;

  Admission& admission() { return admission_; }
  int port() const { return listener_ ? listener_->port() : 0; }
  int metrics_port() const { return http_ ? http_->port() : 0; }

 private:
  HttpResponse Liveness() const;
  HttpResponse Readiness() const;
  HttpResponse MetricsPage(const AccessGuard& guard, const HttpRequest& request) const;

  const std::string program_;
  const ProcessOptions options_;
  const uint64_t files_;  // that may be open
  Metrics& metrics_;
  prometheus::Gauge& ready_gauge_;  // set under mutex_, with ready_
  prometheus::Counter* const failed_handshakes_;
  prometheus::Counter& refused_connections_;
  Admission admission_;
  std::unique_ptr<GrpcListener> listener_;
  std::unique_ptr<grpc::Server> server_;

  mutable Mutex mutex_;
  bool ready_ LLAVA_GUARDED_BY(mutex_) = false;
  std::string reason_ LLAVA_GUARDED_BY(mutex_) = "starting";
  std::string fault_ LLAVA_GUARDED_BY(mutex_);  // of Fail; empty: none
  std::function<void()> when_ready_ LLAVA_GUARDED_BY(mutex_);
  std::vector<std::string> health_names_;                  // of the services; const after Start
  std::set<std::string> models_ LLAVA_GUARDED_BY(mutex_);  // names of SetHealth

  std::unique_ptr<HttpServer> http_;  // last: its handlers use the fields above
};

// Of a process whose HttpServer::Start failed so.
int ExitCodeOf(const absl::Status& no_listener);

}  // namespace llava
