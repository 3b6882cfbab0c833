// What every ConversationStore must hold. Each runs on all implementations.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <thread>

#include "server/gateway/session_store.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct Implementation {
  std::string name;
  // Opens what is in the folder; null when that fails.
  std::function<std::unique_ptr<ConversationStore>(const std::string&, GatewayMetrics&,
                                                   StoreTables::Limits)>
      open;
};

class StoreConformance : public testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override { Open(); }

  // Also what a new process finds.
  void Open(StoreTables::Limits limits = {}) {
    store_.reset();
    store_ = GetParam().open(folder_.path(), gateway_metrics_, limits);
    ASSERT_TRUE(store_);
  }

  template <typename Result>
  static Result Await(const std::function<void(std::function<void(Result)>)>& request) {
    std::promise<Result> result;
    request([&](Result value) { result.set_value(std::move(value)); });
    return result.get_future().get();
  }

  absl::Status Create(const std::string& id, const std::string& title = "") {
    v1::Session session;
    session.set_id(id);
    session.set_title(title);
    return Await<absl::StatusOr<v1::Session>>(
               [&](auto done) { store_->CreateSession(session, done); })
        .status();
  }
  absl::StatusOr<v1::Session> Get(const std::string& id) {
    return Await<absl::StatusOr<v1::Session>>([&](auto done) { store_->GetSession(id, done); });
  }
  absl::Status Delete(const std::string& id) { return Removed(id).status(); }
  absl::StatusOr<llava::Removed> Removed(const std::string& id) {
    return Await<absl::StatusOr<llava::Removed>>(
        [&](auto done) { store_->DeleteSession(id, done); });
  }
  absl::StatusOr<SessionPage> List(uint32_t size, const std::string& token) {
    return Await<absl::StatusOr<SessionPage>>(
        [&](auto done) { store_->ListSessions(std::nullopt, size, token, done); });
  }
  absl::StatusOr<std::string> FindRequest(const std::string& session, const RequestKey& request) {
    return Await<absl::StatusOr<std::string>>(
        [&](auto done) { store_->FindRequest(session, request, done); });
  }
  absl::StatusOr<uint32_t> Begin(const std::string& session, const std::string& turn,
                                 const RequestKey& request = {},
                                 const std::vector<StoredImage>& images = {},
                                 const TurnTerms& terms = {},
                                 const std::vector<std::string>& dropped = {}) {
    NewTurn record;
    record.id = turn;
    record.session_id = session;
    record.user_text = "about " + turn;
    record.images = images;
    record.seed = 0xffff'ffff'ffff'fff0;
    record.sampling.set_max_new_tokens(77);
    record.request = request;
    record.terms = terms;
    record.dropped_turns = dropped;
    return Await<absl::StatusOr<uint32_t>>([&](auto done) { store_->BeginTurn(record, done); });
  }
  absl::StatusOr<uint32_t> Restart(const std::string& session, const std::string& id,
                                   uint64_t seed = 0, std::vector<uint64_t> taken_up = {}) {
    NewTurn turn;
    turn.id = id;
    turn.session_id = session;
    turn.seed = seed;
    turn.taken_up = std::move(taken_up);
    return Await<absl::StatusOr<uint32_t>>([&](auto done) { store_->RestartTurn(turn, done); });
  }
  absl::Status Finish(const std::string& session, const std::string& turn, const std::string& text,
                      v1::FinishReason reason = v1::FINISH_REASON_STOP) {
    TurnResult result;
    result.session_id = session;
    result.turn_id = turn;
    result.state =
        reason == v1::FINISH_REASON_STOP ? v1::TURN_STATE_FINISHED : v1::TURN_STATE_FAILED;
    result.reason = reason;
    if (reason == v1::FINISH_REASON_ERROR) result.error_code = absl::StatusCode::kInternal;
    result.error_message = "why";
    result.answer_text = text;
    result.taken_up = {3, 1};
    result.tokens.set_tokenizer_digest(std::string("\0d", 2));
    for (const int id : {1, -2, 70'000}) result.tokens.add_ids(id);
    result.usage.set_generated_tokens(3);
    result.timings.set_total_seconds(0.5);
    result.model.set_name("emoji");
    result.model.set_version(2);
    return Await<absl::Status>([&](auto done) { store_->FinishTurn(result, done); });
  }
  absl::StatusOr<Conversation> Read(const std::string& session, const RequestKey& request = {}) {
    return Await<absl::StatusOr<Conversation>>(
        [&](auto done) { store_->GetConversation(session, request, done); });
  }
  absl::StatusOr<StoredTurn> Turn(const std::string& session, const std::string& turn) {
    return Await<absl::StatusOr<StoredTurn>>(
        [&](auto done) { store_->GetTurn(session, turn, done); });
  }
  static StoredImage Image(char letter) {
    StoredImage image;
    image.info.set_id(std::string(64, letter));
    image.info.set_format("bmp");
    image.info.set_width(3);
    image.bytes = std::make_shared<const std::string>("bytes of " + std::string(1, letter));
    return image;
  }
  absl::Status AddImage(const std::string& session, char letter) {
    return Await<absl::Status>([&](auto done) { store_->AddImage(session, Image(letter), done); });
  }
  absl::StatusOr<std::string> ReadImage(char letter) {
    return Await<absl::StatusOr<std::string>>(
        [&](auto done) { store_->ReadImage(std::string(64, letter), done); });
  }

  TempFolder folder_;
  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  std::unique_ptr<ConversationStore> store_;
};

TEST_P(StoreConformance, SessionsAreKeptAndChanged) {
  v1::Session session;
  session.set_id("s");
  session.set_model("emoji");
  session.set_system_prompt("");
  session.set_title("a title");
  (*session.mutable_metadata())["key"] = "value";
  session.mutable_sampling()->set_temperature(0.5F);
  session.mutable_idle_expiry()->set_seconds(90);
  session.set_context_overflow(v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS);
  ASSERT_TRUE(Await<absl::StatusOr<v1::Session>>([&](auto done) {
                store_->CreateSession(session, done);
              }).ok());
  Open();
  v1::Session stored = *Get("s");
  EXPECT_TRUE(stored.has_create_time());
  EXPECT_TRUE(stored.has_last_used_time());
  stored.clear_create_time();
  stored.clear_last_used_time();
  EXPECT_EQ(stored.DebugString(), session.DebugString());

  v1::Session changes;
  changes.set_id("s");
  changes.set_title("another");
  google::protobuf::FieldMask mask;
  for (const char* path : {"title", "system_prompt", "idle_expiry"}) mask.add_paths(path);
  ASSERT_TRUE(Await<absl::StatusOr<v1::Session>>([&](auto done) {
                store_->UpdateSession(changes, mask, done);
              }).ok());
  Open();
  stored = *Get("s");
  EXPECT_EQ(stored.title(), "another");
  EXPECT_FALSE(stored.has_system_prompt());
  EXPECT_FALSE(stored.has_idle_expiry());
  EXPECT_EQ(stored.metadata().at("key"), "value") << "what the mask does not name stays";
}

TEST_P(StoreConformance, SessionsComeInPagesLastUsedFirst) {
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(Create(id).ok());
  ASSERT_TRUE(Begin("a", "t").ok());
  const auto first = List(2, "");
  ASSERT_EQ(first->sessions.size(), 2U);
  EXPECT_EQ(first->sessions[0].id(), "a");
  const auto second = List(2, first->next_page_token);
  ASSERT_EQ(second->sessions.size(), 1U);
  EXPECT_THAT(second->next_page_token, IsEmpty());
  EXPECT_EQ(List(2, "nonsense").status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(AddImage("b", 'p').ok());
  EXPECT_EQ(List(2, "")->sessions[0].id(), "b") << "a picture is a use as well";
}

TEST_P(StoreConformance, TurnsAreNumberedAndKept) {
  ASSERT_TRUE(Create("s").ok());
  EXPECT_EQ(*Begin("s", "t"), 1U);
  ASSERT_TRUE(Finish("s", "t", std::string("a\0b", 3)).ok());
  EXPECT_EQ(*Begin("s", "u", {}, {Image('a')}), 2U);
  ASSERT_TRUE(Finish("s", "u", "part", v1::FINISH_REASON_ERROR).ok());
  Open();
  const auto conversation = Read("s");
  ASSERT_EQ(conversation->turns.size(), 2U);
  const StoredTurn& first = conversation->turns[0];
  EXPECT_EQ(first.turn.user_text(), "about t");
  EXPECT_EQ(first.turn.answer_text(), std::string("a\0b", 3));
  EXPECT_EQ(first.turn.state(), v1::TURN_STATE_FINISHED);
  EXPECT_EQ(first.turn.seed(), 0xffff'ffff'ffff'fff0);
  EXPECT_EQ(first.turn.model().version(), 2U);
  EXPECT_EQ(first.turn.usage().generated_tokens(), 3U);
  EXPECT_EQ(first.turn.timings().total_seconds(), 0.5);
  EXPECT_GE(first.turn.finish_time().seconds(), first.turn.create_time().seconds());
  EXPECT_THAT(first.tokens.ids(), ElementsAre(1, -2, 70'000));
  EXPECT_EQ(first.tokens.tokenizer_digest(), std::string("\0d", 2));
  EXPECT_THAT(first.taken_up, ElementsAre(3, 1));
  const StoredTurn second = *Turn("s", "u");
  EXPECT_EQ(second.turn.state(), v1::TURN_STATE_FAILED);
  EXPECT_EQ(second.error_code, absl::StatusCode::kInternal);
  EXPECT_EQ(second.turn.error_message(), "why");
  ASSERT_EQ(second.turn.images_size(), 1);
  EXPECT_EQ(second.turn.images(0).width(), 3U);
  EXPECT_EQ(Get("s")->turn_count(), 2U);
}

TEST_P(StoreConformance, ATurnMadeAnewIsEmptyAgain) {
  ASSERT_TRUE(Create("s").ok());
  ASSERT_TRUE(Begin("s", "t").ok());
  ASSERT_TRUE(Finish("s", "t", "old", v1::FINISH_REASON_ERROR).ok());
  const auto again = Restart("s", "t", 5, {3, 1, 0});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, 1U);
  const StoredTurn stored = *Turn("s", "t");
  EXPECT_EQ(stored.turn.state(), v1::TURN_STATE_RUNNING);
  EXPECT_EQ(stored.turn.seed(), 5U);
  EXPECT_EQ(stored.turn.user_text(), "about t");
  EXPECT_THAT(stored.turn.answer_text(), IsEmpty());
  EXPECT_THAT(stored.turn.error_message(), IsEmpty());
  EXPECT_EQ(stored.error_code, absl::StatusCode::kOk);
  EXPECT_EQ(stored.tokens.ids_size(), 0);
  EXPECT_THAT(stored.taken_up, ElementsAre(3, 1, 0));
}

TEST_P(StoreConformance, DroppedTurnsAreMarked) {
  ASSERT_TRUE(Create("s").ok());
  ASSERT_TRUE(Begin("s", "t").ok());
  ASSERT_TRUE(Finish("s", "t", "x").ok());
  ASSERT_TRUE(Begin("s", "u", {}, {}, {}, {"t"}).ok());
  EXPECT_TRUE(Turn("s", "t")->turn.dropped_from_context());
  EXPECT_FALSE(Turn("s", "u")->turn.dropped_from_context());
}

TEST_P(StoreConformance, TurnsLeftRunningAreToldToTheNextProcess) {
  EXPECT_THAT(store_->TakeUnfinished(), IsEmpty());
  ASSERT_TRUE(Create("s").ok());
  ASSERT_TRUE(Begin("s", "t").ok());
  ASSERT_TRUE(Finish("s", "t", "x").ok());
  ASSERT_TRUE(Begin("s", "u", {"key", "hash"}).ok());
  Open();
  const auto unfinished = store_->TakeUnfinished();
  ASSERT_EQ(unfinished.size(), 1U);
  EXPECT_EQ(unfinished[0].session_id, "s");
  EXPECT_EQ(unfinished[0].turn_id, "u");
  EXPECT_EQ(unfinished[0].number, 2U);
  EXPECT_EQ(unfinished[0].sampling.seed(), 0xffff'ffff'ffff'fff0);
  EXPECT_EQ(unfinished[0].sampling.max_new_tokens(), 77U);
  EXPECT_EQ(unfinished[0].request.key, "key");
  EXPECT_EQ(unfinished[0].request.hash, "hash");
  EXPECT_EQ(Turn("s", "u")->turn.state(), v1::TURN_STATE_RUNNING);
}

TEST_P(StoreConformance, TermsOfARunningTurnAreKeptUntilItsEnd) {
  using std::chrono::seconds;
  for (const char* id : {"s", "r"}) ASSERT_TRUE(Create(id).ok());
  const TurnTerms::Time asked{seconds(1'700'000'000)};
  const TurnTerms terms{.key_name = "ann",
                        .weight = 3,
                        .priority = -2,
                        .tokens = 1234,
                        .asked = asked,
                        .deadline = asked + seconds(60)};
  ASSERT_TRUE(Begin("s", "t", {}, {}, terms).ok());
  TurnTerms plain;
  plain.asked = asked - seconds(5);
  ASSERT_TRUE(Begin("r", "u", {}, {}, plain).ok());
  const auto note = [&](const std::string& turn) {
    return Await<absl::Status>([&](auto done) { store_->NoteTries("s", turn, 2, {7, 7}, done); });
  };
  EXPECT_TRUE(note("t").ok());
  EXPECT_TRUE(note("unknown").ok());
  Open();
  const auto unfinished = store_->TakeUnfinished();
  ASSERT_EQ(unfinished.size(), 2U);
  EXPECT_EQ(unfinished[0].turn_id, "u") << "asked first";
  EXPECT_EQ(unfinished[0].tries, 0U);
  EXPECT_EQ(unfinished[0].terms.key_name, "");
  EXPECT_EQ(unfinished[0].terms.deadline, TurnTerms::Time::max());
  EXPECT_EQ(unfinished[1].tries, 2U);
  EXPECT_THAT(unfinished[1].taken_up, ElementsAre(7, 7));
  EXPECT_EQ(unfinished[1].terms.key_name, "ann");
  EXPECT_EQ(unfinished[1].terms.weight, 3U);
  EXPECT_EQ(unfinished[1].terms.priority, -2);
  EXPECT_EQ(unfinished[1].terms.tokens, 1234U);
  EXPECT_EQ(unfinished[1].terms.asked, asked);
  EXPECT_EQ(unfinished[1].terms.deadline, asked + seconds(60));
  ASSERT_TRUE(Finish("s", "t", "x").ok());
  EXPECT_TRUE(note("t").ok()) << "it has ended";
  EXPECT_THAT(Turn("s", "t")->taken_up, ElementsAre(3, 1));
  ASSERT_TRUE(Delete("r").ok());
  ASSERT_TRUE(Restart("s", "t").ok());
  Open();
  const auto anew = store_->TakeUnfinished();
  ASSERT_EQ(anew.size(), 1U);
  EXPECT_EQ(anew[0].terms.key_name, "") << "of the run that counts";
  EXPECT_EQ(anew[0].tries, 0U);
}

TEST_P(StoreConformance, ARequestIsKnownAgainByItsKey) {
  for (const char* id : {"s", "r"}) ASSERT_TRUE(Create(id).ok());
  const RequestKey key{"key", "hash"};
  ASSERT_TRUE(Begin("s", "t", key).ok());
  Open();
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "t");
  EXPECT_EQ(*FindRequest("s", key), "t");
  EXPECT_EQ(*FindRequest("r", key), "");
  EXPECT_EQ(FindRequest("s", {"key", "changed"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read("s")->repeated_turn_id, "");
  EXPECT_EQ(Read("s", {"other", "hash"})->repeated_turn_id, "");
  EXPECT_EQ(Read("r", key)->repeated_turn_id, "") << "keys belong to their session";
  const auto other = Read("s", {"key", "changed"});
  EXPECT_EQ(other.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("turn t"));
  ASSERT_TRUE(Finish("s", "t", "x", v1::FINISH_REASON_ERROR).ok());
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "t") << "some of it was told";
  ASSERT_TRUE(Finish("s", "t", "", v1::FINISH_REASON_CANCELLED).ok());
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "t");
  ASSERT_TRUE(Finish("s", "t", "", v1::FINISH_REASON_ERROR).ok());
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "") << "nothing was told: it may be asked again";
}

TEST_P(StoreConformance, SessionsHaveTheirLimits) {
  Open({.turns_per_session = 2, .images_per_session = 1});
  ASSERT_TRUE(Create("s").ok());
  ASSERT_TRUE(Begin("s", "t").ok());
  ASSERT_TRUE(Begin("s", "u").ok());
  const auto third = Begin("s", "v");
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("allowed are 2"));
  EXPECT_TRUE(AddImage("s", 'a').ok());
  EXPECT_TRUE(AddImage("s", 'a').ok()) << "the same one again";
  EXPECT_EQ(AddImage("s", 'b').code(), absl::StatusCode::kResourceExhausted);
}

TEST_P(StoreConformance, ARequestThatFailsChangesNothing) {
  ASSERT_TRUE(Create("s").ok());
  StoredImage unknown;
  unknown.info.set_id("unknown");
  std::promise<absl::Status> failed;
  NewTurn record;
  record.id = "t";
  record.session_id = "s";
  record.images.push_back(unknown);
  store_->BeginTurn(record, [&](auto turn) { failed.set_value(turn.status()); });
  ASSERT_TRUE(Begin("s", "u").ok());
  EXPECT_EQ(failed.get_future().get().code(), absl::StatusCode::kNotFound);
  const auto conversation = Read("s");
  ASSERT_EQ(conversation->turns.size(), 1U);
  EXPECT_EQ(conversation->turns[0].turn.id(), "u");
  EXPECT_EQ(conversation->turns[0].turn.number(), 1U);
}

TEST_P(StoreConformance, PicturesAreSharedAndGoWithTheirLastSession) {
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(Create(id).ok());
    ASSERT_TRUE(AddImage(id, 'p').ok());
  }
  EXPECT_THAT(Read("a")->images, ElementsAre(std::string(64, 'p')));
  ASSERT_TRUE(Delete("a").ok());
  Open();
  EXPECT_EQ(*ReadImage('p'), "bytes of p");
  ASSERT_TRUE(Delete("b").ok());
  EXPECT_FALSE(ReadImage('p').ok());
}

TEST_P(StoreConformance, WhatIsNotThereIsNamed) {
  ASSERT_TRUE(Create("s").ok());
  const auto missing = [](const auto& result, const std::string& part) {
    if constexpr (requires { result.status(); }) {
      EXPECT_EQ(result.status().code(), absl::StatusCode::kNotFound) << result.status();
      EXPECT_THAT(std::string(result.status().message()), HasSubstr(part));
    } else {
      EXPECT_EQ(result.code(), absl::StatusCode::kNotFound) << result;
      EXPECT_THAT(std::string(result.message()), HasSubstr(part));
    }
  };
  missing(Get("x"), "\"x\"");
  missing(Delete("x"), "\"x\"");
  missing(Read("x"), "\"x\"");
  missing(Begin("x", "t"), "\"x\"");
  missing(AddImage("x", 'a'), "\"x\"");
  missing(Turn("x", "t"), "\"x\"");
  missing(Turn("s", "t"), "\"t\"");
  EXPECT_TRUE(Finish("x", "t", "late").ok()) << "its session was deleted meanwhile";
}

TEST_P(StoreConformance, ManyAtATime) {
  constexpr int kThreads = 8, kTurns = 20;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      const std::string session = std::to_string(t);
      EXPECT_TRUE(Create(session).ok());
      for (int i = 0; i < kTurns; ++i) {
        const std::string turn = session + "." + std::to_string(i);
        EXPECT_EQ(*Begin(session, turn), i + 1U);
        EXPECT_TRUE(Finish(session, turn, "answer " + turn).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Open();
  for (int t = 0; t < kThreads; ++t) {
    const auto conversation = Read(std::to_string(t));
    ASSERT_EQ(conversation->turns.size(), static_cast<size_t>(kTurns));
    for (const StoredTurn& stored : conversation->turns) {
      EXPECT_EQ(stored.turn.answer_text(), "answer " + stored.turn.id());
    }
  }
}

TEST_P(StoreConformance, AConversationHasTheTextsOfItsPrompt) {
  ASSERT_TRUE(Create("s").ok());
  for (const char* turn : {"answered", "failed", "running", "last"}) {
    ASSERT_TRUE(Begin("s", turn).ok());
  }
  ASSERT_TRUE(Finish("s", "answered", "text").ok());
  ASSERT_TRUE(Finish("s", "failed", "", v1::FINISH_REASON_ERROR).ok());
  ASSERT_TRUE(Finish("s", "last", "", v1::FINISH_REASON_ERROR).ok());
  auto conversation = Read("s");
  ASSERT_TRUE(conversation.ok()) << conversation.status();
  ASSERT_EQ(conversation->turns.size(), 4U);
  EXPECT_EQ(conversation->turns[0].turn.user_text(), "about answered");
  EXPECT_EQ(conversation->turns[1].turn.user_text(), "") << "no prompt has it";
  EXPECT_EQ(conversation->turns[2].turn.user_text(), "about running") << "it goes on";
  EXPECT_EQ(conversation->turns[3].turn.user_text(), "about last") << "it may be asked anew";
  EXPECT_EQ(Turn("s", "failed")->turn.user_text(), "about failed");
  // A turn that was dropped stays out of prompts for good.
  ASSERT_TRUE(Begin("s", "next", {}, {}, {}, {"answered"}).ok());
  conversation = Read("s");
  ASSERT_EQ(conversation->turns.size(), 4U);
  EXPECT_EQ(conversation->turns[0].turn.id(), "failed");
  EXPECT_EQ(conversation->turns[3].turn.id(), "next");
  EXPECT_EQ(conversation->kept_image, "");
}

TEST_P(StoreConformance, TheLastPictureOfDroppedTurnsIsKept) {
  ASSERT_TRUE(Create("s").ok());
  const auto ask = [&](const std::string& id, const std::vector<StoredImage>& images,
                       const std::vector<std::string>& dropped) {
    ASSERT_TRUE(Begin("s", id, {"key of " + id, "hash"}, images, {}, dropped).ok());
    ASSERT_TRUE(Finish("s", id, "text").ok());
  };
  ask("one", {Image('p'), Image('q')}, {});
  ask("two", {Image('r'), Image('p')}, {});
  ask("three", {}, {});
  const auto conversation = Read("s");
  ASSERT_EQ(conversation->turns.size(), 3U);
  EXPECT_EQ(conversation->turns[0].turn.images(1).id(), Image('q').info.id());
  EXPECT_EQ(conversation->turns[1].turn.images(0).id(), Image('r').info.id());
  EXPECT_EQ(conversation->turns[1].turn.images_size(), 2);
  EXPECT_EQ(conversation->turns[2].turn.images_size(), 0);
  ask("four", {}, {"one"});
  EXPECT_EQ(Read("s")->kept_image, Image('q').info.id());
  ask("five", {}, {"two", "three"});
  Open();
  EXPECT_EQ(Read("s")->kept_image, Image('p').info.id());
  ASSERT_EQ(Read("s")->turns.size(), 2U);
  EXPECT_EQ(Read("s")->turns[0].turn.id(), "four");
  // A request of a dropped turn is still answered with it.
  const auto repeated = Read("s", {"key of one", "hash"});
  EXPECT_EQ(repeated->repeated_turn_id, "one");
  ASSERT_EQ(repeated->turns.size(), 1U);
  EXPECT_EQ(repeated->turns[0].turn.answer_text(), "text");
}

INSTANTIATE_TEST_SUITE_P(
    Stores, StoreConformance,
    testing::Values(Implementation{
        "Sqlite",
        [](const std::string& folder, GatewayMetrics& metrics, StoreTables::Limits limits) {
          auto store = SessionStore::Open(folder, metrics, {.limits = limits});
          EXPECT_TRUE(store.ok()) << store.status();
          return std::unique_ptr<ConversationStore>(store.ok() ? *std::move(store) : nullptr);
        }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace llava
