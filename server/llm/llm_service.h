#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "llava/v1/llm.grpc.pb.h"
#include "llava/v1/models.pb.h"
#include "server/llm/engine.h"
#include "server/llm/feature_store.h"
#include "server/llm/prompt.h"
#include "server/llm/task_threads.h"
#include "server/runtime/metrics.h"
#include "server/runtime/service_process.h"

namespace llava {

// What a language model tells about itself and what its requests are checked against.
// `context_tokens`: 0 = the model's own.
v1::ModelInfo LanguageModelInfo(const LanguageInfo& language, int64_t image_tokens,
                                int64_t context_tokens, const v1::SamplingParams& defaults);

// All that requests need once the model is there. Const, but for the thread-safe parts it points
// to.
struct LlmBackend {
  LlmBackend(v1::ModelInfo info, LlmEngine& engine, FeatureStore& store);

  const v1::ModelInfo info;
  LlmEngine& engine;
  FeatureStore& store;
  const PromptBuilder prompts;
};

// llava.v1.LlmService over an engine: checks requests, renders and tokenizes them on threads of its
// own, streams answers. Thread-safe.
class LlmService : public v1::LlmService::CallbackService {
 public:
  struct Options {
    int prompt_threads = 2;  // render and tokenize
    int queue = 256;         // prompts waiting for them
  };

  // `admission` and `metrics` must outlive the service.
  LlmService(Options options, Admission& admission, Metrics& metrics);

  // Until then requests get UNAVAILABLE. `backend` must outlive the last request.
  void SetBackend(const LlmBackend* backend) { backend_ = backend; }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerReadReactor<v1::PutFeaturesRequest>* PutFeatures(
      grpc::CallbackServerContext* context, v1::PutFeaturesResponse* response) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const v1::CountTokensRequest* request,
                                        v1::CountTokensResponse* response) override;

 private:
  // The backend, or UNAVAILABLE: draining or loading. An OK result is counted by admission_.
  absl::StatusOr<const LlmBackend*> Enter();
  void Count(const char* method, const absl::Status& status);

  const Options options_;
  Admission& admission_;
  Metrics& metrics_;
  std::atomic<const LlmBackend*> backend_ = nullptr;
  TaskThreads prompt_threads_;  // last: its tasks use the fields above
};

}  // namespace llava
