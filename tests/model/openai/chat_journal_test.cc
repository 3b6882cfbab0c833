#include "model/openai/chat_journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "model/openai/replay.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class ChatJournalTest : public testing::Test {
 protected:
  static ChatRequest Request(int number) {
    ChatRequest request;
    request.id = "r" + std::to_string(number);
    request.model = "m";
    request.messages = {{.role = "user", .text = "question " + std::to_string(number)}};
    return request;
  }
  static ChatResult Answer(int number, const std::string& text) {
    const ChatRequest request = Request(number);
    return {.id = request.id,
            .hash = HashOf(request),
            .reply = ChatReply{.text = text, .finish_reason = "stop", .usage = {10, 5}},
            .attempts = 1};
  }
  static void Append(ChatJournal& journal, int number, const std::string& text) {
    const ChatResult result = Answer(number, text);
    const double cost = 0.5;
    journal.Append({&result, 1}, {&cost, 1});
  }
  std::string Text() const { return ReadBytes(path_); }
  void Write(const std::string& text) const { WriteBytes(path_, text); }
  std::string Error() const {
    return ErrorOf<std::runtime_error>([&] { ChatJournal journal(path_); });
  }

  const TempFolder folder_;
  const fs::path path_ = folder_.path() / "journal.jsonl";
};

TEST_F(ChatJournalTest, KnowsAfterwardsWhatWasRecorded) {
  {
    ChatJournal journal(path_);
    EXPECT_EQ(journal.size(), 0u);
    Append(journal, 1, "one\nand \"more\" \xC3\xA4");
    Append(journal, 2, "two");
    EXPECT_EQ(journal.Find(HashOf(Request(1)))->reply.text, "one\nand \"more\" \xC3\xA4");
  }
  const ChatJournal journal(path_);
  EXPECT_EQ(journal.size(), 2u);
  EXPECT_EQ(journal.usage().prompt_tokens, 20u);
  EXPECT_EQ(journal.usage().completion_tokens, 10u);
  EXPECT_DOUBLE_EQ(journal.cost(), 1);
  EXPECT_EQ(journal.dropped_bytes(), 0u);
  const auto entry = journal.Find(HashOf(Request(1)));
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->reply.text, "one\nand \"more\" \xC3\xA4");
  EXPECT_EQ(entry->reply.finish_reason, "stop");
  EXPECT_DOUBLE_EQ(entry->cost, 0.5);
  EXPECT_FALSE(journal.Find(HashOf(Request(3))));
}

// Of a journal from before the client refused them.
TEST_F(ChatJournalTest, WhatAServerBrokeOffIsPaidForAndAskedAnew) {
  for (const char* reason : {"abort", "error"}) {
    fs::remove(path_);
    Write("{\"request\": \"" + HashOf(Request(1)) +
          "\", \"text\": \"The dog s\", \"finish_reason\": \"" + reason +
          "\", \"prompt_tokens\": 10, \"completion_tokens\": 5, \"cost\": 0.5}\n");
    ReplayBackend broken(path_);
    broken.Submit(Request(1));
    EXPECT_EQ(broken.Wait(std::chrono::milliseconds(0)).at(0).end, ChatEnd::kFailed);
    {
      ChatJournal journal(path_);
      EXPECT_FALSE(journal.Holds(HashOf(Request(1))));
      EXPECT_EQ(journal.usage().tokens(), 15u);
      EXPECT_DOUBLE_EQ(journal.cost(), 0.5);
      Append(journal, 1, "The dog sits.");
    }
    EXPECT_EQ(ChatJournal(path_).Find(HashOf(Request(1)))->reply.text, "The dog sits.");
    ReplayBackend whole(path_);
    whole.Submit(Request(1));
    EXPECT_EQ(whole.Wait(std::chrono::milliseconds(0)).at(0).reply->text, "The dog sits.");
  }
}

TEST_F(ChatJournalTest, ATornLastLineIsDropped) {
  {
    ChatJournal journal(path_);
    for (int i = 0; i < 3; ++i) Append(journal, i, "text " + std::to_string(i));
  }
  const std::string whole = Text();
  const size_t second_end = whole.find('\n', whole.find('\n') + 1) + 1;
  for (size_t size = second_end; size < whole.size(); ++size) {
    Write(whole.substr(0, size));
    ChatJournal journal(path_);
    EXPECT_EQ(journal.size(), 2u) << size;
    EXPECT_EQ(journal.dropped_bytes(), size - second_end);
    Append(journal, 2, "text 2");
    EXPECT_EQ(Text(), whole);
  }
}

TEST_F(ChatJournalTest, ALastLineOfZerosIsTorn) {
  {
    ChatJournal journal(path_);
    Append(journal, 1, "one");
  }
  const std::string whole = Text();
  for (const std::string& tail :
       {std::string(300, '\0'), std::string(300, '\0') + "\n", std::string("{\"request\": 5}\n")}) {
    Write(whole + tail);
    const ChatJournal journal(path_);
    EXPECT_EQ(journal.size(), 1u);
    EXPECT_EQ(Text(), whole);
  }
}

// Several answers come with one write, and a disk may be late with any part of it.
TEST_F(ChatJournalTest, AHoleBetweenAnswersLosesOnlyThose) {
  {
    ChatJournal journal(path_);
    for (int i = 0; i < 4; ++i) Append(journal, i, "text " + std::to_string(i));
  }
  const std::string whole = Text();
  const size_t second = whole.find('\n') + 1, third = whole.find('\n', second) + 1;
  for (const size_t size : {third - second - 30, third - second + 20}) {  // of the second; beyond
    std::string holed = whole;
    holed.replace(second + 10, size, std::string(size, '\0'));
    Write(holed);
    ChatJournal journal(path_);
    EXPECT_TRUE(journal.Holds(HashOf(Request(0))));
    EXPECT_FALSE(journal.Holds(HashOf(Request(1))));
    EXPECT_EQ(journal.Holds(HashOf(Request(2))), size < third - second);
    EXPECT_EQ(journal.Find(HashOf(Request(3)))->reply.text, "text 3");
    EXPECT_EQ(Text(), holed);
    Append(journal, 1, "text 1");
    EXPECT_EQ(ReplayBackend(path_).pending(), 0u);  // can be read
  }
  // Zeros at the end are dropped with what is behind them.
  Write(whole + "{\"request\":\"" + std::string(300, '\0') + "\n" + whole.substr(0, 20));
  ChatJournal journal(path_);
  EXPECT_EQ(journal.size(), 4u);
  EXPECT_EQ(Text(), whole);
  // What is no journal is left alone, whatever its end looks like.
  const std::string foreign = std::string("my notes\0\n", 10) + whole.substr(0, 20);
  fs::remove(path_);
  Write(foreign);
  EXPECT_THAT(Error(), HasSubstr("is no journal"));
  EXPECT_EQ(Text(), foreign);
}

TEST_F(ChatJournalTest, ABrokenLineBeforeTheLastIsNamed) {
  {
    ChatJournal journal(path_);
    Append(journal, 1, "one");
  }
  const std::string line = Text();
  Write(line + "{\"oops\n" + line);
  EXPECT_THAT(Error(), HasSubstr(path_.string() + ":2: "));
  Write(line + "{\"oops\n" + line.substr(0, 20));
  EXPECT_THAT(Error(), HasSubstr(path_.string() + ":2: "));
  Write(line + line.substr(0, line.size() - 1) + "x\n" + line);
  EXPECT_THAT(Error(), HasSubstr(path_.string() + ":2: "));
  Write("{\"id\": \"a\", \"text\": \"b\"}\n" + line);  // no hash
  EXPECT_THAT(Error(), HasSubstr(path_.string() + ":1: "));
}

TEST_F(ChatJournalTest, AnotherKindOfFileKeepsItsContent) {
  {
    ChatJournal journal(path_);
    Append(journal, 1, "one");
  }
  const std::string line = Text();
  for (size_t size = 0; size < line.size(); ++size) {
    Write(line.substr(0, size));
    EXPECT_EQ(ChatJournal(path_).size(), 0u);
    EXPECT_EQ(Text(), "");
  }
  for (const std::string& text :
       {std::string("my notes"), std::string("my notes\n"), std::string("[1, 2]"),
        std::string("{\"id\": \"a\"}"), std::string("{\"id\": \"a\", \"text\": \"b\"}\n")}) {
    Write(text);
    EXPECT_THAT(Error(), HasSubstr(path_.string() + ": is no journal")) << text;
    EXPECT_EQ(Text(), text);
  }
}

TEST_F(ChatJournalTest, IsLockedAgainstOthers) {
  const ChatJournal journal(path_);
  EXPECT_THAT(Error(), HasSubstr("another program"));
}

TEST_F(ChatJournalTest, SaysWhyItCannotBeOpened) {
  EXPECT_THROW(ChatJournal(folder_.path() / "no" / "folder.jsonl"), std::runtime_error);
  EXPECT_THROW(ChatJournal("/dev/null"), std::runtime_error);
}

// A file that may not grow stands for a full disk: the same errors at the same place.
TEST_F(ChatJournalTest, AFullDiskLosesNothingThatWasRecorded) {
  ChatJournal journal(path_);
  Append(journal, 1, "one");
  const std::string before = Text();
  rlimit old_limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {.rlim_cur = before.size() + 50, .rlim_max = old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::string message;
  try {
    Append(journal, 2, "two");
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  signal(SIGXFSZ, SIG_DFL);
  EXPECT_THAT(message, HasSubstr(path_.string()));
  EXPECT_THAT(message, HasSubstr("File too large"));
  EXPECT_EQ(Text(), before);
  EXPECT_FALSE(journal.Holds(HashOf(Request(2))));
  Append(journal, 2, "two");  // there is room again
  EXPECT_EQ(journal.Find(HashOf(Request(2)))->reply.text, "two");
}

TEST_F(ChatJournalTest, SurvivesKill9AtAnyMoment) {
  size_t recorded = 0;
  for (int round = 0; round < 10; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {  // tells each number after it has been recorded
      ChatJournal journal(path_);
      for (int i = static_cast<int>(journal.size());; ++i) {
        Append(journal, i, std::string(20'000, 'a'));
        if (write(ends[1], &i, sizeof(i)) != sizeof(i)) _exit(1);
      }
    }
    close(ends[1]);
    int last = -1;
    for (int i = 0; i < 3 + round; ++i) {
      ASSERT_EQ(read(ends[0], &last, sizeof(last)), static_cast<ssize_t>(sizeof(last)));
    }
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    while (read(ends[0], &last, sizeof(last)) == sizeof(last)) {
    }
    close(ends[0]);
    const ChatJournal journal(path_);
    recorded = static_cast<size_t>(last) + 1;
    EXPECT_GE(journal.size(), recorded);
    EXPECT_LE(journal.size(), recorded + 1);  // it may have died before it could tell
    for (size_t i = 0; i < recorded; ++i) {
      EXPECT_TRUE(journal.Holds(HashOf(Request(static_cast<int>(i)))));
    }
  }
  EXPECT_GT(recorded, 60u);
}

TEST_F(ChatJournalTest, CanBeReplayed) {
  {
    ChatJournal journal(path_);
    Append(journal, 1, "one");
  }
  ReplayBackend replay(path_);
  replay.Submit(Request(1));
  replay.Submit(Request(2));
  EXPECT_EQ(replay.pending(), 2u);
  const auto results = replay.Wait(std::chrono::milliseconds(0));
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].reply->text, "one");
  EXPECT_EQ(results[1].end, ChatEnd::kFailed);
  EXPECT_THAT(results[1].error, HasSubstr("no answer for r2"));
  EXPECT_EQ(replay.pending(), 0u);
}

TEST_F(ChatJournalTest, ReplayFilesNameRequestsByHashOrId) {
  Write("{\"id\": \"r1\", \"text\": \"by id\"}\n\n{\"request\": \"" + HashOf(Request(2)) +
        "\", \"text\": \"by hash\", \"finish_reason\": \"length\"}\n");
  ReplayBackend replay(path_);
  replay.Submit(Request(1));
  replay.Submit(Request(2));
  replay.Submit(Request(3));
  const auto results = replay.Wait(std::chrono::milliseconds(0));
  EXPECT_EQ(results.at(0).reply->text, "by id");
  EXPECT_EQ(results.at(1).reply->text, "by hash");
  EXPECT_EQ(results.at(1).reply->finish_reason, "length");
  EXPECT_EQ(results.at(2).end, ChatEnd::kFailed);
}

TEST_F(ChatJournalTest, BrokenReplayFilesAreNamedWithTheLine) {
  for (const std::string& line :
       {std::string("nonsense"), std::string("[]"), std::string("{\"id\": \"a\"}"),
        std::string("{\"text\": \"a\"}"), std::string("{\"id\": 5, \"text\": \"a\"}"),
        std::string("{\"id\": \"r1\", \"text\": \"differs\"}"),
        std::string("{\"id\": \"a\", \"text\": \"b\", \"prompt_tokens\": -1}")}) {
    Write("{\"id\": \"r1\", \"text\": \"x\"}\n" + line + "\n");
    std::string message;
    try {
      ReplayBackend replay(path_);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    EXPECT_THAT(message, HasSubstr(path_.string() + ":2: ")) << line;
  }
  EXPECT_THROW(ReplayBackend(folder_.path() / "none"), std::invalid_argument);
}

}  // namespace
}  // namespace llava
