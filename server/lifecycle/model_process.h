#pragma once

// What the mains of the model services have in common, from --model to the exit code.

#include <chrono>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "server/lifecycle/model_manager.h"
#include "server/runtime/service_process.h"

namespace llava {

// Prints why a model could not be loaded, in one line, and returns the process's exit code:
// INVALID_ARGUMENT -> kExitUsage, NOT_FOUND, DATA_LOSS and PERMISSION_DENIED -> kExitModelMissing,
// FAILED_PRECONDITION -> kExitDeviceMissing, RESOURCE_EXHAUSTED -> kExitNoMemory, else 1.
int ReportLoadFailure(const std::string& program, const absl::Status& status);

// The process is ready while any version is served, at the start once those of all models are (or
// have failed): whoever waits for a new process to let an old one go would lose the others. The
// name of a model is healthy while one of its versions is served; a lost device ends the process.
// `process` must outlive the manager of these options.
void ConnectHealth(ModelManager::Options& options, ServiceProcess& process);

struct ModelProcess {
  std::string program;
  std::chrono::steady_clock::time_point begin;  // of the program
  std::string host;                             // of both ports, for the log
  std::function<void()> on_ready = {};          // once, on a thread of the manager
  // Ends all answers. False: a worker hangs, and whoever waits for its thread may wait for ever.
  std::function<bool()> stop_workers;
  // For stop_workers and all else of the end, behind the drain: whatever hangs there is left.
  std::chrono::milliseconds end_limit{60'000};
};
// Starts `manager` and runs `process`, whose servers have been started, to its end. Returns the
// exit code, if anybody can wait for what is left; else the process ends here with that code.
int RunModelProcess(const ModelProcess& model, ServiceProcess& process, ModelManager& manager);

}  // namespace llava
