#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/answer_watch.h"
#include "server/gateway/rpc_scope.h"
#include "server/gateway/turn_parts.h"
#include "server/runtime/mutex.h"

namespace llava {

// Takes one picture by ChatService.UploadImage: the header, a look whether the session exists, then
// the bytes up to the limit. What has come counts in RequestMemory; when nothing more comes for
// long, or the client does not take the answer, the call is ended, sooner when the process drains.
// Owns itself until gRPC is done with it.
class ImageUpload : public grpc::ServerReadReactor<v1::UploadImageRequest> {
 public:
  static ImageUpload* Start(const TurnParts& parts, grpc::CallbackServerContext* context,
                            v1::UploadImageResponse* response);

 private:
  ImageUpload(const TurnParts& parts, grpc::CallbackServerContext* context,
              v1::UploadImageResponse* response)
      : parts_(parts),
        context_(context),
        response_(response),
        scope_("UploadImage", *context, parts),
        memory_(parts.memory),
        answer_(AnswerWatch::Create(*context, parts.sends)) {}

  void OnReadDone(bool ok) override;
  void OnDone() override {
    answer_->Done();
    self_.reset();
  }

  // Awaits the next message.
  void Read();
  // Looks now and then whether it has come.
  void Watch() LLAVA_REQUIRES(mutex_);
  void OnWatch();
  void OnHeader();
  // OK: the next message is awaited.
  absl::Status OnChunk();
  void OnEnd();
  void End(const absl::Status& status);
  void Refuse(const absl::Status& status);
  void Tell(const absl::Status& status);

  const TurnParts& parts_;
  grpc::CallbackServerContext* const context_;
  v1::UploadImageResponse* const response_;
  RpcScope scope_;
  std::shared_ptr<ImageUpload> self_;
  v1::UploadImageRequest read_;
  std::string session_id_;
  uint64_t announced_bytes_ = 0;
  RequestMemory::Share memory_;
  const std::shared_ptr<AnswerWatch> answer_;
  std::string bytes_;

  Mutex mutex_;
  bool ended_ LLAVA_GUARDED_BY(mutex_) = false;
  // Reads begun and not done. It may be less for a moment while one begins, never more.
  int reading_ LLAVA_GUARDED_BY(mutex_) = 0;
  std::chrono::steady_clock::time_point last_ LLAVA_GUARDED_BY(mutex_);  // message, or begin
  grpc::Alarm alarm_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
