// expected/labels.json: training texts, ids and masks by the rule and by the published script.
// Exact.

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/text/chat_template.h"
#include "model/text/labels.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

using nlohmann::json;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

// A key "template/conversation/mode" and what it stands for.
struct Sample {
  std::string key, template_name;
  bool legacy = false, has_image = false;
  std::vector<ChatMessage> messages;
};

void AddTurn(Sample& sample, const std::string& question, const std::string& answer) {
  sample.messages.push_back({ChatMessage::Role::kUser, question, /*num_images=*/0, {}});
  sample.messages.push_back({ChatMessage::Role::kAssistant, answer, /*num_images=*/0, {}});
}

Sample SampleOf(const std::string& key, const json& row) {
  const json& labels = Folder().Json("labels");
  const size_t first = key.find('/'), last = key.rfind('/');
  Sample sample;
  sample.key = key;
  sample.template_name = key.substr(0, first);
  const std::string id = key.substr(first + 1, last - first - 1), mode = key.substr(last + 1);
  EXPECT_TRUE(mode == "legacy_true" || mode == "legacy_false") << key;
  sample.legacy = mode == "legacy_true";
  if (sample.template_name == "plain") {
    // The text is the mark, the caption and a newline; not every caption is listed by itself.
    const std::string text = row.at("text"), mark = "<image>";
    sample.has_image = true;
    AddTurn(sample, mark, text.substr(mark.size(), text.size() - mark.size() - 1));
    return sample;
  }
  for (const json& conversation : labels.at("conversations")) {
    if (conversation.at("id") != id) continue;
    sample.has_image = !conversation.at("image").is_null();
    for (const json& turn : conversation.at("turns")) AddTurn(sample, turn.at(0), turn.at(1));
  }
  EXPECT_FALSE(sample.messages.empty()) << key << ": no such conversation";
  return sample;
}

std::vector<Sample> Samples() {
  std::vector<Sample> samples;
  for (const auto& [key, row] : Folder().Json("labels").at("labels").items()) {
    samples.push_back(SampleOf(key, row));
  }
  EXPECT_FALSE(samples.empty());
  return samples;
}

const json& RowOf(const Sample& sample) {
  return Folder().Json("labels").at("labels").at(sample.key);
}

void ExpectLabels(const Sample& sample, const LabelledTokens& found, const char* field) {
  EXPECT_EQ(found.text, RowOf(sample).at("text").get<std::string>()) << sample.key;
  EXPECT_EQ(found.input_ids, IdsOf(RowOf(sample).at("input_ids"))) << sample.key;
  EXPECT_EQ(found.labels, RowOf(sample).at(field).get<std::vector<int64_t>>()) << sample.key;
}

TEST(LabelsParityTest, ByTheRule) {
  for (const Sample& sample : Samples()) {
    ExpectLabels(
        sample,
        MakeLabels(Folder().PlainTokenizer(sample.legacy),
                   ChatTemplate::Builtin(sample.template_name), sample.messages, sample.has_image),
        "labels");
  }
}

TEST(LabelsParityTest, AsThePublishedScript) {
  for (const Sample& sample : Samples()) {
    ExpectLabels(sample,
                 MakePublishedLabels(Folder().PlainTokenizer(sample.legacy),
                                     ChatTemplate::Builtin(sample.template_name), sample.messages,
                                     sample.has_image),
                 "labels_original_code");
    const json& row = RowOf(sample);
    EXPECT_EQ(row.at("labels") == row.at("labels_original_code"), row.at("same_as_original_code"));
  }
}

TEST(LabelsParityTest, ListedCaptionsAreThePlainSamples) {
  const json& labels = Folder().Json("labels");
  for (size_t i = 0; i < labels.at("captions").size(); ++i) {
    const json& row = labels.at("labels").at("plain/" + std::to_string(i) + "/legacy_false");
    EXPECT_EQ(row.at("text"), "<image>" + labels.at("captions")[i].get<std::string>() + "\n");
  }
}

}  // namespace
}  // namespace llava
