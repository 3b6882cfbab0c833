#include "model/openai/chat_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <deque>
#include <filesystem>
#include <set>

#include "model/progress/stop_request.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// Answers at Wait, one at a time and the latest first, as a script says.
class ScriptedBackend : public ChatBackend {
 public:
  using Script = std::function<ChatResult(const ChatRequest&)>;
  explicit ScriptedBackend(Script script) : script_(std::move(script)) {}

  static ChatResult Say(const ChatRequest& request, const std::string& text) {
    return {.id = request.id,
            .hash = HashOf(request),
            .reply = ChatReply{.text = text, .finish_reason = "stop", .usage = {10, 490}},
            .attempts = 1};
  }

  bool HasRoom() const override { return !winding_down_ && requests_.size() < 3; }
  void Submit(const ChatRequest& request) override {
    requests_.push_back(request);
    asked_.push_back(request.id);
  }
  size_t pending() const override { return requests_.size(); }
  std::vector<ChatResult> Wait(std::chrono::milliseconds) override {
    if (requests_.empty()) return {};
    const ChatRequest request = requests_.back();
    requests_.pop_back();
    return {script_(request)};
  }
  void WindDown() override { winding_down_ = true; }

  const std::vector<std::string>& asked() const { return asked_; }

 private:
  Script script_;
  std::deque<ChatRequest> requests_;
  std::vector<std::string> asked_;
  bool winding_down_ = false;
};

class ChatRunTest : public testing::Test {
 protected:
  static ChatRequest Request(int number) {
    ChatRequest request;
    request.id = "r" + std::to_string(number);
    request.model = "m";
    request.max_tokens = 500;
    request.messages = {{.role = "user", .text = "question " + std::to_string(number)}};
    return request;
  }
  static ChatRun::Next Requests(int count) {
    return [count, next = 0]() mutable -> std::optional<ChatRequest> {
      if (next == count) return std::nullopt;
      return Request(next++);
    };
  }
  ChatRun::Done Note() {
    return [this](const ChatResult& result) {
      EXPECT_TRUE(results_.emplace(result.id, result).second) << result.id << " comes twice";
    };
  }

  const TempFolder folder_;
  const fs::path path_ = folder_.path() / "journal.jsonl";
  std::map<std::string, ChatResult> results_;
};

TEST_F(ChatRunTest, EveryRequestGetsOneResult) {
  ScriptedBackend backend(
      [](const ChatRequest& request) { return ScriptedBackend::Say(request, "to " + request.id); });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {.prices = {.prompt = 2, .completion = 4}});
  EXPECT_EQ(run.Run(Requests(10), Note()), ChatRun::Outcome::kFinished);
  EXPECT_EQ(results_.size(), 10u);
  EXPECT_EQ(results_.at("r7").reply->text, "to r7");
  EXPECT_EQ(run.totals().answered, 10u);
  EXPECT_EQ(run.totals().usage.prompt_tokens, 100u);
  EXPECT_NEAR(run.totals().cost, 0.0198, 1e-9);
  EXPECT_EQ(run.Spent(), "cost 0.02");
}

TEST_F(ChatRunTest, ASecondRunPaysForNothing) {
  for (int round = 0; round < 2; ++round) {
    results_.clear();
    ScriptedBackend backend([](const ChatRequest& request) {
      return ScriptedBackend::Say(request, "to " + request.id);
    });
    ChatJournal journal(path_);
    ChatRun run(backend, journal, {});
    EXPECT_EQ(run.Run(Requests(10), Note()), ChatRun::Outcome::kFinished);
    EXPECT_EQ(results_.size(), 10u);
    EXPECT_EQ(backend.asked().size(), round == 0 ? 10u : 0u);
    EXPECT_EQ(run.totals().known, round == 0 ? 0u : 10u);
    EXPECT_EQ(results_.at("r3").attempts, round == 0 ? 1 : 0);
  }
}

TEST_F(ChatRunTest, TheAnswerIsOnDiskBeforeAnybodySeesIt) {
  ScriptedBackend backend(
      [](const ChatRequest& request) { return ScriptedBackend::Say(request, "x"); });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {});
  run.Run(Requests(5),
          [&](const ChatResult& result) { EXPECT_THAT(ReadBytes(path_), HasSubstr(result.hash)); });
}

TEST_F(ChatRunTest, EqualRequestsArePaidForOnce) {
  ScriptedBackend backend(
      [](const ChatRequest& request) { return ScriptedBackend::Say(request, "x"); });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {});
  int next = 0;
  const auto equal = [&]() -> std::optional<ChatRequest> {
    if (next == 6) return std::nullopt;
    ChatRequest request = Request(0);
    request.id = "twin" + std::to_string(next++);
    return request;
  };
  EXPECT_EQ(run.Run(equal, Note()), ChatRun::Outcome::kFinished);
  EXPECT_EQ(results_.size(), 6u);
  EXPECT_EQ(backend.asked().size(), 1u);
  EXPECT_EQ(run.totals().known, 5u);
  EXPECT_EQ(journal.size(), 1u);
}

TEST_F(ChatRunTest, FailuresAreToldAndAskedAgainNextTime) {
  bool fails = true;
  for (int round = 0; round < 2; ++round) {
    results_.clear();
    ScriptedBackend backend([&](const ChatRequest& request) {
      if (fails && request.id == "r2") {
        return ChatResult{.id = request.id,
                          .hash = HashOf(request),
                          .end = ChatEnd::kFailed,
                          .error = "too long",
                          .attempts = 3};
      }
      return ScriptedBackend::Say(request, "x");
    });
    ChatJournal journal(path_);
    ChatRun run(backend, journal, {});
    EXPECT_EQ(run.Run(Requests(5), Note()), ChatRun::Outcome::kFinished);
    EXPECT_EQ(run.totals().failed, fails ? 1u : 0u);
    EXPECT_EQ(run.totals().repeated, fails ? 2u : 0u);
    EXPECT_EQ(results_.at("r2").error, fails ? "too long" : "");
    fails = false;
  }
}

TEST_F(ChatRunTest, AFatalErrorEndsTheRunButKeepsWhatWasPaidFor) {
  ScriptedBackend backend([](const ChatRequest& request) {
    if (request.id == "r4") {
      return ChatResult{.id = request.id,
                        .hash = HashOf(request),
                        .end = ChatEnd::kFatal,
                        .error = "HTTP 401: wrong key",
                        .attempts = 1};
    }
    return ScriptedBackend::Say(request, "x");
  });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {});
  std::string message;
  try {
    run.Run(Requests(100), Note());
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_EQ(message, "HTTP 401: wrong key");
  EXPECT_EQ(journal.size(), backend.asked().size() - 1);
  EXPECT_LT(backend.asked().size(), 10u);
  EXPECT_FALSE(results_.contains("r4"));
}

TEST_F(ChatRunTest, ARequestThatCannotBeMadeEndsTheRunButKeepsWhatWasPaidFor) {
  ScriptedBackend backend(
      [](const ChatRequest& request) { return ScriptedBackend::Say(request, "x"); });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {});
  int next = 0;
  const auto third_fails = [&]() -> std::optional<ChatRequest> {
    if (next == 2) throw std::runtime_error("no such picture");
    return Request(next++);
  };
  std::string message;
  try {
    run.Run(third_fails, Note());
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_EQ(message, "no such picture");
  EXPECT_EQ(backend.asked().size(), 2u);
  EXPECT_EQ(journal.size(), 2u);
  EXPECT_EQ(results_.size(), 2u);
}

TEST_F(ChatRunTest, ManyFailuresInARowEndTheRun) {
  ScriptedBackend backend([](const ChatRequest& request) {
    return ChatResult{.id = request.id,
                      .hash = HashOf(request),
                      .end = ChatEnd::kFailed,
                      .error = "no connection",
                      .attempts = 6};
  });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {.most_failures_in_a_row = 8});
  std::string message;
  try {
    run.Run(Requests(100), Note());
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_EQ(message, "8 requests failed one after the other, the last with: no connection");
  EXPECT_LE(results_.size(), 11u);
}

TEST_F(ChatRunTest, RefusalsEndTheRunOnlyWhereNothingWasAnswered) {
  const auto refusing = [](int from) {
    return [from](const ChatRequest& request) {
      if (std::stoi(request.id.substr(1)) < from) return ScriptedBackend::Say(request, "x");
      return ChatResult{.id = request.id,
                        .hash = HashOf(request),
                        .end = ChatEnd::kFailed,
                        .error = "HTTP 400: not this one",
                        .attempts = 1,
                        .refused = true};
    };
  };
  // The second run answers nothing: what it has is what the first one was answered.
  for (int round = 0; round < 2; ++round) {
    results_.clear();
    ScriptedBackend backend(refusing(5));
    ChatJournal journal(path_);
    ChatRun run(backend, journal, {.most_failures_in_a_row = 8});
    EXPECT_EQ(run.Run(Requests(50), Note()), ChatRun::Outcome::kFinished);
    EXPECT_EQ(run.totals().failed, 45u);
    EXPECT_EQ(run.totals().answered, round == 0 ? 5u : 0u);
  }
  ScriptedBackend backend(refusing(0));  // as for a wrong name of the model
  ChatJournal journal(folder_.path() / "other.jsonl");
  ChatRun run(backend, journal, {.most_failures_in_a_row = 8});
  results_.clear();
  EXPECT_THROW(run.Run(Requests(50), Note()), std::runtime_error);
}

TEST_F(ChatRunTest, StopsBeforeTheBudgetIsExceeded) {
  const auto answered = [&](const ChatRun::Options& options) {
    fs::remove(path_);
    results_.clear();
    ScriptedBackend backend(
        [](const ChatRequest& request) { return ScriptedBackend::Say(request, "x"); });
    ChatJournal journal(path_);
    ChatRun run(backend, journal, options);
    EXPECT_EQ(run.Run(Requests(100), Note()), ChatRun::Outcome::kBudget);
    EXPECT_EQ(journal.size(), results_.size());
    EXPECT_LE(journal.usage().tokens(), options.most_tokens ? options.most_tokens : 1'000'000);
    EXPECT_LE(journal.cost(), options.most_cost > 0 ? options.most_cost : 1e9);
    return journal.size();
  };
  EXPECT_EQ(answered({.most_requests = 7}), 7u);
  // 500 tokens each, 519 by the estimate before.
  EXPECT_EQ(answered({.most_tokens = 5200}), 10u);
  EXPECT_EQ(answered({.prices = {.prompt = 1000, .completion = 2000}, .most_cost = 5.5}), 5u);
}

TEST_F(ChatRunTest, TheBudgetIsOfWhatIsSent) {
  ScriptedBackend backend([](const ChatRequest& request) {
    ChatResult result = ScriptedBackend::Say(request, "x");
    result.reply->usage = {10, 1800};
    return result;
  });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {.most_tokens = 5700});
  int next = 0;
  const auto longer = [&]() -> std::optional<ChatRequest> {
    ChatRequest request = Request(next++);
    request.extra = {{"max_tokens", nullptr}, {"max_completion_tokens", 900}, {"n", 2}};
    return request;
  };
  EXPECT_EQ(run.Run(longer, Note()), ChatRun::Outcome::kBudget);
  EXPECT_EQ(journal.size(), 3u);
  EXPECT_LE(journal.usage().tokens(), 5700u);
}

TEST_F(ChatRunTest, TheBudgetCountsEarlierRuns) {
  for (int round = 0; round < 2; ++round) {
    results_.clear();
    ScriptedBackend backend(
        [](const ChatRequest& request) { return ScriptedBackend::Say(request, "x"); });
    ChatJournal journal(path_);
    ChatRun run(backend, journal, {.most_requests = 5});
    EXPECT_EQ(run.Run(Requests(10), Note()), ChatRun::Outcome::kBudget);
    EXPECT_EQ(results_.size(), 5u);
    EXPECT_EQ(backend.asked().size(), round == 0 ? 5u : 0u);
  }
}

TEST_F(ChatRunTest, TheCostCountsWhatWasBoughtBeforeThePricesWereTold) {
  ScriptedBackend backend(
      [](const ChatRequest& request) { return ScriptedBackend::Say(request, "x"); });
  const ChatRun::Options priced = {.prices = {.prompt = 1000, .completion = 2000},
                                   .most_cost = 5.5};
  // In the same process, and from the file.
  std::optional<ChatJournal> journal(std::in_place, path_);
  ChatRun(backend, *journal, {}).Run(Requests(5), Note());
  for (int round = 0; round < 2; ++round) {
    results_.clear();
    ScriptedBackend none([](const ChatRequest& request) -> ChatResult {
      ADD_FAILURE() << request.id << " is asked";
      return ScriptedBackend::Say(request, "x");
    });
    ChatRun run(none, *journal, priced);
    EXPECT_EQ(run.Run(Requests(10), Note()), ChatRun::Outcome::kBudget);
    EXPECT_EQ(results_.size(), 5u);
    EXPECT_EQ(run.Spent(), "cost 4.95 of 5.50");
    EXPECT_DOUBLE_EQ(journal->cost(), 0);
    journal.reset();
    journal.emplace(path_);
  }
  // What was recorded with a cost keeps it.
  ChatRun more(backend, *journal, {.prices = {.prompt = 1000, .completion = 2000}});
  results_.clear();
  more.Run(Requests(6), Note());
  EXPECT_NEAR(CostOf(*journal, {.prompt = 2000, .completion = 4000}), 0.99 + 5 * 1.98, 1e-9);
}

TEST_F(ChatRunTest, ALimitOfTheCostNeedsPrices) {
  ScriptedBackend backend(
      [](const ChatRequest& request) { return ScriptedBackend::Say(request, "x"); });
  ChatJournal journal(path_);
  EXPECT_THROW(ChatRun(backend, journal, {.most_cost = 5}), std::invalid_argument);
}

TEST_F(ChatRunTest, CtrlCWaitsForWhatIsOnTheWire) {
  const StopRequest stop;
  ScriptedBackend backend([](const ChatRequest& request) {
    if (request.id == "r5") raise(SIGINT);
    return ScriptedBackend::Say(request, "x");
  });
  ChatJournal journal(path_);
  ChatRun run(backend, journal, {});
  EXPECT_EQ(run.Run(Requests(100), Note()), ChatRun::Outcome::kStopped);
  EXPECT_EQ(journal.size(), backend.asked().size());  // nothing that was sent is lost
  EXPECT_LT(backend.asked().size(), 10u);
}

}  // namespace
}  // namespace llava
