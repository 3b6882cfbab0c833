#pragma once

// Which version of which model answers.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"
#include "server/gateway/backend_pool.h"

namespace llava {

// A version that can answer, and the arithmetic of the tower that makes its features (empty when no
// vision worker has the tower: then it answers text only).
struct Route {
  v1::ModelInfo model;
  std::string numerics;
};

// Thread-safe.
class ModelRouter {
 public:
  ModelRouter(BackendPool& vision, BackendPool& llm, std::string default_model)
      : vision_(vision), llm_(llm), default_model_(std::move(default_model)) {}

  // Newest version (`version` 0) or exactly the named one; empty `name`: the default model. A
  // version is preferred when the vision service has its tower, and needs that for pictures.
  // NOT_FOUND naming what there is; UNAVAILABLE naming the service that is missing.
  absl::StatusOr<Route> Find(const std::string& name, uint64_t version, bool pictures) const;
  // The same, but asks the services again before giving up. `done` runs on the caller's thread or
  // on a thread of a BackendPool, and must not block.
  void Resolve(const std::string& name, uint64_t version, bool pictures,
               std::function<void(absl::StatusOr<Route>)> done);
  // The process that answers for a session (or another key), other than `except` if there is one.
  absl::StatusOr<std::shared_ptr<Backend>> PickLlm(const Route& route, std::string_view key,
                                                   const Backend* except = nullptr) const;
  // The process that encodes a picture, likewise.
  absl::StatusOr<std::shared_ptr<Backend>> PickVision(const Route& route,
                                                      std::string_view image) const;
  // Asks all services, then calls `done`.
  void Refresh(std::function<void()> done);

  // The language models, UNAVAILABLE if the LLM service is down.
  absl::StatusOr<std::vector<v1::ModelInfo>> LanguageModels() const;
  // Name of the default model, empty if unknown.
  std::string DefaultModel() const;
  // OK when both services answer and the default model can look at pictures; else why not.
  absl::Status Ready() const;

 private:
  BackendPool& vision_;
  BackendPool& llm_;
  const std::string default_model_;
};

}  // namespace llava
