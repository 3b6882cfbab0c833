#include "model/datagen/quality_gates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>

#include "model/data/scenes/random.h"
#include "model/datagen/dialogue_parser.h"

namespace llava {
namespace {

using testing::HasSubstr;
using Kind = ParseFault::Kind;

std::optional<Kind> FaultOf(const std::string& text) {
  try {
    ParseDialogue(text);
  } catch (const ParseFault& fault) {
    return fault.kind();
  }
  return std::nullopt;
}

// "q1/a1 q2/a2".
std::string Shown(const ParsedDialogue& dialogue) {
  std::string text;
  for (const QuestionAnswer& turn : dialogue.turns) {
    text += (text.empty() ? "" : " | ") + turn.question + " / " + turn.answer;
  }
  return text + (dialogue.open_end ? " ..." : "");
}

TEST(DialogueParserTest, ReadsTheFormThatIsAskedFor) {
  EXPECT_EQ(Shown(ParseDialogue("Question:\nWhat?\n===\nAnswer:\nA dog.\n\nA big one.\n===\n"
                                "Question:\nWhere?\n===\nAnswer:\nHere.\n")),
            "What? / A dog.\n\nA big one. | Where? / Here.");
}

TEST(DialogueParserTest, ReadsWhatTeachersMakeOfIt) {
  const std::string expected = "What? / A dog. | Where? / Here.";
  for (const char* text : {
           "Question: What?\nAnswer: A dog.\nQuestion: Where?\nAnswer: Here.",
           "Q: What?\nA: A dog.\n\nQ: Where?\nA: Here.",
           "QUESTION 1:\r\nWhat?\r\n=====\r\nANSWER 1:\r\nA dog.\r\n=====\r\nQUESTION "
           "2:\r\nWhere?\r\n"
           "=====\r\nANSWER 2:\r\nHere.",
           "Sure! Here is the conversation.\n\n**Question:** What?\n\n**Answer:** A dog.\n\n---\n\n"
           "**Question:** Where?\n\n**Answer:** Here.",
           "### Question 1:\nWhat?\n### Answer:\nA dog.\n### Question 2:\nWhere?\n### "
           "Answer:\nHere.",
           "1. **Question**: What?\n   **Answer**: A dog.\n2. **Question**: Where?\n   **Answer**: "
           "Here.",
           "```\nQuestion:\nWhat?\n===\nAnswer:\nA "
           "dog.\n===\nQuestion:\nWhere?\n===\nAnswer:\nHere.\n"
           "```",
           "{\"question\": \"What?\", \"answer\": \"A dog.\"}\n{\"question\": \"Where?\", "
           "\"answer\": \"Here.\"}\n",
           "```json\n[{\"question\": \"What?\", \"answer\": \"A dog.\"},\n {\"question\": "
           "\"Where?\", \"answer\": \"Here.\"}]\n```",
       }) {
    EXPECT_EQ(Shown(ParseDialogue(text)), expected) << text;
  }
}

TEST(DialogueParserTest, LabelsAreOnlyAtTheBeginningOfLines) {
  EXPECT_EQ(Shown(ParseDialogue("Question: Is it a Q: or an A?\nAnswer: A dog and\na cat: both.")),
            "Is it a Q: or an A? / A dog and\na cat: both.");
}

// Whatever copies or prints such a value calls itself for each of its levels.
TEST(DialogueParserTest, SurvivesAnyDepth) {
  const size_t depth = 100'000;
  const std::string deep = std::string(depth, '[') + std::string(depth, ']');
  std::string objects;
  for (size_t i = 0; i < depth; ++i) objects += "{\"question\": ";
  objects += "1" + std::string(depth, '}');
  const std::string within =
      "{\"question\": \"What?\", \"answer\": \"A dog.\", \"more\": " + deep + "}";
  for (const std::string& text : {deep, objects, within, within + "\n" + within}) {
    EXPECT_EQ(FaultOf(text), Kind::kNoDialogue);
  }
}

TEST(DialogueParserTest, TellsWhatIsWrong) {
  EXPECT_EQ(FaultOf("Question:\nWhat?\nQuestion:\nWhere?\nAnswer:\nHere."), Kind::kAlternation);
  EXPECT_EQ(FaultOf("Answer:\nHere.\nQuestion:\nWhere?"), Kind::kAlternation);
  EXPECT_EQ(FaultOf("Question: A?\nAnswer: b\nAnswer: c"), Kind::kAlternation);
  EXPECT_EQ(FaultOf("The picture shows a dog."), Kind::kNoDialogue);
  EXPECT_EQ(FaultOf(""), Kind::kNoDialogue);
  EXPECT_EQ(FaultOf("{\"question\": \"What?\"}"), Kind::kNoDialogue);
  EXPECT_TRUE(ParseDialogue("Question: A?\nAnswer: b\nQuestion: C?").open_end);
}

TEST(PlainTextTest, DropsMarkdownAndKeepsText) {
  EXPECT_EQ(PlainText("## Head\r\n\r\n\r\nA **bold** `word`.\n---\n- one\n- two * 3 * 4\n```\n"),
            "Head\n\nA bold word.\n- one\n- two * 3 * 4");
  EXPECT_EQ(PlainText("#1 in line, 2**3 and a lone ** mark"),
            "#1 in line, 2**3 and a lone ** mark");
  EXPECT_EQ(PlainText("  \n "), "");
}

class QualityGatesTest : public testing::Test {
 protected:
  Screened Screen(ResponseType type, const std::string& text,
                  const std::string& finish_reason = "stop") const {
    return gates_.Screen(type, {.text = text, .finish_reason = finish_reason, .usage = {}});
  }
  Screened Conversation(const std::string& text, const std::string& finish_reason = "stop") const {
    return Screen(ResponseType::kConversation, text, finish_reason);
  }
  static std::string Long(const std::string& start) {
    return start +
           " The scene is calm and bright, and there is a wide meadow behind the house, with some "
           "trees at its edge and a path that leads to the water.";
  }

  const PromptSet prompts_ = PromptSet::Read();
  const QualityGates gates_{prompts_, Language::kEnglish};
};

TEST_F(QualityGatesTest, KeepsGoodAnswers) {
  const Screened talk =
      Conversation("Question: What is it?\nAnswer: A dog.\nQuestion: Its color?\nAnswer: Brown.");
  EXPECT_FALSE(talk.rejected);
  EXPECT_FALSE(talk.cut);
  ASSERT_EQ(talk.turns.size(), 2u);
  EXPECT_EQ(talk.turns[1].answer, "Brown.");
  const Screened detail = Screen(ResponseType::kDetail, Long("A house stands by a lake."));
  EXPECT_FALSE(detail.rejected) << detail.detail;
  EXPECT_EQ(detail.turns.at(0).question, "");
  const Screened complex =
      Screen(ResponseType::kComplex,
             "Question:\nWhy might they like it here?\n===\nAnswer:\n" + Long("It is quiet."));
  EXPECT_FALSE(complex.rejected) << complex.detail;
  EXPECT_EQ(complex.turns.at(0).question, "Why might they like it here?");
}

TEST_F(QualityGatesTest, ALabelledDescriptionLosesItsLabel) {
  const std::string text = Long("The picture shows a house.");
  for (const char* before :
       {"Answer: ", "Sure, here it is:\nAnswer: ", "Here is a description.\n\n**Answer:**\n"}) {
    const Screened screened = Screen(ResponseType::kDetail, before + text);
    EXPECT_FALSE(screened.rejected) << before << screened.detail;
    EXPECT_EQ(screened.turns.at(0).answer, text) << before;
  }
  const Screened two = Screen(ResponseType::kDetail, text + "\nAnswer: A house.");
  EXPECT_EQ(two.rejected, Rule::kAlternation);
}

TEST_F(QualityGatesTest, ItsOwnExamplesPass) {
  for (const ResponseType type : kResponseTypes) {
    for (const auto& [context, answer] : prompts_[type].examples) {
      const Screened screened = Screen(type, answer);
      EXPECT_FALSE(screened.rejected) << ToString(type) << ": " << screened.detail;
      EXPECT_FALSE(screened.cut) << ToString(type) << ": " << screened.detail;
    }
  }
}

TEST_F(QualityGatesTest, TellsTheBeginningOfATextInAnyScript) {
  std::string russian;
  for (int i = 0; i < 30; ++i) russian += "да ";  // 5 bytes each
  const Screened screened = Conversation("Question: What is it?\nAnswer: " + russian);
  EXPECT_EQ(screened.rejected, Rule::kLanguage);
  EXPECT_EQ(screened.detail, russian.substr(0, 80) + "...");
}

TEST_F(QualityGatesTest, RejectsByRule) {
  const std::string qa = "Question: What is it?\nAnswer: ";
  const struct {
    ResponseType type;
    std::string text, finish_reason;
    Rule rule;
  } cases[] = {
      {ResponseType::kConversation, "", "stop", Rule::kEmpty},
      {ResponseType::kConversation, " \n ", "stop", Rule::kEmpty},
      {ResponseType::kConversation, qa, "stop", Rule::kEmpty},
      {ResponseType::kConversation, qa + "A dog.", "content_filter", Rule::kRefused},
      {ResponseType::kDetail, "I\xE2\x80\x99m sorry, but I can\xE2\x80\x99t see images.", "stop",
       Rule::kRefused},
      {ResponseType::kConversation, qa + "As an AI, I do not know.", "stop", Rule::kRefused},
      {ResponseType::kConversation, "It is a dog.", "stop", Rule::kNoDialogue},
      {ResponseType::kConversation, "Answer: x\nQuestion: y", "stop", Rule::kAlternation},
      {ResponseType::kDetail, "Question: What?\nAnswer: A dog.", "stop", Rule::kAlternation},
      {ResponseType::kDetail, Long("A house."), "length", Rule::kTruncated},
      {ResponseType::kDetail, Long("A house.") + " And then", "", Rule::kTruncated},
      {ResponseType::kComplex, "Question: Why is it so?\nAnswer: " + Long("So."), "length",
       Rule::kTruncated},
      {ResponseType::kConversation, "Question: What?", "stop", Rule::kTruncated},
      {ResponseType::kConversation, qa + "<image> of a dog.", "stop", Rule::kImageMark},
      {ResponseType::kConversation, qa + "The captions say a dog.", "stop", Rule::kLeak},
      {ResponseType::kConversation, qa + "The dog's bounding-box is small.", "stop", Rule::kLeak},
      {ResponseType::kConversation,
       qa + "A dog\xE2\x80\x94"
            "coordinates unknown.",
       "stop", Rule::kLeak},
      {ResponseType::kConversation, qa + "A dog at [0.12, 0.5, 0.3, 0.9].", "stop", Rule::kLeak},
      {ResponseType::kConversation, qa + "Based on the provided description, a dog.", "stop",
       Rule::kLeak},
      {ResponseType::kConversation, "Question: What does the caption mention?\nAnswer: A dog.",
       "stop", Rule::kLeak},
      {ResponseType::kDetail,
       "Das Bild zeigt einen Hund, der auf einer Wiese liegt und in die Sonne blinzelt, "
       "hinter ihm steht ein altes Haus mit roten Ziegeln, daneben ein Baum und ein Zaun.",
       "stop", Rule::kLanguage},
      {ResponseType::kConversation, qa + "\xE4\xB8\x80\xE5\x8F\xAA\xE7\x8B\x97", "stop",
       Rule::kLanguage},
      {ResponseType::kConversation, "Question: What?\nAnswer: A dog.", "stop",
       Rule::kQuestionLength},
      {ResponseType::kDetail, "A dog.", "stop", Rule::kAnswerLength},
  };
  for (const auto& wrong : cases) {
    const Screened screened = Screen(wrong.type, wrong.text, wrong.finish_reason);
    ASSERT_TRUE(screened.rejected) << wrong.text;
    EXPECT_STREQ(ToString(*screened.rejected), ToString(wrong.rule)) << wrong.text;
    EXPECT_TRUE(screened.turns.empty());
    EXPECT_NE(screened.detail, "");
  }
}

TEST_F(QualityGatesTest, InnocentWordsPass) {
  for (const char* answer :
       {"They wear coordinated outfits.", "A ship's captain describes the sea.",
        "It costs 0.50 dollars (about 0.45 euros).", "The sign gives a description of the path.",
        "Nobody is sorry about it.", "It is caf\xC3\xA9 au lait \xE2\x98\x95."}) {
    const Screened screened = Conversation(std::string("Question: What is it?\nAnswer: ") + answer);
    EXPECT_FALSE(screened.rejected) << answer << ": " << screened.detail;
  }
}

TEST_F(QualityGatesTest, CutsADialogueInFrontOfItsFirstBadTurn) {
  const std::string good = "Question: What is it?\nAnswer: A dog.\n";
  const Screened leak = Conversation(good +
                                     "Question: Where is it?\nAnswer: The captions say here.\n"
                                     "Question: Is it big?\nAnswer: Yes.");
  EXPECT_FALSE(leak.rejected);
  EXPECT_EQ(leak.cut, Rule::kLeak);
  EXPECT_EQ(leak.turns.size(), 1u);
  EXPECT_THAT(leak.detail, HasSubstr("captions"));
  const Screened cut_off =
      Conversation(good + "Question: Where is it?\nAnswer: It lies on the", "length");
  EXPECT_EQ(cut_off.cut, Rule::kTruncated);
  EXPECT_EQ(cut_off.turns.size(), 1u);
  const Screened open = Conversation(good + "Question: Where is it?");
  EXPECT_EQ(open.cut, Rule::kTruncated);
  EXPECT_EQ(open.turns.size(), 1u);
  const Screened repeats = Conversation(good + "Question: what is it\nAnswer: Still a dog.");
  EXPECT_EQ(repeats.cut, Rule::kRepeatedQuestion);
  EXPECT_EQ(repeats.turns.size(), 1u);
  const Screened two = Screen(ResponseType::kComplex,
                              "Question: Why is it so quiet?\nAnswer: " + Long("So.") +
                                  "\nQuestion: And why is it green?\nAnswer: " + Long("Well."));
  EXPECT_EQ(two.cut, Rule::kTurns);
  EXPECT_EQ(two.turns.size(), 1u);
}

TEST_F(QualityGatesTest, CleansMarkdown) {
  const Screened screened =
      Conversation("**Question 1:** What is **that**?\n\n**Answer:** It is a `dog`.\n\n---\n");
  ASSERT_EQ(screened.turns.size(), 1u) << screened.detail;
  EXPECT_EQ(screened.turns[0].question, "What is that?");
  EXPECT_EQ(screened.turns[0].answer, "It is a dog.");
}

TEST_F(QualityGatesTest, LivesThroughAnyBytes) {
  const std::string pieces[] = {"Question:",
                                "Answer:",
                                "\n",
                                "===",
                                "**",
                                "`",
                                "#",
                                "[0.1, ",
                                "\xE2\x80",
                                "\xFF",
                                "<image>",
                                "{\"question\"",
                                "1. ",
                                "\xE2\x80\x99s",
                                std::string(1, '\0'),
                                " word",
                                "."};
  Random random(7);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (uint32_t n = random.Below(12); n > 0; --n) text += pieces[random.Below(std::size(pieces))];
    for (const ResponseType type : kResponseTypes) {
      const Screened screened = Screen(type, text, random.Chance(0.2) ? "length" : "stop");
      EXPECT_EQ(screened.turns.empty(), screened.rejected.has_value());
      for (const QuestionAnswer& turn : screened.turns) EXPECT_NE(turn.answer, "");
    }
    EXPECT_LE(PlainText(text).size(), text.size());
  }
}

TEST_F(QualityGatesTest, AnyLanguagePassesIfAsked) {
  const QualityGates any(prompts_, Language::kAny);
  EXPECT_FALSE(any.Screen(ResponseType::kConversation,
                          {.text = "Question: Was ist das?\nAnswer: Ein Hund, der auf einer Wiese "
                                   "liegt und in die Sonne blinzelt, bis er schl\xC3\xA4"
                                   "ft.",
                           .finish_reason = "stop",
                           .usage = {}})
                   .rejected);
}

TEST(DeduplicatorTest, KnowsEqualButForCaseAndPunctuation) {
  const std::string story =
      "a man walks his two dogs along the pier in the rain while boats lie at anchor and gulls "
      "circle above the water";
  Deduplicator dialogues;
  EXPECT_TRUE(dialogues.Add("a", {{"What?", story}}));
  EXPECT_FALSE(dialogues.Add("b", {{"what", "  " + story + "!"}}));
  EXPECT_TRUE(dialogues.Add("b", {{"What?", story + " again"}}));
  EXPECT_TRUE(dialogues.Add("b", {{"What?", story}, {"Where?", "Here."}}));
}

TEST(DeduplicatorTest, ShortOnesMayBeEqualByChance) {
  Deduplicator dialogues;
  EXPECT_TRUE(dialogues.Add("a", {{"What?", "A dog."}}));
  EXPECT_TRUE(dialogues.Add("b", {{"What?", "A dog."}}));
  EXPECT_FALSE(dialogues.Add("a", {{"What?", "a dog"}}));
}

}  // namespace
}  // namespace llava
