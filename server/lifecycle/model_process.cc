#include "server/lifecycle/model_process.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "server/runtime/host_port.h"
#include "server/runtime/logging.h"
#include "server/runtime/mutex.h"
#include "server/runtime/seconds.h"

namespace llava {
namespace {

[[noreturn]] void EndWithoutTidying(int code) {
  std::fflush(nullptr);
  std::_Exit(code);  // whoever tidies up would ask the device
}

// Ends the process when its end takes too long: any thread may hang in a call to a device.
class EndLimit {
 public:
  EndLimit() : thread_([this] { Wait(); }) {}
  EndLimit(const EndLimit&) = delete;
  EndLimit& operator=(const EndLimit&) = delete;
  ~EndLimit() {
    {
      MutexLock lock(mutex_);
      over_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
  }
  // From now on it takes no longer than that, or ends with what `code` says.
  void Begin(std::chrono::milliseconds limit, std::function<int()> code) {
    MutexLock lock(mutex_);
    until_ = CondVar::Clock::now() + limit;
    code_ = std::move(code);
    changed_.NotifyAll();
  }

 private:
  void Wait() {
    MutexLock lock(mutex_);
    while (!over_) {
      if (!until_) {
        changed_.Wait(mutex_);
      } else if (!changed_.WaitUntil(mutex_, *until_) && !over_) {
        LogWarning("something hangs, the process ends without it");
        EndWithoutTidying(code_());
      }
    }
  }

  Mutex mutex_;
  CondVar changed_;
  bool over_ LLAVA_GUARDED_BY(mutex_) = false;
  std::optional<CondVar::Clock::time_point> until_ LLAVA_GUARDED_BY(mutex_);
  std::function<int()> code_ LLAVA_GUARDED_BY(mutex_);
  std::thread thread_;  // last
};

}  // namespace

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
  struct State {
    std::set<std::string> served;
    bool first_loads_done = false;
    std::optional<std::string> told;  // why it is not ready; empty: it is
  };
  const auto tell = [&process](State& state) {
    std::string why_not;
    if (state.served.empty()) {
      why_not = "no version is served";
    } else if (!state.first_loads_done) {
      why_not = "versions of other models are loaded for the first time";
    }
    if (why_not == state.told) return;  // it would take the health of all names back
    state.told = why_not;
    process.SetReady(why_not.empty(), why_not);
  };
  // The manager calls from one thread.
  const auto state = std::make_shared<State>();
  options.on_serving = [&process, state, tell](const std::string& model, int versions) {
    if (versions > 0) {
      state->served.insert(model);
    } else {
      state->served.erase(model);
    }
    tell(*state);
    process.SetHealth(model, versions > 0);
  };
  options.on_first_loads = [state, tell] {
    state->first_loads_done = true;
    tell(*state);
  };
  options.on_device_lost = [&process](const std::string& reason) { process.Fail(reason); };
}

int RunModelProcess(const ModelProcess& model, ServiceProcess& process, ModelManager& manager) {
  bool ended = true;
  EndLimit limit;
  const auto stop = [&](const std::function<int()>& code) {
    limit.Begin(model.end_limit, code);
    manager.Stop();
    ended = model.stop_workers();
  };
  const auto end_asked = [&] { return process.EndAsked(); };
  process.WhenReady([&] {  // while `manager` runs
    const double took = Seconds(std::chrono::steady_clock::now() - model.begin);
    LogInfo(absl::StrFormat("ready in %.1f s", took),
            {{"grpc", HostPort(model.host, process.port())},
             {"metrics", HostPort(model.host, process.metrics_port())}});
    if (model.on_ready) model.on_ready();
  });
  manager.Start();
  const absl::Status status = manager.WaitUntilServing(end_asked);
  int code = 0;
  if (status.ok() || end_asked()) {
    const auto code_now = [&] { return process.fault().empty() ? 0 : kExitDeviceLost; };
    code = process.Run([&] { manager.Drain(); }, [&] { stop(code_now); });
  } else {
    code = ReportLoadFailure(model.program, status);
    stop([code] { return code; });
  }
  if (!ended) LogWarning("a worker hangs, the process ends without it");
  if (!ended || code == kExitDeviceLost) EndWithoutTidying(code);
  return code;
}

}  // namespace llava
