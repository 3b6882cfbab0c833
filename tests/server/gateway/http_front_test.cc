// The OpenAI API over HTTP, before fake services.

#include <gmock/gmock.h>

#include <boost/asio.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "server/runtime/status.h"
#include "server/wire/prompt_size.h"
#include "tests/server/gateway/http_front_harness.h"

namespace llava {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::AnyOf;
using testing::Each;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST_F(HttpFrontTest, AnswersWhole) {
  StartHttp();
  Json body = Ask("");
  body["messages"][0]["content"] = {{{"type", "text"}, {"text", "what is"}},
                                    {{"type", "image_url"}, {"image_url", {{"url", DataUri(1)}}}},
                                    {{"type", "text"}, {"text", "this"}}};
  body["max_tokens"] = 50;
  body["seed"] = 7;
  body["stop"] = "END";
  body["temperature"] = 0.5;
  const std::string answer = Post(body);
  ASSERT_EQ(StatusOf(answer), 200) << answer;
  EXPECT_THAT(answer, HasSubstr("X-Request-Id: "));
  const Json json = BodyOf(answer);
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["model"], "emoji");
  const std::string text = json["choices"][0]["message"]["content"].get<std::string>();
  EXPECT_THAT(text, AllOf(StartsWith("what is this!"), HasSubstr("pictures: 1")));
  EXPECT_EQ(llm_.last_request().messages().rbegin()->text(), "what is\nthis");
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(
      json["usage"]["total_tokens"].get<int>(),
      json["usage"]["prompt_tokens"].get<int>() + json["usage"]["completion_tokens"].get<int>());
  const v1::GenerateRequest asked = llm_.last_request();
  EXPECT_EQ(asked.sampling().max_new_tokens(), 50u);
  EXPECT_EQ(asked.sampling().seed(), 7u);
  EXPECT_EQ(asked.sampling().stop(0), "END");
  EXPECT_FLOAT_EQ(asked.sampling().temperature(), 0.5f);
}

TEST_F(HttpFrontTest, ASchemaArrivesAsItWasWritten) {
  StartHttp();
  // Members in an order that is not that of the alphabet, and a number of its own spelling.
  const std::string schema =
      R"({ "type":"object", "properties":{"b":{"maximum":1.50,"type":"number"},"a":{}} })";
  const std::string body =
      R"({"messages":[{"role":"user","content":"schema: {\"x\":1}"}],"model":"emoji","response_format":{"json_schema":{"name":"n","schema":)" +
      schema + R"(,"strict":true},"type":"json_schema"}})";
  auto socket = Send(absl::StrCat(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n",
      "Content-Type: application/json\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
  const std::string answer = Rest(socket);
  ASSERT_EQ(StatusOf(answer), 200) << answer;
  EXPECT_EQ(llm_.last_request().sampling().constraint().json_schema(), schema);
}

TEST_F(HttpFrontTest, AnswersInPieces) {
  StartHttp();
  Json body = Ask("a b c");
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const std::string answer = Post(body);
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 200"),
                            HasSubstr("Content-Type: text/event-stream; charset=utf-8\r\n")));
  const auto events = EventsOf(answer);
  ASSERT_GE(events.size(), 5u);
  EXPECT_TRUE(events.back().is_null());
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  std::string text;
  for (const Json& event : events) {
    if (event.is_null() || event["choices"].empty()) continue;
    const Json& delta = event["choices"][0]["delta"];
    if (delta.contains("content")) text += delta["content"].get<std::string>();
  }
  EXPECT_THAT(text, StartsWith("a b c! pictures: 0"));
  EXPECT_EQ(events[events.size() - 3]["choices"][0]["finish_reason"], "stop");
  EXPECT_GT(events[events.size() - 2]["usage"]["completion_tokens"].get<int>(), 0);
  EXPECT_TRUE(events[1]["usage"].is_null());
  // Clients take a line for "data: " and JSON, whatever it is; ids are for those who may come back.
  EXPECT_THAT(EventLinesOf(answer), Each(StartsWith("data: ")));
  body["stream_options"]["resumable"] = true;
  const std::string resumable = Post(body);
  EXPECT_THAT(resumable, HasSubstr(absl::StrCat(":", text.size(), "\ndata: ")));
  EXPECT_THAT(EventLinesOf(resumable), Each(AnyOf(StartsWith("id: "), StartsWith("data: "))));
}

TEST_F(HttpFrontTest, FailuresAreErrorObjects) {
  StartHttp();
  Json wrong = Ask("x");
  wrong["model"] = "gpt";
  EXPECT_EQ(StatusOf(Post(wrong)), 404);
  EXPECT_EQ(StatusOf(Post(Json::array())), 400);
  Json tools = Ask("x");
  tools["tools"] = {{{"type", "function"}}};
  const std::string refused = Post(tools);
  EXPECT_EQ(StatusOf(refused), 400);
  EXPECT_EQ(BodyOf(refused)["error"]["param"], "tools");
  EXPECT_EQ(BodyOf(refused)["error"]["type"], "invalid_request_error");
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "fault"}, .failures = 1});
  const std::string fault = Post(Ask("x"));
  EXPECT_EQ(StatusOf(fault), 500);
  EXPECT_EQ(BodyOf(fault)["error"]["type"], "server_error");
  // After the first text an error comes in the stream, and no [DONE].
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "fault"}, .fail_after_deltas = 2});
  Json stream = Ask("a b c d e");
  stream["stream"] = true;
  const auto events = EventsOf(Post(stream));
  ASSERT_GE(events.size(), 2u);
  ASSERT_FALSE(events.back().is_null());
  EXPECT_EQ(events.back()["error"]["type"], "server_error");
  llm_.Set({});
  EXPECT_EQ(StatusOf(Post(Ask("x"))), 200);
}

// Several messages may have become one, and pictures stand apart from texts by then.
TEST_F(HttpFrontTest, RefusalsNameWhatTheClientHasWritten) {
  options_.max_images_per_turn = 2;
  StartHttp();
  const auto picture = [](const std::string& url) {
    return Json{{"type", "image_url"}, {"image_url", {{"url", url}}}};
  };
  const std::string broken = "data:image/png;base64," + absl::Base64Escape("no picture");
  const auto user = [](Json content) {
    return Json{{"role", "user"}, {"content", std::move(content)}};
  };
  const auto refused = [this](const Json& messages) {
    const std::string answer = Post({{"model", "emoji"}, {"messages", messages}});
    EXPECT_EQ(StatusOf(answer), 400) << answer;
    return BodyOf(answer)["error"];
  };
  const Json text = {{"type", "text"}, {"text", "x"}};
  const Json system = {{"role", "system"}, {"content", "be brief"}};
  const Json picture_error =
      refused({system, system, user("x"), user({text, picture(DataUri(1)), picture(broken)})});
  EXPECT_EQ(picture_error["param"], "messages[3].content[2].image_url");
  EXPECT_THAT(picture_error["message"].get<std::string>(),
              StartsWith("messages[3].content[2].image_url: "));

  const Json one = picture(DataUri(1));
  const Json many = refused({system, user({one, one, one})});
  EXPECT_EQ(many["param"], "messages[1].content");
  EXPECT_THAT(many["message"].get<std::string>(), StartsWith("messages[1].content has 3 pictures"));
  const Json joined = refused({system, user({one}), user({one, one})});
  EXPECT_EQ(joined["param"], "messages[1]");
  EXPECT_THAT(joined["message"].get<std::string>(),
              StartsWith("messages[1] to messages[2], joined as of one role, has 3 pictures"));

  EXPECT_EQ(refused({system, system, user(" ")})["message"],
            "messages[2].content is empty and there is no picture; ask something");
  const Json misplaced = {{"role", "assistant"}, {"content", Json::array({one})}};
  const Json answered = refused({user("x"), user("y"), misplaced, user("z")});
  EXPECT_EQ(answered["message"], "messages[2]: only user messages have pictures");
  EXPECT_EQ(answered["param"], "messages[2]");
}

// Clients try every 5xx again by themselves, unless they are told.
TEST_F(HttpFrontTest, AQuestionThatKillsWorkersIsNotToBeAskedAgain) {
  StartHttp();
  for (const bool stream : {false, true}) {
    llm_.Set({.failures = 1000, .arrives = true});
    const int asked = llm_.generates();
    Json body = Ask("poison");
    body["stream"] = stream;
    const std::string given_up = Post(body);
    EXPECT_EQ(StatusOf(given_up), 500) << given_up;
    EXPECT_THAT(given_up, HasSubstr("X-Should-Retry: false\r\n"));
    EXPECT_THAT(given_up, HasSubstr("ask differently"));
    EXPECT_EQ(llm_.generates() - asked, 2);
  }
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "fault"}, .failures = 1});
  EXPECT_THAT(Post(Ask("x")), Not(HasSubstr("X-Should-Retry")));
}

TEST_F(HttpFrontTest, TheTimeThatWasTooShortIsTooShortAgain) {
  options_.request_timeout = kSlowdown * milliseconds(300);
  llm_.Set({.pause_after = 0});
  StartHttp();
  const std::string late = Post(Ask("x"));
  EXPECT_EQ(StatusOf(late), 504) << late;
  EXPECT_THAT(late, AllOf(HasSubstr("X-Should-Retry: false\r\n"), HasSubstr("--request-timeout")));
}

TEST_F(HttpFrontTest, ErrorsHaveTheCodesThatClientsLookFor) {
  StartHttp();
  Json other = Ask("x");
  for (const char* name : {"gpt", "emoji@77", "emoji@nobody"}) {
    other["model"] = name;
    const std::string answer = Post(other);
    EXPECT_EQ(StatusOf(answer), 404) << name;
    EXPECT_EQ(BodyOf(answer)["error"]["code"], "model_not_found") << name;
  }
  EXPECT_EQ(BodyOf(Get("/v1/models/gpt"))["error"]["code"], "model_not_found");
  EXPECT_EQ(BodyOf(Get("/v1/nothing"))["error"]["code"], "not_found");
  const std::string large = Post(Ask(std::string(4096 * 64 + 1, 'x')));
  EXPECT_EQ(StatusOf(large), 400) << large;
  EXPECT_EQ(BodyOf(large)["error"]["code"], "context_length_exceeded");
  // Those that look for words instead.
  EXPECT_THAT(large, AllOf(HasSubstr("prompt is too long"),
                           HasSubstr("this model's maximum context length is 4096 tokens")));
  // As the language service says, for whole answers and streams.
  llm_.Set({.failure = ToGrpc(CheckTextBytes(65, 1)), .failures = 2});
  Json stream = Ask("x");
  for (const bool streamed : {false, true}) {
    stream["stream"] = streamed;
    EXPECT_EQ(BodyOf(Post(stream))["error"]["code"], "context_length_exceeded");
  }
}

TEST_F(HttpFrontTest, ModelsAreFoundByNamesAsUrlsWriteThem) {
  StartHttp();
  for (const char* name : {"emoji", "emoji@1", "emoji%401", "%65moji"}) {
    EXPECT_EQ(StatusOf(Get(absl::StrCat("/v1/models/", name))), 200) << name;
  }
  for (const char* name : {"emoji%", "emoji%4", "emoji%4x", "emoji%00"}) {
    EXPECT_EQ(StatusOf(Get(absl::StrCat("/v1/models/", name))), 404) << name;
  }
}

// vLLM's own benchmark takes the model's name from there.
TEST_F(HttpFrontTest, ModelsHaveARoot) {
  StartHttp();
  EXPECT_EQ(BodyOf(Get("/v1/models"))["data"][0]["root"], "emoji");
  EXPECT_EQ(BodyOf(Get("/v1/models/emoji"))["root"], "emoji");
}

TEST_F(HttpFrontTest, KeysAndLimits) {
  options_.keys_file = folder_.At("keys.yaml");
  std::ofstream(options_.keys_file)
      << "- {name: ann, requests-per-minute: 2, sha256: " << ToHex(HashBytes("secret")) << "}\n";
  StartHttp();
  const std::string nobody = Post(Ask("x"));
  EXPECT_EQ(StatusOf(nobody), 401);
  EXPECT_THAT(nobody, HasSubstr("WWW-Authenticate: Bearer"));
  EXPECT_EQ(BodyOf(nobody)["error"]["code"], "invalid_api_key");
  EXPECT_EQ(StatusOf(Get("/v1/models")), 401);
  EXPECT_EQ(StatusOf(Get("/livez")), 200);
  EXPECT_EQ(StatusOf(Get("/")), 200);
  key_ = "secret";
  EXPECT_EQ(StatusOf(Get("/v1/models")), 200);
  EXPECT_EQ(StatusOf(Post(Ask("x"))), 200);
  EXPECT_EQ(llm_.last_request().tenant(), "ann");
  EXPECT_EQ(StatusOf(Post(Ask("x"))), 200);
  const std::string third = Post(Ask("x"));
  EXPECT_EQ(StatusOf(third), 429);
  EXPECT_THAT(third, HasSubstr("Retry-After: "));
  EXPECT_EQ(BodyOf(third)["error"]["type"], "rate_limit_error");
}

TEST_F(HttpFrontTest, TooManyLargeBodiesAreRefusedWithAnErrorObject) {
  limits_.bodies_bytes = 50'000;
  StartHttp();
  Json large = Ask("x");
  large["messages"][0]["content"] = {{{"type", "text"}, {"text", std::string(100'000, 'y')}}};
  const std::string refused = Post(large);
  EXPECT_EQ(StatusOf(refused), 503);
  EXPECT_THAT(refused, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_EQ(BodyOf(refused)["error"]["code"], "overloaded");
  EXPECT_EQ(
      Metric("llava_gateway_requests_total{code=\"UNAVAILABLE\",method=\"chat.completions\"}"), 1);
  EXPECT_EQ(StatusOf(Post(Ask("x"))), 200);
}

// What a path or a header holds is shown to its sender as JSON, and looked up nowhere.
TEST_F(HttpFrontTest, HostilePathsAndHeaders) {
  StartHttp();
  for (const std::string path :
       {"/../../etc/passwd", "/%2e%2e/etc/passwd", "/..%2fetc", "//", "/v1/../metrics",
        "http://evil.example/v1/models", "/<script>alert(1)</script>", "/\xff\xfe\xc3",
        "/v1/models/../../livez", "/v1/models/%00", "/v1/models/\xff", "/V1/MODELS", "*"}) {
    const std::string answer = Get(path);
    EXPECT_EQ(StatusOf(answer), 404) << path;
    EXPECT_THAT(answer, AllOf(HasSubstr("application/json"), HasSubstr("nosniff")));
    EXPECT_TRUE(BodyOf(answer)["error"]["message"].is_string());
  }
  auto split =
      Send(Request(Ask("x"), "/v1/chat/completions", "X-Request-Id: a\tb%0d%0aSet-Cookie: c\r\n"));
  const std::string answer = Rest(split);
  EXPECT_EQ(StatusOf(answer), 200);
  EXPECT_THAT(answer, AllOf(HasSubstr("X-Request-Id: "), Not(HasSubstr("Set-Cookie"))));
  auto upgrade = Send(
      "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
      "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n");
  EXPECT_EQ(StatusOf(Rest(upgrade)), 200) << "the page, and no other protocol";
}

TEST_F(HttpFrontTest, AClientThatGoesEndsItsAnswer) {
  llm_.Set({.pause_after = 1});
  StartHttp();
  for (const bool stream : {true, false}) {
    const int before = llm_.cancelled(), asked = llm_.generates();
    {
      Json body = Ask("a b c");
      body["stream"] = stream;
      auto socket = Send(Request(body));
      // Gone before its question has come there, nobody would hear of it.
      EXPECT_TRUE(Eventually([&] { return llm_.generates() == asked + 1; }));
      EXPECT_EQ(Metric("llava_gateway_turns_running"), 1);
    }
    EXPECT_TRUE(Eventually([&] { return llm_.cancelled() == before + 1; }));
    EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_running") == 0; }));
  }
  EXPECT_TRUE(Eventually([&] { return admission_->in_flight() == 0; }));
}

TEST_F(HttpFrontTest, ThePageRunsItsOwnScriptOnly) {
  StartHttp();
  const std::string page = Get("/");
  EXPECT_THAT(page, AllOf(HasSubstr("text/html"), HasSubstr("script-src 'sha256-"),
                          HasSubstr("default-src 'none'"), HasSubstr("frame-ancestors 'none'"),
                          Not(HasSubstr("unsafe-inline")), EndsWith("</html>\n")));
  const std::string policy = page.substr(0, page.find("\r\n\r\n"));
  for (const std::string tag : {"script", "style"}) {
    const std::string begin = "<" + tag + ">", end = "</" + tag + ">";
    const size_t from = page.find(begin) + begin.size();
    const std::string inner = page.substr(from, page.find(end) - from);
    EXPECT_THAT(policy, HasSubstr(absl::Base64Escape(ToBytes(HashBytes(inner))))) << tag;
  }
}

TEST_F(HttpFrontTest, OtherPeoplesPagesGetNothing) {
  StartHttp(/*hosts_checked=*/true);
  for (const char* host : {"localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000"}) {
    EXPECT_EQ(StatusOf(Get("/v1/models", host)), 200) << host;
    EXPECT_EQ(StatusOf(Get("/metrics", host)), 200) << host;
  }
  // Names that a stranger can own and have stand for this machine.
  for (const char* host :
       {"evil.example", "localhost.evil.example:8000", "", "[::2]:80", "127.evil.example:8000",
        "127.0.0.1.evil.example", "[127.0.0.1.evil.example]"}) {
    EXPECT_EQ(StatusOf(Get("/v1/models", host)), 403) << host;
    EXPECT_EQ(StatusOf(Get("/metrics", host)), 403) << host;
    EXPECT_EQ(StatusOf(Get("/livez", host)), 200) << host << ": a probe may come by any name";
  }
  auto form = Send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
      "Content-Length: 2\r\nConnection: close\r\n\r\n{}");
  EXPECT_EQ(StatusOf(Rest(form)), 415);
  auto preflight =
      Send("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(Rest(preflight), AllOf(StartsWith("HTTP/1.1 405"), Not(HasSubstr("Access-Control"))));
}

// To compile one is work, whether a turn follows or not.
TEST_F(HttpFrontTest, ASchemaCountsAsARequestBeforeItIsCompiled) {
  key_ = "secret";
  options_.keys_file = folder_.At("keys.yaml");
  std::ofstream(options_.keys_file)
      << "- {name: ann, requests-per-minute: 1, sha256: " << ToHex(HashBytes(key_)) << "}\n";
  StartHttp();
  Json body = Ask("x");
  body["response_format"] = {
      {"type", "json_schema"},
      {"json_schema", {{"name", "n"}, {"schema", {{"not", Json::object()}}}}}};
  const std::string first = Post(body);
  EXPECT_EQ(StatusOf(first), 400);
  EXPECT_EQ(BodyOf(first)["error"]["param"], "response_format");
  EXPECT_EQ(StatusOf(Post(body)), 429);
}

}  // namespace
}  // namespace llava
