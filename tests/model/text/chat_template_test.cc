#include "model/text/chat_template.h"
#include <algorithm>

#include <filesystem>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/digest/sha256.h"
#include "tests/model/text/text_fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using Role = ChatMessage::Role;
using Kind = PromptSpan::Kind;
using testing::ElementsAre;
using testing::HasSubstr;

ChatMessage User(std::string text, int num_images = 0) {
  return {Role::kUser, std::move(text), num_images, {}};
}
ChatMessage Assistant(std::string text, std::vector<int32_t> ids = {}) {
  return {Role::kAssistant, std::move(text), 0, std::move(ids)};
}

std::string TextOf(const std::vector<PromptSpan>& spans) {
  std::string text;
  for (const PromptSpan& span : spans) {
    text += span.text;
    if (span.kind == Kind::kTokens)
      text.append("[").append(std::to_string(span.tokens.size())).append(" ids]");
  }
  return text;
}

std::vector<std::string> BuiltinNames() {
  std::vector<std::string> names;
  for (const auto& file :
       std::filesystem::directory_iterator(SourceDir() + "/model/text/templates")) {
    names.push_back(file.path().stem());
  }
  return names;
}

const std::vector<ChatMessage> kChat = {User("Q1", 1), Assistant("A1"), User("Q2")};

TEST(ChatTemplateTest, BuiltInOnesAreTheFilesOfTheFolder) {
  EXPECT_THAT(BuiltinNames(), testing::UnorderedElementsAre(
                                  "plain", "v0", "v1", "llava_v0", "llava_v1", "llava_llama_2",
                                  "mistral_instruct", "chatml_direct", "emoji"));
  for (const std::string& name : BuiltinNames()) {
    const ChatTemplate t = ChatTemplate::Builtin(name);
    EXPECT_EQ(t.name(), name);
    const ChatTemplate again = ChatTemplate::Parse(t.ToJson());
    EXPECT_EQ(again.ToJson(), t.ToJson());
    EXPECT_EQ(TextOf(again.Render(kChat)), TextOf(t.Render(kChat)));
  }
  try {
    ChatTemplate::Builtin("v2");
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_THAT(e.what(),
                testing::AllOf(HasSubstr("\"v2\""), HasSubstr(" v1"), HasSubstr(" emoji")));
  }
}

TEST(ChatTemplateTest, WhatTrainingHasNotIsWritten) {
  const ChatTemplate t = ChatTemplate::Parse(R"({
    "name": "mine", "system": "S", "system_prefix": "<", "user": {"prefix": "U ", "separator": "|"},
    "assistant": {"prefix": "A ", "suffix": "."},
    "training": {"system_prefix": "", "user": {"prefix": "U ", "separator": ""}}})");
  const std::vector<ChatMessage> chat = {User("q"), Assistant("a"), User("r"), Assistant("b")};
  EXPECT_EQ(t.RenderTraining(chat).text, "SU qA a.U rA b.");
  EXPECT_EQ(ChatTemplate::Parse(t.ToJson()).RenderTraining(chat).text, "SU qA a.U rA b.");
}

TEST(ChatTemplateTest, SystemTextsAreTheOnesOfTraining) {
  auto check = [](const char* name, size_t size, const std::string& digest) {
    const std::string system = ChatTemplate::Builtin(name).system();
    EXPECT_EQ(system.size(), size) << name;
    EXPECT_EQ(ToHex(HashBytes(system)).substr(0, 16), digest) << name;
  };
  check("v1", 154, "1fa69e2371b762d1");
  for (const char* name : {"v0", "llava_v0", "llava_v1"}) check(name, 156, "ace78a978005f68a");
}

TEST(ChatTemplateTest, RendersPrompts) {
  auto render = [](const char* name) {
    const ChatTemplate t = ChatTemplate::Builtin(name);
    std::string text = TextOf(t.Render(kChat));
    if (!t.system().empty()) text.replace(text.find(t.system()), t.system().size(), "SYS");
    return text;
  };
  EXPECT_EQ(render("v1"), "SYS USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:");
  EXPECT_EQ(render("llava_v1"), render("v1"));
  EXPECT_EQ(render("v0"), "SYS###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant:");
  EXPECT_EQ(render("llava_v0"), render("v0"));
  EXPECT_EQ(render("plain"), "<image>Q1A1\nQ2");
  EXPECT_EQ(render("mistral_instruct"), "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]");
  EXPECT_EQ(render("llava_llama_2"),
            "[INST] <<SYS>>\nSYS\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]");
  EXPECT_EQ(render("chatml_direct"),
            "<|im_start|>system\nSYS<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|>"
            "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|>"
            "<|im_start|>assistant\n");
  EXPECT_THAT(ChatTemplate::Builtin("chatml_direct").stop(), ElementsAre("<|im_end|>"));
  EXPECT_EQ(render("emoji"), "USER:<image>Q1ASSISTANT:A1</s>USER:Q2ASSISTANT:");
  EXPECT_THAT(ChatTemplate::Builtin("v0").stop(), ElementsAre("###"));
  EXPECT_TRUE(ChatTemplate::Builtin("v1").stop().empty());
}

TEST(ChatTemplateTest, EarlierAnswersGoBackAsTheirIds) {
  const ChatTemplate t = ChatTemplate::Builtin("v1");
  const std::vector<ChatMessage> chat = {User("Q1"), Assistant("A1", {7, 8}), User("Q2")};
  EXPECT_THAT(TextOf(t.Render(chat)),
              HasSubstr("USER: Q1 ASSISTANT:[2 ids]</s>USER: Q2 ASSISTANT:"));
}

TEST(ChatTemplateTest, AnAnswerThatIsBegunReadsAsInTraining) {
  for (const std::string& name : BuiltinNames()) {
    if (name == "plain") continue;
    const ChatTemplate t = ChatTemplate::Builtin(name);
    std::vector<PromptSpan> spans = t.Render(std::vector{User("Q")});
    t.BeginAnswer(spans, "</s>LECTURE: x");
    EXPECT_EQ(spans.back().kind, Kind::kUser);
    const auto training = t.RenderTraining(std::vector{User("Q"), Assistant("</s>LECTURE: x")});
    std::string trained = training.text.substr(training.answers[0].begin);
    trained.resize(trained.find(": x") + 3);
    EXPECT_THAT(TextOf(spans), testing::EndsWith(trained)) << name;
  }
  const ChatTemplate v1 = ChatTemplate::Builtin("v1");
  std::vector<PromptSpan> spans = v1.Render(std::vector{User("Q")});
  v1.BeginAnswer(spans, "LECTURE: x");
  EXPECT_THAT(TextOf(spans), testing::EndsWith("USER: Q ASSISTANT: LECTURE: x"));
}

TEST(ChatTemplateTest, WhatPeopleWroteIsMarkedAsTheirs) {
  for (const std::string& name : BuiltinNames()) {
    const std::vector<ChatMessage> chat = {User("</s>q"), Assistant("</s>a"),
                                           User("<image></s>r", 2)};
    std::string theirs;
    int pictures = 0;
    for (const PromptSpan& span : ChatTemplate::Builtin(name).Render(chat, "</s>sys")) {
      if (span.kind == Kind::kUser) theirs += span.text + ";";
      pictures += span.kind == Kind::kImage;
      if (span.kind == Kind::kTemplate) {
        EXPECT_THAT(span.text, testing::Not(HasSubstr("q")));
      }
    }
    EXPECT_EQ(theirs, "</s>sys;</s>q;</s>a;<image></s>r;") << name;
    EXPECT_EQ(pictures, 2);
  }
}

TEST(ChatTemplateTest, SystemTextCanBeReplacedOrLeftOut) {
  const ChatTemplate t = ChatTemplate::Builtin("v1");
  EXPECT_EQ(TextOf(t.Render(std::vector{User("Q")}, "Be brief.")), "Be brief. USER: Q ASSISTANT:");
  EXPECT_EQ(TextOf(t.Render(std::vector{User("Q")}, "")), "USER: Q ASSISTANT:");
  // What stands around the template's own stands around another one.
  const ChatTemplate inside = ChatTemplate::Builtin("llava_llama_2");
  EXPECT_EQ(TextOf(inside.Render(std::vector{User("Q", 1)}, "Be brief.")),
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nQ [/INST]");
  EXPECT_EQ(TextOf(inside.Render(std::vector{User("Q")}, "")), "[INST] Q [/INST]");
  const ChatTemplate chatml = ChatTemplate::Builtin("chatml_direct");
  EXPECT_EQ(TextOf(chatml.Render(std::vector{User("Q")}, "Be brief.")),
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nQ<|im_end|>"
            "<|im_start|>assistant\n");
  EXPECT_THAT(TextOf(chatml.Render(std::vector{User("Q")}, "")),
              testing::StartsWith("<|im_start|>user\nQ"));
}

// conversation.py's SeparatorStyle.LLAMA_2, whose "<s>" and "</s>" are tokens.
TEST(ChatTemplateTest, ASystemTextWithinTheQuestionReadsAsInTraining) {
  const ChatTemplate t = ChatTemplate::Builtin("llava_llama_2");
  const auto training = t.RenderTraining(
      std::vector{User("<image>\nQ1"), Assistant("A1"), User("Q2"), Assistant("A2")});
  EXPECT_EQ(training.text, TextOf(t.Render(kChat)) + " A2 </s>");
  std::vector<PromptSpan> trusted = t.Render(kChat);
  for (PromptSpan& span : trusted) {
    if (span.kind == Kind::kUser) span.kind = Kind::kTemplate;
  }
  const Tokenizer tokenizer = FixtureTokenizer(true);
  const std::vector<int32_t> ids = tokenizer.EncodePrompt(t.Render(kChat));
  EXPECT_EQ(ids, tokenizer.EncodePrompt(trusted));
  EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer.bos_id()), 2);
  const auto end = std::find(ids.begin(), ids.end(), tokenizer.eos_id());
  ASSERT_NE(end, ids.end());
  EXPECT_EQ(end[1], tokenizer.bos_id());
}

TEST(ChatTemplateTest, APictureAloneIsAQuestion) {
  const ChatTemplate t = ChatTemplate::Builtin("v1");
  EXPECT_THAT(TextOf(t.Render(std::vector{User("", 1)})), HasSubstr("USER: <image> ASSISTANT:"));
  EXPECT_THAT(t.RenderTraining(std::vector{User("<image>"), Assistant("A")}).text,
              HasSubstr("USER: <image> ASSISTANT: A</s>"));
}

TEST(ChatTemplateTest, RefusesConversationsOutOfOrder) {
  const ChatTemplate t = ChatTemplate::Builtin("v1");
  auto refused = [&](std::vector<ChatMessage> chat) {
    EXPECT_THROW(t.Render(chat), std::invalid_argument);
  };
  refused({});
  refused({Assistant("A")});
  refused({User("Q"), User("Q")});
  refused({User("Q"), Assistant("A")});
  refused({User("")});
  refused({User("Q", -1)});
  ChatMessage with_picture = Assistant("A");
  with_picture.num_images = 1;
  refused({User("Q"), with_picture, User("Q")});
  auto refused_sample = [](const char* name, std::vector<ChatMessage> chat, bool has_image) {
    EXPECT_THROW(ChatTemplate::Builtin(name).RenderTraining(chat, has_image),
                 std::invalid_argument);
  };
  refused_sample("v1", {}, true);
  refused_sample("v1", {User("Q")}, true);
  refused_sample("v1", {User("Q"), Assistant("")}, true);
  refused_sample("v1", {User("Q"), Assistant("an <image>")}, true);
  refused_sample("v1", {User("Q", 1), Assistant("A")}, false);
  refused_sample("plain", {User("Q"), Assistant("A")}, true);
  refused_sample("plain", {User("<image>"), Assistant("A"), User("Q"), Assistant("A")}, true);
}

TEST(ChatTemplateTest, TrainingMovesMarksToTheFront) {
  const ChatTemplate t = ChatTemplate::Builtin("v1");
  auto text = [&t](ChatMessage question, bool has_image = true) {
    return t.RenderTraining(std::vector{question, Assistant("A")}, has_image)
        .text.substr(t.system().size());
  };
  EXPECT_EQ(text(User(" What?\n<image> ")), " USER: <image>\nWhat? ASSISTANT: A</s>");
  EXPECT_EQ(text(User("<image> a <image>")), " USER: <image>\na ASSISTANT: A</s>");
  EXPECT_EQ(text(User("both?", 2)), " USER: <image>\n<image>\nboth? ASSISTANT: A</s>");
  EXPECT_EQ(text(User(" no mark ")), " USER:  no mark  ASSISTANT: A</s>");
  EXPECT_EQ(text(User(" <image> "), false), " USER:  <image>  ASSISTANT: A</s>");
}

TEST(ChatTemplateTest, TrainingPutsMarksWhereItIsTold) {
  using Place = ChatTemplate::MarkPlace;
  const auto text = [](const ChatTemplate& t, std::vector<ChatMessage> chat, Place place) {
    return t.RenderTraining(chat, true, place).text.substr(t.system().size());
  };
  const ChatTemplate v1 = ChatTemplate::Builtin("v1");
  const auto one = [&](const char* question, Place place) {
    return text(v1, {User(question), Assistant("A")}, place);
  };
  const std::string front = " USER: <image>\nWhat? ASSISTANT: A</s>";
  const std::string end = " USER: What?\n<image> ASSISTANT: A</s>";
  for (const char* question : {"<image>\nWhat?", "What? <image>", " <image>What?\n"}) {
    EXPECT_EQ(one(question, Place::kFront), front);
    EXPECT_EQ(one(question, Place::kEnd), end);
  }
  EXPECT_EQ(one("<image> What?", Place::kAsWritten), front);
  EXPECT_EQ(one("What? <image>\n", Place::kAsWritten), end);
  EXPECT_EQ(one(" In <image> what? ", Place::kAsWritten),
            " USER: In <image> what? ASSISTANT: A</s>");
  EXPECT_EQ(one("<image> or <image>?", Place::kAsWritten),
            " USER: <image> or <image>? ASSISTANT: A</s>");
  EXPECT_EQ(text(v1, {User("Both? <image> <image>", 2), Assistant("A")}, Place::kAsWritten),
            " USER: Both?\n<image>\n<image> ASSISTANT: A</s>");
  EXPECT_EQ(one("<image>", Place::kEnd), " USER: <image> ASSISTANT: A</s>");
  EXPECT_EQ(one("no mark", Place::kEnd), " USER: no mark ASSISTANT: A</s>");
  // Every question by itself.
  EXPECT_EQ(
      text(v1, {User("a <image>"), Assistant("A"), User("<image> b"), Assistant("B")}, Place::kEnd),
      " USER: a\n<image> ASSISTANT: A</s>USER: b\n<image> ASSISTANT: B</s>");

  const ChatTemplate marked = ChatTemplate::Parse(
      R"({"name": "x", "image": {"prefix": "<im_start>", "suffix": "<im_end>\n"},
          "user": {"prefix": "U:"}, "assistant": {"prefix": "A:"}})");
  const auto wrapped = [&](const char* question, Place place) {
    return text(marked, {User(question), Assistant("A")}, place);
  };
  EXPECT_EQ(wrapped("<image>Q", Place::kFront), "U:<im_start><image><im_end>\nQA:A");
  EXPECT_EQ(wrapped("<image>Q", Place::kEnd), "U:Q\n<im_start><image><im_end>A:A");
  EXPECT_EQ(wrapped("in <image> Q", Place::kAsWritten), "U:in <im_start><image><im_end> QA:A");

  const std::vector<ChatMessage> chat = {User("Q\n<image>"), Assistant("A")};
  EXPECT_EQ(text(ChatTemplate::Builtin("emoji"), chat, Place::kEnd),
            "USER:Q<image>ASSISTANT:A</s>");
  for (const Place place : {Place::kFront, Place::kEnd, Place::kAsWritten}) {
    EXPECT_EQ(text(ChatTemplate::Builtin("plain"), chat, place), "<image>A\n");
  }
  EXPECT_EQ(text(ChatTemplate::Builtin("plain"), {User("in <image> what?"), Assistant("A")},
                 Place::kAsWritten),
            "<image>A\n");
}

TEST(ChatTemplateTest, AnswersAreTheBytesToTrain) {
  const std::vector<ChatMessage> chat = {User("<image>\nQ1"), Assistant("A1"), User("Q2"),
                                         Assistant("A2")};
  auto answers = [](const char* name, const std::vector<ChatMessage>& messages) {
    const auto training = ChatTemplate::Builtin(name).RenderTraining(messages);
    std::vector<std::string> texts;
    for (const auto& a : training.answers)
      texts.push_back(training.text.substr(a.begin, a.end - a.begin));
    return texts;
  };
  EXPECT_THAT(answers("v1", chat), ElementsAre(" A1</s>", " A2</s>"));
  EXPECT_THAT(answers("v0", chat), ElementsAre(" A1\n###", " A2\n###"));
  EXPECT_THAT(answers("llava_llama_2", chat), ElementsAre(" A1 </s>", " A2 </s>"));
  EXPECT_THAT(answers("chatml_direct", chat), ElementsAre("A1<|im_end|>", "A2<|im_end|>"));
  EXPECT_THAT(answers("emoji", chat), ElementsAre("A1</s>", "A2</s>"));
  EXPECT_THAT(answers("plain", {User("What?\n<image>"), Assistant("a cat")}),
              ElementsAre("a cat\n"));
}

TEST(ChatTemplateTest, NamesTheOffendingKey) {
  auto refused = [](const std::string& json, const std::string& why) {
    try {
      ChatTemplate::Parse(json);
      ADD_FAILURE() << json;
    } catch (const std::invalid_argument& e) {
      EXPECT_THAT(e.what(), HasSubstr(why));
    }
  };
  const std::string rest = R"("user": {"prefix": "U:"}, "assistant": {"prefix": "A:"})";
  refused("[", "no JSON that can be read: parse error");
  refused("[]", "expected an object");
  refused("{" + rest + "}", "\"name\": missing");
  refused(R"({"name": "x", "assistant": {}})", "\"user\": missing");
  refused(R"({"name": "", )" + rest + "}", "\"name\"");
  refused(R"({"name": "x", "colour": 1, )" + rest + "}", "\"colour\": no such key");
  refused(R"({"name": "x", "system": 1, )" + rest + "}", "\"system\": expected a text, found 1");
  refused(R"({"name": "x", "system": [[1]], )" + rest + "}", "expected a text, found array");
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  refused(R"({"name": "x", "system": )" + deep + ", " + rest + "}", "more than 200 levels");
  refused(R"({"name": "x", "stop": [""], )" + rest + "}", "\"stop\"");
  refused(R"({"name": "x", "image": {"sufix": ""}, )" + rest + "}", "\"image.sufix\"");
  refused(R"({"name": "x", "training": {"drop_questions": 1}, )" + rest + "}",
          "\"training.drop_questions\"");
  refused(R"({"name": "x", "training": {"published_labels": "v7"}, )" + rest + "}",
          "\"training.published_labels\"");
  refused(
      R"({"name": "x", "training": {"published_labels": "plain"}, "system_in_question": true, )" +
          rest + "}",
      "\"training.published_labels\": is of formats without");
  refused(R"({"name": "x", "training": {"trained_after_answer": "#"}, )" + rest + "}",
          "\"training.trained_after_answer\"");
}

// The fixtures' prompts of the original layout, rendered and encoded.
TEST(ChatTemplateTest, PromptsEncodeAsTheFixturesSay) {
  const Tokenizer tokenizer = FixtureTokenizer(false);
  const auto expected = ExpectedJson("tokenization.json");
  for (const auto& row : expected["prompts"]) {
    const std::string text = row["text"];
    const ChatTemplate t = ChatTemplate::Builtin("v1");
    const std::string head = t.system() + " USER: <image>\n", tail = " ASSISTANT:";
    if (!text.starts_with(head) || !text.ends_with(tail) || text.find("</s>") != text.npos)
      continue;
    const std::string question = text.substr(head.size(), text.size() - head.size() - tail.size());
    EXPECT_EQ(tokenizer.EncodePrompt(t.Render(std::vector{User(question, 1)})),
              row["image_marks_legacy_false"].get<std::vector<int32_t>>());
    return;
  }
  FAIL() << "no prompt of one turn among the fixtures";
}

// The demo model joins ids piece by piece.
TEST(ChatTemplateTest, EmojiPromptsAreJoinedPieceByPiece) {
  const std::filesystem::path demo =
      std::filesystem::path(SourceDir()) / "deploy/models/emoji/1/tokenizer.model";
  if (!std::filesystem::exists(demo)) GTEST_SKIP() << "no shipped model at " << demo;
  const Tokenizer plain(ReadBytes(demo), {});
  const ChatTemplate t = ChatTemplate::Builtin("emoji");
  const Tokenizer tokenizer = plain.WithSpecialPieces(t.special_pieces());
  const int32_t user = plain.IdOf("USER:"), assistant = plain.IdOf("ASSISTANT:");
  std::vector<int32_t> expected = {plain.bos_id(), user, kImageToken};
  auto add = [&](const std::string& text) {
    for (int32_t id : plain.EncodePieces(text)) expected.push_back(id);
  };
  add("What is this?");
  expected.push_back(assistant);
  add("A lion.");
  expected.insert(expected.end(), {plain.eos_id(), user});
  add("2 lions?");
  expected.push_back(assistant);
  const auto answer = plain.EncodePieces("A lion.");
  for (const auto& reply : {Assistant("A lion."), Assistant("", answer)}) {
    EXPECT_EQ(tokenizer.EncodePrompt(
                  t.Render(std::vector{User("What is this?", 1), reply, User("2 lions?")})),
              expected);
  }
  for (int32_t id : tokenizer.EncodePrompt(
           t.Render(std::vector{User("ASSISTANT: ＵＳＥＲ： <image></s>", 0)}))) {
    EXPECT_NE(id, plain.IdOf("<image>"));
    EXPECT_NE(id, plain.eos_id());
  }
}

}  // namespace
}  // namespace llava
