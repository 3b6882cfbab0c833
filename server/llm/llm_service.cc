#include "server/llm/llm_service.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/llm/busy.h"
#include "server/llm/generate_request.h"
#include "server/llm/generate_stream.h"
#include "server/llm/put_features.h"
#include "server/runtime/logging.h"
#include "server/runtime/request_id.h"
#include "server/runtime/status.h"
#include "server/runtime/stream_writer.h"
#include "server/wire/deadline.h"
#include "server/wire/feature_key.h"

namespace llava {
namespace {

v1::ImageMode ModeOf(ImageMode mode) {
  switch (mode) {
    case ImageMode::kCrop:
      return v1::IMAGE_MODE_CROP;
    case ImageMode::kPad:
      return v1::IMAGE_MODE_PAD;
    case ImageMode::kAnyres:
      break;
  }
  return v1::IMAGE_MODE_ANYRES;
}

v1::VisionSpec SpecOf(const LanguageInfo& language) {
  v1::VisionSpec spec;
  spec.set_tower_digest(ToBytes(language.tower_digest));
  spec.set_image_mode(ModeOf(language.features.image_mode));
  for (const Resolution canvas : language.features.grid) {
    v1::GridPoint& point = *spec.add_grid();
    point.set_width(static_cast<uint32_t>(canvas.width));
    point.set_height(static_cast<uint32_t>(canvas.height));
  }
  spec.set_select_layer(static_cast<int32_t>(language.features.select_layer));
  spec.set_select_feature(language.features.select_feature == SelectFeature::kClsPatch
                              ? v1::SELECT_FEATURE_CLS_PATCH
                              : v1::SELECT_FEATURE_PATCH);
  return spec;
}

v1::ModelInfo WithAbilities(v1::ModelInfo info, LlmEngine& engine) {
  info.set_constrains_output(engine.constraints().status().ok());
  return info;
}

absl::Status PromptQueueFull(int queue) {
  return LlmBusyError(absl::StrCat(queue, " prompts are waiting already (--queue); try again"));
}

}  // namespace

v1::ModelInfo LanguageModelInfo(const LanguageInfo& language, int64_t context_tokens,
                                const v1::SamplingParams& defaults) {
  v1::ModelInfo info;
  info.mutable_model()->set_name(language.name);
  info.mutable_model()->set_version(language.version);
  info.mutable_model()->set_digest(ToBytes(language.digest));
  info.set_kind(v1::MODEL_KIND_LANGUAGE);
  *info.mutable_vision_spec() = SpecOf(language);
  info.set_image_tokens(static_cast<uint32_t>(language.pictures.most_tokens()));
  const bool shorter = context_tokens > 0 && context_tokens < language.max_positions;
  info.set_context_tokens(static_cast<uint32_t>(shorter ? context_tokens : language.max_positions));
  info.set_tokenizer_digest(ToBytes(language.tokenizer->digest()));
  info.set_numerics(language.numerics);
  info.set_feature_rows(static_cast<uint32_t>(language.pictures.tile_rows()));
  info.set_feature_width(static_cast<uint32_t>(language.feature_width));
  *info.mutable_default_sampling() = defaults;
  return info;
}

LlmBackend::LlmBackend(v1::ModelInfo model_info, LlmEngine& model_engine,
                       FeatureStore& feature_store, std::shared_ptr<RecentSessions> sessions)
    : info(WithAbilities(std::move(model_info), model_engine)),
      engine(model_engine),
      store(feature_store),
      recent(std::move(sessions)),
      prompts(engine.info().tokenizer, engine.info().chat_template,
              {.pictures = engine.info().pictures,
               .context_tokens = info.context_tokens(),
               .spec_digest = ToBytes(SpecDigest(info.vision_spec()))}) {}

LlmService::LlmService(Options options, FeatureStore& store, Admission& admission, Metrics& metrics)
    : options_(options),
      store_(store),
      admission_(admission),
      metrics_(metrics),
      prompt_threads_(options.prompt_threads, static_cast<size_t>(options.queue)) {}

absl::Status LlmService::Enter() {
  if (admission_.Enter()) return absl::OkStatus();
  return LlmBusyError("draining, no new requests");
}

void LlmService::Count(const char* method, const absl::Status& status) {
  metrics_
      .Counter("llava_llm_requests_total", "Calls by method and status code",
               {{"method", method}, {"code", absl::StatusCodeToString(status.code())}})
      .Increment();
}

grpc::ServerWriteReactor<v1::GenerateResponse>* LlmService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto received = GenerateJob::Clock::now();
  auto writer = StreamWriter<v1::GenerateResponse>::Create();
  auto* reactor = writer.get();
  std::string id = RequestId(*context);
  if (!request->request_id().empty()) id = AcceptRequestId(request->request_id());
  const absl::Status entered = Enter();
  // Whoever waits can tell a request that a worker died of from one that never came here.
  if (entered.ok()) writer->Greet();
  auto stream =
      std::make_shared<GenerateStream>(std::move(writer), id, request->session_id(),
                                       [this, admitted = entered.ok()](const absl::Status& status) {
                                         Count("Generate", status);
                                         if (admitted) admission_.Leave();
                                       });
  if (!entered.ok()) {
    stream->Failed(entered);
    return reactor;
  }
  const auto backend = versions_.Find(request->model());
  if (!backend.ok()) {
    stream->Failed(backend.status());
    return reactor;
  }
  if (auto status = CheckGenerate(*request); !status.ok()) {
    stream->Failed(status);
    return reactor;
  }
  // `request` lives until the stream is closed, which is after the job was made.
  const auto start = [stream, request, id, received, backend = *backend,
                      deadline = SteadyDeadline(*context)] {
    absl::StatusOr<GenerateJob> job = MakeJob(*request, *backend);
    if (!job.ok()) return stream->Failed(job.status());
    job->received = received;
    job->deadline = deadline;
    job->request_id = id;
    job->session_id = request->session_id();
    job->sink = stream;
    stream->SetJob(backend, request, job->text_tokens, job->image_tokens);
    if (auto status = backend->engine.Submit(*std::move(job)); !status.ok()) {
      stream->Failed(status);
    }
  };
  if (!prompt_threads_.Post(start)) stream->Failed(PromptQueueFull(options_.queue));
  return reactor;
}

grpc::ServerReadReactor<v1::PutFeaturesRequest>* LlmService::PutFeatures(
    grpc::CallbackServerContext* context, v1::PutFeaturesResponse* response) {
  const absl::Status entered = Enter();
  const auto on_end = [this, admitted = entered.ok()](const absl::Status& status) {
    Count("PutFeatures", status);
    if (admitted) admission_.Leave();
  };
  return ReceiveFeatures(entered, versions_, store_, RequestId(*context), response, on_end);
}

grpc::ServerUnaryReactor* LlmService::DropFeatures(grpc::CallbackServerContext* context,
                                                   const v1::LlmServiceDropFeaturesRequest* request,
                                                   v1::LlmServiceDropFeaturesResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status entered = Enter();
  const absl::Status status = entered.ok() ? Drop(*request, *response) : entered;
  Count("DropFeatures", status);
  if (entered.ok()) admission_.Leave();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

absl::Status LlmService::Drop(const v1::LlmServiceDropFeaturesRequest& request,
                              v1::LlmServiceDropFeaturesResponse& response) {
  const auto pictures = ReadDropped(request.image_sha256());
  if (!pictures.ok()) return pictures.status();
  if (request.session_ids_size() > kMostDropped) {
    return absl::InvalidArgumentError(
        absl::StrCat("DropFeatures: session_ids names ", request.session_ids_size(),
                     " sessions, at most ", kMostDropped, " are taken; send several requests"));
  }
  response.set_dropped(static_cast<uint32_t>(store_.Drop(*pictures)));
  const std::set<std::string> sessions(request.session_ids().begin(), request.session_ids().end());
  MutexLock lock(mutex_);
  for (const auto& [model, recent] : recent_) recent->Forget(sessions, *pictures);
  return absl::OkStatus();
}

std::shared_ptr<RecentSessions> LlmService::RecentOf(const std::string& model, size_t capacity) {
  MutexLock lock(mutex_);
  auto& recent = recent_[model];
  if (!recent) recent = std::make_shared<RecentSessions>(capacity);
  return recent;
}

grpc::ServerUnaryReactor* LlmService::CountTokens(grpc::CallbackServerContext* context,
                                                  const v1::CountTokensRequest* request,
                                                  v1::CountTokensResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status entered = Enter();
  const auto end = [this, reactor, admitted = entered.ok()](const absl::Status& status) {
    Count("CountTokens", status);
    if (admitted) admission_.Leave();
    reactor->Finish(ToGrpc(status));  // last: after it the process may end
  };
  if (!entered.ok()) {
    end(entered);
    return reactor;
  }
  const auto backend = versions_.Find(request->model());
  if (!backend.ok()) {
    end(backend.status());
    return reactor;
  }
  const auto count = [end, request, response, backend = *backend] {
    const absl::StatusOr<Prompt> prompt = CountPrompt(request->messages(), *backend);
    if (!prompt.ok()) return end(prompt.status());
    response->set_text_tokens(static_cast<uint32_t>(prompt->text_tokens));
    response->set_image_tokens(static_cast<uint32_t>(prompt->image_tokens));
    response->set_context_tokens(backend->info.context_tokens());
    end(absl::OkStatus());
  };
  if (!prompt_threads_.Post(count)) end(PromptQueueFull(options_.queue));
  return reactor;
}

}  // namespace llava
