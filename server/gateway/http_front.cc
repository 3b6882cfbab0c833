#include "server/gateway/http_front.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/gateway/chat_page.h"
#include "server/gateway/openai_json.h"
#include "server/gateway/picture_fetcher.h"
#include "server/gateway/resumable_calls.h"
#include "server/gateway/turn_start.h"
#include "server/runtime/host_port.h"
#include "server/runtime/request_id.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr char kCompletions[] = "/v1/chat/completions";
constexpr char kModels[] = "/v1/models";
constexpr std::string_view kModel = "/v1/models/";
// A reader so far behind has stopped reading. It may come back for the rest if it asked for that.
constexpr size_t kMaxBehind = 256u << 10;

bool IsApi(const std::string& path) { return absl::StartsWith(path, "/v1/"); }

// `host` is the header's value: NAME, ADDRESS or [ADDRESS], perhaps with a port.
bool IsLoopbackName(std::string_view host) {
  const size_t colon = host.rfind(':');
  if (colon != std::string_view::npos && host.find(']', colon) == std::string_view::npos) {
    host = host.substr(0, colon);
  }
  return IsLoopbackHost(std::string(host));
}

// As clients write what has a meaning of its own in URLs: "%40" is "@". What is none stays.
std::string Decoded(std::string_view path) {
  std::string text;
  for (size_t i = 0; i < path.size(); ++i) {
    const std::string hex(path.substr(std::min(i + 1, path.size()), 2));
    if (path[i] == '%' && hex.size() == 2 && absl::ascii_isxdigit(hex[0]) &&
        absl::ascii_isxdigit(hex[1])) {
      text += absl::HexStringToBytes(hex);
      i += 2;
    } else {
      text += path[i];
    }
  }
  return text;
}

std::string RequestIdOf(const HttpRequest& request) {
  return AcceptRequestId(request.Header("x-request-id"));
}

// Sends the events of a turn as an OpenAI answer.
class CompletionSink final : public TurnSink {
 public:
  // `offset`: bytes of the answer that the client has already.
  CompletionSink(const CompletionRequest& request, std::string request_id,
                 std::shared_ptr<HttpAnswer> answer, uint64_t offset = 0)
      : stream_(request.stream),
        resumable_(request.resumable),
        request_id_(std::move(request_id)),
        answer_(std::move(answer)),
        writer_(request, offset) {}

  void Send(v1::ChatEvent event) override {
    MutexLock lock(mutex_);
    if (event.has_turn_started()) {
      writer_.Start(event.turn_started());
      if (stream_) Begin();
    } else if (event.has_turn_finished()) {
      finished_ = std::move(*event.mutable_turn_finished());
    } else if (!stream_) {
      writer_.Add(event.text());
    } else if (answer_->Write(writer_.DeltaEvent(event.text())) > kMaxBehind) {
      answer_->Cut();
    }
  }

  void SetOnGone(std::function<void()> on_gone) override { answer_->SetOnGone(std::move(on_gone)); }

  void Close(const absl::Status& status) override {
    MutexLock lock(mutex_);
    if (!status.ok() || !finished_) {
      HttpResponse response = OpenAiError(status);
      response.headers.emplace_back("X-Request-Id", request_id_);
      answer_->Fail(std::move(response), absl::StrCat("data: ", OpenAiErrorBody(status), "\n\n"));
    } else if (stream_) {
      answer_->Write(writer_.LastEvents(*finished_));
      answer_->End();
    } else {
      answer_->Send(
          {200, "application/json", writer_.Whole(*finished_), {{"X-Request-Id", request_id_}}});
    }
  }

 private:
  // Late, so that what fails before the first text still has its own HTTP status, which clients
  // act on. Who may come back for the rest needs its name at once.
  //
  // Without the charset Python clients read a text/ type as ISO-8859-1, in which a byte of a UTF-8
  // character may end a line.
  void Begin() LLAVA_REQUIRES(mutex_) {
    HttpResponse head{200,
                      "text/event-stream; charset=utf-8",
                      writer_.FirstEvent(),
                      {{"X-Request-Id", request_id_}, {"X-Accel-Buffering", "no"}},
                      ": still here\n\n"};
    if (!resumable_) return answer_->BeginLate(std::move(head));
    if (!std::exchange(begun_, true)) answer_->Begin(std::move(head));
  }

  const bool stream_, resumable_;
  const std::string request_id_;
  const std::shared_ptr<HttpAnswer> answer_;
  Mutex mutex_;
  CompletionWriter writer_ LLAVA_GUARDED_BY(mutex_);
  bool begun_ LLAVA_GUARDED_BY(mutex_) = false;  // where it is resumable
  std::optional<v1::TurnFinished> finished_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace

HttpFront::HttpFront(const TurnParts& parts, ChatServiceImpl& chat,
                     std::map<std::string, HttpServer::Page> pages, bool hosts_checked)
    : parts_(parts), chat_(chat), pages_(std::move(pages)), hosts_checked_(hosts_checked) {}

HttpResponse HttpFront::ErrorPage(int status, const std::string& message) const {
  // No room for its body: only questions have large ones, and this one reaches no RpcScope.
  if (status == 503) {
    parts_.metrics.CountRequest("chat.completions", absl::UnavailableError(message), 0);
  }
  return OpenAiError(status, message);
}

std::optional<HttpResponse> HttpFront::Refusal(const HttpRequest& head) const {
  RpcScope scope(head.path == kCompletions ? "chat.completions" : "models", RequestIdOf(head),
                 head.Header("authorization"), parts_);
  const absl::Status status = scope.Enter();
  if (status.ok()) return std::nullopt;
  scope.End(status);
  HttpResponse response = OpenAiError(status);
  response.headers.emplace_back("X-Request-Id", scope.request_id());
  return response;
}

std::optional<HttpResponse> HttpFront::OnHead(const HttpRequest& head, uint64_t& body_limit) {
  const bool completions = head.path == kCompletions;
  const bool known = completions || head.path == kModels || head.path == "/" ||
                     absl::StartsWith(head.path, absl::string_view(kModel.data(), kModel.size())) ||
                     pages_.contains(head.path);
  if (!known) {
    return OpenAiError(404, absl::StrCat("there is nothing at ", head.path.substr(0, 100),
                                         "; there are ", kCompletions, " and ", kModels));
  }
  const bool reads = head.method == "GET" || head.method == "HEAD";
  if (completions ? head.method != "POST" : !reads) {
    HttpResponse response =
        OpenAiError(405, absl::StrCat(head.path, " takes ", completions ? "POST" : "GET", " only"));
    response.headers.emplace_back("Allow", completions ? "POST" : "GET, HEAD");
    return response;
  }
  // Who only asks whether this lives may leave its name out.
  const bool page = pages_.contains(head.path);
  if (page && head.path != "/metrics") return std::nullopt;
  if (hosts_checked_ && !IsLoopbackName(head.Header("host"))) {
    return OpenAiError(403, "this gateway has no API keys and answers to localhost only");
  }
  if (page || !IsApi(head.path)) return std::nullopt;
  if (auto refusal = Refusal(head)) return refusal;
  if (!completions) return std::nullopt;
  // Browsers ask before they send this type for a page of another origin; we say no to that.
  if (!absl::StartsWithIgnoreCase(std::string(head.Header("content-type")), "application/json")) {
    return OpenAiError(415, "send JSON with the header \"content-type: application/json\"");
  }
  body_limit = parts_.options.max_http_body_bytes();
  return std::nullopt;
}

void HttpFront::OnRequest(HttpRequest request, std::shared_ptr<HttpAnswer> answer) {
  if (request.path == kCompletions) {
    return request.Header("last-event-id").empty() ? Complete(request, std::move(answer))
                                                   : Resume(request, std::move(answer));
  }
  if (IsApi(request.path)) return ListModels(request, std::move(answer));
  const auto page = pages_.find(request.path);
  answer->Send(page == pages_.end() ? ChatPage() : page->second(request));
}

void HttpFront::ListModels(const HttpRequest& request, std::shared_ptr<HttpAnswer> answer) {
  RpcScope scope("models", RequestIdOf(request), request.Header("authorization"), parts_);
  const auto models = parts_.router.LanguageModels();
  absl::StatusOr<std::string> body = std::string();
  if (!models.ok()) {
    body = models.status();
  } else if (request.path == kModels) {
    body = ModelList(*models);
  } else {
    body = ModelEntry(*models, Decoded(std::string_view(request.path).substr(kModel.size())));
  }
  scope.End(body.status());
  HttpResponse response =
      body.ok() ? HttpResponse{200, "application/json", *body} : OpenAiError(body.status());
  response.headers.emplace_back("X-Request-Id", scope.request_id());
  answer->Send(std::move(response));
}

void HttpFront::Complete(const HttpRequest& request, std::shared_ptr<HttpAnswer> answer) {
  auto scope = std::make_shared<RpcScope>("chat.completions", RequestIdOf(request),
                                          request.Header("authorization"), parts_);
  CompletionRequest completion;
  auto status = scope->Admit();
  if (status.ok()) {
    auto read = ReadCompletionRequest(request.body, parts_.fetcher.enabled());
    status = read.status();
    if (read.ok()) completion = *std::move(read);
  }
  // Shared, because std::function must be copyable.
  const auto sink = std::make_shared<std::unique_ptr<TurnSink>>(
      std::make_unique<CompletionSink>(completion, scope->request_id(), answer));
  if (!status.ok()) {
    scope->End(status);
    return (*sink)->Close(status);
  }
  chat_.ReadChat(
      *scope, std::move(completion.chat), CheckResponseFormat,
      [sink](std::function<void()> on_gone) { (*sink)->SetOnGone(std::move(on_gone)); },
      [this, scope, sink, resumable = completion.resumable,
       places = std::move(completion.places)](absl::StatusOr<TurnRequest> turn) {
        if (!turn.ok()) {
          const absl::Status refused = InClientsWords(turn.status(), places);
          scope->End(refused);
          return (*sink)->Close(refused);
        }
        if (resumable) turn->on_disconnect = v1::ON_DISCONNECT_DETACH;
        TurnStart::Begin(parts_, scope, *std::move(turn), std::move(*sink));
      });
}

// The question is not asked again: of the body, which clients send once more as it was, only the
// form of the stream counts.
void HttpFront::Resume(const HttpRequest& request, std::shared_ptr<HttpAnswer> answer) {
  const auto scope = std::make_shared<RpcScope>("chat.completions.resume", RequestIdOf(request),
                                                request.Header("authorization"), parts_);
  CompletionRequest completion;
  StreamPosition position;
  std::shared_ptr<LiveAnswer> live;
  absl::Status status = scope->Enter();
  if (status.ok()) {
    auto parsed = ParseStreamPosition(request.Header("last-event-id"));
    status = parsed.status();
    if (parsed.ok()) position = *std::move(parsed);
  }
  if (status.ok() && !request.body.empty()) {
    auto read = ReadCompletionRequest(request.body, parts_.fetcher.enabled());
    status = read.status();
    if (read.ok()) completion = *std::move(read);
  }
  completion.stream = completion.resumable = true;
  if (status.ok()) {
    live = parts_.resumable.Find(position.turn_id, scope->caller());
    if (!live) {
      status = absl::NotFoundError(
          "there is no such stream to go on with: only those asked for with \"stream_options\": "
          "{\"resumable\": true} are kept, for --resume-grace after their end or reader is gone; "
          "ask again without Last-Event-ID");
    }
  }
  TurnReader reader{
      std::make_shared<CompletionSink>(completion, scope->request_id(), answer, position.offset),
      [scope](const absl::Status& end) { scope->End(end); }};
  if (status.ok()) status = live->Attach(reader, {position.offset, std::nullopt});
  if (!status.ok()) reader.End(status);
}

}  // namespace llava
