#include "server/vision/infer_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/digest/sha256.h"
#include "server/runtime/logging.h"
#include "server/runtime/request_id.h"
#include "server/runtime/status.h"
#include "server/wire/deadline.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kRetryAfter{500};

absl::Status WithPrefix(const std::string& prefix, const absl::Status& status) {
  absl::Status result(status.code(), absl::StrCat(prefix, status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

}  // namespace

// A picture of the batch as the engine sees it.
class InferenceService::InferCall::Picture : public EncodeCall {
 public:
  Picture(std::shared_ptr<InferCall> call, size_t index) : call_(std::move(call)), index_(index) {}

  void Done(std::shared_ptr<const Features> features, bool, const EncodeTimes&) override {
    call_->PictureEnded(index_, std::move(features), absl::OkStatus());
  }
  void Failed(const absl::Status& status) override { call_->PictureEnded(index_, nullptr, status); }
  bool gone() const override { return call_->over_; }
  Clock::time_point deadline() const override { return call_->deadline_; }

 private:
  const std::shared_ptr<InferCall> call_;
  const size_t index_;
};

InferenceService::InferCall* InferenceService::InferCall::Start(
    InferenceService& service, grpc::CallbackServerContext& context,
    const inference::ModelInferRequest& request, inference::ModelInferResponse* response) {
  auto call = std::shared_ptr<InferCall>(new InferCall(service, response));
  call->self_ = call;
  if (const absl::Status status = call->Begin(context, request); !status.ok()) call->End(status);
  return call.get();
}

absl::Status InferenceService::InferCall::Begin(grpc::CallbackServerContext& context,
                                                const inference::ModelInferRequest& request) {
  request_bytes_ = request.ByteSizeLong();
  request_id_ = RequestId(context);
  if (!request.id().empty()) request_id_ = AcceptRequestId(request.id());
  response_->set_id(request.id());
  if (!service_.admission_.Enter()) {
    return OverloadedError("vision: draining, no new pictures", kRetryAfter);
  }
  admitted_ = true;
  auto tower = service_.Find(request.model_name(), request.model_version());
  if (!tower.ok()) return tower.status();
  tower_ = *tower;  // until the last picture has ended, perhaps before Post returns
  VisionEngine& engine = (*tower)->engine();
  auto plan = PlanInference(request, engine.info(), engine.options());
  if (!plan.ok()) return plan.status();
  plan_ = *std::move(plan);
  deadline_ = SteadyDeadline(context);
  if (plan_.timeout) deadline_ = std::min(deadline_, Clock::now() + *plan_.timeout);
  std::vector<EncodeJob> jobs = std::move(plan_.jobs);
  {
    MutexLock lock(mutex_);
    features_.resize(jobs.size());
    left_ = jobs.size();
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    auto picture = std::make_shared<Picture>(shared_from_this(), i);
    jobs[i].request_id = request_id_;
    jobs[i].call = picture;
    MutexLock lock(mutex_);
    pictures_.push_back(std::move(picture));
  }
  return engine.Post(std::move(jobs));
}

void InferenceService::InferCall::PictureEnded(size_t index,
                                               std::shared_ptr<const Features> features,
                                               const absl::Status& status) {
  absl::Status end;
  {
    MutexLock lock(mutex_);
    features_[index] = std::move(features);
    if (!status.ok() && status_.ok()) {
      status_ = WithPrefix(absl::StrCat(plan_.input, "[", index, "]: "), status);
      over_ = true;
    }
    if (--left_ > 0) return;
    end = status_;
  }
  if (end.ok()) end = Respond();
  ShrinkToAnswer();
  End(end);
}

void InferenceService::InferCall::ShrinkToAnswer() {
  MutexLock lock(mutex_);
  const uint64_t bytes = request_bytes_ + response_->ByteSizeLong();
  for (const auto& picture : pictures_) picture->held.ShrinkTo(bytes / pictures_.size());
  features_.clear();  // the answer has a copy
}

absl::Status InferenceService::InferCall::Respond() {
  const v1::ModelInfo& info = tower_->info();
  response_->set_model_name(info.model().name());
  response_->set_model_version(absl::StrCat(info.model().version()));
  auto& parameters = *response_->mutable_parameters();
  parameters["tower_digest"].set_string_param(ToHex(tower_->engine().info().digest));
  parameters["numerics"].set_string_param(info.numerics());
  MutexLock lock(mutex_);
  for (size_t i = 1; i < features_.size(); ++i) {
    if (features_[i]->rows == features_[0]->rows) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(plan_.input, "[", i, "]: has ", features_[i]->rows, " rows of features, ",
                     plan_.input, "[0] has ", features_[0]->rows,
                     ": pictures with different numbers of tiles need requests of their own"));
  }
  WriteOutputs(plan_, features_, response_);
  return absl::OkStatus();
}

void InferenceService::InferCall::End(const absl::Status& status) {
  if (!status.ok()) {
    LogInfo("refused", {{"request_id", request_id_},
                        {"code", absl::StatusCodeToString(status.code())},
                        {"error", std::string(status.message())}});
  }
  service_.metrics_
      .Counter("llava_vision_infer_requests_total", "ModelInfer calls by status code",
               {{"code", absl::StatusCodeToString(status.code())}})
      .Increment();
  tower_.reset();  // who reads slowly keeps no version from going
  Finish(ToGrpc(status));
}

void InferenceService::InferCall::OnDone() {
  std::vector<std::shared_ptr<Picture>> pictures;
  {
    MutexLock lock(mutex_);
    pictures.swap(pictures_);
  }
  pictures.clear();  // each holds this call
  if (admitted_) service_.admission_.Leave();
  self_.reset();
}

grpc::ServerUnaryReactor* InferenceService::ModelInfer(Context* context,
                                                       const inference::ModelInferRequest* request,
                                                       inference::ModelInferResponse* response) {
  return InferCall::Start(*this, *context, *request, response);
}

}  // namespace llava
