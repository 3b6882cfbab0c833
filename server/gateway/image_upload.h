#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/rpc_scope.h"
#include "server/gateway/turn_parts.h"

namespace llava {

// Takes one picture by ChatService.UploadImage: the header, a look whether the session exists, then
// the bytes up to the limit. Owns itself until gRPC is done with it.
class ImageUpload : public grpc::ServerReadReactor<v1::UploadImageRequest> {
 public:
  static ImageUpload* Start(const TurnParts& parts, Admission& admission,
                            grpc::CallbackServerContext* context,
                            v1::UploadImageResponse* response);

 private:
  ImageUpload(const TurnParts& parts, grpc::CallbackServerContext* context,
              v1::UploadImageResponse* response)
      : parts_(parts),
        context_(context),
        response_(response),
        scope_("UploadImage", *context, parts) {}

  void OnReadDone(bool ok) override;
  void OnDone() override { self_.reset(); }

  void OnHeader();
  // OK: the next message is awaited.
  absl::Status OnChunk();
  void OnEnd();
  void End(const absl::Status& status);
  void Refuse(const absl::Status& status);

  const TurnParts& parts_;
  grpc::CallbackServerContext* const context_;
  v1::UploadImageResponse* const response_;
  RpcScope scope_;
  std::shared_ptr<ImageUpload> self_;
  v1::UploadImageRequest read_;
  std::string session_id_;
  uint64_t announced_bytes_ = 0;
  std::string bytes_;
};

}  // namespace llava
