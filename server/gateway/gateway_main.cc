// llava-gateway: the public front of llava-serving. Wiring only.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "server/gateway/gateway.h"
#include "server/gateway/keys_command.h"
#include "server/gateway/store_backup.h"
#include "server/runtime/file_limit.h"
#include "server/runtime/host_port.h"
#include "server/runtime/logging.h"
#include "server/runtime/service_process.h"
#include "server/runtime/settings.h"

namespace llava {
namespace {

int CopyStore(const char* program, const GatewayOptions& options) {
  const bool backup = !options.backup_to.empty();
  const auto contents = backup ? BackUpStore(options.data_dir, options.backup_to)
                               : RestoreStore(options.restore_from, options.data_dir);
  if (!contents.ok()) {
    PrintError(program, std::string(contents.status().message()));
    return 1;
  }
  std::printf("%s %s: %lld sessions, %lld turns, %lld pictures\n",
              backup ? "copied to" : "restored from",
              (backup ? options.backup_to : options.restore_from).c_str(),
              static_cast<long long>(contents->sessions), static_cast<long long>(contents->turns),
              static_cast<long long>(contents->images));
  return 0;
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  using namespace llava;
  constexpr char kProgram[] = "llava-gateway";
  if (argc > 1 && std::string(argv[1]) == "keys") return RunKeysCommand(argc - 1, argv + 1);

  ProcessOptions process_options;
  process_options.port = 8001;
  process_options.metrics_port = 8002;
  process_options.max_streams = 1024;  // the rest waits at the client
  GatewayOptions options;
  Settings settings(kProgram,
                    "Conversations about pictures: sessions, uploads and streamed answers over "
                    "gRPC, in front of llava-vision and llava-llm.");
  process_options.Declare(
      settings, [&options] { return !options.keys_file.empty() || options.copies_store(); });
  options.Declare(settings);
  if (const auto code = settings.Parse(argc, argv)) return *code;
  if (options.copies_store()) return CopyStore(kProgram, options);
  const uint64_t files = RaiseFileLimit();
  InitLogging({"gateway", process_options.log_level, process_options.log_format});

  const ConnectionShares shares = ShareConnections(files, options.http_limits.connections);
  if (options.http_limits.connections > shares.http) {
    LogWarning("fewer HTTP connections than --http-connections: the process may open too few files",
               {{"connections", absl::StrCat(shares.http)}, {"files", absl::StrCat(files)}});
    options.http_limits.connections = shares.http;
  }
  process_options.max_connections = shares.grpc;

  Metrics metrics("gateway");
  std::unique_ptr<Gateway> gateway;  // before the process: its services must outlive the server
  ServiceProcess process(kProgram, process_options, metrics);
  auto opened = Gateway::Open(options, metrics, process.admission());
  if (!opened.ok()) {
    PrintError(kProgram, std::string(opened.status().message()));
    return 1;
  }
  gateway = *std::move(opened);
  AccessGuards guards;
  AccessGuard public_metrics;  // of --http-port, which also a proxy may bring to strangers
  if (gateway->keys().required()) {
    guards.reflection = [&keys = gateway->keys()](std::string_view authorization) {
      return keys.Identify(authorization).status();
    };
    public_metrics = [&keys = gateway->keys()](std::string_view authorization) {
      return MayReadMetrics(keys, authorization);
    };
    if (!process_options.on_loopback() && !options.metrics_open) guards.metrics = public_metrics;
  }
  if (const int code = process.Start(gateway->services(), {"llava.v1.ChatService"}, guards)) {
    gateway->Stop();
    return code;
  }
  const bool hosts_checked = process_options.on_loopback() && !gateway->keys().required();
  const auto front = gateway->MakeHttpFront(process.pages(public_metrics), hosts_checked);
  std::unique_ptr<HttpServer> http;  // last: it ends first
  if (options.http_port >= 0) {
    HttpServerOptions http_options;
    http_options.host = process_options.host;
    http_options.port = options.http_port;
    http_options.threads = options.http_threads;
    http_options.limits = options.http_limits;
    http_options.tls = process_options.tls;
    http_options.failed_handshakes = process.failed_handshakes();
    auto started = HttpServer::Start(http_options, *front);
    if (!started.ok()) {
      PrintError(kProgram, absl::StrCat(started.status().message(), " (--http-port)"));
      gateway->Stop();
      return ExitCodeOf(started.status());
    }
    http = *std::move(started);
    LogInfo("serving HTTP", {{"http", HostPort(process_options.host, http->port())}});
  }
  gateway->Start(
      [&, told = std::optional<std::string>()](const Gateway::Readiness& readiness) mutable {
        if (told != readiness.reason) {  // said again, it would take the health of all names back
          told = readiness.reason;
          process.SetReady(readiness.ready, readiness.reason);
          if (readiness.ready) LogInfo("ready");
          if (!readiness.ready) LogWarning("not ready", {{"reason", readiness.reason}});
        }
        for (const auto& [model, serving] : readiness.models) process.SetHealth(model, serving);
      });
  const int code = process.Run({}, [&] { gateway->Stop(); });
  http.reset();
  return code;
}
