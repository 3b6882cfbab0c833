// llava-chat run from scripts: flags, pipes, exit status.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "tests/client/chat/program.h"
#include "tests/client/fake_gateway.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

TEST(ChatFlags, HelpAndVersion) {
  const Ended help = RunChat({"--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_THAT(help.out, AllOf(HasSubstr("--max-new-tokens"), HasSubstr("LLAVA_CHAT_TOP_P"),
                              HasSubstr("128 and its number")));
  const Ended version = RunChat({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_THAT(version.out, StartsWith("llava-chat "));
}

TEST(ChatFlags, WrongOnesAreNamedInOneLine) {
  const std::vector<std::vector<std::string>> wrong = {{"--imagine", "x"},
                                                       {"--top-k", "many"},
                                                       {"--temperature", "3"},
                                                       {"--seed"},
                                                       {"--top-p", "-1"},
                                                       {"--max-new-tokens", "0"},
                                                       {"--json-schema", "/no/such/file"},
                                                       {"--json-schema", "x", "--json"},
                                                       {"stray"},
                                                       {"--system", "x", "--session", "y"}};
  for (const auto& flags : wrong) {
    const Ended ended = RunChat(flags);
    EXPECT_EQ(ended.status, 2) << ended.err;
    EXPECT_THAT(ended.err, AllOf(StartsWith("llava-chat: "), HasSubstr(flags[0])));
    EXPECT_EQ(std::count(ended.err.begin(), ended.err.end(), '\n'), 1) << ended.err;
    EXPECT_THAT(ended.out, IsEmpty());
  }
}

TEST(ChatWithoutGateway, NamesTheAddress) {
  const Ended ended = RunChat({"--gateway", "127.0.0.1:1", "--message", "hello"});
  EXPECT_EQ(ended.status, 1);
  EXPECT_EQ(ended.err, "llava-chat: no gateway answers at 127.0.0.1:1: is it running?\n");
}

// Nobody gets the answer: that is no success.
TEST(ChatOutput, ThatIsLostIsAnError) {
  FakeGateway gateway;
  const std::vector<std::string> flags = {"--gateway", gateway.address(), "--message",
                                          "hello",     "--message",       "and?"};
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  const Ended ended = RunChatInto(full, flags);
  EXPECT_EQ(ended.status, 1) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("standard output does not take the answer: No space left"));
  int pipe[2];
  ASSERT_EQ(pipe2(pipe, O_CLOEXEC), 0);
  close(pipe[0]);  // as head does once it has enough
  const Ended broken = RunChatInto(pipe[1], flags);
  EXPECT_EQ(broken.status, 1) << broken.err;
  EXPECT_THAT(broken.err, HasSubstr("Broken pipe"));
  EXPECT_EQ(gateway.asked().size(), 2u) << "what comes after is asked for nobody";
  EXPECT_EQ(gateway.deleted().size(), 2u) << "the session is deleted as usual";
}

class ChatProgramTest : public ::testing::Test {
 protected:
  Ended Run(std::vector<std::string> flags, const std::string& input = "") {
    flags.insert(flags.begin(), {"--gateway", gateway_.address()});
    return RunChat(flags, input);
  }
  FakeGateway gateway_;
  const TempFolder folder_;
};

TEST_F(ChatProgramTest, MessagesAreAskedInOrder) {
  const Ended ended = Run({"--message", "one", "--message", "two"});
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.out, "You asked: one\nYou asked: two\n");
  EXPECT_THAT(ended.err, AllOf(HasSubstr("> one\n"),
                               HasSubstr("0.25 s to first token, 4.0 tokens/s, 3 tokens\n")));
  EXPECT_EQ(gateway_.asked().at(1).session_id(), "session-1");
  EXPECT_THAT(gateway_.deleted(), ::testing::ElementsAre("session-1"));
}

TEST_F(ChatProgramTest, FlagsReachTheGateway) {
  const Ended ended = Run({"--model", "other", "--system", "Be brief.", "--temperature", "0.5",
                           "--top-p", "0.9", "--top-k", "40", "--seed", "18446744073709551615",
                           "--max-new-tokens", "17", "--message", "x"});
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(gateway_.created().at(0).model(), "other");
  EXPECT_EQ(gateway_.created().at(0).system_prompt(), "Be brief.");
  const v1::SamplingParams sampling = gateway_.asked().at(0).sampling();
  EXPECT_EQ(sampling.temperature(), 0.5f);
  EXPECT_EQ(sampling.top_p(), 0.9f);
  EXPECT_EQ(sampling.top_k(), 40u);
  EXPECT_EQ(sampling.seed(), 18446744073709551615u);
  EXPECT_EQ(sampling.max_new_tokens(), 17u);
}

TEST_F(ChatProgramTest, ConstraintsReachTheGateway) {
  const std::string path = folder_.Write("schema.json", R"({"type":"integer"})");
  EXPECT_EQ(Run({"--json-schema", path, "--message", "x"}).status, 0);
  EXPECT_EQ(gateway_.asked().at(0).sampling().constraint().json_schema(), R"({"type":"integer"})");
  EXPECT_EQ(Run({"--json", "--message", "x"}).status, 0);
  EXPECT_TRUE(gateway_.asked().at(1).sampling().constraint().has_json_object());
}

TEST_F(ChatProgramTest, WhatWasNotGivenStaysUnset) {
  EXPECT_EQ(Run({"--message", "x"}).status, 0);
  EXPECT_FALSE(gateway_.created().at(0).has_system_prompt());
  EXPECT_EQ(gateway_.asked().at(0).sampling().ByteSizeLong(), 0u);
}

TEST_F(ChatProgramTest, EnvironmentTwinsWorkAndFlagsWin) {
  const std::vector<std::string> environment = {
      "LLAVA_CHAT_GATEWAY=" + gateway_.address(), "LLAVA_CHAT_MESSAGE=from afar",
      "LLAVA_CHAT_TOP_K=3", "LLAVA_CHAT_SEED=4", "LLAVA_CHAT_KEEP_SESSION=true"};
  const Ended ended = RunChat({"--top-k", "5"}, "", environment);
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.out, "You asked: from afar\n");
  EXPECT_EQ(gateway_.asked().at(0).sampling().top_k(), 5u);
  EXPECT_EQ(gateway_.asked().at(0).sampling().seed(), 4u);
  EXPECT_THAT(gateway_.deleted(), IsEmpty());
}

TEST_F(ChatProgramTest, ReadsAPipe) {
  const Ended ended = Run({}, "one\r\n\n  two  \n//slash\n/models\n/help\nlast");
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.out, "You asked: one\nYou asked: two\nYou asked: /slash\nYou asked: last\n");
  EXPECT_THAT(ended.err, AllOf(HasSubstr("fake version 7: 512 tokens of context, 64 per picture "
                                         "(default)"),
                               HasSubstr("/image PATH")));
}

TEST_F(ChatProgramTest, QuitEndsAtOnce) {
  EXPECT_EQ(Run({}, "/quit\nnever\n").status, 0);
  EXPECT_THAT(gateway_.asked(), IsEmpty());
}

TEST_F(ChatProgramTest, PicturesGoWithTheNextQuestion) {
  const std::string path = folder_.Write("with spaces.png", "first");
  const Ended ended =
      Run({"--image", path}, "what is it?\nand now?\n/image \"" + path + "\"\nthis?\n");
  EXPECT_EQ(ended.status, 0) << ended.err;
  const auto asked = gateway_.asked();
  ASSERT_EQ(asked.size(), 3u);
  ASSERT_EQ(asked[0].images_size(), 1);
  EXPECT_EQ(asked[0].images(0).id(), "image-1");
  EXPECT_EQ(asked[1].images_size(), 0);
  ASSERT_EQ(asked[2].images_size(), 1);
  EXPECT_EQ(asked[2].images(0).id(), "image-2");
}

TEST_F(ChatProgramTest, AFirstPictureThatIsMissingEndsIt) {
  const Ended ended = Run({"--image", "/no/such.png", "--message", "x"});
  EXPECT_EQ(ended.status, 1);
  EXPECT_THAT(ended.err, HasSubstr("there is no file /no/such.png"));
  EXPECT_THAT(gateway_.deleted(), ::testing::ElementsAre("session-1"));
}

TEST_F(ChatProgramTest, ErrorsLeaveItUsable) {
  const Ended ended = Run({}, "/image /no/such.png\n/image\n/nonsense\n\xff\xfe\nstill there?\n");
  EXPECT_EQ(ended.status, 1);  // a script must hear of it
  EXPECT_EQ(ended.out, "You asked: still there?\n");
  EXPECT_THAT(ended.err, AllOf(HasSubstr("error: there is no file /no/such.png"),
                               HasSubstr("error: say which picture"),
                               HasSubstr("error: there is no command /nonsense"),
                               HasSubstr("error: this line is not UTF-8")));
}

TEST_F(ChatProgramTest, RefusedPictureIsPutAway) {
  gateway_.set_script(
      {.events = {}, .status = {grpc::StatusCode::INVALID_ARGUMENT, "picture 1 is broken"}});
  const Ended ended = Run({"--image", folder_.Write("refused.png", "x")}, "what?\nand without?\n");
  EXPECT_EQ(ended.status, 1);
  EXPECT_THAT(ended.err, HasSubstr("error: picture 1 is broken"));
  ASSERT_EQ(gateway_.asked().size(), 2u);
  EXPECT_EQ(gateway_.asked()[0].images_size(), 1);
  EXPECT_EQ(gateway_.asked()[1].images_size(), 0);
}

TEST_F(ChatProgramTest, OverloadTellsWhenToTryAgain) {
  gateway_.set_script({.events = {}, .status = Overloaded("too busy", 120)});
  const Ended ended = Run({"--message", "x"});
  EXPECT_EQ(ended.status, 1);
  EXPECT_THAT(ended.err, HasSubstr("error: too busy (try again in 2m)\n"));
  EXPECT_EQ(gateway_.asked().size(), 1u);
}

// As while a gateway is replaced by another one.
TEST_F(ChatProgramTest, WhatIsRefusedForNowIsAskedAgain) {
  gateway_.set_script({.events = {}, .status = Overloaded("it is shutting down", 0)});
  std::thread mend([&] {
    gateway_.WaitForQuestions(2);
    gateway_.set_script({.events = {Started("session-1", "t"), Text(0, "here"), Finished(4)},
                         .status = grpc::Status::OK});
  });
  const Ended ended = Run({"--message", "x"});
  mend.join();
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.out, "here\n");
  const size_t told = ended.err.find("refused for now: it is shutting down; asked again");
  ASSERT_NE(told, std::string::npos) << ended.err;
  EXPECT_EQ(ended.err.find("refused", told + 1), std::string::npos) << "once";
}

TEST_F(ChatProgramTest, ResetBeginsANewSession) {
  const Ended ended = Run({"--system", "Be brief."}, "one\n/reset\ntwo\n");
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(gateway_.asked().at(0).session_id(), "session-1");
  EXPECT_EQ(gateway_.asked().at(1).session_id(), "session-2");
  EXPECT_EQ(gateway_.created().at(1).system_prompt(), "Be brief.");
  EXPECT_THAT(gateway_.deleted(), ::testing::ElementsAre("session-1", "session-2"));
}

TEST_F(ChatProgramTest, KeptSessionIsNamed) {
  const Ended ended = Run({"--keep-session", "--message", "x"});
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("session session-1\n"));
  EXPECT_THAT(gateway_.deleted(), IsEmpty());
}

TEST_F(ChatProgramTest, OldSessionGoesOn) {
  v1::Turn turn;
  turn.set_user_text("what was it?");
  turn.set_answer_text("A bear.");
  gateway_.set_turns({turn});
  const Ended ended = Run({"--session", "old", "--model", "other", "--message", "and now?"});
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("> what was it?\nA bear.\n"));
  EXPECT_EQ(gateway_.asked().at(0).session_id(), "old");
  EXPECT_EQ(gateway_.asked().at(0).model().name(), "other");
  EXPECT_THAT(gateway_.created(), IsEmpty());
  EXPECT_THAT(gateway_.deleted(), IsEmpty());

  const Ended unknown = Run({"--session", "lost", "--message", "x"});
  EXPECT_EQ(unknown.status, 1);
  EXPECT_EQ(unknown.err, "llava-chat: there is no session lost\n");
}

TEST_F(ChatProgramTest, AFailedAnswerIsAFailure) {
  gateway_.set_script(
      {.events = {Started("session-1", "t"), Text(0, "half"), Finished(4, v1::FINISH_REASON_ERROR)},
       .status = grpc::Status::OK});
  const Ended ended = Run({"--message", "x"});
  EXPECT_EQ(ended.status, 1);
  EXPECT_EQ(ended.out, "half\n");
  EXPECT_THAT(ended.err, HasSubstr("(cut off by a fault)"));
}

TEST_F(ChatProgramTest, PipedOutputHasNoEscapes) {
  gateway_.set_script({.events = {Started("session-1", "t"), Text(0, "caf\u00e9"), Finished(5)},
                       .status = grpc::Status::OK});
  const Ended ended = Run({"--message", "x"});
  EXPECT_EQ(ended.out, "caf\u00e9\n");
  EXPECT_THAT(ended.err, Not(HasSubstr("\033")));
}

TEST_F(ChatProgramTest, SendsTheApiKeyOfFileOrEnvironment) {
  const std::string path = folder_.Write("key", "from-a-file\n"), none = folder_.At("none");
  EXPECT_EQ(Run({"--message", "x"}).status, 0);
  EXPECT_EQ(gateway_.authorization(), "");
  EXPECT_EQ(Run({"--api-key-file", path, "--message", "x"}).status, 0);
  EXPECT_EQ(gateway_.authorization(), "Bearer from-a-file");
  const std::vector<std::string> flags = {"--gateway", gateway_.address(), "--message", "x"};
  EXPECT_EQ(RunChat(flags, "", {"LLAVA_API_KEY=from-the-environment"}).status, 0);
  EXPECT_EQ(gateway_.authorization(), "Bearer from-the-environment");
  EXPECT_EQ(RunChat(flags, "", {"LLAVA_API_KEY=two words"}).status, 2);
  const Ended missing = Run({"--api-key-file", none, "--message", "x"});
  EXPECT_EQ(missing.status, 2);
  EXPECT_THAT(missing.err, HasSubstr(none));
}

TEST_F(ChatProgramTest, CertificatesAndTheirKeysGoTogether) {
  EXPECT_EQ(Run({"--tls-cert", folder_.Write("cert", "-"), "--message", "x"}).status, 2);
  const Ended open = Run({"--tls", "--message", "x"});  // that gateway speaks openly
  EXPECT_EQ(open.status, 1);
  EXPECT_THAT(open.err, HasSubstr("certificate"));
}

}  // namespace
}  // namespace llava
