// Streamed answers of the OpenAI API: how they begin, and who may come back for the rest.

#include <gmock/gmock.h>

#include <boost/asio.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/http_front_harness.h"

namespace llava {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

using HttpStreamTest = HttpFrontTest;

// Clients act on the HTTP status, and on an event of a stream they do not.
TEST_F(HttpStreamTest, AStreamThatFailsBeforeItsFirstTextHasTheStatusOfAWholeAnswer) {
  StartHttp();
  Json stream = Ask("x");
  stream["stream"] = true;
  llm_.Set({.failure = {grpc::StatusCode::INVALID_ARGUMENT, "too long"}, .failures = 1});
  const std::string refused = Post(stream);
  EXPECT_EQ(StatusOf(refused), 400) << refused;
  EXPECT_THAT(refused, AllOf(HasSubstr("application/json"), HasSubstr("X-Request-Id: ")));
  EXPECT_EQ(BodyOf(refused)["error"]["message"], "too long");
  llm_.Set(
      {.failure = ToGrpc(OverloadedError("too much to do", milliseconds(10))), .failures = 1000});
  const std::string full = Post(stream);
  EXPECT_EQ(StatusOf(full), 503) << full;
  EXPECT_THAT(full, HasSubstr("Retry-After: 1\r\n"));
  llm_.Set({.failure = {grpc::StatusCode::INTERNAL, "fault"}, .failures = 1});
  EXPECT_EQ(StatusOf(Post(stream)), 500);
  // A reader that may come back needs the name of its stream, which comes with its first event.
  llm_.Set({.failure = {grpc::StatusCode::INVALID_ARGUMENT, "too long"}, .failures = 1});
  stream["stream_options"] = {{"resumable", true}};
  const std::string resumable = Post(stream);
  EXPECT_EQ(StatusOf(resumable), 200);
  EXPECT_EQ(EventsOf(resumable).back()["error"]["message"], "too long");
}

TEST_F(HttpStreamTest, AStreamThatIsSilentForLongBeginsBeforeItsFirstText) {
  limits_.heartbeat = milliseconds(50);
  llm_.Set({.pause_after = 0});
  StartHttp();
  Json stream = Ask("a b");
  stream["stream"] = true;
  auto socket = Send(Request(stream));
  std::string read;
  boost::asio::read_until(socket, boost::asio::dynamic_buffer(read), ": still here\n\n");
  EXPECT_EQ(StatusOf(read), 200);
  llm_.Release();
  read += Rest(socket);
  const auto events = EventsOf(read);
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(events[1]["choices"][0]["delta"]["content"], "a");
  EXPECT_TRUE(events.back().is_null());
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

TEST_F(HttpStreamTest, AStreamGoesOnWhereItsReaderLeftIt) {
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

TEST_F(HttpStreamTest, AStreamIsItsAskersAndEndsWhenNobodyComesBack) {
  options_.keys_file = folder_.At("keys.yaml");
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

}  // namespace
}  // namespace llava
