// The LLM service over loopback with the default model.

#include <gmock/gmock.h>

#include <cstdint>
#include <filesystem>
#include <future>
#include <string>
#include <vector>

#include "server/llm/kv_blocks.h"
#include "tests/server/llm/llm_test_server.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

LlmOptions EmojiOptions() {
  LlmOptions options;
  options.language.model =
      (std::filesystem::path(SourceDir()) / "deploy" / "models" / "emoji").string();
  return options;
}

// Keys and values of so many tokens.
uint64_t BytesOfTokens(LlmTestServer& server, int64_t tokens) {
  return static_cast<uint64_t>(server.engine().info().kv_block_bytes) *
         static_cast<uint64_t>(KvBlocks::BlocksFor(tokens));
}

// The same greedy tokens whether an answer is alone or beside others, its prompt comes whole or in
// pieces, it had to give way or found its beginning in the cache; in every kind of weights.
TEST(LlmServiceParityTest, WhateverHappensToAnAnswerItsTokensAreTheSame) {
  for (const std::string dtype : {"float32", "bfloat16", "int8", "int4"}) {
    LlmOptions options = EmojiOptions();
    options.language.dtype = dtype;
    options.engine.max_running = 1;
    LlmTestServer alone(options);
    options.engine.max_running = 8;
    options.engine.prefill_chunk = 7;
    options.language.kv_bytes = BytesOfTokens(alone, 320);
    LlmTestServer crowded(options);
    std::vector<v1::GenerateRequest> requests;
    for (int i = 0; i < 8; ++i) {
      std::string text = "Tell me of number " + std::to_string(i) + ".";
      for (int word = 0; word < 3 * i; ++word) text += " What is a lion?";
      requests.push_back(alone.Ask(text));
      requests.back().mutable_sampling()->set_max_new_tokens(60);
      requests.back().mutable_sampling()->set_ignore_eos(true);
    }
    std::vector<std::vector<int32_t>> expected;
    for (v1::GenerateRequest& request : requests) {
      request.set_cache_salt(std::to_string(expected.size()));  // nothing is shared
      const StreamedAnswer answer = Generate(alone.stub(), request);
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
      ASSERT_EQ(answer.started.cached_tokens(), 0u);
      expected.push_back(answer.token_ids);
      request.clear_cache_salt();
    }
    uint32_t cached = 0;
    const auto gave_way = [&] {
      return crowded.MetricsText().find("llava_llm_preemptions_total 0") == std::string::npos;
    };
    // Until they have met: on a busy machine one may end before the next has come.
    for (int round = 0; round < 2 || (round < 50 && !gave_way()); ++round) {
      std::vector<std::future<StreamedAnswer>> together;
      for (const auto& request : requests) {
        together.push_back(
            std::async(std::launch::async, [&] { return Generate(crowded.stub(), request); }));
      }
      for (size_t i = 0; i < requests.size(); ++i) {
        const StreamedAnswer answer = together[i].get();
        ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
        EXPECT_EQ(answer.token_ids, expected[i]) << dtype << ", question " << i;
        cached += answer.started.cached_tokens();
      }
    }
    EXPECT_GT(cached, 0u) << "beginnings were shared";
    EXPECT_TRUE(gave_way());
    EXPECT_THAT(crowded.MetricsText(), HasSubstr("llava_llm_kv_bytes 0"));
  }
}

TEST(LlmServiceEmojiTest, TwoHundredStreamsAtOnceAreAllAnswered) {
  LlmTestServer server(EmojiOptions());
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(server.Ask("Question number " + std::to_string(i)));
    requests.back().mutable_sampling()->set_max_new_tokens(24);
    requests.back().mutable_sampling()->set_ignore_eos(true);
  }
  std::vector<std::vector<int32_t>> alone;
  for (const auto& request : requests) {
    alone.push_back(Generate(server.stub(), request).token_ids);
    ASSERT_EQ(alone.back().size(), 24u);
  }
  std::vector<std::future<StreamedAnswer>> together;
  for (size_t i = 0; i < 200; ++i) {
    together.push_back(std::async(std::launch::async, [&server, &request = requests[i % 8]] {
      return Generate(server.stub(), request);
    }));
  }
  for (size_t i = 0; i < together.size(); ++i) {
    const StreamedAnswer answer = together[i].get();
    ASSERT_TRUE(answer.status.ok()) << i << ": " << answer.status.error_message();
    EXPECT_EQ(answer.token_ids, alone[i % 8]) << i;
  }
  EXPECT_EQ(server.engine().running(), 0);
  EXPECT_THAT(server.MetricsText(), HasSubstr("llava_llm_kv_bytes 0"));
}

TEST(LlmServiceEmojiTest, TheDefaultModelSeesWhatIsThere) {
  const std::filesystem::path root = std::filesystem::path(SourceDir()) / "deploy";
  LlmTestServer server(EmojiOptions());
  const auto ask = [&](const std::string& picture, const std::string& question) {
    const TestFeatures features = ComputeFeatures(
        root / "models" / "emoji-tower", root / "scenes" / picture, server.info().vision_spec());
    EXPECT_TRUE(server.Put(features).ok());
    return Generate(server.stub(), server.Ask(question, {features.header.key()}));
  };
  const StreamedAnswer lion = ask("lion.png", "What do you see?");
  ASSERT_TRUE(lion.status.ok()) << lion.status.error_message();
  EXPECT_THAT(lion.text, HasSubstr("lion"));
  EXPECT_EQ(lion.finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_THAT(ask("two_apples.png", "What do you see?").text, HasSubstr("apples"));
  EXPECT_THAT(ask("three_frogs.png", "How many frogs are there?").text, HasSubstr("hree"));
}

}  // namespace
}  // namespace llava
