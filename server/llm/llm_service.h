#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "llava/v1/llm.grpc.pb.h"
#include "llava/v1/models.pb.h"
#include "server/llm/engine.h"
#include "server/llm/feature_store.h"
#include "server/llm/prompt.h"
#include "server/llm/recent_sessions.h"
#include "server/llm/routed_versions.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/service_process.h"
#include "server/runtime/task_threads.h"

namespace llava {

// What a language model tells about itself and what its requests are checked against.
// `context_tokens`: 0 = the model's own.
v1::ModelInfo LanguageModelInfo(const LanguageInfo& language, int64_t context_tokens,
                                const v1::SamplingParams& defaults);

// All that requests need of a version. Const, but for the thread-safe parts it points to.
struct LlmBackend {
  // `recent` is told of answers that ended.
  LlmBackend(v1::ModelInfo info, LlmEngine& engine, FeatureStore& store,
             std::shared_ptr<RecentSessions> recent);

  const v1::ModelInfo info;
  LlmEngine& engine;
  FeatureStore& store;
  const std::shared_ptr<RecentSessions> recent;
  const PromptBuilder prompts;
};

// llava.v1.LlmService over the engines of all versions that are routed: checks requests, renders
// and tokenizes them on threads of its own, streams answers. A request holds its version until it
// has ended. Thread-safe.
class LlmService : public v1::LlmService::CallbackService {
 public:
  struct Options {
    int prompt_threads = 2;  // render and tokenize
    int queue = 256;         // prompts waiting for them
  };

  // `store`, `admission` and `metrics` must outlive the service. `store`: the one of all backends.
  LlmService(Options options, FeatureStore& store, Admission& admission, Metrics& metrics);

  // From now on requests for this version are taken; until the first one they get UNAVAILABLE. What
  // the backend points to must live as long as it does.
  void Route(std::shared_ptr<const LlmBackend> backend) { versions_.Add(std::move(backend)); }
  // No new requests for it.
  void Unroute(const std::string& name, uint64_t version) { versions_.Remove(name, version); }
  // What the versions of a model share for LlmBackend::recent, from the first one that asks.
  std::shared_ptr<RecentSessions> RecentOf(const std::string& model, size_t capacity);

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerReadReactor<v1::PutFeaturesRequest>* PutFeatures(
      grpc::CallbackServerContext* context, v1::PutFeaturesResponse* response) override;
  grpc::ServerUnaryReactor* DropFeatures(grpc::CallbackServerContext* context,
                                         const v1::LlmServiceDropFeaturesRequest* request,
                                         v1::LlmServiceDropFeaturesResponse* response) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const v1::CountTokensRequest* request,
                                        v1::CountTokensResponse* response) override;

 private:
  // UNAVAILABLE when draining. An OK result is counted by admission_.
  absl::Status Enter();
  void Count(const char* method, const absl::Status& status);
  absl::Status Drop(const v1::LlmServiceDropFeaturesRequest& request,
                    v1::LlmServiceDropFeaturesResponse& response);

  const Options options_;
  FeatureStore& store_;
  Admission& admission_;
  Metrics& metrics_;
  RoutedVersions versions_;
  Mutex mutex_;
  std::map<std::string, std::shared_ptr<RecentSessions>> recent_ LLAVA_GUARDED_BY(mutex_);
  TaskThreads prompt_threads_;  // last: its tasks use the fields above
};

}  // namespace llava
