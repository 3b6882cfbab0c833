#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llava/v1/chat.grpc.pb.h"
#include "server/gateway/rpc_scope.h"
#include "server/gateway/turn_parts.h"
#include "server/gateway/turn_request.h"
#include "server/gateway/unary_call.h"
#include "server/runtime/stream_writer.h"

namespace llava {

// The public API of chat.proto on gRPC's callback threads: checks each request, then hands it to
// the store, a TurnRunner or an ImageUpload. Nothing here blocks.
class ChatServiceImpl final : public v1::ChatService::CallbackService {
 public:
  // They must outlive the service.
  explicit ChatServiceImpl(const TurnParts& parts) : parts_(parts) {}

  // What a question of any origin asks for, once it has passed the checks and its pictures are
  // there; counts them. `done` runs once, before or after this returns, and must not block; if
  // something must be waited for, `listen` is given before what is to run when the caller goes.
  // Also the errors of RequestMemory, and where pictures must be fetched or `check_constraint` has
  // something to do the limits of the key.
  void ReadChat(const RpcScope& scope, v1::ChatRequest request,
                absl::Status (*check_constraint)(const v1::SamplingParams&),
                std::function<void(std::function<void()> on_gone)> listen,
                std::function<void(absl::StatusOr<TurnRequest>)> done);

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const v1::CreateSessionRequest* request,
                                          v1::CreateSessionResponse* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::GetSessionResponse* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* UpdateSession(grpc::CallbackServerContext* context,
                                          const v1::UpdateSessionRequest* request,
                                          v1::UpdateSessionResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override;
  grpc::ServerUnaryReactor* ListTurns(grpc::CallbackServerContext* context,
                                      const v1::ListTurnsRequest* request,
                                      v1::ListTurnsResponse* response) override;
  grpc::ServerReadReactor<v1::UploadImageRequest>* UploadImage(
      grpc::CallbackServerContext* context, v1::UploadImageResponse* response) override;
  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(grpc::CallbackServerContext* context,
                                                   const v1::ChatRequest* request) override;
  grpc::ServerWriteReactor<v1::RegenerateTurnResponse>* RegenerateTurn(
      grpc::CallbackServerContext* context, const v1::RegenerateTurnRequest* request) override;
  grpc::ServerWriteReactor<v1::ResumeTurnResponse>* ResumeTurn(
      grpc::CallbackServerContext* context, const v1::ResumeTurnRequest* request) override;
  grpc::ServerUnaryReactor* CancelTurn(grpc::CallbackServerContext* context,
                                       const v1::CancelTurnRequest* request,
                                       v1::CancelTurnResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ChatServiceListModelsRequest* request,
                                       v1::ChatServiceListModelsResponse* response) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const v1::ChatServiceCountTokensRequest* request,
                                        v1::ChatServiceCountTokensResponse* response) override;

 private:
  // `work` runs if the caller may come in, the request was `checked` and the session is his; else
  // the call is finished. On this thread or the store's; the request lives until Finish.
  void ForOwner(const UnaryCall& call, absl::Status checked, const std::string& session_id,
                std::function<void()> work);
  // Whether a session's constraint can be obeyed; a request of the caller's key, if it has one.
  absl::Status ChargeConstraint(const Caller& caller, const v1::SamplingParams& params) const;
  // `work` runs when its key has room for one more page; the call's reactor holds it.
  void ForPage(const UnaryCall& call, std::function<void()> work);
  // `work` runs when it has a place there. A client that goes takes back what waits.
  void InLane(KeyLanes& lane, const UnaryCall& call, KeyLanes::Work work);
  // A stream that is ended when its client takes nothing of it.
  template <typename Response>
  std::shared_ptr<StreamWriter<Response>> NewWriter(grpc::CallbackServerContext* context);
  absl::StatusOr<TurnRequest> ReadChecked(v1::ChatRequest request);
  // Runs a turn whose request was read (or refused) into a stream of `Response`.
  template <typename Response>
  void Begin(const std::shared_ptr<StreamWriter<Response>>& writer, std::shared_ptr<RpcScope> scope,
             std::chrono::system_clock::time_point deadline, absl::StatusOr<TurnRequest> request);
  template <typename Response>
  grpc::ServerWriteReactor<Response>* Run(grpc::CallbackServerContext* context,
                                          std::shared_ptr<RpcScope> scope,
                                          absl::StatusOr<TurnRequest> request);
  absl::StatusOr<TurnRequest> ReadRegenerate(const Caller& caller,
                                             const v1::RegenerateTurnRequest& request) const;
  // Accepted or refused pictures that came inside a request.
  void CountInlineImages(const std::vector<StoredImage>& images);

  const TurnParts& parts_;
};

}  // namespace llava
