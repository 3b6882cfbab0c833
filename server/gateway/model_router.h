#pragma once

// Which version of which model answers.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"
#include "server/gateway/backend_pool.h"
#include "server/gateway/model_choice.h"
#include "server/runtime/mutex.h"

namespace llava {

// A version that can answer, and the arithmetic of the tower that makes its features (empty when no
// vision worker has the tower: then it answers text only).
struct Route {
  v1::ModelInfo model;
  std::string numerics;
};

// What an answer needs of its process beside the version.
struct LlmNeeds {
  bool constraint = false;          // obeys SamplingParams.constraint
  const Backend* except = nullptr;  // rather another one
};

// Thread-safe.
class ModelRouter {
 public:
  // `default_model` must parse as a ModelChoice.
  ModelRouter(BackendPool& vision, BackendPool& llm, std::string default_model,
              double canary_share = 0)
      : vision_(vision),
        llm_(llm),
        default_model_(std::move(default_model)),
        usual_share_(canary_share) {}

  // The first eligible version (model_choice.h) whose tower the vision service has; without
  // pictures also one that cannot look at any. NOT_FOUND naming what there is; UNAVAILABLE naming
  // the service that is missing, also when only a process has the version that is down, or a
  // process may have it that has never answered.
  absl::StatusOr<Route> Find(const ModelChoice& choice, bool pictures) const;
  // The same, but asks the services again before giving up. `done` runs on the caller's thread or
  // on a thread of a BackendPool, and must not block.
  void Resolve(const ModelChoice& choice, bool pictures,
               std::function<void(absl::StatusOr<Route>)> done);

  // Share of the sessions of a model that its canary gets. Set returns what it was.
  double canary_share(const std::string& name) const;
  double SetCanaryShare(const std::string& name, double share);
  // The process that answers for a session (or another key).
  absl::StatusOr<std::shared_ptr<Backend>> PickLlm(const Route& route, std::string_view key,
                                                   const LlmNeeds& needs = {}) const;
  // The process that encodes a picture, likewise.
  absl::StatusOr<std::shared_ptr<Backend>> PickVision(const Route& route, std::string_view image,
                                                      const Backend* except = nullptr) const;
  // Asks all services, then calls `done`.
  void Refresh(std::function<void()> done);

  // The language models, UNAVAILABLE if the LLM service is down.
  absl::StatusOr<std::vector<v1::ModelInfo>> LanguageModels() const;
  // Name of the default model, empty if unknown. If none was set, the first by name of those that
  // are served or are to be, and the same one as long as it is known: sessions keep it for good,
  // and must not get another one because a process is just being started anew.
  std::string DefaultModel() const;
  // OK when both services answer and the default model can look at pictures, or, if none was set,
  // any model can; else why not.
  absl::Status Ready() const;

 private:
  std::string DefaultModel(const ModelTable& llm) const;

  BackendPool& vision_;
  BackendPool& llm_;
  const std::string default_model_;
  const double usual_share_;
  mutable Mutex mutex_;
  std::map<std::string, double> shares_ LLAVA_GUARDED_BY(mutex_);  // those that were set
  mutable std::string usual_ LLAVA_GUARDED_BY(mutex_);             // the default, if none was set
  mutable bool warned_ LLAVA_GUARDED_BY(mutex_) = false;           // that there are several
};

}  // namespace llava
