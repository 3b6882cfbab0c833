// Constraints over the wire, with the default model, which was never taught JSON.

#include <gmock/gmock.h>

#include <filesystem>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/server/llm/llm_test_server.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kSchema[] =
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":20},
  "count":{"type":"integer","minimum":0,"maximum":99},"kind":{"enum":["animal","fruit","\u00e9"]},
  "tags":{"type":"array","items":{"type":"string","maxLength":8},"maxItems":3}},
  "required":["name","count","kind","tags"],"additionalProperties":false})";

class LlmServiceConstraintTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    LlmOptions options;
    options.language.model =
        (std::filesystem::path(SourceDir()) / "deploy" / "models" / "emoji").string();
    server_ = std::make_unique<LlmTestServer>(options);
  }
  static void TearDownTestSuite() { server_.reset(); }

  static v1::GenerateRequest Ask(float temperature = 0, uint64_t seed = 1) {
    v1::GenerateRequest request = server_->Ask("What do you see?");
    v1::SamplingParams& sampling = *request.mutable_sampling();
    sampling.set_temperature(temperature);
    sampling.set_top_p(1);
    sampling.set_seed(seed);
    sampling.set_max_new_tokens(600);
    sampling.mutable_constraint()->set_json_schema(kSchema);
    return request;
  }
  static void ExpectValid(const std::string& text) {
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    ASSERT_TRUE(json.is_object()) << text;
    EXPECT_EQ(json.size(), 4u) << text;
    EXPECT_TRUE(json["name"].is_string()) << text;
    ASSERT_TRUE(json["count"].is_number_integer()) << text;
    EXPECT_GE(json["count"], 0);
    EXPECT_LE(json["count"], 99);
    EXPECT_THAT(json["kind"].get<std::string>(), ::testing::AnyOf("animal", "fruit", "\u00e9"));
    ASSERT_TRUE(json["tags"].is_array()) << text;
    EXPECT_LE(json["tags"].size(), 3u);
  }

  static std::unique_ptr<LlmTestServer> server_;
};

std::unique_ptr<LlmTestServer> LlmServiceConstraintTest::server_;

TEST_F(LlmServiceConstraintTest, WhateverIsDrawnTheAnswerIsValid) {
  EXPECT_TRUE(server_->info().constrains_output());
  std::vector<std::future<StreamedAnswer>> answers;
  for (int i = 0; i < 24; ++i) {
    answers.push_back(std::async(std::launch::async, [i] {
      return Generate(server_->stub(), Ask(i == 0 ? 0 : 0.3f * static_cast<float>(i % 6), i));
    }));
  }
  int stopped = 0;
  for (auto& each : answers) {
    const StreamedAnswer answer = each.get();
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    if (answer.finished.reason() != v1::FINISH_REASON_STOP) {
      EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_LENGTH);
      continue;
    }
    ++stopped;
    ExpectValid(answer.text);
  }
  EXPECT_GT(stopped, 15) << "its strings are short";
}

TEST_F(LlmServiceConstraintTest, AResumedAnswerGoesOnAsIfNothingHadBeen) {
  v1::GenerateRequest request = Ask(1.2f, 5);
  request.mutable_sampling()->set_logprobs(2);
  const StreamedAnswer whole = Generate(server_->stub(), request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  for (const size_t cut : {size_t{1}, whole.token_ids.size() / 2, whole.token_ids.size()}) {
    v1::GenerateRequest again = request;
    auto& from = *again.mutable_continue_from();
    from.mutable_tokens()->set_tokenizer_digest(server_->info().tokenizer_digest());
    for (size_t i = 0; i < cut; ++i) from.mutable_tokens()->add_ids(whole.token_ids[i]);
    const StreamedAnswer rest = Generate(server_->stub(), again);
    ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
    EXPECT_EQ(rest.text, whole.text) << cut;
    EXPECT_EQ(rest.finished.reason(), whole.finished.reason());
  }
  v1::GenerateRequest foreign = request;
  auto& from = *foreign.mutable_continue_from();
  from.mutable_tokens()->set_tokenizer_digest(server_->info().tokenizer_digest());
  from.mutable_tokens()->add_ids(whole.token_ids.back());
  const StreamedAnswer refused = Generate(server_->stub(), foreign);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("continue_from.tokens"));
}

TEST_F(LlmServiceConstraintTest, EndsOfAllKinds) {
  v1::GenerateRequest request = Ask();
  request.mutable_sampling()->set_max_new_tokens(3);
  EXPECT_EQ(Generate(server_->stub(), request).finished.reason(), v1::FINISH_REASON_LENGTH);
  request = Ask();
  request.mutable_sampling()->add_stop("\"count\"");
  const StreamedAnswer cut = Generate(server_->stub(), request);
  EXPECT_EQ(cut.finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(cut.text, ::testing::Not(HasSubstr("count")));
  request = Ask();
  request.mutable_sampling()->mutable_constraint()->set_json_schema(R"({"type":"integer"})");
  const StreamedAnswer number = Generate(server_->stub(), request);
  EXPECT_TRUE(Json::parse(number.text).is_number_integer()) << number.text;
  request.mutable_sampling()->mutable_constraint()->mutable_choices()->add_texts("A lion.");
  const StreamedAnswer choice = Generate(server_->stub(), request);
  EXPECT_EQ(choice.text, "A lion.");
  EXPECT_EQ(choice.finished.reason(), v1::FINISH_REASON_STOP);
}

TEST_F(LlmServiceConstraintTest, WhatCannotBeObeyedIsRefused) {
  v1::GenerateRequest request = Ask();
  request.mutable_sampling()->mutable_constraint()->set_json_schema(R"({"not":{}})");
  StreamedAnswer answer = Generate(server_->stub(), request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("#/not"));
  request = Ask();
  request.mutable_sampling()->set_ignore_eos(true);
  answer = Generate(server_->stub(), request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("ignore_eos"));
}

}  // namespace
}  // namespace llava
