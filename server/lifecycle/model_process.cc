#include "server/lifecycle/model_process.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>

#include "absl/strings/str_format.h"
#include "server/runtime/host_port.h"
#include "server/runtime/logging.h"
#include "server/runtime/seconds.h"

namespace llava {

int ReportLoadFailure(const std::string& program, const absl::Status& status) {
  PrintError(program, std::string(status.message()));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return kExitUsage;
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kPermissionDenied:
      return kExitModelMissing;
    case absl::StatusCode::kFailedPrecondition:
      return kExitDeviceMissing;
    case absl::StatusCode::kResourceExhausted:
      return kExitNoMemory;
    default:
      return 1;
  }
}

void ConnectHealth(ModelManager::Options& options, ServiceProcess& process) {
  // The manager calls from one thread.
  options.on_serving = [&process, served = std::set<std::string>()](const std::string& model,
                                                                    int versions) mutable {
    process.SetHealth(model, versions > 0);
    if (versions > 0) {
      served.insert(model);
    } else {
      served.erase(model);
    }
    process.SetReady(!served.empty(), served.empty() ? "no version is served" : "");
  };
  options.on_device_lost = [&process](const std::string& reason) { process.Fail(reason); };
}

int RunModelProcess(const ModelProcess& model, ServiceProcess& process, ModelManager& manager) {
  bool ended = true;
  const auto stop = [&] {
    manager.Stop();
    ended = model.stop_workers();
  };
  const auto end_asked = [&] { return process.EndAsked(); };
  manager.Start();
  const absl::Status status = manager.WaitUntilServing(end_asked);
  int code = 0;
  if (status.ok() || end_asked()) {
    if (status.ok()) {
      const double took = Seconds(std::chrono::steady_clock::now() - model.begin);
      LogInfo(absl::StrFormat("ready in %.1f s", took),
              {{"grpc", HostPort(model.host, process.port())},
               {"metrics", HostPort(model.host, process.metrics_port())}});
      if (model.on_ready) model.on_ready();
    }
    code = process.Run([&] { manager.Drain(); }, stop);
  } else {
    stop();
    code = ReportLoadFailure(model.program, status);
  }
  if (!ended) LogWarning("a worker hangs, the process ends without it");
  if (!ended || code == kExitDeviceLost) {
    std::fflush(nullptr);
    std::_Exit(code);  // whoever tidies up would ask the device
  }
  return code;
}

}  // namespace llava
