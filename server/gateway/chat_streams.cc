// The calls of ChatService that stream an answer.

#include <memory>
#include <utility>

#include "server/gateway/chat_service.h"
#include "server/gateway/request_checks.h"
#include "server/gateway/turn_start.h"
#include "server/runtime/status.h"
#include "server/runtime/stream_writer.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

template <typename Response>
class StreamSink : public TurnSink {
 public:
  explicit StreamSink(std::shared_ptr<StreamWriter<Response>> writer)
      : writer_(std::move(writer)) {}

  // A client that is gone shows as a Break of the turn, not here.
  void Send(v1::ChatEvent event) override {
    Response response;
    *response.mutable_event() = std::move(event);
    writer_->Write(std::move(response));
  }
  void Close(const absl::Status& status) override { writer_->Close(ToGrpc(status)); }

 private:
  const std::shared_ptr<StreamWriter<Response>> writer_;
};

}  // namespace

template <typename Response>
grpc::ServerWriteReactor<Response>* ChatServiceImpl::Run(grpc::CallbackServerContext* context,
                                                         std::shared_ptr<RpcScope> scope,
                                                         absl::StatusOr<TurnRequest> request) {
  auto writer = StreamWriter<Response>::Create();
  if (!request.ok()) {
    scope->End(request.status());
    writer->Close(ToGrpc(request.status()));
    return writer.get();
  }
  request->deadline = context->deadline();
  const auto start = TurnStart::Begin(parts_, std::move(scope), *std::move(request),
                                      std::make_unique<StreamSink<Response>>(writer));
  writer->SetOnGone([weak = std::weak_ptr(start)] {
    if (auto started = weak.lock()) started->Break(TurnBreak::kClientGone);
  });
  return writer.get();
}

grpc::ServerWriteReactor<v1::ChatResponse>* ChatServiceImpl::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  auto scope = std::make_shared<RpcScope>("Chat", *context, parts_);
  auto status = scope->Admit(admission_);
  if (status.ok() && request->priority() > 0 && !scope->caller().is_admin()) {
    status = absl::PermissionDeniedError("a priority above 0 needs the role admin");
  }
  if (!status.ok()) {
    return Run<v1::ChatResponse>(context, std::move(scope), status);
  }
  return Run<v1::ChatResponse>(context, std::move(scope), ReadChat(*request));
}

absl::StatusOr<TurnRequest> ChatServiceImpl::ReadChat(const v1::ChatRequest& request) {
  if (auto status = CheckChat(request); !status.ok()) return status;
  TurnRequest turn;
  turn.model = request.model();
  turn.sampling = request.sampling();
  turn.priority = request.priority();
  if (request.messages().empty()) {
    auto images = ReadMessage(request.text(), request.images(), parts_.options);
    if (!images.ok()) {
      if (!request.images().empty()) parts_.metrics.CountImage("refused");
      return images.status();
    }
    CountInlineImages(*images);
    turn.session_id = request.session_id();
    turn.text = request.text();
    turn.images = *std::move(images);
    return turn;
  }
  auto prompt = ReadConversation(request.messages(), parts_.options);
  if (!prompt.ok()) return prompt.status();
  for (const auto& [id, bytes] : prompt->files) {
    parts_.metrics.CountImage("accepted");
    parts_.metrics.image_bytes_total.Increment(static_cast<double>(bytes->size()));
  }
  turn.prompt = *std::move(prompt);
  return turn;
}

void ChatServiceImpl::CountInlineImages(const std::vector<StoredImage>& images) {
  for (const StoredImage& image : images) {
    if (!image.bytes) continue;
    parts_.metrics.CountImage("accepted");
    parts_.metrics.image_bytes_total.Increment(static_cast<double>(image.bytes->size()));
  }
}

grpc::ServerWriteReactor<v1::RegenerateTurnResponse>* ChatServiceImpl::RegenerateTurn(
    grpc::CallbackServerContext* context, const v1::RegenerateTurnRequest* request) {
  auto scope = std::make_shared<RpcScope>("RegenerateTurn", *context, parts_);
  if (auto status = scope->Admit(admission_); !status.ok()) {
    return Run<v1::RegenerateTurnResponse>(context, std::move(scope), status);
  }
  return Run<v1::RegenerateTurnResponse>(context, std::move(scope), ReadRegenerate(*request));
}

absl::StatusOr<TurnRequest> ChatServiceImpl::ReadRegenerate(
    const v1::RegenerateTurnRequest& request) const {
  if (auto status = CheckSessionId(request.session_id()); !status.ok()) return status;
  if (auto status = CheckOnDisconnect(request.on_disconnect()); !status.ok()) return status;
  if (auto status = CheckSampling(request.sampling()); !status.ok()) return status;
  if (request.turn_id().empty()) {
    return absl::InvalidArgumentError("turn_id is empty; name the last turn of the session");
  }
  TurnRequest turn;
  turn.session_id = request.session_id();
  turn.regenerate_turn_id = request.turn_id();
  turn.sampling = request.sampling();
  return turn;
}

grpc::ServerWriteReactor<v1::ResumeTurnResponse>* ChatServiceImpl::ResumeTurn(
    grpc::CallbackServerContext* context, const v1::ResumeTurnRequest*) {
  const auto scope = std::make_shared<RpcScope>("ResumeTurn", *context, parts_);
  auto status = scope->Enter();
  if (status.ok()) {
    status = absl::UnimplementedError(
        "ResumeTurn: this build keeps no journal of running answers; "
        "ListTurns gives the text of answers that have ended");
  }
  return Run<v1::ResumeTurnResponse>(context, scope, status);
}

}  // namespace llava
