// Versions come and go under the requests of the LLM service.

#include <gmock/gmock.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "server/llm/llm_service.h"
#include "tests/server/llm/llm_test_server.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

TEST(LlmServiceVersionsTest, EachRequestIsAnsweredByItsVersionOrByNone) {
  LlmOptions options;
  options.language.model = (FixturesDir() / "tiny-llava").string();
  LlmTestServer server(std::move(options));
  const std::string name = server.info().model().name();
  const uint64_t first = server.info().model().version(), second = first + 1;
  const auto ask = [&](uint64_t version, uint32_t tokens = 3) {
    v1::GenerateRequest request = server.Ask("Hello");
    request.mutable_model()->set_version(version);
    request.mutable_sampling()->set_max_new_tokens(tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    return Generate(server.stub(), request);
  };
  auto newer = server.Renumbered(second);
  const std::weak_ptr<const LlmBackend> held = newer;
  server.service().Route(std::move(newer));
  EXPECT_EQ(ask(first).started.model().version(), first);
  EXPECT_EQ(ask(second).started.model().version(), second);

  // A request holds what it began with.
  v1::GenerateRequest request = server.Ask("Hello");
  request.mutable_model()->set_version(second);
  request.mutable_sampling()->set_max_new_tokens(300);
  request.mutable_sampling()->set_ignore_eos(true);
  auto slow = std::make_unique<SlowDevice>(server.turn());
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  server.service().Unroute(name, second);
  EXPECT_FALSE(held.expired());
  const StreamedAnswer refused = ask(second);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("version " + std::to_string(first)));
  v1::CountTokensRequest count;
  *count.mutable_model() = request.model();
  *count.mutable_messages() = request.messages();
  v1::CountTokensResponse counted;
  grpc::ClientContext other;
  EXPECT_EQ(server.stub().CountTokens(&other, count, &counted).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  slow.reset();
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(response.finished().usage().generated_tokens(), 300u);
  const auto end = std::chrono::steady_clock::now() + kSlowdown * std::chrono::seconds(60);
  while (!held.expired() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_TRUE(held.expired()) << "its last request has ended";

  server.service().Unroute(name, first);
  EXPECT_EQ(ask(first).status.error_code(), grpc::StatusCode::UNAVAILABLE)
      << "known, and not here just now";
  server.service().Route(server.Renumbered(first));
  EXPECT_TRUE(ask(first).status.ok());
}

}  // namespace
}  // namespace llava
