#include "client/chat_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/grpc_status.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kConnectTimeout{5};
// Ask tries as long to get an answer back whose stream broke.
constexpr std::chrono::seconds kResumeTimeout{60};
// Between the tries to get a broken answer back, where the gateway says nothing else.
constexpr std::chrono::milliseconds kFirstDelay{100}, kLongestDelay{1000};
// So many streams in a row that begin, bring nothing and break off: that is the turn's end.
constexpr int kMaxFruitless = 2;

std::string RandomKey() {
  std::random_device device;
  std::string key;
  for (int i = 0; i < 4; ++i) absl::StrAppend(&key, absl::Hex(device(), absl::kZeroPad8));
  return key;
}

// Whoever stops an answer does not wait long for a gateway that hangs.
constexpr std::chrono::milliseconds kCancelTimeout{2000};

// What the gateway asks to wait; a day at most, as more does not fit into every clock.
std::optional<std::chrono::milliseconds> ToldPause(const absl::Status& status) {
  const auto told = RetryDelay(status);
  if (!told) return std::nullopt;
  return std::max(kFirstDelay, absl::ToChronoMilliseconds(std::min(*told, absl::Hours(24))));
}

absl::Status Abandoned() { return absl::CancelledError("abandoned"); }

}  // namespace

std::shared_ptr<grpc::ChannelCredentials> MakeCredentials(const std::optional<ChatClientTls>& tls) {
  if (!tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = tls->roots;
  ssl.pem_cert_chain = tls->certificate;
  ssl.pem_private_key = tls->key;
  return grpc::SslCredentials(ssl);
}

absl::Status AnswerCanceller::Cancel() {
  ChatClient* client;
  v1::TurnStarted turn;
  {
    std::lock_guard lock(mutex_);
    if (cancel_requested_) return absl::OkStatus();
    cancel_requested_ = true;
    changed_.notify_all();
    if (client_ == nullptr && (pausing_ || !turn_.turn_id().empty())) {
      return absl::UnavailableError("the gateway is away, and is being waited for");
    }
    if (client_ == nullptr || turn_.turn_id().empty()) return absl::OkStatus();
    client = client_;
    turn = turn_;
  }
  return Send(*client, turn);
}

bool ChatClient::Pause(std::chrono::milliseconds delay, bool refused, AnswerCanceller* canceller) {
  if (canceller != nullptr) return canceller->Pause(delay, refused);
  std::this_thread::sleep_for(delay);
  return true;
}

absl::Status AnswerCanceller::Send(ChatClient& client, const v1::TurnStarted& turn) {
  if (turn.session_id().empty()) {  // such an answer ends with its call
    Abandon();
    return absl::OkStatus();
  }
  return client.CancelTurn(turn.session_id(), turn.turn_id(), kCancelTimeout).status();
}

void AnswerCanceller::Abandon() {
  std::lock_guard lock(mutex_);
  abandoned_ = true;
  changed_.notify_all();
  if (context_ != nullptr) context_->TryCancel();
}

void AnswerCanceller::Attach(ChatClient& client, grpc::ClientContext& context) {
  std::lock_guard lock(mutex_);
  client_ = &client;
  context_ = &context;
  if (abandoned_) context.TryCancel();
}

void AnswerCanceller::TurnBegins(const v1::TurnStarted& started) {
  ChatClient* client;
  {
    std::lock_guard lock(mutex_);
    turn_ = started;
    if (!cancel_requested_) return;
    client = client_;
  }
  // The stream itself tells how the turn ended, whatever becomes of this call.
  Send(*client, started).IgnoreError();
}

void AnswerCanceller::Detach() {
  std::lock_guard lock(mutex_);
  client_ = nullptr;
  context_ = nullptr;
}

bool AnswerCanceller::stopped() {
  std::lock_guard lock(mutex_);
  return cancel_requested_ || abandoned_;
}

bool AnswerCanceller::Pause(std::chrono::milliseconds delay, bool refused) {
  std::unique_lock lock(mutex_);
  pausing_ = !refused;
  const bool ends =
      changed_.wait_for(lock, delay, [&] { return abandoned_ || (refused && cancel_requested_); });
  pausing_ = false;
  return !ends;
}

// A call that CancelCalls ends, while this lives.
class ChatClient::Cancellable {
 public:
  Cancellable(ChatClient& client, grpc::ClientContext& context)
      : client_(client), context_(context) {
    std::lock_guard lock(client_.mutex_);
    client_.calls_.insert(&context_);
  }
  ~Cancellable() {
    std::lock_guard lock(client_.mutex_);
    client_.calls_.erase(&context_);
  }
  Cancellable(const Cancellable&) = delete;
  Cancellable& operator=(const Cancellable&) = delete;

 private:
  ChatClient& client_;
  grpc::ClientContext& context_;
};

void ChatClient::CancelCalls() {
  std::lock_guard lock(mutex_);
  for (grpc::ClientContext* context : calls_) context->TryCancel();
}

ChatClient::ChatClient(ChatClientOptions options)
    : options_(std::move(options)),
      channel_(grpc::CreateChannel(options_.gateway, MakeCredentials(options_.tls))),
      stub_(v1::ChatService::NewStub(channel_)) {}

ChatClient::Deadline ChatClient::After(std::chrono::milliseconds timeout) {
  if (timeout.count() <= 0) return Deadline::max();
  return std::chrono::system_clock::now() + timeout;
}

void ChatClient::Prepare(grpc::ClientContext& context, Deadline deadline) const {
  context.set_deadline(deadline);
  if (!options_.api_key.empty()) {
    context.AddMetadata("authorization", absl::StrCat("Bearer ", options_.api_key));
  }
}

absl::Status ChatClient::Connect() {
  const auto deadline = std::chrono::system_clock::now() + kConnectTimeout;
  grpc_connectivity_state state = channel_->GetState(/*try_to_connect=*/true);
  while (state != GRPC_CHANNEL_READY) {
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN ||
        !channel_->WaitForStateChange(state, deadline)) {
      return absl::UnavailableError(
          absl::StrCat("no gateway answers at ", options_.gateway, ": is it running",
                       options_.tls ? ", with a certificate that is trusted here?" : "?"));
    }
    state = channel_->GetState(/*try_to_connect=*/true);
  }
  return absl::OkStatus();
}

absl::Status ChatClient::Explain(const grpc::Status& status) {
  absl::Status result = StatusOf(status);
  // A gateway that says when to come back has spoken for itself, though it may be gone by now.
  if (absl::IsUnavailable(result) && !RetryDelay(result) &&
      channel_->GetState(/*try_to_connect=*/false) != GRPC_CHANNEL_READY) {
    return absl::UnavailableError(absl::StrCat("no connection to the gateway at ", options_.gateway,
                                               ": ", status.error_message()));
  }
  return result;
}

template <typename Request, typename Response>
absl::StatusOr<Response> ChatClient::Call(
    grpc::Status (v1::ChatService::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
    const Request& request, std::optional<std::chrono::milliseconds> timeout) {
  grpc::ClientContext context;
  Prepare(context, After(timeout.value_or(options_.call_timeout)));
  const Cancellable cancellable(*this, context);
  Response response;
  const grpc::Status status = ((*stub_).*method)(&context, request, &response);
  if (!status.ok()) return Explain(status);
  return response;
}

absl::StatusOr<v1::Session> ChatClient::CreateSession(const v1::CreateSessionRequest& request) {
  auto response = Call(&v1::ChatService::Stub::CreateSession, request);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_session());
}

absl::StatusOr<v1::Session> ChatClient::GetSession(const std::string& session_id) {
  v1::GetSessionRequest request;
  request.set_session_id(session_id);
  auto response = Call(&v1::ChatService::Stub::GetSession, request);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_session());
}

absl::Status ChatClient::DeleteSession(const std::string& session_id,
                                       std::optional<std::chrono::milliseconds> timeout) {
  v1::DeleteSessionRequest request;
  request.set_session_id(session_id);
  return Call(&v1::ChatService::Stub::DeleteSession, request, timeout).status();
}

absl::StatusOr<std::vector<v1::Turn>> ChatClient::ListTurns(const std::string& session_id) {
  v1::ListTurnsRequest request;
  request.set_session_id(session_id);
  std::vector<v1::Turn> turns;
  do {
    auto page = Call(&v1::ChatService::Stub::ListTurns, request);
    if (!page.ok()) return page.status();
    std::move(page->mutable_turns()->begin(), page->mutable_turns()->end(),
              std::back_inserter(turns));
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return turns;
}

absl::StatusOr<v1::ChatServiceListModelsResponse> ChatClient::ListModels() {
  return Call(&v1::ChatService::Stub::ListModels, v1::ChatServiceListModelsRequest());
}

absl::StatusOr<bool> ChatClient::CancelTurn(const std::string& session_id,
                                            const std::string& turn_id,
                                            std::optional<std::chrono::milliseconds> timeout) {
  v1::CancelTurnRequest request;
  request.set_session_id(session_id);
  request.set_turn_id(turn_id);
  auto response = Call(&v1::ChatService::Stub::CancelTurn, request, timeout);
  if (!response.ok()) return response.status();
  return response->was_running();
}

absl::StatusOr<v1::ImageInfo> ChatClient::UploadImage(const std::string& session_id,
                                                      std::string_view bytes) {
  const uint64_t size = bytes.size();
  return Upload(session_id, size, [&]() -> absl::StatusOr<std::string> {
    std::string chunk(bytes.substr(0, options_.upload_chunk_bytes));
    bytes.remove_prefix(chunk.size());
    return chunk;
  });
}

absl::StatusOr<v1::ImageInfo> ChatClient::UploadImageFile(const std::string& session_id,
                                                          const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("there is no file ", path.string()));
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), " is not a file"));
  }
  const uint64_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    return absl::PermissionDeniedError(absl::StrCat("cannot read ", path.string()));
  }
  return Upload(session_id, size, [&]() -> absl::StatusOr<std::string> {
    std::string chunk(options_.upload_chunk_bytes, '\0');
    file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    if (file.bad()) return absl::DataLossError(absl::StrCat("cannot read ", path.string()));
    chunk.resize(static_cast<size_t>(file.gcount()));
    return chunk;
  });
}

absl::StatusOr<v1::ImageInfo> ChatClient::Upload(const std::string& session_id, uint64_t size_bytes,
                                                 const ChunkSource& next_chunk) {
  grpc::ClientContext context;
  Prepare(context, After(options_.call_timeout));
  const Cancellable cancellable(*this, context);
  v1::UploadImageResponse response;
  const auto writer = stub_->UploadImage(&context, &response);
  v1::UploadImageRequest message;
  message.mutable_header()->set_session_id(session_id);
  message.mutable_header()->set_size_bytes(size_bytes);
  // A failed write means that the gateway has ended the call; Finish says why.
  bool open = writer->Write(message);
  while (open) {
    absl::StatusOr<std::string> chunk = next_chunk();
    if (!chunk.ok()) {
      context.TryCancel();
      writer->Finish();
      return chunk.status();
    }
    if (chunk->empty()) break;
    message.set_chunk(*std::move(chunk));
    open = writer->Write(message);
  }
  if (open) writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (!status.ok()) return Explain(status);
  return std::move(*response.mutable_image());
}

template <typename Response>
absl::Status ChatClient::Read(grpc::ClientContext& context, grpc::ClientReader<Response>& reader,
                              AnswerStream& stream, AnswerCanceller* canceller) {
  Response response;
  absl::Status broken;
  while (reader.Read(&response)) {
    if (!broken.ok()) continue;  // the rest of a broken stream, until its end
    broken = stream.Add(response.event());
    if (!broken.ok()) context.TryCancel();
    if (canceller != nullptr && response.event().has_turn_started()) {
      canceller->TurnBegins(response.event().turn_started());
    }
  }
  const grpc::Status status = reader.Finish();
  if (canceller != nullptr) canceller->Detach();
  if (!broken.ok()) return broken;
  return status.ok() ? absl::OkStatus() : Explain(status);
}

absl::Status ChatClient::AskOnce(const v1::ChatRequest& request, Deadline deadline,
                                 AnswerStream& stream, AnswerCanceller* canceller) {
  grpc::ClientContext context;
  Prepare(context, deadline);
  if (canceller != nullptr) canceller->Attach(*this, context);
  return Read(context, *stub_->Chat(&context, request), stream, canceller);
}

absl::Status ChatClient::ResumeOnce(Deadline deadline, AnswerStream& stream,
                                    AnswerCanceller* canceller) {
  v1::ResumeTurnRequest request;
  request.set_session_id(stream.started().session_id());
  request.set_turn_id(stream.started().turn_id());
  request.set_after_offset(stream.text_bytes());
  request.set_restarts(stream.started().restarts());
  grpc::ClientContext context;
  Prepare(context, deadline);
  if (canceller != nullptr) canceller->Attach(*this, context);
  return Read(context, *stub_->ResumeTurn(&context, request), stream, canceller);
}

absl::Status ChatClient::AskPatiently(const v1::ChatRequest& request, Deadline deadline,
                                      AnswerStream& stream, AnswerCanceller* canceller) {
  absl::Status status = AskOnce(request, deadline, stream, canceller);
  if (options_.refusal_timeout.count() <= 0) return status;
  const Deadline give_up = std::min(deadline, After(options_.refusal_timeout));
  std::string reason;
  while (stream.num_streams() == 0) {
    const auto told = ToldPause(status);
    if (!told || std::chrono::system_clock::now() + *told >= give_up) break;
    if (canceller != nullptr && canceller->stopped()) return Abandoned();
    if (options_.on_refusal && reason != status.message()) options_.on_refusal(status);
    reason = std::string(status.message());
    if (!Pause(*told, /*refused=*/true, canceller)) return Abandoned();
    status = AskOnce(request, deadline, stream, canceller);
  }
  return status;
}

absl::StatusOr<Answer> ChatClient::Ask(const v1::ChatRequest& request, TextCallback on_text,
                                       AnswerCanceller* canceller) {
  using Clock = std::chrono::steady_clock;
  v1::ChatRequest asked = request;
  const bool has_session = !asked.session_id().empty();
  if (has_session && asked.idempotency_key().empty()) asked.set_idempotency_key(RandomKey());
  const Deadline deadline = After(options_.answer_timeout);
  AnswerStream stream(std::move(on_text));
  const bool connected = channel_->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY;
  absl::Status status = AskPatiently(asked, deadline, stream, canceller);
  auto give_up = Clock::now() + kResumeTimeout;
  std::chrono::milliseconds delay = kFirstDelay;
  int fruitless = 0;
  while (absl::IsUnavailable(status) && has_session && !stream.finished()) {
    const bool begun = stream.num_streams() > 0;
    const auto told = ToldPause(status);
    // Nothing has begun: what the gateway refused is the caller's to decide, and so is one that is
    // not there. A connection that broke in the call is not.
    if (!begun && (told || !connected)) break;
    const auto pause = told.value_or(delay);
    delay = std::min(2 * delay, kLongestDelay);
    if (Clock::now() + pause >= give_up) break;
    if (!Pause(pause, /*refused=*/false, canceller)) return Abandoned();
    const int streams = stream.num_streams();
    const uint64_t bytes = stream.text_bytes();
    const absl::Status next = begun ? ResumeOnce(deadline, stream, canceller)
                                    : AskPatiently(asked, deadline, stream, canceller);
    // The turn is not to be had: it ended as was told.
    if (begun && (absl::IsUnimplemented(next) || absl::IsNotFound(next))) break;
    status = next;
    const bool first = !begun && stream.num_streams() > streams;  // and perhaps after a long wait
    if (first || stream.text_bytes() > bytes) {
      give_up = Clock::now() + kResumeTimeout;
      delay = kFirstDelay;
      fruitless = 0;
    } else if (begun && stream.num_streams() > streams && !RetryDelay(status)) {
      if (++fruitless == kMaxFruitless) break;  // it has ended so, and says the same each time
    }
  }
  // With its last event an answer is whole, whatever becomes of the call.
  if (!status.ok() && !(absl::IsUnavailable(status) && stream.finished())) return status;
  return std::move(stream).Finish();
}

}  // namespace llava
