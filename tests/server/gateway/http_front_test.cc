// The OpenAI API over HTTP, before fake services.

#include "server/gateway/http_front.h"

#include <gmock/gmock.h>

#include <boost/asio.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using tcp = boost::asio::ip::tcp;

class HttpFrontTest : public GatewayTest {
 protected:
  ~HttpFrontTest() override { StopHttp(); }

  void StartHttp(bool hosts_checked = false) {
    StartGateway();
    front_ = gateway_->MakeHttpFront({{"/livez",
                                       [](const HttpRequest&) {
                                         return HttpResponse{200, "text/x", "alive"};
                                       }}},
                                     hosts_checked);
    HttpServerOptions options;
    options.limits = limits_;
    auto server = HttpServer::Start(options, *front_);
    ASSERT_TRUE(server.ok()) << server.status();
    http_ = *std::move(server);
  }
  void StopHttp() {
    if (gateway_) gateway_->Stop();
    http_.reset();
    front_.reset();
  }
  tcp::socket Send(const std::string& bytes) {
    tcp::socket socket(context_);
    socket.connect(
        {boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(http_->port())});
    boost::asio::write(socket, boost::asio::buffer(bytes));
    return socket;
  }
  static std::string Rest(tcp::socket& socket) {
    std::string text;
    boost::system::error_code error;
    boost::asio::read(socket, boost::asio::dynamic_buffer(text), error);
    return text;
  }
  std::string Request(const Json& body, const std::string& path = "/v1/chat/completions",
                      const std::string& more_headers = "") const {
    const std::string text = body.is_null() ? "" : body.dump();
    return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n",
                        key_.empty() ? "" : "Authorization: Bearer " + key_ + "\r\n", more_headers,
                        "Content-Type: application/json\r\nContent-Length: ", text.size(),
                        "\r\n\r\n", text);
  }
  std::string Post(const Json& body) {
    auto socket = Send(Request(body));
    return Rest(socket);
  }
  std::string Get(const std::string& path, const std::string& host = "localhost") {
    auto socket =
        Send(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: ", host, "\r\nConnection: close\r\n",
                          key_.empty() ? "" : "Authorization: Bearer " + key_ + "\r\n", "\r\n"));
    return Rest(socket);
  }
  static int StatusOf(const std::string& answer) { return std::stoi(answer.substr(9, 3)); }
  static Json BodyOf(const std::string& answer) {
    return Json::parse(answer.substr(answer.find("\r\n\r\n") + 4));
  }
  // Objects of a stream, in order, without chunk lengths; "[DONE]" is null.
  static std::vector<Json> EventsOf(const std::string& answer) {
    std::vector<Json> events;
    for (const absl::string_view line : absl::StrSplit(answer, '\n')) {
      if (!absl::StartsWith(line, "data: ")) continue;
      const std::string data(line.substr(6));
      events.push_back(data == "[DONE]" ? Json() : Json::parse(data));
    }
    return events;
  }
  static Json Ask(const std::string& text) {
    return {{"model", "emoji"}, {"messages", {{{"role", "user"}, {"content", text}}}}};
  }
  static std::string DataUri(int seed) {
    return "data:image/bmp;base64," + absl::Base64Escape(FakePicture(seed));
  }

  boost::asio::io_context context_;
  HttpLimits limits_;
  std::unique_ptr<HttpFront> front_;
  std::unique_ptr<HttpServer> http_;
};

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

TEST_F(HttpFrontTest, AnswersInPiecesWithIds) {
  StartHttp();
  Json body = Ask("a b c");
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const std::string answer = Post(body);
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("text/event-stream")));
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
  EXPECT_THAT(answer, HasSubstr(absl::StrCat(":", text.size(), "\ndata: ")));
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

TEST_F(HttpFrontTest, KeysAndLimits) {
  options_.keys_file = folder_.path() + "/keys.yaml";
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

// The text that the pieces of a stream carry, and the id of the last event that is whole.
struct StreamText {
  std::string text, last_id;
  bool done = false;
};
StreamText TextOf(const std::string& answer) {
  StreamText read;
  std::string id;
  for (absl::string_view line : absl::StrSplit(answer, '\n')) {
    line = absl::StripSuffix(line, "\r");
    if (absl::StartsWith(line, "id: ")) id = std::string(line.substr(4));
    if (!absl::StartsWith(line, "data: ")) continue;
    read.done = line == "data: [DONE]";
    if (read.done) break;
    const Json event = Json::parse(line.substr(6), nullptr, /*allow_exceptions=*/false);
    if (event.is_discarded()) break;  // cut off
    read.last_id = id;
    if (event["choices"].empty()) continue;
    const Json& delta = event["choices"][0]["delta"];
    if (delta.contains("content")) read.text += delta["content"].get<std::string>();
  }
  return read;
}

TEST_F(HttpFrontTest, AStreamGoesOnWhereItsReaderLeftIt) {
  llm_.Set({.delay = milliseconds(20)});
  StartHttp();
  Json body = Ask("a b c d e f g h i j k l m n o p q r s t u v w x y z");
  body["stream"] = true;
  body["seed"] = 3;
  const StreamText whole = TextOf(Post(body));
  ASSERT_TRUE(whole.done);
  body["stream_options"] = {{"resumable", true}};
  std::string read;
  {
    auto socket = Send(Request(body));
    boost::asio::read_until(socket, boost::asio::dynamic_buffer(read), "f\"}");
  }
  const int asked = llm_.generates();
  StreamText first = TextOf(read);
  ASSERT_FALSE(first.last_id.empty());
  EXPECT_THAT(whole.text, StartsWith(first.text));
  // While it runs, then again after its end, then from its begin.
  for (int again = 0; again < 2; ++again) {
    auto socket = Send(Request(again == 0 ? body : Json(), "/v1/chat/completions",
                               "Last-Event-ID: " + first.last_id + "\r\n"));
    const StreamText rest = TextOf(Rest(socket));
    EXPECT_TRUE(rest.done);
    EXPECT_EQ(first.text + rest.text, whole.text);
  }
  const std::string turn = first.last_id.substr(0, first.last_id.find(':'));
  auto anew = Send(Request(body, "/v1/chat/completions", "Last-Event-ID: " + turn + ":0\r\n"));
  EXPECT_EQ(TextOf(Rest(anew)).text, whole.text);
  EXPECT_EQ(llm_.generates(), asked) << "asked again";

  const auto status = [&](const std::string& id) {
    auto socket = Send(Request(body, "/v1/chat/completions", "Last-Event-ID: " + id + "\r\n"));
    return StatusOf(Rest(socket));
  };
  EXPECT_EQ(status(turn + ":100000"), 400);
  EXPECT_EQ(status(turn + ":-1"), 400);
  EXPECT_EQ(status("nonsense"), 400);
  EXPECT_EQ(status(std::string(32, '0') + ":0"), 404);
  body["stream"] = false;
  const std::string refused = Post(body);
  EXPECT_EQ(StatusOf(refused), 400);
  EXPECT_EQ(BodyOf(refused)["error"]["param"], "stream_options.resumable");
}

TEST_F(HttpFrontTest, AStreamIsItsAskersAndEndsWhenNobodyComesBack) {
  options_.keys_file = folder_.path() + "/keys.yaml";
  options_.resume_grace = milliseconds(400);
  std::ofstream(options_.keys_file)
      << "- {name: ann, sha256: " << ToHex(HashBytes("secret"))
      << "}\n- {name: bob, sha256: " << ToHex(HashBytes("other")) << "}\n";
  llm_.Set({.pause_after = 3});
  StartHttp();
  key_ = "secret";
  Json body = Ask("a b c d e f g h i j k l m n o p q r s t u v w x y z " + std::string(200, ' '));
  body["stream"] = true;
  body["stream_options"] = {{"resumable", true}};
  std::string read, header;
  {
    auto socket = Send(Request(body));
    boost::asio::read_until(socket, boost::asio::dynamic_buffer(read), "c\"}");
    const std::string last = TextOf(read).last_id;
    header = "Last-Event-ID: " + last.substr(0, last.find(':')) + ":0\r\n";
    key_ = "other";
    auto stranger = Send(Request(body, "/v1/chat/completions", header));
    EXPECT_EQ(StatusOf(Rest(stranger)), 404);
    key_ = "secret";
    // Beside the first one: how long the stream waits for a reader is no matter yet.
    auto again = Send(Request(body, "/v1/chat/completions", header));
    std::string more;
    boost::asio::read_until(again, boost::asio::dynamic_buffer(more), "data: ");
    EXPECT_EQ(StatusOf(more), 200);
  }
  EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_running") == 0; }));
  EXPECT_TRUE(Eventually([&] {
    auto late = Send(Request(body, "/v1/chat/completions", header));
    return StatusOf(Rest(late)) == 404;
  }));
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
  }
  // Names that a stranger can own and have stand for this machine.
  for (const char* host :
       {"evil.example", "localhost.evil.example:8000", "", "[::2]:80", "127.evil.example:8000",
        "127.0.0.1.evil.example", "[127.0.0.1.evil.example]"}) {
    EXPECT_EQ(StatusOf(Get("/v1/models", host)), 403) << host;
  }
  auto form = Send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
      "Content-Length: 2\r\nConnection: close\r\n\r\n{}");
  EXPECT_EQ(StatusOf(Rest(form)), 415);
  auto preflight =
      Send("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(Rest(preflight), AllOf(StartsWith("HTTP/1.1 405"), Not(HasSubstr("Access-Control"))));
}

}  // namespace
}  // namespace llava
