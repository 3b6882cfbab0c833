// What requests of OpenAI's clients become, and what of them is refused by name.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/gateway/openai_json.h"

namespace llava {
namespace {

using Json = nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kPicture[] = "data:image/png;base64,cGljdHVyZQ==";

Json Ask() { return {{"messages", {{{"role", "user"}, {"content", "x"}}}}}; }

// A question with these parameters, in JSON.
absl::StatusOr<CompletionRequest> With(const std::string& parameters) {
  Json body = Ask();
  body.update(Json::parse(parameters));
  auto request = ReadCompletionRequest(body.dump(), /*urls=*/false);
  if (!request.ok()) return request;
  if (auto status = CheckResponseFormat(request->chat.sampling()); !status.ok()) return status;
  return request;
}

v1::SamplingParams Sampling(const std::string& parameters) {
  const auto request = With(parameters);
  EXPECT_TRUE(request.ok()) << request.status();
  return request.ok() ? request->chat.sampling() : v1::SamplingParams();
}

// The parameter that is complained of.
std::string Refused(const absl::StatusOr<CompletionRequest>& request) {
  EXPECT_TRUE(absl::IsInvalidArgument(request.status())) << request.status();
  return ParamOf(request.status());
}

TEST(OpenAiRequestTest, NeighboursOfOneRoleAreJoined) {
  const auto request = With(R"({"messages": [
      {"role": "system", "content": "be brief"},
      {"role": "developer", "content": "and kind"},
      {"role": "user", "content": [{"type": "image_url", "image_url": ")" +
                            std::string(kPicture) + R"("}]},
      {"role": "user", "content": [{"type": "image_url", "image_url": {"url": ")" +
                            kPicture + R"("}}, {"type": "text", "text": "one"}]},
      {"role": "user", "content": "two"},
      {"role": "assistant", "content": "a"},
      {"role": "assistant", "content": "b"},
      {"role": "user", "content": "three"}]})");
  ASSERT_TRUE(request.ok()) << request.status();
  const auto& messages = request->chat.messages();
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0].role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(messages[0].text(), "be brief\n\nand kind");
  EXPECT_EQ(messages[1].role(), v1::ROLE_USER);
  EXPECT_EQ(messages[1].text(), "one\n\ntwo");
  ASSERT_EQ(messages[1].images_size(), 2);
  EXPECT_EQ(messages[1].images(1).data(), "picture");
  EXPECT_EQ(messages[2].text(), "a\n\nb");
  EXPECT_EQ(messages[3].text(), "three");
}

TEST(OpenAiRequestTest, OtherOrdersAreRefusedWhereTheyBegin) {
  const auto refused = [](const std::vector<const char*>& roles) {
    Json body = Ask();
    body["messages"] = Json::array();
    for (const char* role : roles) body["messages"].push_back({{"role", role}, {"content", "x"}});
    return Refused(ReadCompletionRequest(body.dump(), false));
  };
  EXPECT_EQ(refused({"user", "system", "user"}), "messages[1].role");
  EXPECT_EQ(refused({"system", "assistant", "user"}), "messages[1].role");
  EXPECT_EQ(refused({"assistant", "user"}), "messages[0].role");
  EXPECT_EQ(refused({"user", "assistant"}), "messages");
  EXPECT_EQ(refused({"system"}), "messages");
}

TEST(OpenAiRequestTest, WhatOthersSendAlongIsTaken) {
  const auto request = With(R"({"unknown": null, "messages": [
      {"role": "user",
       "content": [{"type": "text", "text": "x", "id": "lc_1",
                    "cache_control": {"type": "ephemeral"}}]},
      {"role": "assistant", "content": "y", "reasoning_content": "so",
       "provider_specific_fields": {"a": 1}, "thinking": null},
      {"role": "user", "content": "z", "type": "text", "cache_control": null}]})");
  EXPECT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(Refused(With(R"({"messages": [{"role": "user", "content": "x", "type": "audio"}]})")),
            "messages[0].type");
}

TEST(OpenAiRequestTest, WhoAsksForUsageInEveryChunkGetsItAtTheEnd) {
  const auto request = With(
      R"({"stream": true,
          "stream_options": {"include_usage": true, "continuous_usage_stats": true}})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(request->include_usage);
}

TEST(OpenAiRequestTest, NothingOfAPartIsDroppedSilently) {
  const auto refused = [](const char* type) {
    Json part = {{"text", "x"}, {"image_url", {{"url", kPicture}}}};
    part["type"] = type;
    Json body = Ask();
    body["messages"][0]["content"] = Json::array({part});
    return Refused(ReadCompletionRequest(body.dump(), false));
  };
  EXPECT_EQ(refused("text"), "messages[0].content[0].image_url");
  EXPECT_EQ(refused("image_url"), "messages[0].content[0].text");
}

TEST(OpenAiRequestTest, PicturesAreNamedByWhatIsTaken) {
  for (const char* url : {"ftp://h/x.png", "file:///etc/passwd", ""}) {
    Json body = Ask();
    body["messages"][0]["content"] =
        Json::array({Json{{"type", "image_url"}, {"image_url", {{"url", url}}}}});
    const auto fetching = ReadCompletionRequest(body.dump(), /*urls=*/true);
    EXPECT_EQ(Refused(fetching), "messages[0].content[0].image_url.url");
    EXPECT_THAT(std::string(fetching.status().message()), HasSubstr("http(s)"));
    const auto without = ReadCompletionRequest(body.dump(), /*urls=*/false);
    EXPECT_THAT(std::string(without.status().message()), HasSubstr("fetches no pictures"));
  }
}

TEST(OpenAiRequestTest, ParametersAsOtherServersTakeThem) {
  EXPECT_EQ(Sampling(R"({"max_tokens": 5, "max_completion_tokens": 7})").max_new_tokens(), 7u);
  EXPECT_EQ(Sampling(R"({"max_tokens": 5, "max_completion_tokens": -1})").max_new_tokens(), 5u);
  EXPECT_FALSE(Sampling(R"({"max_tokens": -1})").has_max_new_tokens());
  EXPECT_TRUE(Sampling(R"({"top_k": -1})").has_top_k());
  EXPECT_EQ(Sampling(R"({"top_k": -1})").top_k(), 0u);
  EXPECT_THAT(Sampling(R"({"stop": ["", "END"]})").stop(), ElementsAre("END"));
  EXPECT_THAT(Sampling(R"({"stop": ""})").stop(), ElementsAre());
  EXPECT_THAT(Sampling(R"({"stop_token_ids": [3, 4]})").stop_token_ids(), ElementsAre(3, 4));
  EXPECT_TRUE(Sampling(R"({"ignore_eos": true})").ignore_eos());
}

TEST(OpenAiRequestTest, ValuesOutOfRangeAreRefusedByName) {
  for (const auto& [name, value] : std::map<std::string, std::string>{
           {"temperature", "9"},
           {"top_p", "0"},
           {"min_p", "2"},
           {"top_k", "-2"},
           {"repetition_penalty", "0"},
           {"presence_penalty", "3"},
           {"frequency_penalty", "-3"},
           {"max_tokens", "-2"},
           {"max_completion_tokens", "0"},
           {"stop", R"(["1", "2", "3", "4", "5", "6", "7", "8", "9"])"},
           {"stop_token_ids", "[-1]"},
           {"ignore_eos", "1"}}) {
    EXPECT_EQ(Refused(With("{\"" + name + "\": " + value + "}")), name);
  }
  const auto hot = With(R"({"temperature": 9})");
  EXPECT_EQ(hot.status().message(), "temperature is 9, allowed is 0 to 2 (0 = greedy)");
}

// No schema is not one that allows everything.
TEST(OpenAiRequestTest, ASchemaThatIsMissingIsNamed) {
  for (const char* format :
       {R"({"type": "json_schema"})", R"({"type": "json_schema", "json_schema": null})"}) {
    const auto request = With(absl::StrCat(R"({"response_format": )", format, "}"));
    EXPECT_EQ(Refused(request), "response_format.json_schema") << format;
    EXPECT_THAT(std::string(request.status().message()), HasSubstr("is missing"));
  }
}

TEST(OpenAiRequestTest, ASchemaThatIsTooLargeIsRefusedByItsName) {
  Json format = {{"type", "json_schema"}, {"json_schema", {{"schema", {{"enum", {"x"}}}}}}};
  format["json_schema"]["schema"]["enum"][0] = std::string(70'000, 'x');
  const auto request = With(absl::StrCat(R"({"response_format": )", format.dump(), "}"));
  EXPECT_EQ(Refused(request), "response_format");
  EXPECT_THAT(std::string(request.status().message()), HasSubstr("65536"));
}

// As many as docs/constraints.md promises.
TEST(OpenAiRequestTest, ASchemaHasTheLevelsThatTheBodyLeavesIt) {
  const auto with = [](int levels) {
    std::string schema = R"({"type": "null"})";
    for (int i = 1; i < levels; ++i) {
      schema = absl::StrCat(R"({"type": "array", "items": )", schema, "}");
    }
    return With(
        absl::StrCat(R"({"response_format": {"type": "json_schema", "json_schema": {"schema": )",
                     schema, "}}}"));
  };
  EXPECT_TRUE(with(61).ok()) << with(61).status();
  EXPECT_THAT(std::string(with(62).status().message()), HasSubstr("nested too deeply"));
}

}  // namespace
}  // namespace llava
