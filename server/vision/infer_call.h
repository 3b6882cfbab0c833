#pragma once

// One ModelInfer call; included by the files of InferenceService alone.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/runtime/mutex.h"
#include "server/vision/infer_request.h"
#include "server/vision/inference_service.h"

namespace llava {

// Posts the pictures of a request and answers when all have ended. If one cannot be encoded, the
// call fails and says which; its others are dropped.
class InferenceService::InferCall : public grpc::ServerUnaryReactor,
                                    public std::enable_shared_from_this<InferCall> {
 public:
  using Clock = EncodeCall::Clock;

  // The reactor of the call, which owns itself until gRPC is done with it.
  static InferCall* Start(InferenceService& service, grpc::CallbackServerContext& context,
                          const inference::ModelInferRequest& request,
                          inference::ModelInferResponse* response);

 private:
  class Picture;

  InferCall(InferenceService& service, inference::ModelInferResponse* response)
      : service_(service), response_(response) {}
  absl::Status Begin(grpc::CallbackServerContext& context,
                     const inference::ModelInferRequest& request);
  void PictureEnded(size_t index, std::shared_ptr<const Features> features,
                    const absl::Status& status);
  absl::Status Respond();
  void End(const absl::Status& status);
  // From now on the pictures hold no more than the request and its answer.
  void ShrinkToAnswer();

  void OnCancel() override { over_ = true; }
  // The client has got all, or has gone; the process may end then.
  void OnDone() override;

  InferenceService& service_;
  inference::ModelInferResponse* const response_;  // gRPC's, until OnDone
  std::shared_ptr<InferCall> self_;                // released by OnDone
  bool admitted_ = false;
  std::string request_id_;
  uint64_t request_bytes_ = 0;
  std::shared_ptr<VisionServable> tower_;
  InferPlan plan_;
  Clock::time_point deadline_ = Clock::time_point::max();
  std::atomic<bool> over_ = false;  // nobody waits for the pictures that are left

  Mutex mutex_;
  // Which hold the memory of the request; until OnDone.
  std::vector<std::shared_ptr<Picture>> pictures_ LLAVA_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<const Features>> features_ LLAVA_GUARDED_BY(mutex_);
  size_t left_ LLAVA_GUARDED_BY(mutex_) = 0;
  absl::Status status_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
