// llava-datagen instruct that is stopped, killed, or has spent its budget or its disk.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>

#include "tests/model/datagen/instruct_program.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using namespace std::chrono_literals;
using Answer = ChatServer::Answer;
using Asked = ChatServer::Asked;

class InstructInterruptedTest : public InstructCommandTest {};

// Answers so many requests; those beyond wait until they may.
class Answers {
 public:
  explicit Answers(int most) : most_(most) {}
  Answer operator()(const Asked& asked) {
    while (asked.number >= most_) std::this_thread::sleep_for(1ms);
    return ChatServer::Say(GoodText(asked));
  }
  void SetMost(int most) { most_ = most; }

 private:
  std::atomic<int> most_;
};
constexpr int kAll = 1'000'000;

TEST_F(InstructInterruptedTest, Kill9LosesAtMostWhatWasOnTheWire) {
  WritePictures(200);
  Answers answers(0);
  ChatServer server(std::ref(answers));
  const auto args = Args(server, {"--concurrency", "3"});
  size_t killed = 0;
  for (const size_t until : {30u, 80u, 130u}) {
    answers.SetMost(static_cast<int>(until));
    const pid_t pid = Start(args);
    while (server.num_asked() < until) std::this_thread::sleep_for(1ms);
    kill(pid, SIGKILL);
    EXPECT_EQ(Wait(pid), -SIGKILL);
    ++killed;
  }
  answers.SetMost(kAll);
  std::ofstream(out_ + "/journal.jsonl", std::ios::app) << "{\"request\": \"torn";
  ASSERT_EQ(Run(args), 0) << said_;
  EXPECT_THAT(said_, HasSubstr("dropped a torn last line of 17 bytes"));
  EXPECT_EQ(Records().size(), 200u);
  EXPECT_GE(server.num_asked(), 200u);
  EXPECT_LE(server.num_asked(), 200u + 3 * killed);  // at most what was on the wire, three times
  const size_t paid = server.num_asked();
  const std::string records = ReadBytes(out_ + "/instruct.json");
  ASSERT_EQ(Run(args), 0) << said_;  // all is known
  EXPECT_EQ(server.num_asked(), paid);
  EXPECT_EQ(ReadBytes(out_ + "/instruct.json"), records);
}

TEST_F(InstructInterruptedTest, CtrlCWaitsForPaidAnswersAndTheSameCommandGoesOn) {
  WritePictures(200);
  Answers answers(20);
  ChatServer server(std::ref(answers));
  const auto args = Args(server, {"--concurrency", "4"});
  const pid_t pid = Start(args);
  while (server.num_asked() < 21) std::this_thread::sleep_for(1ms);
  kill(pid, SIGINT);
  answers.SetMost(kAll);
  EXPECT_EQ(Wait(pid), 130) << said_;
  EXPECT_THAT(said_, HasSubstr("stopped; the same command goes on"));
  EXPECT_FALSE(fs::exists(out_ + "/instruct.json"));
  ASSERT_EQ(Run(args), 0) << said_;
  EXPECT_EQ(server.num_asked(), 200u);  // nothing twice
  EXPECT_EQ(Records().size(), 200u);
}

TEST_F(InstructInterruptedTest, StopsAtTheBudgetAndGoesOnWithALargerOne) {
  WritePictures(20);
  ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
  EXPECT_EQ(Run(Args(server, {"--most-requests", "7"})), 3) << said_;
  EXPECT_THAT(said_, HasSubstr("the budget is used up"));
  EXPECT_EQ(server.num_asked(), 7u);
  EXPECT_EQ(Records().size(), 7u);
  EXPECT_EQ(Report().at("run").at("finished"), false);
  ASSERT_EQ(Run(Args(server, {"--most-requests", "20"})), 0) << said_;
  EXPECT_EQ(server.num_asked(), 20u);
  EXPECT_EQ(Records().size(), 20u);
}

TEST_F(InstructInterruptedTest, ARunThatIsNotWholeLeavesMoreRecordsAlone) {
  WritePictures(20);
  ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
  ASSERT_EQ(Run(Args(server)), 0) << said_;
  const std::string records = ReadBytes(out_ + "/instruct.json");
  const std::string report = ReadBytes(out_ + "/report.json");
  // Other requests: the journal, which counts for the budget, knows none of their answers.
  EXPECT_EQ(Run(Args(server, {"--temperature", "0.3", "--most-requests", "20"})), 3) << said_;
  EXPECT_THAT(said_, HasSubstr("instruct.json has 20 records of an earlier run and is left as it "
                               "is; the 0 of this one, which is not whole, are in "));
  EXPECT_EQ(ReadBytes(out_ + "/instruct.json"), records);
  EXPECT_EQ(ReadBytes(out_ + "/report.json"), report);
  EXPECT_EQ(ReadBytes(out_ + "/instruct.json.partial"), "[]\n");
  ChatServer refusing([](const Asked&) { return ChatServer::Refuse(400, "not for you"); });
  EXPECT_EQ(Run(Args(refusing, {"--temperature", "0.3"})), 1) << said_;
  EXPECT_EQ(ReadBytes(out_ + "/instruct.json"), records);
  // A whole one replaces them.
  ASSERT_EQ(Run(Args(server, {"--temperature", "0.3"})), 0) << said_;
  EXPECT_NE(ReadBytes(out_ + "/report.json"), report);
  EXPECT_FALSE(fs::exists(out_ + "/instruct.json.partial"));
}

TEST_F(InstructInterruptedTest, WhatWasAnsweredBeforeAnErrorIsWritten) {
  WritePictures(30);
  ChatServer server([](const Asked& asked) {
    if (asked.number >= 12) return ChatServer::Refuse(402, "no credit");
    return ChatServer::Say(GoodText(asked));
  });
  EXPECT_EQ(Run(Args(server, {"--concurrency", "1"})), 1);
  EXPECT_THAT(said_, HasSubstr("HTTP 402: no credit"));
  EXPECT_EQ(Records().size(), 12u);
  EXPECT_EQ(Report().at("run").at("finished"), false);
}

TEST_F(InstructInterruptedTest, ARunThatLeavesMoreRecordsAloneIsNoSuccess) {
  WritePictures(20);
  std::atomic<bool> worse = false;
  ChatServer server([&worse](const Asked& asked) {
    if (worse && PictureOf(asked) == 3) return ChatServer::Refuse(400, "not this one");
    return ChatServer::Say(GoodText(asked));
  });
  ASSERT_EQ(Run(Args(server)), 0) << said_;
  worse = true;
  EXPECT_EQ(Run(Args(server, {"--temperature", "0.3"})), 1) << said_;
  EXPECT_THAT(said_, HasSubstr("instruct.json has 20 records of an earlier run and is left as it "
                               "is; the 19 of this one, which is not whole, are in "));
  EXPECT_EQ(Records().size(), 20u);
}

TEST_F(InstructInterruptedTest, OneThatWasKilledWhileItWroteGoesOn) {
  WritePictures(5);
  ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
  for (const char* left : {"instruct.json.partial", "instruct.json.partial.part"}) {
    fs::remove_all(out_);
    fs::create_directories(out_);
    Write(std::string("out/") + left, "[\n");
    EXPECT_EQ(Run(Args(server, {"--journal", folder_.At("elsewhere.jsonl")})), 0) << said_;
    EXPECT_EQ(Records().size(), 5u);
  }
}

// Answers that are known come between new ones: the bar tells how far those are.
TEST_F(InstructInterruptedTest, TheBarTellsOfNewAnswers) {
  WritePictures(200);
  Answers answers(kAll);
  ChatServer server(std::ref(answers));
  ASSERT_EQ(Run(Args(server, {"--most-requests", "100"})), 3) << said_;
  answers.SetMost(150);
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_TRUE(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
  const pid_t pid =
      Start(Args(server, {"--seed", "1"}), std::string("exec 2>") + ptsname(terminal) + "; exec");
  std::string shown;
  char byte;
  while (shown.find(" 50/100 (") == shown.npos && read(terminal, &byte, 1) == 1) shown += byte;
  EXPECT_THAT(shown, HasSubstr(" 50/100 ("));
  kill(pid, SIGKILL);
  Wait(pid);
  answers.SetMost(kAll);
  close(terminal);
}

TEST_F(InstructInterruptedTest, AFullDiskIsSaidAndNothingPaidIsLost) {
  WritePictures(40);
  ChatServer server([](const Asked& asked) { return ChatServer::Say(GoodText(asked)); });
  const auto args = Args(server, {"--concurrency", "1"});
  // Files may not grow beyond 8 blocks: what a full disk does, without one.
  EXPECT_EQ(Run(args, "trap '' XFSZ; ulimit -f 8; exec"), 1);
  EXPECT_THAT(said_, HasSubstr("journal.jsonl: cannot be written: File too large"));
  const size_t asked = server.num_asked();
  EXPECT_LT(asked, 40u);
  ASSERT_EQ(Run(args), 0) << said_;
  EXPECT_EQ(server.num_asked(), 41u);  // the one whose answer could not be recorded, again
  EXPECT_EQ(Records().size(), 40u);
}

}  // namespace
}  // namespace llava
