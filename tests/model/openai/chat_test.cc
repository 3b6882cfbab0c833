#include "model/openai/chat.h"

#include <gtest/gtest.h>

#include "tests/support/error_of.h"

namespace llava {
namespace {

using Json = nlohmann::json;

ChatRequest Hello() {
  ChatRequest request;
  request.id = "hello-1";
  request.model = "m";
  request.messages = {{.role = "system", .text = "Be kind."}, {.role = "user", .text = "Hello"}};
  request.max_tokens = 7;
  return request;
}

TEST(ChatTest, BodyHasWhatIsSetAndNothingElse) {
  EXPECT_EQ(Json::parse(BodyOf(Hello())),
            Json::parse(R"({"model": "m", "max_tokens": 7, "messages": [
              {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]})"));
  ChatRequest request = Hello();
  request.temperature = 0.25;
  request.top_p = 0.5;
  request.seed = 3;
  request.extra = {{"max_tokens", nullptr}, {"max_completion_tokens", 9}};
  const Json body = Json::parse(BodyOf(request));
  EXPECT_EQ(body["temperature"], 0.25);
  EXPECT_EQ(body["top_p"], 0.5);
  EXPECT_EQ(body["seed"], 3);
  EXPECT_FALSE(body.contains("max_tokens"));
  EXPECT_EQ(body["max_completion_tokens"], 9);
}

TEST(ChatTest, PicturesStandInFrontOfTheText) {
  ChatRequest request = Hello();
  request.messages = {{.role = "user", .text = "What?", .images = {"data:image/png;base64,AA"}}};
  EXPECT_EQ(Json::parse(BodyOf(request))["messages"][0]["content"], Json::parse(R"([
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
      {"type": "text", "text": "What?"}])"));
  EXPECT_GT(EstimatePromptTokens(request), EstimatePromptTokens(Hello()) + 900);
}

TEST(ChatTest, HashIsOfWhatIsSentAndOfTheSample) {
  const std::string hash = HashOf(Hello());
  EXPECT_EQ(hash.size(), 64u);
  ChatRequest request = Hello();
  request.id = "other";
  EXPECT_EQ(HashOf(request), hash);
  request.sample = 1;
  EXPECT_NE(HashOf(request), hash);
  request = Hello();
  request.temperature = 0;
  EXPECT_NE(HashOf(request), hash);
  request = Hello();
  request.messages[1].text += "!";
  EXPECT_NE(HashOf(request), hash);
}

TEST(ChatTest, KnowsTheMostTokensOfItsAnswers) {
  ChatRequest request = Hello();
  EXPECT_EQ(MostAnswerTokens(request), 7u);
  const auto with = [&](const char* extra) {
    request.extra = Json::parse(extra);
    return MostAnswerTokens(request);
  };
  EXPECT_EQ(with(R"({"max_tokens": 50})"), 50u);
  EXPECT_EQ(with(R"({"max_tokens": null, "max_completion_tokens": 900})"), 900u);
  EXPECT_EQ(with(R"({"max_completion_tokens": 900, "n": 3})"), 2700u);
  EXPECT_EQ(with(R"({"n": 3, "top_k": 1})"), 21u);
  EXPECT_EQ(with(R"({"max_tokens": null})"), 7u) << "the server's own limit is not known";
  EXPECT_EQ(with(R"({"max_tokens": -5, "n": 1e300})"), 7'000'000'000u);
}

TEST(ChatTest, BrokenTextDoesNotStopARequest) {
  ChatRequest request = Hello();
  request.messages[1].text = "caf\xC3";
  EXPECT_EQ(Json::parse(BodyOf(request))["messages"][1]["content"], "caf\xEF\xBF\xBD");
}

TEST(ChatTest, ReadsAnswers) {
  const ChatReply reply = ParseCompletion(
      R"({"choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}],
          "usage": {"prompt_tokens": 5, "completion_tokens": 2}})",
      99);
  EXPECT_EQ(reply.text, "Hi");
  EXPECT_EQ(reply.finish_reason, "length");
  EXPECT_EQ(reply.usage.prompt_tokens, 5u);
  EXPECT_EQ(reply.usage.completion_tokens, 2u);
}

TEST(ChatTest, ReadsWhatOtherServersAnswer) {
  // No usage: estimated, so that budgets still hold.
  const ChatReply bare = ParseCompletion(R"({"choices": [{"message": {"content": "Hello"}}]})", 99);
  EXPECT_EQ(bare.usage.prompt_tokens, 99u);
  EXPECT_GT(bare.usage.completion_tokens, 0u);
  EXPECT_EQ(bare.finish_reason, "");
  EXPECT_EQ(ParseCompletion(R"({"choices": [{"message": {"content": null}}]})", 0).text, "");
  EXPECT_EQ(ParseCompletion(R"({"choices": [{"message": {"content":
                [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]})",
                            0)
                .text,
            "ab");
}

TEST(ChatTest, RefusesWhatIsNoAnswer) {
  for (const char* body :
       {"", "<html>busy</html>", "[]", "{}", R"({"choices": []})",
        R"({"choices": [{"text": "old"}]})", R"({"choices": [{"message": {"content": 5}}]})",
        R"({"error": {"message": "overloaded"}})",
        R"({"choices": [{"message": {"content": "The dog s"}, "finish_reason": "abort"}]})",
        R"({"choices": [{"message": {"content": "The dog s"}, "finish_reason": "error"}]})",
        R"({"choices": [{"message": {"content": "The dog s"}, "finish_reason": "stop",
                         "error": {"code": 502, "message": "upstream died"}}]})"}) {
    EXPECT_THROW(ParseCompletion(body, 0), std::runtime_error) << body;
  }
  try {
    ParseCompletion(R"({"error": {"message": "overloaded"}})", 0);
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("overloaded"), std::string::npos);
  }
}

TEST(ChatTest, TellsWhyTheServerBrokeAnAnswerOff) {
  const auto said = [](const char* body) {
    return ErrorOf<std::runtime_error>([&] { ParseCompletion(body, 0); });
  };
  EXPECT_EQ(said(R"({"choices": [{"message": {"content": "T"}, "finish_reason": "abort"}]})"),
            "the server broke the answer off: finish_reason abort");
  EXPECT_EQ(said(R"({"choices": [{"message": {"content": "T"}, "finish_reason": "error",
                                  "error": {"code": 502, "message": "upstream died"}}]})"),
            "the server broke the answer off: upstream died");
  EXPECT_EQ(said(R"({"choices": [{"message": {"content": "T"}, "finish_reason": "stop",
                                  "error": null}]})"),
            "");
}

TEST(ChatTest, ErrorsAreOneCleanLine) {
  EXPECT_EQ(ErrorText(R"({"error": {"message": "too\nmany\u001b[31m"}})"), "too many [31m");
  EXPECT_EQ(ErrorText(R"({"error": "plain"})"), "plain");
  EXPECT_EQ(ErrorText(R"({"detail": "fast"})"), "fast");
  EXPECT_EQ(ErrorText("<html>\r\n<b>502</b>"), "<html> <b>502</b>");
  EXPECT_EQ(ErrorText(""), "(empty)");
  EXPECT_LE(ErrorText(std::string(5000, 'x')).size(), 303u);
  // Of a text in another script all but the character that would be cut is told.
  std::string chinese;
  for (int i = 0; i < 200; ++i) chinese += "错";
  const std::string told = ErrorText(Json{{"error", "x" + chinese}}.dump());
  EXPECT_EQ(told, "x" + chinese.substr(0, 99 * 3) + "...");
}

}  // namespace
}  // namespace llava
