#include "model/datagen/noun_phrases.h"
#include "tests/support/paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

namespace llava {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

struct Labelled {
  std::string caption;
  std::vector<std::string> phrases;
};

std::vector<Labelled> ReadLabels() {
  std::ifstream file(SourceDir() + "/tests/model/datagen/noun_phrases.txt");
  std::vector<Labelled> labels;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with('#')) continue;
    std::vector<std::string> fields;
    for (size_t at = 0; at < line.size();) {
      const size_t end = std::min(line.find(" | ", at), line.size());
      fields.push_back(line.substr(at, end - at));
      at = end + 3;
    }
    labels.push_back({fields.at(0), {fields.begin() + 1, fields.end()}});
  }
  return labels;
}

struct Score {
  int labelled = 0, found = 0, right = 0;
  double precision() const { return 100.0 * right / found; }
  double recall() const { return 100.0 * right / labelled; }

  void Add(const Labelled& label, bool tell) {
    std::vector<std::string> missing = label.phrases, wrong;
    const auto phrases = NounPhrases(label.caption);
    for (const std::string& phrase : phrases) {
      const auto match = std::find(missing.begin(), missing.end(), phrase);
      if (match == missing.end()) {
        wrong.push_back(phrase);
      } else {
        missing.erase(match);
        ++right;
      }
    }
    labelled += static_cast<int>(label.phrases.size());
    found += static_cast<int>(phrases.size());
    if (tell && (!missing.empty() || !wrong.empty())) {
      std::printf("  %s: missing %s, wrong %s\n", label.caption.c_str(),
                  testing::PrintToString(missing).c_str(), testing::PrintToString(wrong).c_str());
    }
  }
};

TEST(NounPhrasesTest, AgreesWithLabelsByHand) {
  const auto labels = ReadLabels();
  ASSERT_EQ(labels.size(), 200u);
  Score seen, held_out;
  for (size_t i = 0; i < labels.size(); ++i) {
    (i % 2 == 0 ? seen : held_out).Add(labels[i], i % 2 == 0);
  }
  for (const auto& [name, score] : {std::pair("seen", seen), std::pair("held out", held_out)}) {
    std::printf("%s captions: %d phrases labelled, precision %.1f %%, recall %.1f %%\n", name,
                score.labelled, score.precision(), score.recall());
    EXPECT_GT(score.precision(), 85);
    EXPECT_GT(score.recall(), 85);
  }
}

TEST(NounPhrasesTest, FindsPhrases) {
  EXPECT_THAT(NounPhrases("A man with two small dogs."), ElementsAre("man", "small dogs"));
  EXPECT_THAT(NounPhrases("the man 's hat , who is red"), ElementsAre("man's hat"));
  EXPECT_THAT(NounPhrases("black and white photo"), ElementsAre("black and white photo"));
  EXPECT_THAT(NounPhrases("RED CARS in FRONT of houses"), ElementsAre("red cars", "houses"));
}

TEST(NounPhrasesTest, LivesThroughAnything) {
  EXPECT_THAT(NounPhrases(""), IsEmpty());
  EXPECT_THAT(NounPhrases("... !? -- ''"), IsEmpty());
  EXPECT_THAT(NounPhrases("he is it"), IsEmpty());
  EXPECT_THAT(NounPhrases("\xFF\xFE caf\xC3\xA9"), ElementsAre("\xFF\xFE caf\xC3\xA9"));
  EXPECT_EQ(NounPhrases(std::string(100'000, 'x')).size(), 1u);
}

}  // namespace
}  // namespace llava
