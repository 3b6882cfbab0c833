// Requests of the OpenAI API.

#include <algorithm>
#include <map>
#include <stdexcept>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/gateway/openai_fields.h"
#include "server/gateway/openai_json.h"
#include "server/gateway/openai_messages.h"
#include "server/gateway/raw_json.h"
#include "server/wire/constraint.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

using openai::Bad;
using openai::Count;
using openai::CountOrNone;
using openai::Flag;
using openai::Ignore;
using openai::Json;
using openai::Number;
using openai::Only;
using openai::Reader;
using openai::ReadFields;

// What a conversation needs is far below; what a hostile body can make of 40 MB is not.
constexpr int kMaxDepth = 64;
constexpr int kMaxValues = 200'000;

// Empty ones, which some clients send for none, end nothing.
Reader Texts(google::protobuf::RepeatedPtrField<std::string>* target) {
  return [target](const std::string& name, const Json& value) {
    const Json list = value.is_array() ? value : Json::array({value});
    for (const Json& each : list) {
      if (!each.is_string()) return Bad(name, "is neither a text nor a list of texts");
      std::string text = each.get<std::string>();
      if (!text.empty()) *target->Add() = std::move(text);
    }
    return absl::OkStatus();
  };
}

// Takes the schema as the client has written it: the order of its members is that of the document.
absl::Status ReadSchema(const std::string& body, const std::string& name, const Json& value,
                        v1::OutputConstraint& constraint) {
  if (!value.is_object()) return Bad(name, "is not an object");
  bool strict = false;  // a schema is obeyed, strict or not
  const auto text = [](const std::string& field, const Json& given) {
    return given.is_string() ? absl::OkStatus() : Bad(field, "is not a text");
  };
  auto status = ReadFields(value,
                           {{"name", text},
                            {"description", text},
                            {"strict", Flag(strict)},
                            {"schema",
                             [](const std::string& field, const Json& given) {
                               return given.is_object() || given.is_boolean()
                                          ? absl::OkStatus()
                                          : Bad(field, "is not a JSON schema: an object");
                             }}},
                           name);
  if (!status.ok()) return status;
  constexpr std::string_view kPath[] = {"response_format", "json_schema", "schema"};
  const auto schema = RawMember(body, kPath);
  if (!schema || *schema == "null") return Bad(name + ".schema", "is missing");
  constraint.set_json_schema(std::string(*schema));
  return absl::OkStatus();
}

Reader ResponseFormat(const std::string& body, v1::SamplingParams& sampling) {
  return [&body, &sampling](const std::string& name, const Json& value) {
    if (!value.is_object() || !value.contains("type") || !value["type"].is_string()) {
      return Bad(name, "is not an object with a type");
    }
    const auto type = value["type"].get<std::string>();
    v1::OutputConstraint& constraint = *sampling.mutable_constraint();
    std::map<std::string, Reader> readers = {{"type", Ignore()}};
    if (type == "text") {
      sampling.clear_constraint();
    } else if (type == "json_object") {
      constraint.mutable_json_object();
    } else if (type == "json_schema") {
      if (!value.contains("json_schema") || value["json_schema"].is_null())
        return Bad(name + ".json_schema", "is missing");
      readers.emplace("json_schema", [&](const std::string& field, const Json& schema) {
        return ReadSchema(body, field, schema, constraint);
      });
    } else {
      return Bad(name + ".type", absl::StrCat("is \"", type.substr(0, 64),
                                              "\"; known are text, json_object and json_schema"));
    }
    return ReadFields(value, readers, name);
  };
}

std::map<std::string, Reader> Readers(CompletionRequest& request, const std::string& body,
                                      bool urls, uint32_t& top_logprobs) {
  v1::ChatRequest& chat = request.chat;
  v1::SamplingParams& sampling = *chat.mutable_sampling();
  // The newer name wins: names come in alphabetical order.
  const auto max_tokens = CountOrNone(1, UINT32_MAX, [&sampling](uint64_t value) {
    if (!sampling.has_max_new_tokens()) sampling.set_max_new_tokens(static_cast<uint32_t>(value));
  });
  return {
      {"model",
       [&chat](const std::string& name, const Json& value) {
         if (!value.is_string()) return Bad(name, "is not a text");
         chat.mutable_model()->set_name(value.get<std::string>());
         return absl::OkStatus();
       }},
      {"messages", openai::Messages(chat, request.places, urls)},
      {"stream", Flag(request.stream)},
      {"stream_options",
       [&request](const std::string& name, const Json& value) {
         if (!value.is_object()) return Bad(name, "is not an object");
         return ReadFields(value,
                           {{"include_usage", Flag(request.include_usage)},
                            {"resumable", Flag(request.resumable)},
                            // Usage so far in every chunk: it comes once, at the end.
                            {"continuous_usage_stats", Ignore()},
                            {"include_obfuscation", Ignore()}},
                           name);
       }},
      {"temperature", Number([&](float value) { sampling.set_temperature(value); })},
      {"top_p", Number([&](float value) { sampling.set_top_p(value); })},
      {"min_p", Number([&](float value) { sampling.set_min_p(value); })},
      {"top_k",
       [&sampling](const std::string& name, const Json& value) {
         if (value == -1) sampling.set_top_k(0);  // off, as other servers take it
         return CountOrNone(0, UINT32_MAX, [&sampling](uint64_t count) {
           sampling.set_top_k(static_cast<uint32_t>(count));
         })(name, value);
       }},
      {"presence_penalty", Number([&](float value) { sampling.set_presence_penalty(value); })},
      {"frequency_penalty", Number([&](float value) { sampling.set_frequency_penalty(value); })},
      {"repetition_penalty", Number([&](float value) { sampling.set_repetition_penalty(value); })},
      {"max_tokens", max_tokens},
      {"max_completion_tokens", max_tokens},
      {"seed",
       [&sampling](const std::string& name, const Json& value) {
         if (!value.is_number_integer()) return Bad(name, "is not a whole number");
         sampling.set_seed(value.get<uint64_t>());
         return absl::OkStatus();
       }},
      {"stop", Texts(sampling.mutable_stop())},
      {"stop_token_ids",
       [&sampling](const std::string& name, const Json& value) {
         if (!value.is_array()) return Bad(name, "is not a list");
         for (const Json& each : value) {
           if (!each.is_number_unsigned() || each.get<uint64_t>() > INT32_MAX) {
             return Bad(name, "is not a list of token ids");
           }
           sampling.add_stop_token_ids(each.get<int32_t>());
         }
         return absl::OkStatus();
       }},
      {"ignore_eos",
       [&sampling](const std::string& name, const Json& value) {
         bool ignore = false;
         auto status = Flag(ignore)(name, value);
         sampling.set_ignore_eos(ignore);
         return status;
       }},
      {"logprobs", Flag(request.logprobs)},
      {"top_logprobs",
       Count(0, 20, [&](uint64_t value) { top_logprobs = static_cast<uint32_t>(value); })},
      {"n", Only({1})},
      {"tools", Only({Json::array()})},
      {"tool_choice", Only({"none", "auto"})},
      {"functions", Only({Json::array()})},
      {"function_call", Only({"none", "auto"})},
      {"response_format", ResponseFormat(body, sampling)},
      {"logit_bias", Only({Json::object()})},
      {"modalities", Only({Json::array({"text"})})},
      {"store", Only({false})},
      {"audio", Only({})},
      {"prediction", Only({})},
      {"reasoning_effort", Only({"none"})},
      {"verbosity", Only({"medium"})},
      {"web_search_options", Only({})},
      // What callers say about themselves or their caching; it changes no answer.
      {"user", Ignore()},
      {"metadata", Ignore()},
      {"service_tier", Ignore()},
      {"safety_identifier", Ignore()},
      {"prompt_cache_key", Ignore()},
      {"prompt_cache_retention", Ignore()},
      {"parallel_tool_calls", Ignore()},
  };
}

// As CheckSampling, with the name of the parameter.
absl::Status CheckRanges(const v1::SamplingParams& sampling) {
  const absl::Status status = CheckSampling(sampling);
  if (status.ok()) return status;
  std::string message(status.message());
  message = message.substr(message.find('.') + 1);
  const size_t space = std::min(message.find(' '), message.size());
  const std::string name = message.substr(0, space);
  return Bad(name == "constraint" ? "response_format" : name,
             message.substr(std::min(space + 1, message.size())));
}

absl::StatusOr<Json> Parse(const std::string& body) {
  int values = 0;
  try {
    return Json::parse(body, [&values](int depth, Json::parse_event_t, Json&) {
      if (depth > kMaxDepth || ++values > kMaxValues) throw std::length_error("too much");
      return true;
    });
  } catch (const std::length_error&) {
    return absl::InvalidArgumentError("the body has too many values or is nested too deeply");
  } catch (const Json::exception& error) {
    // Its message may quote the body, which is the conversation.
    return absl::InvalidArgumentError("the body is not JSON in UTF-8");
  }
}

}  // namespace

absl::StatusOr<StreamPosition> ParseStreamPosition(std::string_view event_id) {
  const size_t colon = event_id.rfind(':');
  StreamPosition position;
  if (colon == std::string_view::npos || colon == 0 || colon > 64 ||
      !absl::SimpleAtoi(std::string(event_id.substr(colon + 1)), &position.offset)) {
    return absl::InvalidArgumentError(
        "the header Last-Event-ID is not the id of an event of /v1/chat/completions");
  }
  position.turn_id = std::string(event_id.substr(0, colon));
  return position;
}

absl::Status CheckResponseFormat(const v1::SamplingParams& sampling) {
  const absl::Status status = CheckConstraint(sampling);
  if (status.ok()) return status;
  return Bad("response_format", absl::StrCat("is not supported: ", status.message()));
}

absl::StatusOr<CompletionRequest> ReadCompletionRequest(const std::string& body, bool urls) {
  auto json = Parse(body);
  if (!json.ok()) return json.status();
  if (!json->is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  CompletionRequest request;
  uint32_t top_logprobs = 0;
  if (auto status = ReadFields(*json, Readers(request, body, urls, top_logprobs), "");
      !status.ok()) {
    return status;
  }
  if (auto status = CheckRanges(request.chat.sampling()); !status.ok()) return status;
  if (request.chat.messages().empty()) return Bad("messages", "is missing or empty");
  if (request.resumable && !request.stream) {
    return Bad("stream_options.resumable", "needs stream: true");
  }
  if (top_logprobs > 0 && !request.logprobs) return Bad("top_logprobs", "needs logprobs: true");
  if (request.logprobs) request.chat.mutable_sampling()->set_logprobs(top_logprobs);
  return request;
}

}  // namespace llava
