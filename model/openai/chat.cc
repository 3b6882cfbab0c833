#include "model/openai/chat.h"

#include <algorithm>

#include "model/digest/sha256.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kBytesPerToken = 3;  // English has four and more
constexpr uint64_t kTokensPerMessage = 8;
constexpr uint64_t kTokensPerImage = 1000;

Json ContentOf(const ChatRequest::Message& message) {
  if (message.images.empty()) return message.text;
  Json parts = Json::array();
  for (const std::string& url : message.images) {
    parts.push_back({{"type", "image_url"}, {"image_url", {{"url", url}}}});
  }
  parts.push_back({{"type", "text"}, {"text", message.text}});
  return parts;
}

// Text of an answer: one string, or (some servers) a list of parts.
std::string TextOf(const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  std::string text;
  if (content.is_array()) {
    for (const Json& part : content) {
      if (part.is_object() && part.contains("text") && part["text"].is_string()) {
        text += part["text"].get<std::string>();
      }
    }
  } else if (!content.is_null()) {  // null: the model said nothing
    throw std::runtime_error("the answer's content is not text");
  }
  return text;
}

uint64_t CountAt(const Json& object, const char* key, uint64_t otherwise) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_unsigned() ? found->get<uint64_t>() : otherwise;
}

std::string OneLine(std::string_view text) {
  constexpr size_t kMost = 300;
  std::string line;
  for (const char byte : text) {
    const bool space = static_cast<unsigned char>(byte) <= ' ' || byte == '\x7f';
    if (!space) {
      line += byte;
    } else if (!line.empty() && line.back() != ' ') {
      line += ' ';
    }
  }
  if (line.size() > kMost) {
    line.resize(CutUtf8(line, kMost).size());
    line += "...";
  }
  while (line.ends_with(' ')) line.pop_back();
  return line;
}

}  // namespace

std::string BodyOf(const ChatRequest& request) {
  Json messages = Json::array();
  for (const ChatRequest::Message& message : request.messages) {
    messages.push_back({{"role", message.role}, {"content", ContentOf(message)}});
  }
  Json body = {{"model", request.model},
               {"messages", std::move(messages)},
               {"max_tokens", request.max_tokens}};
  if (request.temperature) body["temperature"] = *request.temperature;
  if (request.top_p) body["top_p"] = *request.top_p;
  if (request.seed) body["seed"] = *request.seed;
  if (request.extra.is_object()) body.merge_patch(request.extra);
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string HashOf(const ChatRequest& request) {
  Sha256 hash;
  hash.Update(BodyOf(request));
  hash.Update("\n");
  hash.Update(std::to_string(request.sample));
  return ToHex(hash.Finish());
}

uint64_t EstimatePromptTokens(const ChatRequest& request) {
  uint64_t tokens = kTokensPerMessage;
  for (const ChatRequest::Message& message : request.messages) {
    tokens += message.text.size() / kBytesPerToken + kTokensPerMessage +
              message.images.size() * kTokensPerImage;
  }
  return tokens;
}

uint64_t MostAnswerTokens(const ChatRequest& request) {
  constexpr double kMost = 1e9;
  const auto at = [&](const char* key) -> uint64_t {
    const auto found = request.extra.is_object() ? request.extra.find(key) : request.extra.end();
    if (found == request.extra.end() || !found->is_number()) return 0;
    return static_cast<uint64_t>(std::clamp(found->get<double>(), 0.0, kMost));
  };
  const auto usual = static_cast<uint64_t>(std::max(0, request.max_tokens));
  const bool replaced = request.extra.is_object() && request.extra.contains("max_tokens");
  const uint64_t most = std::max(replaced ? at("max_tokens") : usual, at("max_completion_tokens"));
  return (most > 0 ? most : usual) * std::max<uint64_t>(1, at("n"));
}

ChatReply ParseCompletion(std::string_view body, uint64_t estimated_prompt_tokens) {
  const Json answer = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (answer.is_discarded()) throw std::runtime_error("the answer is no JSON: " + ErrorText(body));
  const auto choices = answer.is_object() ? answer.find("choices") : answer.end();
  if (!answer.is_object() || choices == answer.end() || !choices->is_array() || choices->empty() ||
      !choices->front().is_object() || !choices->front().contains("message") ||
      !choices->front()["message"].is_object()) {
    throw std::runtime_error("the answer has no choices[0].message: " + ErrorText(body));
  }
  const Json& choice = choices->front();
  const auto error = choice.find("error");
  if (error != choice.end() && !error->is_null()) {
    throw std::runtime_error("the server broke the answer off: " + ErrorText(choice.dump()));
  }
  ChatReply reply;
  const Json& message = choice["message"];
  if (message.contains("content")) reply.text = TextOf(message["content"]);
  if (const auto reason = choice.find("finish_reason");
      reason != choice.end() && reason->is_string()) {
    reply.finish_reason = reason->get<std::string>();
  }
  if (reply.broken_off()) {
    throw std::runtime_error("the server broke the answer off: finish_reason " +
                             reply.finish_reason);
  }
  const auto usage = answer.find("usage");
  const Json none = Json::object();
  const Json& counts = usage != answer.end() && usage->is_object() ? *usage : none;
  reply.usage.prompt_tokens = CountAt(counts, "prompt_tokens", estimated_prompt_tokens);
  reply.usage.completion_tokens =
      CountAt(counts, "completion_tokens", reply.text.size() / kBytesPerToken + 1);
  return reply;
}

std::string ErrorText(std::string_view body) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_object()) {
    if (const auto error = json.find("error"); error != json.end()) {
      if (error->is_string()) return OneLine(error->get<std::string>());
      if (error->is_object() && error->contains("message") && (*error)["message"].is_string()) {
        return OneLine((*error)["message"].get<std::string>());
      }
    }
    for (const char* key : {"message", "detail"}) {
      if (const auto text = json.find(key); text != json.end() && text->is_string()) {
        return OneLine(text->get<std::string>());
      }
    }
  }
  return body.empty() ? "(empty)" : OneLine(body);
}

}  // namespace llava
