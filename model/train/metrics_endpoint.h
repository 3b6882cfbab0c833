#pragma once

// GET /metrics for Prometheus while a run goes on.

#include <memory>
#include <string>

#include "model/train/trainer.h"

namespace llava {

// The last step's figures as text of Prometheus' exposition format: pure, so that it can be tested.
std::string MetricsText(const std::string& kind, const StepReport& report);

// Serves the newest report from a thread of its own until its end. Update is thread-safe.
class MetricsEndpoint {
 public:
  // `address`: "127.0.0.1:8032"; port 0 takes a free one. Throws std::invalid_argument for an
  // address that cannot be read, std::runtime_error if nobody can listen there.
  static std::unique_ptr<MetricsEndpoint> Start(const std::string& address,
                                                const std::string& kind);
  virtual ~MetricsEndpoint() = default;
  virtual void Update(const StepReport& report) = 0;
  // Where it listens, with the port taken.
  virtual std::string address() const = 0;
};

}  // namespace llava
