// llava-datagen against a teacher that is a script.
#include <gmock/gmock.h>

#include <chrono>
#include <map>
#include <set>

#include "model/data/instructions/instruction_data.h"
#include "tests/model/datagen/instruct_program.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;
using Answer = ChatServer::Answer;
using Asked = ChatServer::Asked;
using Json = nlohmann::json;

TEST_F(InstructCommandTest, MakesADataSetThatTheTrainerReads) {
  WritePictures(79);
  setenv("LLAVA_TEST_KEY", "sk-from-env", 1);
  ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
  ASSERT_EQ(Run(Args(server, {"--count", "158", "--key-env", "LLAVA_TEST_KEY", "--temperature",
                              "0.7", "--prompt-price", "10", "--answer-price", "30"})),
            0)
      << said_;
  EXPECT_THAT(said_, HasSubstr("asking 158/158 (100 %)"));
  EXPECT_THAT(said_, HasSubstr("cost 0.2"));  // 158 * (100 * 10 + 10 * 30) / 1e6
  ASSERT_EQ(server.num_asked(), 158u);
  for (const Asked& asked : server.asked()) {
    EXPECT_EQ(asked.headers.at("authorization"), "Bearer sk-from-env");
    EXPECT_EQ(asked.body.at("temperature"), 0.7);
    const bool boxes =
        asked.last_text().find("\n\nthing: [0.1, 0.2, 0.6, 0.6]") != std::string::npos;
    EXPECT_EQ(boxes, TypeOf(asked) != "conversation");
  }

  const InstructionData data({fs::path(out_) / "instruct.json"}, folder_.path());
  ASSERT_EQ(data.size(), 158);
  std::map<size_t, int> turns;
  for (int64_t i = 0; i < data.size(); ++i) {
    const InstructionRecord record = data.Read(i);
    EXPECT_EQ(record.images.at(0), record.id + ".jpg");
    ++turns[record.messages.size() / 2];
  }
  EXPECT_EQ(turns[2], 58);
  EXPECT_EQ(turns[1], 100);
  int first = 0;
  std::set<std::string> detailed;
  std::map<std::string, int> types;
  for (const Json& record : Records()) {
    const std::string question = record.at("conversations").at(0).at("value");
    first += question.starts_with("<image>\n") ? 1 : 0;
    EXPECT_TRUE(question.starts_with("<image>\n") || question.ends_with("\n<image>"));
    ++types[record.at("type")];
    if (record.at("type").get<std::string>() == "detail") detailed.insert(question);
  }
  EXPECT_EQ(types,
            (std::map<std::string, int>{{"conversation", 58}, {"detail", 23}, {"complex", 77}}));
  EXPECT_NEAR(first, 79, 30);
  EXPECT_GT(detailed.size(), 8u);
  const Json report = Report();
  EXPECT_EQ(report.at("kept"), 158);
  EXPECT_EQ(report.at("rejected"), 0);
  EXPECT_EQ(report.at("image_first"), first);
  EXPECT_EQ(report.at("types").at("conversation").at("turns").at("mean"), 2.0);
  EXPECT_EQ(report.at("run").at("prompt_tokens"), 15'800);
  EXPECT_THAT(ReadBytes(fs::path(out_) / "report.md"), HasSubstr("| detail | 23 | 23 | 0 |"));
  for (const auto& entry : fs::recursive_directory_iterator(out_)) {  // the key stays a secret
    EXPECT_THAT(ReadBytes(entry.path()), Not(HasSubstr("sk-from-env")));
  }
}

TEST_F(InstructCommandTest, ScreensWhatTheTeacherSays) {
  WritePictures(13);
  ChatServer server([](const Asked& asked) -> Answer {
    switch (PictureOf(asked)) {
      case 0:  // cut off within the second answer: the first turn stays
        return ChatServer::Say(GoodText(asked).substr(0, GoodText(asked).size() - 8), "length");
      case 1:
        return ChatServer::Say("Question:\nWhat?\nQuestion:\nWhat else?\nAnswer:\nNothing.");
      case 2:
        return ChatServer::Say("**Question 1:** What is it?\n\n**Answer:** It is **big**.\n");
      case 3:
        return ChatServer::Say("");
      case 4:
        return ChatServer::Say("Question: What is it?\nAnswer: The captions mention a thing.");
      case 5:
        return ChatServer::Say("I'm sorry, but I can't help with that.");
      case 6:
        return ChatServer::Say("Question: What is it?\nAnswer: It is at [0.1, 0.2, 0.6, 0.6].");
      case 7:
        return ChatServer::Say("just a thing");
      case 8:  // equal to the next one
      case 9:
        return ChatServer::Say(
            "Question: What is it?\nAnswer: It is the same thing again, word for word, which "
            "nobody can have seen in two pictures that have nothing to do with each other.");
      case 10:
        return ChatServer::Refuse(400, "this prompt is not allowed");
      case 11:
        return ChatServer::Say("Question: What is it?\nAnswer: It is", "length");
      default:
        return ChatServer::Say(GoodText(asked));
    }
  });
  ASSERT_EQ(Run(Args(server, {"--mix", "conversation=1", "--concurrency", "3"})), 0) << said_;
  const auto rules = RulesById();
  EXPECT_EQ(rules.size(), 9u);
  EXPECT_EQ(rules.at("conversation-p1"), "alternation");
  EXPECT_EQ(rules.at("conversation-p3"), "empty");
  EXPECT_EQ(rules.at("conversation-p4"), "leak");
  EXPECT_EQ(rules.at("conversation-p5"), "refused");
  EXPECT_EQ(rules.at("conversation-p6"), "leak");
  EXPECT_EQ(rules.at("conversation-p7"), "no_dialogue");
  EXPECT_EQ(rules.count("conversation-p8") + rules.count("conversation-p9"), 1u);
  EXPECT_EQ(rules.at("conversation-p10"), "unanswered");
  EXPECT_EQ(rules.at("conversation-p11"), "truncated");
  std::map<std::string, Json> kept;
  for (const Json& record : Records()) kept[record.at("id")] = record.at("conversations");
  EXPECT_EQ(kept.size(), 4u);
  EXPECT_EQ(kept.at("p0").size(), 2u);  // one turn of two
  EXPECT_EQ(kept.at("p2").at(1).at("value"), "It is big.");
  const Json report = Report();
  const Json& conversation = report.at("types").at("conversation");
  EXPECT_EQ(conversation.at("rejected").at("leak"), 2);
  EXPECT_EQ(conversation.at("rejected").at("duplicate"), 1);
  EXPECT_EQ(conversation.at("cut").at("truncated"), 1);
  EXPECT_EQ(report.at("run").at("requests_failed"), 1);
  EXPECT_THAT(said_,
              HasSubstr("1 requests failed, the last with: HTTP 400: this prompt is not allowed"));
  EXPECT_THAT(report.at("examples").at("unanswered").dump(), HasSubstr("not allowed"));
}

TEST_F(InstructCommandTest, LivesThroughTroubleOfTheServer) {
  WritePictures(30);
  ChatServer server([](const Asked& asked) -> Answer {
    switch (asked.number) {
      case 0:
        return ChatServer::Refuse(500);
      case 1:
        return ChatServer::Refuse(429, "slow down", {"Retry-After: 1"});
      case 2:
        return ChatServer::Refuse(429, "slow down");
      case 3: {
        Answer answer = ChatServer::Say(GoodText(asked));
        answer.cut_after = 30;
        return answer;
      }
      case 4: {
        Answer answer = ChatServer::Say(GoodText(asked));
        answer.delay = 60s;
        return answer;
      }
      case 5:
        return {.body = "<html>gateway</html>"};
      default:
        return ChatServer::Say(GoodText(asked));
    }
  });
  ASSERT_EQ(Run(Args(server, {"--timeout", "8", "--concurrency", "4"})), 0) << said_;
  EXPECT_EQ(Records().size(), 30u);
  EXPECT_EQ(Report().at("run").at("attempts_repeated"), 6);
  EXPECT_EQ(server.num_asked(), 36u);
}

TEST_F(InstructCommandTest, NoAnswerAtAllIsAFailure) {
  WritePictures(3);
  ChatServer server([](const Asked&) { return ChatServer::Refuse(400, "not for you"); });
  EXPECT_EQ(Run(Args(server)), 1);
  EXPECT_THAT(said_, HasSubstr("no request was answered; the last failed with: HTTP 400: not for"));
  EXPECT_EQ(Report().at("run").at("requests_failed"), 3);
}

TEST_F(InstructCommandTest, RefusalsForGoodEndNoRunThatHasAnswers) {
  WritePictures(60);
  ChatServer server([](const Asked& asked) {
    const int picture = PictureOf(asked);
    if (picture % 2 == 1) return ChatServer::Refuse(400, "this prompt is not allowed");
    if (picture < 10) {
      return ChatServer::Say(
          "Question: Was ist das?\nAnswer: Das ist ein Haus, das auf einer "
          "Wiese steht, und daneben liegt ein See, der im Licht glitzert.");
    }
    return ChatServer::Say(GoodText(asked));
  });
  const auto args = Args(server, {"--mix", "conversation=1", "--most-failed", "50"});
  std::string records;
  for (int round = 0; round < 2; ++round) {  // the second asks for those alone
    ASSERT_EQ(Run(args), 0) << said_;
    EXPECT_THAT(said_, HasSubstr("30 requests failed, the last with: HTTP 400: this prompt"));
    if (round > 0) {
      EXPECT_EQ(ReadBytes(out_ + "/instruct.json"), records);
    }
    records = ReadBytes(out_ + "/instruct.json");
    EXPECT_EQ(Records().size(), 25u);
  }
  // Screening goes on, too; failures that the records before had already do not keep these.
  std::vector<std::string> any = args;
  any.insert(any.end(), {"--language", "any"});
  ASSERT_EQ(Run(any), 0) << said_;
  EXPECT_GT(Records().size(), 25u);
  ASSERT_EQ(Run(args), 0) << said_;
  EXPECT_EQ(Records().size(), 25u);
}

TEST_F(InstructCommandTest, ManyFailuresAreOne) {
  WritePictures(20);
  ChatServer server([](const Asked& asked) {
    if (PictureOf(asked) < 3) return ChatServer::Refuse(400, "not for you");
    return ChatServer::Say(GoodText(asked));
  });
  EXPECT_EQ(Run(Args(server)), 1);
  EXPECT_THAT(said_, HasSubstr("15 % of the requests failed, more than --most-failed 10"));
  EXPECT_EQ(Records().size(), 17u);
  EXPECT_EQ(Run(Args(server, {"--most-failed", "15"})), 0) << said_;
  EXPECT_EQ(Run(Args(server, {"--most-failed", "101"})), 2) << said_;
}

TEST_F(InstructCommandTest, AWrongKeyEndsItAtOnce) {
  WritePictures(50);
  ChatServer server([](const Asked&) { return ChatServer::Refuse(401, "Incorrect API key"); });
  EXPECT_EQ(Run(Args(server)), 1);
  EXPECT_THAT(said_, HasSubstr("HTTP 401: Incorrect API key"));
  EXPECT_LE(server.num_asked(), 8u);
  EXPECT_FALSE(fs::exists(out_ + "/instruct.json"));
}

TEST_F(InstructCommandTest, ReportsTheCostOfAnswersFromBeforeThePricesWereGiven) {
  WritePictures(20);
  ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
  ASSERT_EQ(Run(Args(server)), 0) << said_;
  EXPECT_EQ(Report().at("run").at("cost"), 0);
  ASSERT_EQ(Run(Args(server, {"--prompt-price", "10", "--answer-price", "30"})), 0) << said_;
  EXPECT_EQ(server.num_asked(), 20u);
  EXPECT_NEAR(Report().at("run").at("cost"), 20 * (100 * 10 + 10 * 30) / 1e6, 1e-9);
}

TEST_F(InstructCommandTest, AJournalIsAReplayFile) {
  WritePictures(20);
  {
    ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
    ASSERT_EQ(Run(Args(server)), 0) << said_;
  }
  const std::string records = ReadBytes(out_ + "/instruct.json");
  const std::string again = folder_.At("again");
  ASSERT_EQ(Run({"instruct", "--coco-captions", folder_.At("captions.json"), "--coco-instances",
                 folder_.At("instances.json"), "--out", again, "--replay", out_ + "/journal.jsonl",
                 "--model", "teacher"}),
            0)
      << said_;
  EXPECT_EQ(ReadBytes(again + "/instruct.json"), records);
}

TEST_F(InstructCommandTest, TakesScenesAndTables) {
  ASSERT_EQ(Run({"scenes", "--out", folder_.At("scenes"), "--count", "3", "--no-pictures"}), 0)
      << said_;
  ChatServer server(
      [](const Asked&) { return ChatServer::Say("Question: What is it?\nAnswer: A thing."); });
  ASSERT_EQ(Run({"instruct", "--scenes", folder_.At("scenes"), "--out", out_, "--base-url",
                 server.base_url(), "--model", "m", "--boxes", "conversation", "--mix",
                 "conversation=1"}),
            0)
      << said_;
  for (const Asked& asked : server.asked()) EXPECT_THAT(asked.last_text(), HasSubstr(": [0."));
  Write("t.csv", "image,caption\na.jpg,A dog.\na.jpg,It barks.\nb.jpg,A cat.\n");
  ASSERT_EQ(Run({"expand", "--csv", folder_.At("t.csv"), "--out", folder_.At("stage1.json")}), 0)
      << said_;
  EXPECT_EQ(ReadJson(folder_.path() / "stage1.json").size(), 2u);
}

TEST_F(InstructCommandTest, AsksForQuestions) {
  ChatServer server([](const Asked& asked) {
    EXPECT_THAT(asked.last_text(), HasSubstr("short description"));
    return ChatServer::Say(
        "1. What is shown?\n2. Sum up this image, please.\n3. A caption, please?");
  });
  ASSERT_EQ(Run({"questions", "--type", "brief", "-n", "3", "--base-url", server.base_url(),
                 "--model", "m"}),
            0)
      << said_;
  EXPECT_EQ(printed_, "What is shown?\nSum up this image, please.\nA caption, please?\n");
  // With a file the answers are kept: they are not paid for twice, and count for the budget.
  const std::vector<std::string> kept = {"questions",
                                         "-n",
                                         "3",
                                         "--base-url",
                                         server.base_url(),
                                         "--model",
                                         "m",
                                         "--most-requests",
                                         "1",
                                         "--out",
                                         folder_.At("questions.txt")};
  const size_t before = server.asked().size();
  for (int i = 0; i < 2; ++i) ASSERT_EQ(Run(kept), 0) << said_;
  EXPECT_EQ(server.asked().size(), before + 1);
  std::vector<std::string> more = kept;
  more[2] = "5";
  EXPECT_EQ(Run(more), 3) << said_;
  EXPECT_THAT(said_, HasSubstr("the budget is used up before there are 5 questions"));
  EXPECT_EQ(server.asked().size(), before + 1);
}

TEST_F(InstructCommandTest, GoesOnAskingForQuestionsWhereItGaveUp) {
  ChatServer server([](const Asked& asked) {
    if (asked.number < 7) return ChatServer::Say("What is shown?");
    return ChatServer::Say("Sum up this image, please.");
  });
  const std::vector<std::string> args = {"questions",
                                         "-n",
                                         "2",
                                         "--base-url",
                                         server.base_url(),
                                         "--model",
                                         "teacher",
                                         "--out",
                                         folder_.At("questions.txt")};
  EXPECT_EQ(Run(args), 1) << said_;
  EXPECT_THAT(said_,
              HasSubstr("gave 1 different questions in 5 answers, 2 were asked for; the same "
                        "command goes on"));
  EXPECT_EQ(server.num_asked(), 5u);
  EXPECT_EQ(Run(args), 0) << said_;
  EXPECT_EQ(server.num_asked(), 8u);
  EXPECT_EQ(ReadBytes(folder_.path() / "questions.txt"),
            "What is shown?\nSum up this image, please.\n");
}

TEST_F(InstructCommandTest, PromptsCanBeWrittenChangedAndUsed) {
  WritePictures(2);
  const std::string prompts = folder_.At("prompts");
  ASSERT_EQ(Run({"prompts", "--out", prompts}), 0) << said_;
  EXPECT_EQ(Run({"prompts", "--out", prompts}), 2);
  std::ofstream(prompts + "/conversation/system_message.txt") << "Write a conversation in verse.";
  ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
  ASSERT_EQ(Run(Args(server, {"--mix", "conversation=1", "--prompts", prompts})), 0) << said_;
  EXPECT_EQ(server.asked().at(0).body.at("messages").at(0).at("content"),
            "Write a conversation in verse.");
}

TEST_F(InstructCommandTest, WrongUseIsTwoAndOneLine) {
  WritePictures(3);
  Write("bad.csv", "image,caption\na.jpg\n");
  Write("bad.json", "{\"images\": [\n oops");
  Write("empty.txt", "\n");
  fs::create_directories(folder_.path() / "full");
  Write("full/mine", "x");
  const std::string captions = folder_.At("captions.json");
  const std::vector<std::string> base = {
      "instruct", "--out", out_, "--base-url", "http://127.0.0.1:1/v1", "--model", "m"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> args = base;
    args.insert(args.end(), more.begin(), more.end());
    return args;
  };
  const std::vector<std::pair<std::vector<std::string>, std::string>> wrong = {
      {base, "name one source"},
      {with({"--coco-captions", captions, "--csv", "x.csv"}), "name one source"},
      {with({"--csv", folder_.At("bad.csv")}), "bad.csv:2: has 1 fields"},
      {with({"--coco-captions", folder_.At("bad.json")}), "line 2"},
      {with({"--coco-captions", captions, "--mix", "poem=1"}), "no response type \"poem\""},
      {with({"--coco-captions", captions, "--mix", "detail"}), "TYPE=SHARE"},
      {with({"--coco-captions", captions, "--mix", "detail=inf"}), "TYPE=SHARE"},
      {with({"--coco-captions", captions, "--mix", "detail=1e308,complex=1e308"}),
       "whose sum is a number"},
      {with({"--coco-captions", captions, "--count", "300"}), "from 3 pictures"},
      {with({"--coco-captions", captions, "--key-env", "LLAVA_NO_SUCH_KEY"}), "LLAVA_NO_SUCH_KEY"},
      {with({"--coco-captions", captions, "--most-cost", "5"}), "--prompt-price"},
      {with({"--coco-captions", captions, "--body", "[1]"}), "--body"},
      {with({"--coco-captions", captions, "--prompts", "/nowhere"}), "/nowhere"},
      {with({"--coco-captions", captions, "--detailed-questions", folder_.At("empty.txt")}),
       "no questions"},
      {{"instruct", "--out", out_, "--coco-captions", captions, "--model", "m"}, "--base-url"},
      {{"instruct", "--out", out_, "--coco-captions", captions, "--base-url", "http://h/v1"},
       "--model"},
      {{"instruct", "--out", out_, "--coco-captions", captions, "--base-url", "h/v1", "--model",
        "m"},
       "http://"},
      {{"instruct", "--out", folder_.At("full"), "--coco-captions", captions, "--base-url",
        "http://h/v1", "--model", "m"},
       "something else"},
  };
  for (const auto& [args, message] : wrong) {
    EXPECT_EQ(Run(args), 2) << said_;
    EXPECT_TRUE(said_.starts_with("llava-datagen: ")) << said_;
    EXPECT_THAT(said_, HasSubstr(message));
    EXPECT_EQ(said_.find('\n'), said_.size() - 1) << said_;
    EXPECT_FALSE(fs::exists(out_ + "/instruct.json"));
  }
}

}  // namespace
}  // namespace llava
