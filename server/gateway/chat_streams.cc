// The calls of ChatService that stream an answer.

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "model/digest/sha256.h"
#include "server/gateway/chat_service.h"
#include "server/gateway/picture_fetcher.h"
#include "server/gateway/request_checks.h"
#include "server/gateway/send_watch.h"
#include "server/gateway/turn_start.h"
#include "server/runtime/failpoint.h"
#include "server/runtime/status.h"
#include "server/runtime/stream_writer.h"
#include "server/wire/constraint.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

template <typename Response>
class StreamSink : public TurnSink {
 public:
  explicit StreamSink(std::shared_ptr<StreamWriter<Response>> writer)
      : writer_(std::move(writer)) {}

  void Send(v1::ChatEvent event) override {
    (void)LLAVA_FAILPOINT("stream.send");
    Response response;
    *response.mutable_event() = std::move(event);
    writer_->Write(std::move(response));
  }
  void Close(const absl::Status& status) override { writer_->Close(ToGrpc(status)); }
  size_t Backlog() const override { return writer_->queued_bytes(); }
  void SetOnGone(std::function<void()> on_gone) override { writer_->SetOnGone(std::move(on_gone)); }

 private:
  const std::shared_ptr<StreamWriter<Response>> writer_;
};

// What a client's key stands for: all of the request that has an effect on the answer.
// Takes the key out and leaves the rest as it was: a copy would have all the pictures.
RequestKey TakeKey(v1::ChatRequest& request) {
  if (request.idempotency_key().empty()) return {};
  RequestKey key{std::move(*request.mutable_idempotency_key()), {}};
  const v1::OnDisconnect on_disconnect = request.on_disconnect();
  const int32_t priority = request.priority();
  request.clear_idempotency_key();
  request.clear_on_disconnect();
  request.clear_priority();
  key.hash = ToBytes(HashBytes(request.SerializeAsString()));
  request.set_on_disconnect(on_disconnect);
  request.set_priority(priority);
  return key;
}

}  // namespace

template <typename Response>
std::shared_ptr<StreamWriter<Response>> ChatServiceImpl::NewWriter(
    grpc::CallbackServerContext* context) {
  auto writer = StreamWriter<Response>::Create();
  writer->SetContext(context);
  parts_.sends.Add([weak = std::weak_ptr(writer)](SendWatch::Clock::time_point since) {
    const auto open = weak.lock();
    return open && open->CancelIfStuck(since);
  });
  return writer;
}

template <typename Response>
void ChatServiceImpl::Begin(const std::shared_ptr<StreamWriter<Response>>& writer,
                            std::shared_ptr<RpcScope> scope,
                            std::chrono::system_clock::time_point deadline,
                            absl::StatusOr<TurnRequest> request) {
  if (!request.ok()) {
    scope->End(request.status());
    writer->Close(ToGrpc(request.status()));
    return;
  }
  request->deadline = deadline;
  TurnStart::Begin(parts_, std::move(scope), *std::move(request),
                   std::make_unique<StreamSink<Response>>(writer));
}

template <typename Response>
grpc::ServerWriteReactor<Response>* ChatServiceImpl::Run(grpc::CallbackServerContext* context,
                                                         std::shared_ptr<RpcScope> scope,
                                                         absl::StatusOr<TurnRequest> request) {
  auto writer = NewWriter<Response>(context);
  Begin(writer, std::move(scope), context->deadline(), std::move(request));
  return writer.get();
}

grpc::ServerWriteReactor<v1::ChatResponse>* ChatServiceImpl::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  auto scope = std::make_shared<RpcScope>("Chat", *context, parts_);
  auto status = scope->Admit();
  if (status.ok() && request->priority() > 0 && !scope->caller().is_admin()) {
    status = absl::PermissionDeniedError("a priority above 0 needs the role admin");
  }
  if (!status.ok()) {
    return Run<v1::ChatResponse>(context, std::move(scope), status);
  }
  auto writer = NewWriter<v1::ChatResponse>(context);
  // gRPC keeps the request until the stream ends. It is an object of its own that nobody else looks
  // at, so what it holds can be taken.
  ReadChat(
      *scope, std::move(const_cast<v1::ChatRequest&>(*request)), CheckConstraint,
      [writer](std::function<void()> on_gone) { writer->SetOnGone(std::move(on_gone)); },
      [this, writer, scope, deadline = context->deadline()](absl::StatusOr<TurnRequest> turn) {
        Begin(writer, scope, deadline, std::move(turn));
      });
  return writer.get();
}

void ChatServiceImpl::ReadChat(const RpcScope& scope, v1::ChatRequest request,
                               absl::Status (*check_constraint)(const v1::SamplingParams&),
                               std::function<void(std::function<void()> on_gone)> listen,
                               std::function<void(absl::StatusOr<TurnRequest>)> done) {
  if (auto status = CheckChat(request); !status.ok()) return done(status);
  request.DiscardUnknownFields();  // those of sampling would be stored with the turn
  const auto whole = std::make_shared<v1::ChatRequest>(std::move(request));
  const auto memory = parts_.memory.NewShare();
  const Caller& caller = scope.caller();
  const std::string& name = caller.name();
  const uint64_t bytes = whole->ByteSizeLong();
  if (auto status = memory->Hold(bytes, name); !status.ok()) return done(status);
  const bool fetches = parts_.fetcher.enabled() && PictureFetcher::HasUrls(*whole);
  const bool compiles = HasConstraint(whole->sampling());
  // What the client sent is what its key stands for, whatever is behind a URL today.
  auto read = [this, whole, memory, charged = fetches || compiles, key = TakeKey(*whole), name,
               done = std::move(done)](absl::Status status) {
    if (status.ok()) status = memory->Hold(whole->ByteSizeLong(), name);
    if (!status.ok()) return done(status);
    auto turn = ReadChecked(std::move(*whole));
    if (turn.ok()) {
      turn->key = key;
      turn->memory = memory;
      turn->charged = charged;
    }
    done(std::move(turn));
  };
  // What makes work, here and elsewhere, counts whether a turn follows or not.
  absl::Status status;
  if (fetches) status = CheckPictureCounts(*whole, parts_.options);
  if (status.ok() && (fetches || compiles)) status = parts_.gate.ChargeRequest(caller);
  if (status.ok() && compiles) status = check_constraint(whole->sampling());
  if (!status.ok() || !fetches) return read(status);
  const auto hold = [&options = parts_.options, memory, name, bytes](uint64_t fetched) {
    const absl::Status fits = CheckTurnBytes(bytes + fetched, options);
    return fits.ok() ? memory->Hold(bytes + fetched, name) : fits;
  };
  parts_.fetcher.Fetch({whole, name, caller.weight(), hold, std::move(listen), scope.request_id()},
                       std::move(read));
}

absl::StatusOr<TurnRequest> ChatServiceImpl::ReadChecked(v1::ChatRequest request) {
  auto model = ReadModelChoice(request.model(), request.model_label());
  if (!model.ok()) return model.status();
  TurnRequest turn;
  turn.model = *std::move(model);
  turn.sampling = request.sampling();
  turn.priority = request.priority();
  turn.on_disconnect = request.on_disconnect();
  if (request.messages().empty()) {
    auto images = ReadMessage(request.text(), request.mutable_images(), parts_.options);
    if (!images.ok()) {
      if (!request.images().empty()) parts_.metrics.CountImage("refused");
      return images.status();
    }
    CountInlineImages(*images);
    turn.session_id = request.session_id();
    turn.text = std::move(*request.mutable_text());
    turn.images = *std::move(images);
    return turn;
  }
  auto prompt = ReadConversation(request.mutable_messages(), parts_.options);
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
  if (auto status = scope->Admit(); !status.ok()) {
    return Run<v1::RegenerateTurnResponse>(context, std::move(scope), status);
  }
  v1::RegenerateTurnRequest taken = std::move(const_cast<v1::RegenerateTurnRequest&>(*request));
  taken.DiscardUnknownFields();  // both as in Chat
  return Run<v1::RegenerateTurnResponse>(context, scope, ReadRegenerate(scope->caller(), taken));
}

absl::StatusOr<TurnRequest> ChatServiceImpl::ReadRegenerate(
    const Caller& caller, const v1::RegenerateTurnRequest& request) const {
  if (auto status = CheckSessionId(request.session_id()); !status.ok()) return status;
  if (auto status = CheckOnDisconnect(request.on_disconnect(), /*session=*/true); !status.ok()) {
    return status;
  }
  if (auto status = CheckSampling(request.sampling()); !status.ok()) return status;
  if (auto status = CheckTurnId(request.turn_id()); !status.ok()) return status;
  TurnRequest turn;
  if (auto status = ChargeConstraint(caller, request.sampling()); !status.ok()) return status;
  turn.charged = HasConstraint(request.sampling());
  turn.session_id = request.session_id();
  turn.regenerate_turn_id = request.turn_id();
  turn.sampling = request.sampling();
  turn.on_disconnect = request.on_disconnect();
  return turn;
}

grpc::ServerWriteReactor<v1::ResumeTurnResponse>* ChatServiceImpl::ResumeTurn(
    grpc::CallbackServerContext* context, const v1::ResumeTurnRequest* request) {
  const auto scope = std::make_shared<RpcScope>("ResumeTurn", *context, parts_);
  // As in Chat: what it is padded with goes at once.
  const v1::ResumeTurnRequest taken = std::move(const_cast<v1::ResumeTurnRequest&>(*request));
  auto writer = NewWriter<v1::ResumeTurnResponse>(context);
  const TurnReader reader{std::make_shared<StreamSink<v1::ResumeTurnResponse>>(writer),
                          [scope](const absl::Status& status) { scope->End(status); }};
  absl::Status status = scope->Enter();
  if (status.ok()) status = CheckSessionId(taken.session_id());
  if (status.ok()) status = CheckTurnId(taken.turn_id());
  if (!status.ok()) {
    reader.End(status);
    return writer.get();
  }
  ResumePoint from{taken.after_offset(), std::nullopt};
  if (taken.has_restarts()) from.restarts = taken.restarts();
  parts_.owners.Check(scope->caller(), taken.session_id(),
                      [this, reader, from, session_id = taken.session_id(),
                       turn_id = taken.turn_id()](const absl::Status& owned) {
                        if (!owned.ok()) return reader.End(owned);
                        FollowTurn(parts_, session_id, turn_id, from, reader);
                      });
  return writer.get();
}

}  // namespace llava
