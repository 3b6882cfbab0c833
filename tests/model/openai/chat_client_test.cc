#include "model/openai/chat_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <map>
#include <string>
#include <thread>

#include "tests/support/chat_server.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;
using Answer = ChatServer::Answer;
using Asked = ChatServer::Asked;

ChatRequest Request(int number) {
  ChatRequest request;
  request.id = "r" + std::to_string(number);
  request.model = "teacher";
  request.messages = {{.role = "user", .text = "question " + std::to_string(number)}};
  request.max_tokens = 50;
  return request;
}

OpenAiChatClient::Options Options(const ChatServer& server) {
  return {.base_url = server.base_url(),
          .key = "sk-test",
          .concurrency = 4,
          .timeout = 60s * kSlowdown,
          .attempts = 4,
          .backoff = {.first = 20ms, .most = 80ms}};
}

// All requests' results, by id.
std::map<std::string, ChatResult> AskAll(OpenAiChatClient& client, int count) {
  std::map<std::string, ChatResult> results;
  int next = 0;
  while (results.size() < static_cast<size_t>(count)) {
    while (next < count && client.HasRoom()) client.Submit(Request(next++));
    for (ChatResult& result : client.Wait(100ms)) {
      EXPECT_TRUE(results.emplace(result.id, result).second) << result.id;
    }
  }
  return results;
}

ChatResult AskOne(const ChatServer& server, OpenAiChatClient::Options options) {
  OpenAiChatClient client(std::move(options));
  return AskAll(client, 1).at("r0");
}
ChatResult AskOne(const ChatServer& server) { return AskOne(server, Options(server)); }

TEST(OpenAiChatClientTest, AsksAsTheProtocolSays) {
  ChatServer server([](const Asked&) { return ChatServer::Say("Hi", "stop", 12, 3); });
  const ChatResult result = AskOne(server);
  EXPECT_EQ(result.end, ChatEnd::kAnswered);
  EXPECT_EQ(result.hash, HashOf(Request(0)));
  EXPECT_EQ(result.attempts, 1);
  EXPECT_EQ(result.reply->text, "Hi");
  EXPECT_EQ(result.reply->finish_reason, "stop");
  EXPECT_EQ(result.reply->usage.prompt_tokens, 12u);
  EXPECT_EQ(result.reply->usage.completion_tokens, 3u);
  const Asked asked = server.asked().at(0);
  EXPECT_EQ(asked.path, "/v1/chat/completions");
  EXPECT_EQ(asked.headers.at("authorization"), "Bearer sk-test");
  EXPECT_EQ(asked.headers.at("content-type"), "application/json");
  EXPECT_EQ(asked.body.at("model"), "teacher");
  EXPECT_EQ(asked.last_text(), "question 0");
}

TEST(OpenAiChatClientTest, WithoutAKeySendsNone) {
  ChatServer server([](const Asked&) { return ChatServer::Say("Hi"); });
  auto options = Options(server);
  options.key.clear();
  EXPECT_EQ(AskOne(server, options).reply->text, "Hi");
  EXPECT_FALSE(server.asked().at(0).headers.contains("authorization"));
}

TEST(OpenAiChatClientTest, KeepsSoManyOnTheWireAndNoMore) {
  std::atomic<int> come = 0;
  ChatServer server([&](const Asked& asked) {
    ++come;
    // The first is not answered before the fourth has come.
    const auto end = std::chrono::steady_clock::now() + 60s * kSlowdown;
    while (come < 4 && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(1ms);
    Answer answer = ChatServer::Say("to " + asked.last_text());
    answer.delay = 50ms;
    return answer;
  });
  OpenAiChatClient client(Options(server));
  const auto results = AskAll(client, 40);
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(results.at("r" + std::to_string(i)).reply->text, "to question " + std::to_string(i));
  }
  EXPECT_EQ(server.most_at_once(), 4);
  EXPECT_EQ(client.pending(), 0u);
}

TEST(OpenAiChatClientTest, TriesAgainWhatMayDoBetterLater) {
  ChatServer server([](const Asked& asked) -> Answer {
    switch (asked.number) {
      case 0:
        return ChatServer::Refuse(503);
      case 1: {  // the connection breaks within the answer
        Answer answer = ChatServer::Say("a long answer");
        answer.cut_after = 20;
        return answer;
      }
      case 2:
        return {.body = "<html>proxy</html>"};
      default:
        return ChatServer::Say("at last");
    }
  });
  const ChatResult result = AskOne(server);
  ASSERT_TRUE(result.reply) << result.error;
  EXPECT_EQ(result.reply->text, "at last");
  EXPECT_EQ(result.attempts, 4);
}

// As vLLM of a request that it aborted, with a status of 200.
TEST(OpenAiChatClientTest, TriesAgainWhatTheServerBrokeOff) {
  ChatServer server([](const Asked& asked) {
    return asked.number == 0 ? ChatServer::Say("The dog sits on the", "abort")
                             : ChatServer::Say("The dog sits on the mat.");
  });
  const ChatResult result = AskOne(server);
  ASSERT_TRUE(result.reply) << result.error;
  EXPECT_EQ(result.reply->text, "The dog sits on the mat.");
  EXPECT_EQ(result.attempts, 2);
}

TEST(OpenAiChatClientTest, PausesGrow) {
  ChatServer server([](const Asked&) { return ChatServer::Refuse(500); });
  auto options = Options(server);
  options.backoff = {.first = 100ms, .most = 10s};
  EXPECT_EQ(AskOne(server, options).end, ChatEnd::kFailed);
  const auto asked = server.asked();
  ASSERT_EQ(asked.size(), 4u);
  EXPECT_GE(asked[1].time - asked[0].time, 50ms);
  EXPECT_GE(asked[2].time - asked[1].time, 100ms);
  EXPECT_GE(asked[3].time - asked[2].time, 200ms);
}

TEST(OpenAiChatClientTest, GivesUpAfterAllAttemptsAndSaysWhy) {
  ChatServer server([](const Asked&) { return ChatServer::Refuse(500, "the model crashed"); });
  const ChatResult result = AskOne(server);
  EXPECT_EQ(result.end, ChatEnd::kFailed);
  EXPECT_EQ(result.error, "HTTP 500: the model crashed (after 4 attempts)");
  EXPECT_FALSE(result.refused);
  EXPECT_EQ(server.num_asked(), 4u);
}

// As our gateway says of a question that killed its workers.
TEST(OpenAiChatClientTest, AsksNotAgainWhatIsToldToFailAgain) {
  for (const int status : {500, 504}) {
    ChatServer server([&](const Asked&) {
      return ChatServer::Refuse(status, "given up", {"X-Should-Retry: false"});
    });
    const ChatResult result = AskOne(server);
    EXPECT_EQ(result.end, ChatEnd::kFailed);
    EXPECT_THAT(result.error, HasSubstr("given up"));
    EXPECT_TRUE(result.refused);
    EXPECT_EQ(server.num_asked(), 1u);
  }
  // Of that answer only.
  ChatServer server([](const Asked& asked) {
    if (asked.last_text() == "question 0") {
      return ChatServer::Refuse(500, "given up", {"x-should-retry: false"});
    }
    return asked.number < 3 ? ChatServer::Refuse(500) : ChatServer::Say("fine");
  });
  OpenAiChatClient client(Options(server));
  const auto results = AskAll(client, 2);
  EXPECT_EQ(results.at("r0").attempts, 1);
  EXPECT_TRUE(results.at("r1").reply) << results.at("r1").error;
}

TEST(OpenAiChatClientTest, ObeysRetryAfterWithAllRequests) {
  ChatServer server([](const Asked& asked) {
    return asked.number == 0 ? ChatServer::Refuse(429, "slow down", {"Retry-After: 1"})
                             : ChatServer::Say("fine");
  });
  auto options = Options(server);
  options.concurrency = 1;
  OpenAiChatClient client(options);
  const auto results = AskAll(client, 3);
  EXPECT_EQ(results.at("r0").attempts, 2);
  const auto asked = server.asked();
  ASSERT_EQ(asked.size(), 4u);
  for (size_t i = 1; i < asked.size(); ++i) EXPECT_GE(asked[i].time - asked[0].time, 1000ms);
}

TEST(OpenAiChatClientTest, WithoutRetryAfterBacksOffBy429) {
  ChatServer server([](const Asked& asked) {
    return asked.number < 2 ? ChatServer::Refuse(429, "slow down") : ChatServer::Say("fine");
  });
  EXPECT_EQ(AskOne(server).attempts, 3);
}

TEST(OpenAiChatClientTest, ALongRetryAfterEndsTheRun) {
  ChatServer server(
      [](const Asked&) { return ChatServer::Refuse(429, "daily limit", {"retry-after: 7200"}); });
  const ChatResult result = AskOne(server);
  EXPECT_EQ(result.end, ChatEnd::kFatal);
  EXPECT_THAT(result.error, HasSubstr("daily limit"));
  EXPECT_THAT(result.error, HasSubstr("7200 s"));
}

TEST(OpenAiChatClientTest, AWrongKeyIsFinalAndNotShown) {
  ChatServer server([](const Asked&) { return ChatServer::Refuse(401, "Incorrect API key"); });
  const ChatResult result = AskOne(server);
  EXPECT_EQ(result.end, ChatEnd::kFatal);
  EXPECT_THAT(result.error, HasSubstr("HTTP 401: Incorrect API key"));
  EXPECT_THAT(result.error, HasSubstr(server.base_url()));
  EXPECT_THAT(result.error, Not(HasSubstr("sk-test")));
  EXPECT_EQ(server.num_asked(), 1u);
}

TEST(OpenAiChatClientTest, ABadRequestFailsAlone) {
  ChatServer server([](const Asked& asked) {
    return asked.last_text() == "question 1" ? ChatServer::Refuse(400, "context too long")
                                             : ChatServer::Say("fine");
  });
  OpenAiChatClient client(Options(server));
  const auto results = AskAll(client, 3);
  EXPECT_TRUE(results.at("r0").reply);
  EXPECT_EQ(results.at("r1").end, ChatEnd::kFailed);
  EXPECT_EQ(results.at("r1").error, "HTTP 400: context too long");
  EXPECT_EQ(results.at("r1").attempts, 1);
  EXPECT_TRUE(results.at("r2").reply);
}

TEST(OpenAiChatClientTest, DoesNotFollowRedirects) {
  ChatServer other([](const Asked&) { return ChatServer::Say("stolen"); });
  ChatServer server([&](const Asked&) {
    return Answer{.status = 307, .headers = {"Location: " + other.base_url()}};
  });
  const ChatResult result = AskOne(server);
  EXPECT_EQ(result.end, ChatEnd::kFatal);
  EXPECT_THAT(result.error, HasSubstr("points to " + other.base_url()));
  EXPECT_EQ(other.num_asked(), 0u);
}

TEST(OpenAiChatClientTest, TimesOutAndTriesAgain) {
  ChatServer server([](const Asked& asked) {
    Answer answer = ChatServer::Say("in time");
    if (asked.number == 0) answer.delay = 60s;
    return answer;
  });
  auto options = Options(server);
  options.timeout = 4s * kSlowdown;  // for the second one, too
  const ChatResult result = AskOne(server, options);
  ASSERT_TRUE(result.reply) << result.error;
  EXPECT_EQ(result.attempts, 2);
}

TEST(OpenAiChatClientTest, TellsThatNobodyListens) {
  // A port that is somebody's, so that no other test gets it, and at which nobody listens.
  const int deaf = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(deaf, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(getsockname(deaf, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string url = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port)) + "/v1";
  OpenAiChatClient client({.base_url = url, .attempts = 2, .backoff = {.first = 1ms}});
  const ChatResult result = AskAll(client, 1).at("r0");
  EXPECT_EQ(result.end, ChatEnd::kFailed);
  EXPECT_THAT(result.error, HasSubstr("after 2 attempts"));
  close(deaf);
}

TEST(OpenAiChatClientTest, AnswersWithoutEndAreCut) {
  ChatServer server([](const Asked&) { return ChatServer::Say(std::string(100'000, 'x')); });
  auto options = Options(server);
  options.largest_answer_bytes = 50'000;
  options.attempts = 1;
  const ChatResult result = AskOne(server, options);
  EXPECT_EQ(result.end, ChatEnd::kFailed);
  EXPECT_THAT(result.error, HasSubstr("more than 50000 bytes"));
}

TEST(OpenAiChatClientTest, KeepsTheRate) {
  ChatServer server([](const Asked&) { return ChatServer::Say("x", "stop", 10, 10); });
  auto options = Options(server);
  options.requests_per_minute = 600;
  OpenAiChatClient client(options);
  const auto begin = std::chrono::steady_clock::now();
  AskAll(client, 70);
  // Six seconds' worth may go at once, the other ten go a tenth of a second apart.
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 900ms);
}

TEST(OpenAiChatClientTest, WindingDownWaitsForWhatIsOnTheWireOnly) {
  std::atomic<bool> winding_down = false;
  ChatServer server([&](const Asked& asked) {
    if (asked.last_text() == "question 0") return ChatServer::Refuse(503);
    while (!winding_down) std::this_thread::sleep_for(1ms);
    return ChatServer::Say("paid");
  });
  auto options = Options(server);
  options.backoff = {.first = 60s, .most = 60s};
  OpenAiChatClient client(options);
  client.Submit(Request(0));
  client.Submit(Request(1));
  while (server.num_asked() < 2) EXPECT_TRUE(client.Wait(10ms).empty());
  client.Wait(100ms);  // the refusal has come; its next attempt is a minute away
  client.WindDown();
  winding_down = true;
  EXPECT_FALSE(client.HasRoom());
  std::map<std::string, ChatResult> results;
  while (client.pending() > 0) {
    for (const ChatResult& result : client.Wait(100ms)) results[result.id] = result;
  }
  EXPECT_EQ(results.at("r0").end, ChatEnd::kStopped);
  EXPECT_EQ(results.at("r1").reply->text, "paid");
}

TEST(OpenAiChatClientTest, CanBeDroppedWithRequestsOnTheWire) {
  ChatServer server([](const Asked&) {
    Answer answer = ChatServer::Say("late");
    answer.delay = 60s;
    return answer;
  });
  OpenAiChatClient client(Options(server));
  client.Submit(Request(0));
  client.Wait(50ms);
  EXPECT_EQ(client.pending(), 1u);
}

TEST(OpenAiChatClientTest, RefusesOptionsThatCannotWork) {
  const OpenAiChatClient::Options good = {.base_url = "http://localhost:1/v1"};
  const auto refused = [&](auto change) {
    auto options = good;
    change(options);
    EXPECT_THROW(OpenAiChatClient{options}, std::invalid_argument);
  };
  EXPECT_NO_THROW(OpenAiChatClient{good});
  refused([](auto& options) { options.base_url = "localhost:1/v1"; });
  refused([](auto& options) { options.base_url = "ftp://localhost/v1"; });
  refused([](auto& options) { options.base_url = "http://"; });
  refused([](auto& options) { options.base_url = "http://me:secret@localhost/v1"; });
  refused([](auto& options) { options.key = "two words"; });
  refused([](auto& options) { options.key = "a\r\nHost: evil"; });
  refused([](auto& options) { options.concurrency = 0; });
  refused([](auto& options) { options.attempts = 0; });
  refused([](auto& options) { options.requests_per_minute = -1; });
}

TEST(OpenAiChatClientTest, TakesBaseUrlsAsPeopleWriteThem) {
  for (const char* url : {"http://h:8/v1", "http://h:8/v1/", "http://h:8/v1/chat/completions",
                          "http://h:8/v1/chat/completions/"}) {
    EXPECT_EQ(CompletionsUrl(url), "http://h:8/v1/chat/completions") << url;
  }
  for (const char* url : {"http://h/v1?api-version=1", "http://h/v1#x", "http://h/v1/?"}) {
    EXPECT_THROW(CompletionsUrl(url), std::invalid_argument) << url;
  }
}

}  // namespace
}  // namespace llava
