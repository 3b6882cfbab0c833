// Answers and errors of the OpenAI API.

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/gateway/model_choice.h"
#include "server/gateway/openai_json.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::string Dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

const char* TypeOf(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

// Clients cut the conversation, or choose another model, by these names.
const char* CodeOf(const absl::Status& status) {
  if (HasReason(status, kReasonContextLength)) return "context_length_exceeded";
  if (HasReason(status, kReasonModelNotFound)) return "model_not_found";
  return nullptr;
}

const char* CodeOf(int status) {
  switch (status) {
    case 401:
      return "invalid_api_key";
    case 404:
      return "not_found";
    case 429:
      return "rate_limit_exceeded";
    case 503:
      return "overloaded";
    case 504:
      return "timeout";
    default:
      return nullptr;
  }
}

// `code` null: that of the status.
OrderedJson ErrorObject(int status, const std::string& message, const std::string& param = "",
                        const char* code = nullptr) {
  if (code == nullptr) code = CodeOf(status);
  return {{"error",
           {{"message", message},
            {"type", TypeOf(status)},
            {"param", param.empty() ? OrderedJson(nullptr) : OrderedJson(param)},
            {"code", code == nullptr ? OrderedJson(nullptr) : OrderedJson(code)}}}};
}

OrderedJson ErrorObject(const absl::Status& status) {
  return ErrorObject(HttpStatusOf(status.code()), std::string(status.message()), ParamOf(status),
                     CodeOf(status));
}

const char* FinishReasonOf(v1::FinishReason reason) {
  return reason == v1::FINISH_REASON_LENGTH || reason == v1::FINISH_REASON_CONTEXT ? "length"
                                                                                   : "stop";
}

OrderedJson UsageOf(const v1::Usage& usage) {
  const uint32_t prompt = usage.text_tokens() + usage.image_tokens();
  return {{"prompt_tokens", prompt},
          {"completion_tokens", usage.generated_tokens()},
          {"total_tokens", prompt + usage.generated_tokens()},
          {"prompt_tokens_details",
           {{"cached_tokens", usage.cached_tokens()}, {"image_tokens", usage.image_tokens()}}}};
}

// A token's text may be a part of a character; its bytes say all.
OrderedJson TokenOf(const std::string& bytes, float logprob) {
  OrderedJson list = OrderedJson::array();
  for (const unsigned char byte : bytes) list.push_back(byte);
  return {{"token", bytes}, {"logprob", logprob}, {"bytes", std::move(list)}};
}

OrderedJson LogprobsOf(const v1::TokenLogprobs& token) {
  OrderedJson json = TokenOf(token.token(), token.logprob());
  json["top_logprobs"] = OrderedJson::array();
  for (const v1::TopLogprob& top : token.top()) {
    json["top_logprobs"].push_back(TokenOf(top.token(), top.logprob()));
  }
  return json;
}

template <typename Tokens>
OrderedJson LogprobsOf(const Tokens& tokens, bool wanted) {
  if (!wanted) return nullptr;
  OrderedJson content = OrderedJson::array();
  for (const v1::TokenLogprobs& token : tokens) content.push_back(LogprobsOf(token));
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

OrderedJson EntryOf(const v1::ModelInfo& model) {
  return {{"id", model.model().name()},
          {"object", "model"},
          {"created", 0},
          {"owned_by", "llava-serving"},
          {"root", model.model().name()},  // what clients of vLLM read the name from
          {"version", model.model().version()},
          {"context_tokens", model.context_tokens()},
          {"image_tokens", model.image_tokens()},
          {"max_images", model.max_images()}};
}

// All versions of each name.
std::map<std::string, std::vector<v1::ModelInfo>> ByName(const std::vector<v1::ModelInfo>& models) {
  std::map<std::string, std::vector<v1::ModelInfo>> names;
  for (const v1::ModelInfo& model : models) names[model.model().name()].push_back(model);
  return names;
}

}  // namespace

HttpResponse OpenAiError(int http_status, const std::string& message) {
  HttpResponse response{http_status, "application/json", Dump(ErrorObject(http_status, message))};
  if (http_status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse OpenAiError(const absl::Status& status) {
  HttpResponse response = OpenAiError(HttpStatusOf(status.code()), "");
  response.body = Dump(ErrorObject(status));
  if (const auto retry = RetryAfter(status)) {
    response.headers.emplace_back("Retry-After", absl::StrCat((retry->count() + 999) / 1000));
    response.headers.emplace_back("Retry-After-Ms", absl::StrCat(retry->count()));
  }
  // Clients try every 5xx again by themselves. Nobody else shall die of this answer, and the time
  // that was too short once is too short again.
  if (HasReason(status, kReasonGivenUp) || absl::IsDeadlineExceeded(status)) {
    response.headers.emplace_back("X-Should-Retry", "false");
  }
  return response;
}

std::string OpenAiErrorBody(const absl::Status& status) { return Dump(ErrorObject(status)); }

CompletionWriter::CompletionWriter(const CompletionRequest& request, uint64_t offset)
    : include_usage_(request.include_usage),
      logprobs_(request.logprobs),
      resumable_(request.resumable),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      offset_(offset) {}

void CompletionWriter::Start(const v1::TurnStarted& started) {
  turn_id_ = started.turn_id();
  id_ = absl::StrCat("chatcmpl-", turn_id_);
  model_ = started.model().name();
  fingerprint_ = absl::StrCat("v", started.model().version(), "-",
                              absl::BytesToHexString(started.model().digest().substr(0, 6)));
}

void CompletionWriter::Add(const v1::TextDelta& delta) {
  text_ += delta.text();
  tokens_.insert(tokens_.end(), delta.logprobs().begin(), delta.logprobs().end());
}

std::string CompletionWriter::Whole(const v1::TurnFinished& finished) const {
  return Dump(
      {{"id", id_},
       {"object", "chat.completion"},
       {"created", created_},
       {"model", model_},
       {"system_fingerprint", fingerprint_},
       {"choices",
        OrderedJson::array(
            {{{"index", 0},
              {"message", {{"role", "assistant"}, {"content", text_}, {"refusal", nullptr}}},
              {"logprobs", LogprobsOf(tokens_, logprobs_)},
              {"finish_reason", FinishReasonOf(finished.reason())}}})},
       {"usage", UsageOf(finished.usage())}});
}

// One object of a stream.
struct CompletionWriter::Chunk {
  static std::string Make(const CompletionWriter& writer, OrderedJson choices,
                          OrderedJson usage = nullptr) {
    OrderedJson json = {{"id", writer.id_},
                        {"object", "chat.completion.chunk"},
                        {"created", writer.created_},
                        {"model", writer.model_},
                        {"system_fingerprint", writer.fingerprint_},
                        {"choices", std::move(choices)}};
    if (writer.include_usage_) json["usage"] = std::move(usage);
    return Dump(json);
  }
  static OrderedJson Choice(OrderedJson delta, OrderedJson logprobs, OrderedJson finish_reason) {
    return OrderedJson::array({{{"index", 0},
                                {"delta", std::move(delta)},
                                {"logprobs", std::move(logprobs)},
                                {"finish_reason", std::move(finish_reason)}}});
  }
};

// Many clients take each block for "data: " and JSON; an id is for those who have asked for it.
std::string CompletionWriter::Event(const std::string& json) const {
  const std::string id = resumable_ ? absl::StrCat("id: ", turn_id_, ":", offset_, "\n") : "";
  return absl::StrCat(id, "data: ", json, "\n\n");
}

std::string CompletionWriter::FirstEvent() const {
  return Event(Chunk::Make(
      *this, Chunk::Choice({{"role", "assistant"}, {"content", ""}}, nullptr, nullptr)));
}

std::string CompletionWriter::DeltaEvent(const v1::TextDelta& delta) {
  offset_ = delta.offset() + delta.text().size();
  return Event(Chunk::Make(*this, Chunk::Choice({{"content", delta.text()}},
                                                LogprobsOf(delta.logprobs(), logprobs_), nullptr)));
}

std::string CompletionWriter::LastEvents(const v1::TurnFinished& finished) const {
  std::string events = Event(Chunk::Make(
      *this, Chunk::Choice(OrderedJson::object(), nullptr, FinishReasonOf(finished.reason()))));
  if (include_usage_) {
    events += Event(Chunk::Make(*this, OrderedJson::array(), UsageOf(finished.usage())));
  }
  return events + "data: [DONE]\n\n";
}

std::string ModelList(const std::vector<v1::ModelInfo>& models) {
  OrderedJson data = OrderedJson::array();
  for (auto& [name, versions] : ByName(models)) {
    const auto eligible = Eligible(versions, {}, 0);
    if (eligible.ok()) data.push_back(EntryOf(eligible->front()));
  }
  return Dump({{"object", "list"}, {"data", std::move(data)}});
}

absl::StatusOr<std::string> ModelEntry(const std::vector<v1::ModelInfo>& models,
                                       const std::string& name) {
  const auto choice = ParseModelChoice(name);
  if (!choice.ok()) return choice.status();
  const auto names = ByName(models);
  const auto found = names.find(choice->name);
  if (found == names.end()) {
    return WithReason(absl::NotFoundError(absl::StrCat("no model \"", choice->name, "\"")),
                      kReasonModelNotFound);
  }
  const auto eligible = Eligible(found->second, *choice, 0);
  if (!eligible.ok()) return eligible.status();
  return Dump(EntryOf(eligible->front()));
}

}  // namespace llava
