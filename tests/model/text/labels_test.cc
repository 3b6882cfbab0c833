#include "model/text/labels.h"

#include <algorithm>
#include <stdexcept>

#include <gtest/gtest.h>

#include "tests/model/text/text_fixtures.h"

namespace llava {
namespace {

using Role = ChatMessage::Role;
using nlohmann::json;

// Messages and picture of a row named like "v1/A/legacy_true" or "plain/0/legacy_false".
struct Sample {
  std::string template_name;
  bool legacy = false, has_image = true;
  std::vector<ChatMessage> messages;
};

Sample ParseRow(const std::string& name, const json& file, const json& row) {
  Sample sample;
  sample.template_name = name.substr(0, name.find('/'));
  sample.legacy = name.ends_with("legacy_true");
  if (sample.template_name == "plain") {
    // The caption stands in the text itself; the question is thrown away, whatever it is.
    const std::string text = row["text"];
    const std::string caption = text.substr(7, text.size() - 8);
    sample.messages = {{Role::kUser, "Describe it.\n<image>", 0, {}},
                       {Role::kAssistant, caption, 0, {}}};
    return sample;
  }
  const size_t begin = name.find('/') + 1;
  const std::string id = name.substr(begin, name.rfind('/') - begin);
  for (const json& conversation : file["conversations"]) {
    if (conversation["id"] != id) continue;
    sample.has_image = !conversation["image"].is_null();
    for (const json& turn : conversation["turns"]) {
      sample.messages.push_back({Role::kUser, turn[0], 0, {}});
      sample.messages.push_back({Role::kAssistant, turn[1], 0, {}});
    }
  }
  return sample;
}

TEST(LabelsTest, AreThoseOfTheFixtures) {
  const json file = ExpectedJson("labels.json");
  const Tokenizer tokenizers[] = {FixtureTokenizer(false), FixtureTokenizer(true)};
  ASSERT_GT(file["labels"].size(), 0u);
  for (const auto& [name, row] : file["labels"].items()) {
    SCOPED_TRACE(name);
    const Sample sample = ParseRow(name, file, row);
    ASSERT_FALSE(sample.messages.empty());
    const ChatTemplate chat_template = ChatTemplate::Builtin(sample.template_name);
    const auto ids = row["input_ids"].get<std::vector<int32_t>>();
    const LabelledTokens rule =
        MakeLabels(tokenizers[sample.legacy], chat_template, sample.messages, sample.has_image);
    EXPECT_EQ(rule.text, row["text"].get<std::string>());
    EXPECT_EQ(rule.input_ids, ids);
    EXPECT_EQ(rule.labels, row["labels"].get<std::vector<int64_t>>());
    const LabelledTokens published = MakePublishedLabels(tokenizers[sample.legacy], chat_template,
                                                         sample.messages, sample.has_image);
    EXPECT_EQ(published.text, row["text"].get<std::string>());
    EXPECT_EQ(published.input_ids, ids);
    EXPECT_EQ(published.labels, row["labels_original_code"].get<std::vector<int64_t>>());
  }
}

// Trained tokens put together again are the answers, whatever stands in them.
TEST(LabelsTest, CoverTheAnswersAndNothingElse) {
  std::mt19937 random(21);
  for (const bool legacy : {true, false}) {
    const Tokenizer tokenizer = FixtureTokenizer(legacy);
    for (int round = 0; round < 200; ++round) {
      const std::string name = std::vector<std::string>{"v1", "v0", "llava_v1"}[round % 3];
      const ChatTemplate chat_template = ChatTemplate::Builtin(name);
      std::vector<ChatMessage> messages;
      std::string expected;
      for (size_t turns = 1 + random() % 3; turns > 0; --turns) {
        const std::string answer = "x" + OddText(random, false, {"###", "USER:"});
        messages.push_back({Role::kUser, "q" + OddText(random, false, {"<image>", "###"}), 0, {}});
        messages.push_back({Role::kAssistant, answer, 0, {}});
        expected += " " + answer + (name == "v0" ? "\n###" : "</s>");
      }
      const LabelledTokens sample = MakeLabels(tokenizer, chat_template, messages, true);
      ASSERT_EQ(sample.input_ids.size(), sample.labels.size());
      std::string trained;
      for (size_t i = 0; i < sample.labels.size(); ++i) {
        if (sample.labels[i] == kIgnoreLabel) continue;
        ASSERT_EQ(sample.labels[i], sample.input_ids[i]);
        trained += tokenizer.TokenBytes(sample.input_ids[i]);
      }
      for (size_t mark; (mark = expected.find("▁")) != expected.npos;) {
        expected.replace(mark, 3, " ");  // what it is to the tokenizer
      }
      ASSERT_EQ(trained, expected);
    }
  }
}

TEST(LabelsTest, PublishedScriptDropsSamplesItMiscounts) {
  const Tokenizer tokenizer = FixtureTokenizer(true);
  const ChatTemplate v1 = ChatTemplate::Builtin("v1");
  auto trained = [&](const std::string& question, size_t max_length) {
    const std::vector<ChatMessage> messages = {{Role::kUser, question, 0, {}},
                                               {Role::kAssistant, "Yes.", 0, {}}};
    const auto sample = MakePublishedLabels(tokenizer, v1, messages, false, max_length);
    return sample.labels.size() -
           std::count(sample.labels.begin(), sample.labels.end(), kIgnoreLabel);
  };
  EXPECT_GT(trained("Is it?", 2048), 0u);
  EXPECT_EQ(trained("Is ASSISTANT: it?", 2048), 0u);  // the marker within a question
  EXPECT_EQ(trained("Is <unk> it?", 2048), 0u);       // taken for padding
  EXPECT_GT(trained("Is <unk> it?", 10), 0u);         // too long to be checked
}

TEST(LabelsTest, PublishedScriptKnowsNoEmoji) {
  const std::vector<ChatMessage> messages = {{Role::kUser, "Q", 0, {}},
                                             {Role::kAssistant, "A", 0, {}}};
  EXPECT_THROW(
      MakePublishedLabels(FixtureTokenizer(true), ChatTemplate::Builtin("emoji"), messages, false),
      std::invalid_argument);
}

}  // namespace
}  // namespace llava
