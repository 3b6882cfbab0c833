#include "server/runtime/service_process.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/build_info.h"
#include "server/runtime/file_limit.h"
#include "server/runtime/host_port.h"
#include "server/runtime/logging.h"
#include "server/runtime/process_metrics.h"

namespace llava {
namespace {

// Of the largest size, being received or written.
constexpr uint64_t kMessagesAtATime = 16;
// The connections themselves take of it too.
constexpr uint64_t kLeastQuota = uint64_t{64} << 20;
// For Fail, while Run waits for signals.
constexpr timespec kLookAgain = {0, 100'000'000};

sigset_t EndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

int ExitCodeOf(const absl::Status& no_listener) {
  return absl::IsInvalidArgument(no_listener) ? kExitUsage : kExitPortInUse;
}

bool ProcessOptions::on_loopback() const { return IsLoopbackHost(host); }

void ProcessOptions::Declare(Settings& settings, std::function<bool()> keeps_strangers_out) {
  settings.Group("Network");
  settings.Add("host", &host, "IP address to listen on, or localhost");
  settings.Add("port", &port, "gRPC port, 0 = any free one", 0, 65535);
  settings.Add("metrics-port", &metrics_port, "HTTP port of /metrics, /livez, /readyz; 0 = any", 0,
               65535);
  settings.Add("insecure", &insecure, "Allow a --host that strangers can reach");
  DeclareListenerTls(settings, tls);
  settings.AddBytes("max-message-bytes", &max_message_bytes, "Largest gRPC message taken");
  settings.Group("Process");
  settings.Add("drain-timeout", &drain_timeout, "Time for running work to end after SIGTERM");
  settings.AddChoice("log-level", &log_level, "Least level of log lines",
                     {"trace", "debug", "info", "warning", "error"});
  settings.AddChoice("log-format", &log_format, "Form of log lines", {"text", "json"});
  settings.Check([this] {
    // gRPC counts in int, and takes what is less than 1 for something else.
    if (max_message_bytes >= 1 && max_message_bytes <= INT_MAX) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("--max-message-bytes: ", max_message_bytes,
                                                   " is not from 1 to ", INT_MAX, " (2G - 1)"));
  });
  settings.Check([this] {
    if (IsListenHost(host)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("--host \"", host, "\" is neither an IP address to listen on nor localhost"));
  });
  settings.Check([this, keeps_strangers_out = std::move(keeps_strangers_out)] {
    const bool certified = !tls.authorities.empty();
    if (insecure || on_loopback() || certified) return absl::OkStatus();
    if (keeps_strangers_out && keeps_strangers_out()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("--host ", host, " lets strangers in: bind a loopback address, ",
                     keeps_strangers_out ? "give API keys with --keys-file, " : "",
                     "let in client certificates alone with --tls-client-ca, ",
                     "or say --insecure if the network is yours alone"));
  });
}

bool Admission::Enter() {
  MutexLock lock(mutex_);
  if (draining_) return false;
  ++in_flight_;
  return true;
}

void Admission::Leave() {
  MutexLock lock(mutex_);
  if (--in_flight_ == 0) idle_.NotifyAll();
}

int Admission::in_flight() const {
  MutexLock lock(mutex_);
  return in_flight_;
}

bool Admission::WaitUntilIdle(CondVar::Clock::time_point deadline) {
  MutexLock lock(mutex_);
  while (in_flight_ > 0) {
    if (!idle_.WaitUntil(mutex_, deadline)) return in_flight_ == 0;
  }
  return true;
}

ServiceProcess::ServiceProcess(std::string program, ProcessOptions options, Metrics& metrics)
    : program_(std::move(program)),
      options_(std::move(options)),
      files_(RaiseFileLimit()),
      metrics_(metrics),
      ready_gauge_(metrics.Gauge("llava_ready", "1 while /readyz says so.")),
      failed_handshakes_(options_.tls.any()
                             ? &metrics.Counter("llava_http_failed_handshakes_total",
                                                "TLS handshakes that failed on the HTTP ports.")
                             : nullptr),
      refused_connections_(
          metrics.Counter("llava_grpc_refused_connections_total",
                          "Connections to the gRPC port closed because there were too many.")) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  metrics.Gauge("llava_process_start_time_seconds", "Start of this process; Unix time.")
      .Set(now.count());
  // Inherited by all later threads, so that only Run's sigwait receives them.
  const sigset_t signals = EndSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

ServiceProcess::~ServiceProcess() {
  http_.reset();
  if (listener_) listener_->Stop();
  if (server_) server_->Shutdown(std::chrono::system_clock::now());
}

int ServiceProcess::Start(const std::vector<grpc::Service*>& services,
                          const std::vector<std::string>& health_names, AccessGuards guards) {
  HttpServerOptions http_options;
  http_options.host = options_.host;
  http_options.port = options_.metrics_port;
  http_options.tls = options_.tls;
  http_options.failed_handshakes = failed_handshakes_;
  auto http = HttpServer::Start(http_options, pages(std::move(guards.metrics)));
  if (!http.ok()) {
    PrintError(program_, absl::StrCat(http.status().message(), " (--metrics-port)"));
    return ExitCodeOf(http.status());
  }
  http_ = *std::move(http);
  auto listener =
      GrpcListener::Bind({.host = options_.host,
                          .port = options_.port,
                          .connections = options_.max_connections > 0 ? options_.max_connections
                                                                      : ConnectionsWithin(files_),
                          .refused = &refused_connections_});
  if (!listener.ok()) {
    PrintError(program_,
               absl::StrCat(listener.status().message(), " (--port); is another process there?"));
    return ExitCodeOf(listener.status());
  }
  listener_ = *std::move(listener);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);  // to both sides
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                             static_cast<int>(options_.ping_after.count()));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             static_cast<int>(options_.ping_timeout.count()));
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                             static_cast<int>(options_.handshake_timeout.count()));
  if (options_.max_streams > 0) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options_.max_streams);
  }
  builder.SetMaxReceiveMessageSize(static_cast<int>(options_.max_message_bytes));
  // Messages count before anybody asks who sends them. Half of one on each of a thousand streams
  // must not fill the memory, nor a small one that unpacks to gigabytes.
  grpc::ResourceQuota quota(program_);
  quota.Resize(std::max(kLeastQuota, kMessagesAtATime * options_.max_message_bytes));
  builder.SetResourceQuota(quota);
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  listener_->AddTo(builder, MakeServerCredentials(options_.tls));
  if (guards.reflection) {
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> creators;
    creators.push_back(MakeReflectionGuard(std::move(guards.reflection)));
    builder.experimental().SetInterceptorCreators(std::move(creators));
  }
  for (grpc::Service* service : services) builder.RegisterService(service);
  server_ = builder.BuildAndStart();
  if (!server_) {
    PrintError(program_, "gRPC's server does not start");
    return 1;
  }
  listener_->Start();
  health_names_ = health_names;
  SetReady(false, "starting");
  LogInfo("listening", {{"version", BuildVersion()},
                        {"commit", BuildCommit()},
                        {"tls", options_.tls.any() ? "on" : "off"},
                        {"grpc", HostPort(options_.host, port())},
                        {"metrics", HostPort(options_.host, metrics_port())}});
  return 0;
}

std::map<std::string, HttpServer::Page> ServiceProcess::pages(AccessGuard metrics) const {
  const auto live = [this](const HttpRequest&) { return Liveness(); };
  return {{"/metrics", [this, guard = std::move(metrics)](
                           const HttpRequest& request) { return MetricsPage(guard, request); }},
          {"/livez", live},
          {"/health", live},
          {"/readyz", [this](const HttpRequest&) { return Readiness(); }}};
}

void ServiceProcess::WhenReady(std::function<void()> call) {
  MutexLock lock(mutex_);
  when_ready_ = std::move(call);
}

void ServiceProcess::SetReady(bool ready, const std::string& reason) {
  std::set<std::string> models;
  std::function<void()> when_ready;
  {
    MutexLock lock(mutex_);
    if (admission_.draining()) return;  // stays not ready
    ready_ = ready;
    ready_gauge_.Set(ready ? 1 : 0);
    reason_ = reason;
    if (!ready) models = models_;
    if (ready) when_ready = std::exchange(when_ready_, nullptr);
  }
  auto* health = server_->GetHealthCheckService();
  for (const std::string& name : models) health->SetServingStatus(name, false);
  health->SetServingStatus("", ready);
  for (const std::string& name : health_names_) health->SetServingStatus(name, ready);
  if (when_ready) when_ready();
}

void ServiceProcess::SetHealth(const std::string& name, bool serving) {
  {
    MutexLock lock(mutex_);
    models_.insert(name);
  }
  server_->GetHealthCheckService()->SetServingStatus(name, serving);
}

void ServiceProcess::Fail(const std::string& reason) {
  LogError("a device is lost, the process ends", {{"reason", reason}});
  MutexLock lock(mutex_);
  fault_ = reason;
}

std::string ServiceProcess::fault() const {
  MutexLock lock(mutex_);
  return fault_;
}

bool ServiceProcess::EndAsked() const {
  sigset_t pending;
  sigpending(&pending);
  return sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1 ||
         !fault().empty();
}

HttpResponse ServiceProcess::Liveness() const {
  const std::string why = fault();
  return {why.empty() ? 200 : 503, "text/plain; charset=utf-8",
          why.empty() ? "alive\n" : absl::StrCat("a device is lost: ", why, "\n")};
}

HttpResponse ServiceProcess::Readiness() const {
  MutexLock lock(mutex_);
  if (ready_) return {200, "application/json", "{\"ready\":true}\n"};
  const nlohmann::json body = {{"ready", false}, {"reason", reason_}};
  return {503, "application/json",
          body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"};
}

HttpResponse ServiceProcess::MetricsPage(const AccessGuard& guard,
                                         const HttpRequest& request) const {
  if (guard) {
    if (const auto status = guard(request.Header("authorization")); !status.ok()) {
      return {absl::IsUnauthenticated(status) ? 401 : 403, "text/plain; charset=utf-8",
              absl::StrCat(status.message(), "\n")};
    }
  }
  ShowProcess(metrics_);
  return {200, "text/plain; version=0.0.4; charset=utf-8", metrics_.Render()};
}

int ServiceProcess::Run(const std::function<void()>& on_drain,
                        const std::function<void()>& on_stop) {
  const sigset_t signals = EndSignals();
  int number = -1;
  while (number < 0 && fault().empty()) number = sigtimedwait(&signals, nullptr, &kLookAgain);
  const bool failed = number < 0;
  LogInfo("draining", {{failed ? "fault" : "signal", failed ? fault() : strsignal(number)},
                       {"in_flight", absl::StrCat(admission_.in_flight())},
                       {"timeout_ms", absl::StrCat(options_.drain_timeout.count())}});
  std::thread([signals, signals_left = failed ? 2 : 1]() mutable {
    int last = 0;
    while (signals_left-- > 0) sigwait(&signals, &last);
    std::fflush(nullptr);
    _exit(128 + last);
  }).detach();

  const auto deadline = CondVar::Clock::now() + options_.drain_timeout;
  {
    MutexLock lock(mutex_);
    ready_ = false;
    ready_gauge_.Set(0);
    reason_ = "draining";
    admission_.StartDraining();  // under the lock: a SetReady is overwritten, or sees it
  }
  server_->GetHealthCheckService()->Shutdown();  // all names NOT_SERVING, for good
  if (on_drain) on_drain();
  const bool idle = admission_.WaitUntilIdle(deadline);
  if (!idle) {
    LogWarning("drain timeout, cancelling", {{"in_flight", absl::StrCat(admission_.in_flight())}});
  }
  if (on_stop) on_stop();
  listener_->Stop();
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  server_->Wait();
  LogInfo("stopped");
  return failed ? kExitDeviceLost : 0;
}

}  // namespace llava
