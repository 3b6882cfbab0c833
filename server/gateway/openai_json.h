#pragma once

// The bodies of the OpenAI chat completions API: read into our own messages, and written from them.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/gateway_options.h"
#include "server/runtime/http_message.h"

namespace llava {

// What its client has called a message, of which several may have become one.
struct MessagePlace {
  std::string first, last;          // "messages[2]"
  std::vector<std::string> images;  // "messages[2].content[0].image_url"
};

// A request, as ChatService.Chat would have got it, and how it wants to be answered.
struct CompletionRequest {
  v1::ChatRequest chat;
  std::vector<MessagePlace> places;  // of the messages of `chat`
  bool stream = false;
  bool include_usage = false;  // a last chunk with the usage
  bool logprobs = false;
  bool resumable = false;  // goes on without its reader, who may come back
};

// Where a stream was left: "<turn>:<bytes of the answer>", the id of its last event.
struct StreamPosition {
  std::string turn_id;
  uint64_t offset = 0;
};
// INVALID_ARGUMENT.
absl::StatusOr<StreamPosition> ParseStreamPosition(std::string_view event_id);

// Every field that is set has an effect, is known to have none, or is refused by name:
// INVALID_ARGUMENT, with the field's name as ParamOf. Pictures are data URIs or, if `urls`, URLs.
absl::StatusOr<CompletionRequest> ReadCompletionRequest(const std::string& body, bool urls);
// What that leaves, as it is work: can the response_format be obeyed? INVALID_ARGUMENT likewise.
absl::Status CheckResponseFormat(const v1::SamplingParams& sampling);
// An error about what became of the messages names what the client has written.
absl::Status InClientsWords(const absl::Status& status, const std::vector<MessagePlace>& places);
// The field that a status complains about; empty if unknown.
std::string ParamOf(const absl::Status& status);

// An error object with the HTTP status that fits the code, and Retry-After where there is
// RetryInfo.
HttpResponse OpenAiError(const absl::Status& status);
HttpResponse OpenAiError(int http_status, const std::string& message);
// The object alone, for streams that have begun.
std::string OpenAiErrorBody(const absl::Status& status);

// Writes the answer to one request, whole or in pieces.
class CompletionWriter {
 public:
  // `offset`: bytes of the answer that the client has already.
  explicit CompletionWriter(const CompletionRequest& request, uint64_t offset = 0);

  void Start(const v1::TurnStarted& started);
  // The whole answer, once it has ended.
  std::string Whole(const v1::TurnFinished& finished) const;
  // Server-sent events: the first one, one for each delta, the last ones. Those of a resumable
  // stream carry an event id "<turn>:<bytes of the answer so far>".
  std::string FirstEvent() const;
  std::string DeltaEvent(const v1::TextDelta& delta);
  std::string LastEvents(const v1::TurnFinished& finished) const;
  // Collects for Whole.
  void Add(const v1::TextDelta& delta);

 private:
  struct Chunk;
  std::string Event(const std::string& json) const;

  const bool include_usage_, logprobs_, resumable_;
  const int64_t created_;
  std::string id_, turn_id_, model_, fingerprint_;
  std::string text_;
  uint64_t offset_;
  std::vector<v1::TokenLogprobs> tokens_;
};

// The list of models, each as the version that answers by default, or one (NAME, NAME@VERSION,
// NAME@LABEL); NOT_FOUND.
std::string ModelList(const std::vector<v1::ModelInfo>& models);
absl::StatusOr<std::string> ModelEntry(const std::vector<v1::ModelInfo>& models,
                                       const std::string& name);

}  // namespace llava
