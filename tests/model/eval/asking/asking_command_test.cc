// The commands of llava-eval that ask: answer, scienceqa run, judge ask.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/model/eval/eval_program.h"
#include "tests/model/eval/scienceqa/sample_problems.h"
#include "tests/support/chat_server.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;
using Json = nlohmann::json;
using Asked = ChatServer::Asked;

const std::string kModels = SourceDir() + "/deploy/models/";
const std::string kScenes = SourceDir() + "/deploy/scenes/";

std::vector<Json> Lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

class AskingCommandTest : public testing::Test {
 protected:
  std::string Out() const { return " --out " + folder_.At("out.jsonl"); }
  std::vector<Json> Written(const std::string& name = "out.jsonl") const {
    return Lines(folder_.Read(name));
  }
  static std::string Server(const ChatServer& server) {
    return " --base-url " + server.base_url() + " --model teacher";
  }

  const TempFolder folder_;
  const std::string questions_ =
      folder_.Write("questions.jsonl",
                    "{\"question_id\": 5, \"image\": \"lion.png\", \"text\": \"What is this?\"}\n"
                    "{\"question_id\": 6, \"image\": \"two_apples.png\", \"text\": \"How many "
                    "apples are there?\"}\n"
                    "{\"question_id\": 7, \"text\": \"Hello?\"}\n");
};

TEST_F(AskingCommandTest, AnswersByACheckpointAndGoesOn) {
  const std::string asking = "answer --questions " + questions_ + " --pictures " + kScenes +
                             " --checkpoint " + kModels + "emoji --tower " + kModels +
                             "emoji-tower" + Out();
  const std::string command = asking + " --max-tokens 40";
  const Outcome first = Eval(command + " --limit 1 2>&1");
  EXPECT_EQ(first.code, 0) << first.output;
  ASSERT_EQ(Written().size(), 1);
  EXPECT_THAT(Written()[0]["text"].get<std::string>(), HasSubstr("lion"));
  EXPECT_EQ(Written()[0]["model_id"], "emoji");
  EXPECT_EQ(Written()[0]["metadata"]["temperature"], 0);
  // A line that was being written when the machine died is made anew; whole ones stay.
  std::ofstream(folder_.At("out.jsonl"), std::ios::app) << "{\"question_id\": 6, \"te";
  const Outcome second = Eval(command + " 2>&1");
  EXPECT_EQ(second.code, 0) << second.output;
  const auto ids = [this] {
    std::vector<int> ids;
    for (const Json& line : Written()) ids.push_back(line["question_id"].get<int>());
    return ids;
  };
  EXPECT_THAT(ids(), ElementsAre(5, 6, 7));
  const std::string whole = folder_.Read("out.jsonl");
  EXPECT_EQ(Eval(command + " 2>&1").code, 0);
  EXPECT_EQ(folder_.Read("out.jsonl"), whole);
  // In the order of the questions, whatever the order in which they were answered.
  const auto second_line = whole.find('\n') + 1;
  folder_.Write("out.jsonl", whole.substr(second_line) + whole.substr(0, second_line));
  EXPECT_THAT(ids(), ElementsAre(6, 7, 5));
  EXPECT_EQ(Eval(command + " 2>&1").code, 0);
  EXPECT_EQ(folder_.Read("out.jsonl"), whole);
  // Another prompt, another sampling: the answers that are there are not theirs.
  for (const char* other :
       {" --max-tokens 39", " --max-tokens 40 --template v1", " --max-tokens 40 --temperature 0.5",
        " --max-tokens 40 --model-id another"}) {
    const Outcome mixed = Eval(asking + other + " 2>&1");
    EXPECT_EQ(mixed.code, 2) << mixed.output;
    EXPECT_THAT(mixed.output, HasSubstr("3 answers are of another model, prompt, picture or "
                                        "sampling (question 5, 6, 7); name another --out"));
  }
  std::string foreign;
  for (Json line : Written()) {
    line["metadata"].erase("asked");
    foreign += line.dump() + "\n";
  }
  folder_.Write("out.jsonl", foreign);
  const Outcome unknown = Eval(command + " 2>&1");
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.output, HasSubstr("3 answers do not tell what they are of (question 5, 6"));
  EXPECT_EQ(folder_.Read("out.jsonl"), foreign);
}

TEST_F(AskingCommandTest, AQuestionThatACheckpointCannotAnswerLosesNoOther) {
  std::string words;
  for (int i = 0; i < 3000; ++i) words += "apples and pears ";  // beyond the model's context
  std::ofstream(folder_.At("questions.jsonl"), std::ios::app)
      << "{\"question_id\": 8, \"text\": \"" << words << "\"}\n";
  std::filesystem::copy(kScenes + "lion.png", folder_.At("lion.png"));
  folder_.Write("two_apples.png", "no picture");
  const std::string command = "answer --questions " + questions_ + " --pictures " + folder_.At("") +
                              " --checkpoint " + kModels + "emoji --tower " + kModels +
                              "emoji-tower --max-tokens 20" + Out() + " 2>&1";
  const auto ids = [this] {
    std::multiset<int> ids;
    for (const Json& line : Written()) ids.insert(line["question_id"].get<int>());
    return ids;
  };
  for (int round = 0; round < 2; ++round) {
    const Outcome failed = Eval(command);
    EXPECT_EQ(failed.code, 1) << failed.output;
    EXPECT_THAT(failed.output,
                HasSubstr("llava-eval: question 6: " + folder_.At("two_apples.png")));
    EXPECT_THAT(failed.output, HasSubstr("llava-eval: question 8: a prompt of "));
    EXPECT_LT(failed.output.find("question 6"), failed.output.find("question 8"));
    EXPECT_THAT(ids(), ElementsAre(5, 7));
  }
  // Also one whose answer is there, but not what it is of.
  std::filesystem::remove(folder_.At("lion.png"));
  std::filesystem::remove(folder_.At("two_apples.png"));
  std::filesystem::copy(kScenes + "two_apples.png", folder_.At("two_apples.png"));
  const Outcome gone = Eval(command);
  EXPECT_EQ(gone.code, 1) << gone.output;
  EXPECT_THAT(gone.output,
              HasSubstr("llava-eval: question 5: cannot read " + folder_.At("lion.png")));
  EXPECT_THAT(ids(), ElementsAre(5, 6, 7));
  std::filesystem::copy(kScenes + "lion.png", folder_.At("lion.png"));
  const Outcome whole = Eval(command + " --limit 3");
  EXPECT_EQ(whole.code, 0) << whole.output;
}

TEST_F(AskingCommandTest, AnswersByAServer) {
  ChatServer server([](const Asked& asked) {
    const Json& content = asked.body["messages"].back()["content"];
    const std::string text = content.is_string() ? content.get<std::string>() : content.dump();
    if (text.find("apples") != std::string::npos) return ChatServer::Say("Two", "length");
    return ChatServer::Say("Hm");
  });
  const Outcome done = Eval("answer --questions " + questions_ + " --pictures " + kScenes +
                            Server(server) + Out() + " 2>&1");
  EXPECT_EQ(done.code, 0) << done.output;
  EXPECT_THAT(done.output, HasSubstr("1 answers are cut off"));
  ASSERT_EQ(Written().size(), 3);
  EXPECT_EQ(Written()[0]["question_id"], 5);
  EXPECT_EQ(Written()[1]["metadata"]["finish_reason"], "length");
  EXPECT_EQ(Written()[2]["prompt"], "Hello?");
  EXPECT_EQ(server.num_asked(), 3);
  bool picture = false;
  for (const Asked& asked : server.asked()) {
    picture |= asked.body.dump().find("data:image/png;base64,") != std::string::npos;
  }
  EXPECT_TRUE(picture);
  // All is known: nothing is asked again.
  EXPECT_EQ(Eval("answer --questions " + questions_ + " --pictures " + kScenes + Server(server) +
                 Out() + " 2>&1")
                .code,
            0);
  EXPECT_EQ(server.num_asked(), 3);
}

TEST_F(AskingCommandTest, AsksForTheLikeliestAnswerAndTellsTheTemperature) {
  ChatServer server([](const Asked&) { return ChatServer::Say("Hm"); });
  const std::string command = "answer --questions " + questions_ + " --pictures " + kScenes +
                              Server(server) + Out() + " --limit 1 2>&1";
  const auto asked_and_told = [&](const std::string& flags) {
    EXPECT_EQ(Eval(command + flags).code, 0);
    const Json sent = server.asked().back().body;
    return std::pair(sent.contains("temperature") ? sent["temperature"] : Json("none"),
                     Written()[0]["metadata"].at("temperature"));
  };
  EXPECT_EQ(asked_and_told(""), std::pair(Json(0.0), Json(0.0)));
  EXPECT_EQ(asked_and_told(" --temperature 0.5"), std::pair(Json(0.5), Json(0.5)));
  // Some servers refuse any: they take their own.
  EXPECT_EQ(asked_and_told(" --body '{\"temperature\": null}'"),
            std::pair(Json("none"), Json(nullptr)));
  EXPECT_EQ(server.num_asked(), 3);
}

TEST_F(AskingCommandTest, AQuestionWithoutItsPictureLosesNoOther) {
  std::string questions;
  for (int i = 1; i <= 5; ++i) {
    questions += "{\"question_id\": " + std::to_string(i) + ", \"text\": \"q" + std::to_string(i) +
                 "?\"" + (i == 3 ? ", \"image\": \"gone.png\"" : "") + "}\n";
  }
  ChatServer server([](const Asked&) {
    auto answer = ChatServer::Say("Hm");
    answer.delay = std::chrono::milliseconds(200);  // others are on the wire at the third
    return answer;
  });
  const std::string command = "answer --questions " + folder_.Write("five.jsonl", questions) +
                              " --pictures " + kScenes + Server(server) + Out() +
                              " --concurrency 2 2>&1";
  for (int round = 0; round < 2; ++round) {
    const Outcome outcome = Eval(command);
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr("question 3: " + kScenes + "gone.png: "));
    EXPECT_THAT(outcome.output, HasSubstr(round == 0 ? "4 answered now, 0 known before, 1 failed"
                                                     : "0 answered now, 4 known before, 1 failed"));
    EXPECT_EQ(Written().size(), 4);
    EXPECT_EQ(server.num_asked(), 4);
  }
}

TEST_F(AskingCommandTest, AnEarlyEndKeepsWhatTheJournalHas) {
  const auto file = [this](const std::string& name, int first) {
    std::string questions;
    for (int i = first; i <= 6; ++i) {
      const std::string id = std::to_string(i);
      questions += "{\"question_id\": " + id + ", \"text\": \"q" + id + "?\"}\n";
    }
    return folder_.Write(name, questions);
  };
  ChatServer server([](const Asked&) { return ChatServer::Say("Hm"); });
  const std::string rest = Server(server) + Out() + " --concurrency 1 2>&1";
  ASSERT_EQ(Eval("answer --questions " + file("last.jsonl", 5) + rest).code, 0);
  const std::string all = "answer --questions " + file("all.jsonl", 1);
  const Outcome budget = Eval(all + " --most-requests 3" + rest);
  EXPECT_EQ(budget.code, 3) << budget.output;
  EXPECT_THAT(budget.output, HasSubstr("1 answered now, 2 known before, 0 failed"));
  ASSERT_EQ(Written().size(), 3);
  EXPECT_EQ(Written()[0]["question_id"], 1);
  EXPECT_EQ(Written()[1]["question_id"], 5);
  // What was known before is no work of this run.
  const Outcome whole = Eval(all + rest);
  EXPECT_EQ(whole.code, 0) << whole.output;
  EXPECT_THAT(whole.output, HasSubstr("asking 3/3 (100 %)"));
  EXPECT_EQ(Written().size(), 6);
}

TEST_F(AskingCommandTest, RefusesFlagsThatWouldDoNothing) {
  const std::string command = "answer --questions " + questions_ + Out();
  for (const std::string& server :
       {std::string("--base-url http://127.0.0.1:1"), std::string("--replay /dev/null"),
        std::string("--body {}"), std::string("--model m"), std::string("--most-tokens 5")}) {
    const Outcome both = Eval(command + " --checkpoint " + kModels + "emoji " + server + " 2>&1");
    EXPECT_EQ(both.code, 2) << both.output;
    EXPECT_THAT(both.output, HasSubstr(server.substr(0, server.find(' ')))) << both.output;
  }
  for (const std::string& server :
       {std::string("--key-env HOME"), std::string("--concurrency 2"), std::string("--rpm 5"),
        std::string("--tpm 5"), std::string("--timeout 5"), std::string("--attempts 2")}) {
    const Outcome both = Eval(command + " --replay /dev/null " + server + " 2>&1");
    EXPECT_EQ(both.code, 2) << both.output;
    EXPECT_THAT(both.output, HasSubstr(server.substr(0, server.find(' '))));
    EXPECT_THAT(both.output, HasSubstr("--replay"));
  }
  for (const std::string& local : {std::string("--tower /nowhere"), std::string("--template plain"),
                                   std::string("--threads 2")}) {
    const Outcome alone = Eval(command + " --replay /dev/null " + local + " 2>&1");
    EXPECT_EQ(alone.code, 2) << alone.output;
    EXPECT_THAT(alone.output, HasSubstr("--checkpoint")) << alone.output;
  }
}

TEST_F(AskingCommandTest, RunsScienceQaAndScoresIt) {
  ChatServer server([](const Asked& asked) {
    const std::string text = asked.last_text();
    if (text.find("bird") != std::string::npos) {
      return ChatServer::Say("LECTURE: x\n###\nANSWER: B.");
    }
    if (text.find("verb") != std::string::npos) return ChatServer::Refuse(400, "too long");
    return ChatServer::Say("The answer is A.");
  });
  const std::string problems = " --problems " + folder_.Write("problems.json", SampleProblems()) +
                               " --splits " + folder_.Write("splits.json", SampleSplits());
  const Outcome run = Eval("scienceqa run --layout chat --format QCM-LEPA --shots 1" + problems +
                           Server(server) + Out() + " 2>&1");
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.output, HasSubstr("question 2: "));
  EXPECT_THAT(run.output, HasSubstr("too long"));
  ASSERT_EQ(Written().size(), 3);
  EXPECT_EQ(Written()[1]["text"], "LECTURE: x\n The answer is B.");
  const Json score = Json::parse(
      Eval("scienceqa score --json" + problems + " --predictions " + folder_.At("out.jsonl"))
          .output);
  EXPECT_EQ(score["classes"]["AVG"]["right"], 2);
  EXPECT_EQ(score["failures"]["missing"], 1);
}

// "B\n" is no letter to the published rules, and "No\n" a yes.
TEST_F(AskingCommandTest, WritesAnswersWithoutWhiteSpaceAtTheirEnds) {
  ChatServer server([](const Asked& asked) {
    const std::string all = asked.body["messages"].dump();
    if (all.find("lion") != std::string::npos) return ChatServer::Say("No\n");
    return ChatServer::Say(all.find("bird") != std::string::npos ? " B\n" : "A\n\n");
  });
  for (const char* id : {"1", "3"}) {
    std::filesystem::create_directories(folder_.At(id));
    std::filesystem::copy(kScenes + "lion.png", folder_.At(id) + "/image.png");
  }
  const std::string problems = " --problems " + folder_.Write("problems.json", SampleProblems()) +
                               " --splits " + folder_.Write("splits.json", SampleSplits());
  const Outcome run = Eval("scienceqa run --layout letter" + problems + " --pictures " +
                           folder_.At("") + Server(server) + Out() + " 2>&1");
  EXPECT_EQ(run.code, 0) << run.output;
  ASSERT_EQ(Written().size(), 4);
  EXPECT_EQ(Written()[1]["text"], "B");
  const Json score = Json::parse(
      Eval("scienceqa score --json" + problems + " --predictions " + folder_.At("out.jsonl"))
          .output);
  EXPECT_EQ(score["classes"]["AVG"]["right"], 3);  // 1, 2 and 3
  const std::string questions =
      folder_.Write("pope.jsonl", "{\"question_id\": 1, \"text\": \"Is there a lion?\"}\n");
  const Outcome pope = Eval("answer --questions " + questions + Server(server) + " --out " +
                            folder_.At("pope_answers.jsonl") + " 2>&1");
  EXPECT_EQ(pope.code, 0) << pope.output;
  const std::string labels =
      folder_.Write("labels.jsonl", "{\"question_id\": 1, \"label\": \"no\"}\n");
  const Json counts = Json::parse(
      Eval("vqa pope --json --labels " + labels + " --answers " + folder_.At("pope_answers.jsonl"))
          .output);
  EXPECT_EQ(counts["all"]["true_no"], 1);
}

// A model that was never trained so is made to say reasons, then a choice.
TEST_F(AskingCommandTest, AsksACheckpointForReasonsAndThenForTheLetter) {
  const std::string problems = folder_.Write("problems.json", R"({"1": {
      "question": "What is this?", "choices": ["lion", "pig"], "answer": 0, "image": "lion.png",
      "split": "test"}})");
  std::filesystem::create_directories(folder_.At("1"));
  std::filesystem::copy(kScenes + "lion.png", folder_.At("1/lion.png"));
  const Outcome run =
      Eval("scienceqa run --format QCM-LEPA --problems " + problems + " --pictures " +
           folder_.At("") + " --checkpoint " + kModels + "emoji --tower " + kModels +
           "emoji-tower --max-tokens 30" + Out() + " 2>&1");
  EXPECT_EQ(run.code, 0) << run.output;
  ASSERT_EQ(Written().size(), 1);
  EXPECT_THAT(Written()[0]["text"].get<std::string>(), HasSubstr("\n The answer is "));
  EXPECT_EQ(Written()[0]["prompt"],
            "<image>\nWhat is this?\nContext: N/A\nOptions: (A) lion (B) pig");
}

class JudgeAskTest : public AskingCommandTest {
 protected:
  JudgeAskTest() {
    std::string questions, reference, candidate;
    for (int i = 1; i <= 6; ++i) {
      const std::string id = "{\"question_id\": " + std::to_string(i);
      questions += id + ", \"text\": \"q" + std::to_string(i) + "?\", \"category\": \"conv\"}\n";
      reference += id + ", \"text\": \"good\"}\n";
      candidate += id + ", \"text\": \"fair\"}\n";
    }
    command_ = "judge ask --questions " + folder_.Write("q.jsonl", questions) + " --reference " +
               folder_.Write("r.jsonl", reference) + " --candidate " +
               folder_.Write("c.jsonl", candidate) + Out();
  }

  std::string command_;
};

TEST_F(JudgeAskTest, WritesReviewsOfSeveralRuns) {
  ChatServer server([](const Asked& asked) {
    if (asked.last_text().find("q3?") != std::string::npos) return ChatServer::Say("Both fine.");
    return ChatServer::Say("8 6\nFair.");
  });
  const Outcome asked = Eval(command_ + Server(server) + " --runs 2 2>&1");
  EXPECT_EQ(asked.code, 0) << asked.output;
  EXPECT_THAT(asked.output, HasSubstr("no scores in the review of question 3: Both fine.\n"));
  EXPECT_THAT(asked.output, HasSubstr("2 reviews without scores\n"));
  EXPECT_EQ(server.num_asked(), 12);
  EXPECT_NEAR(server.asked()[0].body["temperature"].get<double>(), 0.2, 1e-9);
  ASSERT_EQ(Written().size(), 6);
  EXPECT_EQ(Written("out-2.jsonl").size(), 6);
  EXPECT_THAT(
      folder_.Read("out.jsonl"),
      StartsWith(R"({"id":1,"question_id":1,"answer1_id":1,"answer2_id":1,"category":"conv",)"
                 R"("content":"8 6\nFair.","tuple":[8.0,6.0],"questions":6})"));
  const Json summary = Json::parse(
      Eval("judge summarize --json " + folder_.At("out.jsonl") + " " + folder_.At("out-2.jsonl"))
          .output);
  EXPECT_EQ(summary["files"][0]["categories"]["conv"]["unread"], 1);
  EXPECT_EQ(summary["files"][0]["categories"]["conv"]["relative_of_read"], 75.0);
}

TEST_F(JudgeAskTest, LosesAtMostTheRequestInFlightWhenKilled) {
  const std::string pid = folder_.At("pid");
  ChatServer server([&pid](const Asked& asked) {
    if (asked.number == 3) {  // the fourth
      int process = 0;
      for (int i = 0; i < 60'000 && process <= 0; ++i) {  // the shell may be slower than we
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::ifstream(pid) >> process;
      }
      if (process > 0) kill(process, SIGKILL);
    }
    return ChatServer::Say("8 6");
  });
  const std::string command = command_ + Server(server) + " --concurrency 1";
  // The shell tells the process, so that the server can kill it in the middle of a request.
  const std::string line = "sh -c '" + ProgramPath("llava-eval") + " " + command +
                           " >/dev/null 2>&1 & echo $! > " + pid + "; wait $!'";
  EXPECT_NE(std::system(line.c_str()), 0);
  EXPECT_EQ(server.num_asked(), 4);
  EXPECT_FALSE(std::filesystem::exists(folder_.At("out.jsonl")));
  const Outcome again = Eval(command + " 2>&1");
  EXPECT_EQ(again.code, 0) << again.output;
  EXPECT_EQ(Written().size(), 6);
  EXPECT_LE(server.num_asked(), 7);  // the three that were left, and the one in flight perhaps
}

TEST_F(JudgeAskTest, TellsWhatServersRefuse) {
  ChatServer wrong_key([](const Asked&) { return ChatServer::Refuse(401, "wrong key"); });
  const Outcome refused = Eval(command_ + Server(wrong_key) + " 2>&1");
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.output, HasSubstr("wrong key"));
  ChatServer server([](const Asked& asked) {
    if (asked.number < 2) return ChatServer::Refuse(429, "slow down", {"Retry-After: 0"});
    return ChatServer::Say("8 6");
  });
  const Outcome patient = Eval(command_ + Server(server) + " 2>&1");
  EXPECT_EQ(patient.code, 0) << patient.output;
  EXPECT_EQ(Written().size(), 6);
  const Outcome budget = Eval(command_ + "2" + Server(server) + " --most-requests 2 2>&1");
  EXPECT_EQ(budget.code, 3) << budget.output;
  EXPECT_EQ(Written("out.jsonl2").size(), 2);
}

TEST_F(JudgeAskTest, ARunThatWasNotBegunLeavesNoFile) {
  ChatServer server([](const Asked&) { return ChatServer::Say("8 6"); });
  const Outcome budget =
      Eval(command_ + Server(server) + " --runs 3 --most-requests 4 --concurrency 1 2>&1");
  EXPECT_EQ(budget.code, 3) << budget.output;
  EXPECT_EQ(Written().size(), 4);
  EXPECT_FALSE(std::filesystem::exists(folder_.At("out-2.jsonl")));
  EXPECT_FALSE(std::filesystem::exists(folder_.At("out-3.jsonl")));
}

TEST_F(JudgeAskTest, ARunThatFailsLeavesAWholeFileAlone) {
  const auto good = [](const Asked&) { return ChatServer::Say("8 6"); };
  {
    ChatServer server(good);
    ASSERT_EQ(Eval(command_ + Server(server) + " 2>&1").code, 0);
  }
  const std::string whole = folder_.Read("out.jsonl");
  // Another judge: the journal knows none of its answers.
  ChatServer server([&](const Asked& asked) {
    return asked.number < 2 ? good(asked) : ChatServer::Refuse(401, "no credit");
  });
  const std::string other =
      command_ + " --base-url " + server.base_url() + " --model other --concurrency 1";
  const Outcome failed = Eval(other + " 2>&1");
  EXPECT_EQ(failed.code, 1);
  EXPECT_THAT(failed.output, HasSubstr("out.jsonl has 6 lines from an earlier run and is left as "
                                       "it is; the 2 of this one are in "));
  EXPECT_EQ(folder_.Read("out.jsonl"), whole);
  EXPECT_EQ(Written("out.jsonl.partial").size(), 2);
  const std::string summarize = "judge summarize " + folder_.At("out.jsonl.partial");
  EXPECT_THAT(Eval(summarize).output, HasSubstr("4 questions without a review"));
  EXPECT_EQ(Json::parse(Eval(summarize + " --json").output)["files"][0]["missing"], 4);
  // The same of answers.
  const std::string answers = "answer --questions " + folder_.At("q.jsonl") + " --out " +
                              folder_.At("answers.jsonl") + " --base-url " + server.base_url() +
                              " --model m";
  folder_.Write("answers.jsonl", whole);
  EXPECT_EQ(Eval(answers + " 2>&1").code, 1);
  EXPECT_EQ(folder_.Read("answers.jsonl"), whole);
  // One that comes to its end replaces it.
  ChatServer patient(good);
  EXPECT_EQ(Eval(command_ + " --base-url " + patient.base_url() + " --model other 2>&1").code, 0);
  EXPECT_EQ(Written().size(), 6);
  EXPECT_FALSE(std::filesystem::exists(folder_.At("out.jsonl.partial")));
}

TEST_F(JudgeAskTest, ListsIdsThatDoNotMatch) {
  folder_.Write("c.jsonl", "{\"question_id\": 1, \"text\": \"fair\"}\n");
  const Outcome outcome = Eval(command_ + " --replay /dev/null 2>&1");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("c.jsonl has no question_id 2, 3, 4, 5, 6\n"));
}

}  // namespace
}  // namespace llava
