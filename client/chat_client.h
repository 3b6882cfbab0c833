#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/sync_stream.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/answer_stream.h"
#include "llava/v1/chat.grpc.pb.h"

namespace llava {

class ChatClient;

// Stops one answer from any thread. Give a fresh one to each Ask; it must outlive that call, and
// the client must outlive it.
//
// Thread-safe.
class AnswerCanceller {
 public:
  AnswerCanceller() = default;
  AnswerCanceller(const AnswerCanceller&) = delete;
  AnswerCanceller& operator=(const AnswerCanceller&) = delete;

  // Asks the gateway to stop; text so far is kept there, and Ask returns it with
  // FINISH_REASON_CANCELLED. Called before the turn has begun, it takes effect when it begins.
  // UNAVAILABLE: Ask waits for a gateway that is away; it takes effect if that comes back in time.
  // A question that is refused for now is not asked again: Ask returns CANCELLED.
  absl::Status Cancel();

  // Ends the call without waiting for the gateway: Ask returns CANCELLED.
  void Abandon();

 private:
  friend class ChatClient;

  // Called by Ask: at a call's begin, when the turn is known, at the call's end.
  void Attach(ChatClient& client, grpc::ClientContext& context);
  void TurnBegins(const v1::TurnStarted& started);
  void Detach();

  // Cancel or Abandon was called.
  bool stopped();
  // Waits between two calls. False: abandoned, or stopped when the question was `refused`.
  bool Pause(std::chrono::milliseconds delay, bool refused);

  absl::Status Send(ChatClient& client, const v1::TurnStarted& turn);

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  ChatClient* client_ = nullptr;
  grpc::ClientContext* context_ = nullptr;
  v1::TurnStarted turn_;
  bool pausing_ = false;
  bool cancel_requested_ = false;
  bool abandoned_ = false;
};

// Certificates in PEM form. The gateway's name must stand in its certificate.
struct ChatClientTls {
  std::string roots;        // who may have signed the gateway's; empty: who this machine trusts
  std::string certificate;  // ours, if the gateway asks for one, and its key
  std::string key;
};

// For channels of one's own; unset: open.
std::shared_ptr<grpc::ChannelCredentials> MakeCredentials(const std::optional<ChatClientTls>& tls);

// Where the gateway is, and how long its calls may take.
struct ChatClientOptions {
  std::string gateway = "127.0.0.1:8001";         // HOST:PORT
  std::string api_key = {};                       // printable; empty: none is sent
  std::optional<ChatClientTls> tls = {};          // unset: an open connection
  std::chrono::milliseconds call_timeout{30000};  // each call but Ask; 0 = none
  std::chrono::milliseconds answer_timeout{0};    // deadline of Ask; 0 = none
  // Ask sends a question that is refused for now (RetryInfo: the gateway is full or ends, the key
  // has used its minute) again, when it was told to, for so long. 0: the refusal is the caller's.
  std::chrono::milliseconds refusal_timeout{0};
  // Told why, on the thread of Ask, before such a wait; not again of a question for the same
  // reason, nor of one that was stopped.
  std::function<void(const absl::Status&)> on_refusal = {};
  size_t upload_chunk_bytes = 64 * 1024;  // above 0 and below the gateway's message limit
};

// Conversations about pictures with a llava gateway.
//
// Every method blocks until the gateway has answered or the deadline has passed, and returns its
// status with its message (see proto/llava/v1/chat.proto for the codes). UNAVAILABLE names the
// address when the connection itself fails; RetryDelay (client/grpc_status.h) tells when to try
// again. Thread-safe; a session answers one question at a time.
class ChatClient {
 public:
  // Connects when first used.
  explicit ChatClient(ChatClientOptions options);

  // Connects, so that a wrong address shows up before anything is asked. UNAVAILABLE: nobody is
  // there, or answers within five seconds.
  absl::Status Connect();

  absl::StatusOr<v1::Session> CreateSession(const v1::CreateSessionRequest& request);
  absl::StatusOr<v1::Session> GetSession(const std::string& session_id);
  // `timeout`: other than call_timeout.
  absl::Status DeleteSession(const std::string& session_id,
                             std::optional<std::chrono::milliseconds> timeout = std::nullopt);

  // All turns, oldest first.
  absl::StatusOr<std::vector<v1::Turn>> ListTurns(const std::string& session_id);

  // What can be asked for as `model`, and which one is the default.
  absl::StatusOr<v1::ChatServiceListModelsResponse> ListModels();

  // Sends a picture (PNG, JPEG, WebP or BMP) in chunks. Its `id` goes into ChatRequest.images.
  absl::StatusOr<v1::ImageInfo> UploadImage(const std::string& session_id, std::string_view bytes);
  // The same, read from a file while sending. NOT_FOUND, INVALID_ARGUMENT: no such file, no file;
  // PERMISSION_DENIED: it cannot be opened; DATA_LOSS: not read to its end.
  absl::StatusOr<v1::ImageInfo> UploadImageFile(const std::string& session_id,
                                                const std::filesystem::path& path);

  // Asks and waits for the whole answer, handing out text as it comes (on the calling thread). An
  // error may come after some of the text. `canceller` may be null.
  //
  // With a session, a stream that breaks (UNAVAILABLE) is gone on with where it broke (ResumeTurn),
  // if it can be had again within a minute; and a question whose turn was not seen to begin is sent
  // again under the same idempotency_key (one is made up if there is none), if the connection stood
  // when it was asked (Connect) and the gateway did not refuse it (RetryInfo): every byte comes
  // once. DATA_LOSS: the gateway lost bytes that came before.
  //
  // Nothing else is repeated, but what `refusal_timeout` says: other errors are the caller's, as
  // ABORTED (another turn of the session runs) and INTERNAL.
  absl::StatusOr<Answer> Ask(const v1::ChatRequest& request, TextCallback on_text,
                             AnswerCanceller* canceller = nullptr);

  // Stops a running answer; an empty turn id means the one that runs. False: it had ended.
  // `timeout`: other than call_timeout.
  absl::StatusOr<bool> CancelTurn(const std::string& session_id, const std::string& turn_id,
                                  std::optional<std::chrono::milliseconds> timeout = std::nullopt);

  // From any thread: ends the calls that are under way, but Ask; they return CANCELLED.
  void CancelCalls();

  const ChatClientOptions& options() const { return options_; }

 private:
  class Cancellable;

  // Gives the next bytes of a picture; empty at its end.
  using ChunkSource = std::function<absl::StatusOr<std::string>()>;
  absl::StatusOr<v1::ImageInfo> Upload(const std::string& session_id, uint64_t size_bytes,
                                       const ChunkSource& next_chunk);

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::ChatService::Stub::*method)(grpc::ClientContext*,
                                                                              const Request&,
                                                                              Response*),
                                const Request& request,
                                std::optional<std::chrono::milliseconds> timeout = std::nullopt);

  using Deadline = std::chrono::system_clock::time_point;
  // AskOnce, and again while the gateway refuses it for now.
  absl::Status AskPatiently(const v1::ChatRequest& request, Deadline deadline, AnswerStream& stream,
                            AnswerCanceller* canceller);
  // One stream of an answer, to its end.
  absl::Status AskOnce(const v1::ChatRequest& request, Deadline deadline, AnswerStream& stream,
                       AnswerCanceller* canceller);
  absl::Status ResumeOnce(Deadline deadline, AnswerStream& stream, AnswerCanceller* canceller);
  // Between two calls of an answer. False: as AnswerCanceller's.
  static bool Pause(std::chrono::milliseconds delay, bool refused, AnswerCanceller* canceller);
  template <typename Response>
  absl::Status Read(grpc::ClientContext& context, grpc::ClientReader<Response>& reader,
                    AnswerStream& stream, AnswerCanceller* canceller);
  // Deadline and API key of a call.
  void Prepare(grpc::ClientContext& context, Deadline deadline) const;
  // The deadline of a call that begins now; 0 = none.
  static Deadline After(std::chrono::milliseconds timeout);

  // The status with our own words about a connection that is down.
  absl::Status Explain(const grpc::Status& status);

  const ChatClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::ChatService::Stub> stub_;
  std::mutex mutex_;
  std::set<grpc::ClientContext*> calls_;  // under way, guarded by mutex_
};

}  // namespace llava
