#include "client/chat_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "client/grpc_status.h"
#include "tests/client/fake_gateway.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

v1::ChatRequest Question(const std::string& text) {
  v1::ChatRequest request;
  request.set_session_id("s");
  request.set_text(text);
  return request;
}

class ChatClientTest : public ::testing::Test {
 protected:
  FakeGateway gateway_;
  ChatClient client_{{.gateway = gateway_.address(), .upload_chunk_bytes = 1000}};
};

TEST_F(ChatClientTest, ConnectsToARunningGateway) { EXPECT_TRUE(client_.Connect().ok()); }

TEST_F(ChatClientTest, SessionsAreMadeAndDeleted) {
  v1::CreateSessionRequest request;
  request.set_system_prompt("Be brief.");
  const auto session = client_.CreateSession(request);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->id(), "session-1");
  EXPECT_EQ(gateway_.created().at(0).system_prompt(), "Be brief.");
  EXPECT_TRUE(client_.DeleteSession(session->id()).ok());
  EXPECT_THAT(gateway_.deleted(), ElementsAre("session-1"));
}

TEST_F(ChatClientTest, ErrorsKeepTheGatewaysWords) {
  v1::CreateSessionRequest request;
  request.set_model("unknown");
  const absl::Status status = client_.CreateSession(request).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_EQ(Message(status), "model \"unknown\" is not served; served: fake");
}

TEST_F(ChatClientTest, TurnsComeFromAllPages) {
  std::vector<v1::Turn> turns(5);
  for (int i = 0; i < 5; ++i) turns[i].set_number(i + 1);
  gateway_.set_turns(turns);
  const auto listed = client_.ListTurns("s");
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_EQ(listed->size(), 5u);
  for (uint32_t i = 0; i < 5; ++i) EXPECT_EQ((*listed)[i].number(), i + 1);
}

TEST_F(ChatClientTest, ListsModels) {
  const auto models = client_.ListModels();
  ASSERT_TRUE(models.ok()) << models.status();
  EXPECT_EQ(models->default_model(), "fake");
  EXPECT_EQ(models->models(0).model().version(), 7u);
}

TEST_F(ChatClientTest, UploadSendsEveryByteOnce) {
  std::string bytes;
  for (int i = 0; i < 100'001; ++i) bytes += static_cast<char>(i * 31);
  const auto image = client_.UploadImage("s", bytes);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->id(), "image-1");
  EXPECT_EQ(gateway_.uploads().at(0), bytes);
  EXPECT_EQ(gateway_.upload_headers().at(0).session_id(), "s");
  EXPECT_EQ(gateway_.upload_headers().at(0).size_bytes(), bytes.size());
}

TEST_F(ChatClientTest, UploadsFiles) {
  const TempFolder folder;
  const std::string bytes(4321, 'x');
  const auto image = client_.UploadImageFile("s", folder.Write("upload.png", bytes));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(gateway_.uploads().at(0), bytes);
  EXPECT_EQ(gateway_.upload_headers().at(0).size_bytes(), bytes.size());
}

TEST_F(ChatClientTest, FilesThatAreNoneAreNamed) {
  const absl::Status missing = client_.UploadImageFile("s", "/no/such.png").status();
  EXPECT_TRUE(absl::IsNotFound(missing));
  EXPECT_THAT(Message(missing), HasSubstr("/no/such.png"));
  EXPECT_TRUE(absl::IsInvalidArgument(client_.UploadImageFile("s", "/tmp").status()));
  EXPECT_THAT(gateway_.upload_headers(), ElementsAre());
}

TEST_F(ChatClientTest, RefusedUploadEndsEarlyWithTheReason) {
  gateway_.set_upload_status({grpc::StatusCode::INVALID_ARGUMENT, "picture too large"});
  const absl::Status status = client_.UploadImage("s", std::string(5'000'000, 'x')).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(Message(status), "picture too large");
}

TEST_F(ChatClientTest, AnswersStream) {
  std::vector<std::string> pieces;
  const auto answer =
      client_.Ask(Question("what?"), [&](std::string_view text) { pieces.emplace_back(text); });
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->text, "You asked: what?");
  EXPECT_THAT(pieces, ElementsAre("You a", "sked: what?"));
  EXPECT_EQ(answer->started.turn_id(), "turn-1");
  EXPECT_EQ(answer->finished.usage().generated_tokens(), 3u);
}

TEST_F(ChatClientTest, BrokenStreamIsDataLoss) {
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "ab"), Text(9, "x"), Text(10, "y")},
                       .status = grpc::Status::OK});
  std::string text;
  const auto answer = client_.Ask(Question("?"), [&](std::string_view piece) { text += piece; });
  EXPECT_TRUE(absl::IsDataLoss(answer.status())) << answer.status();
  EXPECT_EQ(text, "ab");
}

TEST_F(ChatClientTest, ErrorBehindTextCarriesRetryInfo) {
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "ab")},
                       .status = Overloaded("the llm service is down", 3)});
  const absl::Status status = client_.Ask(Question("?"), nullptr).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_EQ(Message(status), "the llm service is down");
  EXPECT_EQ(RetryDelay(status), absl::Seconds(3));
}

// Its connection is no longer ready then.
TEST_F(ChatClientTest, AGatewayThatEndsMaySayWhenToComeBack) {
  gateway_.set_script(
      {.events = {}, .status = Overloaded("this gateway is shutting down", 3), .stop = true});
  const absl::Status status = client_.Ask(Question("?"), nullptr).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_EQ(Message(status), "this gateway is shutting down");
  EXPECT_EQ(RetryDelay(status), absl::Seconds(3));
}

TEST_F(ChatClientTest, CallsCanBeCancelled) {
  gateway_.Hang("ListModels");
  std::thread other([&] {
    gateway_.WaitForHanging(1);
    client_.CancelCalls();
  });
  EXPECT_TRUE(absl::IsCancelled(client_.ListModels().status()));
  other.join();
  EXPECT_TRUE(client_.CreateSession({}).ok());
}

TEST_F(ChatClientTest, ABrokenStreamIsGoneOnWith) {
  const grpc::Status broken(grpc::StatusCode::UNAVAILABLE, "socket closed");
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "ab")}, .status = broken});
  v1::ChatEvent again = Started("s", "t");
  again.mutable_turn_started()->set_restarts(1);
  gateway_.set_resume_scripts({
      {.events = {again, Text(0, "abcd")}, .status = Overloaded("slow reader", 0)},
      {.events = {}, .status = broken},
      {.events = {again, Text(4, "e"), Finished(5)}, .status = broken},
  });
  std::vector<std::string> pieces;
  const auto answer =
      client_.Ask(Question("?"), [&](std::string_view text) { pieces.emplace_back(text); });
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(pieces, ElementsAre("ab", "cd", "e")) << "every byte once";
  EXPECT_EQ(answer->text, "abcde");
  const auto resumed = gateway_.resumed();
  ASSERT_EQ(resumed.size(), 3u);
  EXPECT_EQ(resumed[0].session_id(), "s");
  EXPECT_EQ(resumed[0].turn_id(), "t");
  EXPECT_EQ(resumed[0].after_offset(), 2u);
  EXPECT_EQ(resumed[0].restarts(), 0u);
  EXPECT_EQ(resumed[1].after_offset(), 4u);
  EXPECT_EQ(resumed[1].restarts(), 1u);
  EXPECT_EQ(gateway_.asked().size(), 1u);
  EXPECT_FALSE(gateway_.asked()[0].idempotency_key().empty());
}

TEST_F(ChatClientTest, AQuestionThatGotNoTurnIsSentAgainUnderItsKey) {
  ASSERT_TRUE(client_.Connect().ok());
  gateway_.set_script({.events = {}, .status = {grpc::StatusCode::UNAVAILABLE, "socket closed"}});
  std::thread mend([&] {
    gateway_.WaitForQuestions(2);
    gateway_.set_script(
        {.events = {Started("s", "t"), Text(0, "ab"), Finished(2)}, .status = grpc::Status::OK});
  });
  const auto answer = client_.Ask(Question("?"), nullptr);
  mend.join();
  ASSERT_TRUE(answer.ok()) << answer.status();
  const auto asked = gateway_.asked();
  ASSERT_GE(asked.size(), 3u);
  for (const auto& request : asked) {
    EXPECT_EQ(request.idempotency_key(), asked[0].idempotency_key());
  }
}

TEST_F(ChatClientTest, ARefusalIsTheCallersUnlessTheClientIsToWait) {
  gateway_.set_script({.events = {}, .status = Overloaded("too many questions", 0)});
  const absl::Status refused = client_.Ask(Question("?"), nullptr).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_EQ(RetryDelay(refused), absl::ZeroDuration());
  ASSERT_EQ(gateway_.asked().size(), 1u);

  ChatClient patient({.gateway = gateway_.address(), .refusal_timeout = std::chrono::minutes(10)});
  for (const bool session : {true, false}) {
    gateway_.set_script({.events = {}, .status = Overloaded("too many questions", 0)});
    const size_t before = gateway_.asked().size();
    std::thread mend([&] {
      gateway_.WaitForQuestions(before + 2);
      gateway_.set_script(
          {.events = {Started("s", "t"), Text(0, "ab"), Finished(2)}, .status = grpc::Status::OK});
    });
    v1::ChatRequest question = Question("?");
    if (!session) question.clear_session_id();
    const auto answer = patient.Ask(question, nullptr);
    mend.join();
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->text, "ab");
    const auto asked = gateway_.asked();
    ASSERT_GE(asked.size(), before + 3);
    EXPECT_EQ(asked[before].idempotency_key().empty(), !session);
    EXPECT_EQ(asked[before].idempotency_key(), asked.back().idempotency_key());
  }
}

TEST_F(ChatClientTest, WhatIsRefusedForLongerThanTheClientWaitsIsTold) {
  gateway_.set_script({.events = {}, .status = Overloaded("a minute's worth is used", 7'000)});
  const auto refused = [&](ChatClientOptions options) {
    options.gateway = gateway_.address();
    const size_t before = gateway_.asked().size();
    const absl::Status status = ChatClient(options).Ask(Question("?"), nullptr).status();
    EXPECT_EQ(RetryDelay(status), absl::Seconds(7'000)) << status;
    EXPECT_EQ(gateway_.asked().size(), before + 1);
  };
  refused({.refusal_timeout = std::chrono::minutes(5)});
  refused({.answer_timeout = std::chrono::minutes(5), .refusal_timeout = std::chrono::hours(5)});
  gateway_.set_script({.events = {}, .status = {grpc::StatusCode::ABORTED, "another turn runs"}});
  const auto aborted =
      ChatClient({.gateway = gateway_.address(), .refusal_timeout = std::chrono::hours(5)})
          .Ask(Question("?"), nullptr);
  EXPECT_TRUE(absl::IsAborted(aborted.status())) << aborted.status();
}

TEST_F(ChatClientTest, WhoStopsARefusedQuestionEndsItsWait) {
  gateway_.set_script({.events = {}, .status = Overloaded("too many questions", 7'000)});
  AnswerCanceller cancelled, abandoned;
  for (AnswerCanceller* canceller : {&cancelled, &abandoned}) {
    int told = 0;
    ChatClient patient({.gateway = gateway_.address(),
                        .refusal_timeout = std::chrono::hours(5),
                        .on_refusal = [&](const absl::Status& why) {
                          ++told;
                          EXPECT_EQ(Message(why), "too many questions");
                          // Also who comes before the wait has begun.
                          if (canceller == &cancelled) {
                            EXPECT_TRUE(canceller->Cancel().ok());
                          }
                        }});
    const size_t before = gateway_.asked().size();
    std::thread other([&] {
      gateway_.WaitForQuestions(before + 1);
      if (canceller == &abandoned) canceller->Abandon();
    });
    const auto answer = patient.Ask(Question("?"), nullptr, canceller);
    other.join();
    EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
    EXPECT_LE(told, 1);
    EXPECT_EQ(gateway_.asked().size(), before + 1);
  }
}

TEST_F(ChatClientTest, WhoHasStoppedIsNotToldOfARefusal) {
  gateway_.set_script({.events = {}, .status = Overloaded("too many questions", 7'000)});
  AnswerCanceller canceller;
  EXPECT_TRUE(canceller.Cancel().ok());
  ChatClient patient({.gateway = gateway_.address(),
                      .refusal_timeout = std::chrono::hours(5),
                      .on_refusal = [](const absl::Status& why) { ADD_FAILURE() << why; }});
  const auto answer = patient.Ask(Question("?"), nullptr, &canceller);
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
  EXPECT_EQ(gateway_.asked().size(), 1u);
}

// The time to get an answer back begins when it breaks, not when it was asked for anew.
TEST_F(ChatClientTest, AnAnswerThatBeganLateIsWaitedForAsLong) {
  ChatClient patient({.gateway = gateway_.address(), .refusal_timeout = std::chrono::minutes(10)});
  ASSERT_TRUE(patient.Connect().ok());
  gateway_.set_script({.events = {}, .status = {grpc::StatusCode::UNAVAILABLE, "socket closed"}});
  AnswerCanceller canceller;
  std::thread other([&] {
    gateway_.WaitForQuestions(1);
    gateway_.set_script({.events = {}, .status = Overloaded("too many questions", 3)});
    gateway_.WaitForQuestions(2);
    gateway_.set_script({.events = {Started("s", "t")}, .status = Overloaded("later", 58)});
    gateway_.WaitForQuestions(3);
    std::this_thread::sleep_for(milliseconds(300));  // it has broken by then, and is waited for
    canceller.Abandon();
  });
  const auto answer = patient.Ask(Question("?"), nullptr, &canceller);
  other.join();
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
}

TEST_F(ChatClientTest, ATurnThatEndedUnavailableIsNotAskedForEver) {
  const grpc::Status ended(grpc::StatusCode::UNAVAILABLE, "the llm service is gone");
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "ab")}, .status = ended});
  gateway_.set_resume_scripts({{.events = {Started("s", "t")}, .status = ended}});
  const auto answer = client_.Ask(Question("?"), nullptr);
  EXPECT_TRUE(absl::IsUnavailable(answer.status()));
  EXPECT_EQ(Message(answer.status()), "the llm service is gone");
  EXPECT_EQ(gateway_.resumed().size(), 2u);
}

TEST_F(ChatClientTest, LostBytesAreTold) {
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "ab")},
                       .status = {grpc::StatusCode::UNAVAILABLE, "socket closed"}});
  gateway_.set_resume_scripts(
      {{.events = {}, .status = {grpc::StatusCode::DATA_LOSS, "lost what followed byte 1"}}});
  EXPECT_TRUE(absl::IsDataLoss(client_.Ask(Question("?"), nullptr).status()));
}

TEST_F(ChatClientTest, AbandonEndsTheTriesToResume) {
  const grpc::Status broken = Overloaded("later", 20);
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "ab")}, .status = broken});
  AnswerCanceller canceller;
  std::thread other;
  const auto answer = client_.Ask(
      Question("?"), [&](std::string_view) { other = std::thread([&] { canceller.Abandon(); }); },
      &canceller);
  other.join();
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
}

TEST_F(ChatClientTest, CancelTellsThatTheGatewayIsAway) {
  gateway_.set_script(
      {.events = {Started("s", "t"), Text(0, "ab")}, .status = Overloaded("later", 20)});
  AnswerCanceller canceller;
  std::atomic<bool> asked = false;
  std::thread other([&] {
    while (!asked) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    // The stream has ended by then, or it is asked to stop as usual.
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    const absl::Status status = canceller.Cancel();
    EXPECT_TRUE(absl::IsUnavailable(status) || !gateway_.cancelled().empty()) << status;
    canceller.Abandon();
  });
  const auto answer = client_.Ask(
      Question("?"), [&](std::string_view) { asked = true; }, &canceller);
  other.join();
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
}

TEST_F(ChatClientTest, CancelStopsARunningAnswer) {
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "so far")},
                       .status = grpc::Status::OK,
                       .wait_for_cancel = true});
  AnswerCanceller canceller;
  std::thread other;
  const auto answer = client_.Ask(
      Question("?"),
      [&](std::string_view) { other = std::thread([&] { EXPECT_TRUE(canceller.Cancel().ok()); }); },
      &canceller);
  other.join();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->text, "so far");
  EXPECT_EQ(answer->finished.reason(), v1::FINISH_REASON_CANCELLED);
  ASSERT_EQ(gateway_.cancelled().size(), 1u);
  EXPECT_EQ(gateway_.cancelled()[0].session_id(), "s");
  EXPECT_EQ(gateway_.cancelled()[0].turn_id(), "t");
}

// Calls have an hour: what ends the wait is that of a cancel.
TEST_F(ChatClientTest, AGatewayThatHangsHoldsNobodyWhoCancels) {
  gateway_.set_script({.events = {Started("s", "t"), Text(0, "so far")},
                       .status = grpc::Status::OK,
                       .wait_for_cancel = true,
                       .ignore_cancel = true,
                       .hang_cancel = true});
  ChatClient client({.gateway = gateway_.address(), .call_timeout = std::chrono::hours(1)});
  AnswerCanceller canceller;
  std::thread other;
  const auto answer = client.Ask(
      Question("?"),
      [&](std::string_view) {
        other = std::thread([&] {
          EXPECT_TRUE(absl::IsDeadlineExceeded(canceller.Cancel()));
          canceller.Abandon();
        });
      },
      &canceller);
  other.join();
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
}

TEST_F(ChatClientTest, CancelBeforeTheTurnBeginsWaitsForIt) {
  gateway_.set_script(
      {.events = {Started("s", "t")}, .status = grpc::Status::OK, .wait_for_cancel = true});
  AnswerCanceller canceller;
  EXPECT_TRUE(canceller.Cancel().ok());
  const auto answer = client_.Ask(Question("?"), nullptr, &canceller);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->finished.reason(), v1::FINISH_REASON_CANCELLED);
  ASSERT_EQ(gateway_.cancelled().size(), 1u);
  EXPECT_EQ(gateway_.cancelled()[0].turn_id(), "t");
}

TEST_F(ChatClientTest, AbandonNeedsNoHelpOfTheGateway) {
  gateway_.set_script({.events = {Started("s", "t")},
                       .status = grpc::Status::OK,
                       .wait_for_cancel = true,
                       .ignore_cancel = true});
  AnswerCanceller canceller;
  std::thread other([&] {
    gateway_.WaitForQuestions(1);
    canceller.Abandon();
  });
  const auto answer = client_.Ask(Question("?"), nullptr, &canceller);
  other.join();
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
}

TEST_F(ChatClientTest, AnAnswerWithoutASessionIsCancelledWithItsCall) {
  gateway_.set_script({.events = {Started("", "t")},
                       .status = grpc::Status::OK,
                       .wait_for_cancel = true,
                       .ignore_cancel = true});
  AnswerCanceller canceller;
  EXPECT_TRUE(canceller.Cancel().ok());
  const auto answer = client_.Ask(Question("?"), nullptr, &canceller);
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
  EXPECT_TRUE(gateway_.cancelled().empty());
}

TEST_F(ChatClientTest, AnswerTimeoutIsTheDeadline) {
  gateway_.set_script({.events = {Started("s", "t")},
                       .status = grpc::Status::OK,
                       .wait_for_cancel = true,
                       .ignore_cancel = true});
  ChatClient client({.gateway = gateway_.address(), .answer_timeout = milliseconds(100)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(client.Ask(Question("?"), nullptr).status()));
}

TEST_F(ChatClientTest, ThreadsMayShareAClient) {
  std::vector<std::thread> threads;
  std::vector<std::string> answers(8);
  for (size_t i = 0; i < answers.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 10; ++n) {
        answers[i] = client_.Ask(Question(std::to_string(i)), nullptr)->text;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < answers.size(); ++i) {
    EXPECT_EQ(answers[i], "You asked: " + std::to_string(i));
  }
}

TEST(ChatClientWithoutGateway, NamesTheAddress) {
  ChatClient client({.gateway = "127.0.0.1:1"});
  for (const absl::Status& status :
       {client.Connect(), client.GetSession("s").status(),
        client.Ask(Question("?"), nullptr).status(), client.UploadImage("s", "x").status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("127.0.0.1:1"));
  }
}

TEST(RetryDelay, IsUnknownWithoutDetails) {
  EXPECT_EQ(RetryDelay(absl::UnavailableError("x")), std::nullopt);
  EXPECT_EQ(RetryDelay(absl::OkStatus()), std::nullopt);
}

}  // namespace
}  // namespace llava
