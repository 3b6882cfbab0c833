// llava-datagen filter-cc3m as a process.
#include <gmock/gmock.h>

#include "tests/model/datagen/datagen_program.h"

namespace llava {
namespace {

using testing::HasSubstr;

class FilterCommandTest : public DatagenProgram {
 protected:
  std::string Path(const std::string& name) const { return folder_.At(name); }
};

TEST_F(FilterCommandTest, FiltersAListForExpansion) {
  std::string list;
  for (int i = 0; i < 300; ++i) {
    list += "a bird in the sky" + std::string(i % 60 == 0 ? " with a, \"red\" kite" : "") +
            "\thttp://x/" + std::to_string(i) + "\n";
  }
  list += "he ran away\thttp://x/300\n";
  Write("cc.tsv", list);
  ASSERT_EQ(Run({"filter-cc3m", "--cc3m", Path("cc.tsv"), "--out", Path("kept.csv"), "--report",
                 Path("report.json")}),
            0)
      << said_;
  EXPECT_THAT(printed_, HasSubstr("unique noun phrases"));
  const auto report = ReadJson(folder_.path() / "report.json");
  EXPECT_EQ(report.at("before").at("captions"), 301);
  EXPECT_EQ(report.at("before").at("without_phrase"), 1);
  const size_t kept = report.at("after").at("captions");
  EXPECT_GT(kept, 150u);  // two draws of a hundred of three hundred, and five kites
  EXPECT_LT(kept, 206u);
  ASSERT_EQ(Run({"expand", "--csv", Path("kept.csv"), "--out", Path("stage1.json")}), 0) << said_;
  const auto records = ReadJson(folder_.path() / "stage1.json");
  EXPECT_EQ(records.size(), kept);
  int kites = 0;
  for (const auto& record : records) {
    const std::string caption = record.at("conversations").at(1).at("value");
    kites += caption.ends_with("with a, \"red\" kite") ? 1 : 0;
    EXPECT_TRUE(record.at("image").get<std::string>().starts_with("GCC_train_000000"));
  }
  EXPECT_EQ(kites, 5);  // the rare thing is all there
}

TEST_F(FilterCommandTest, TakesAnotherExtractorsPhrases) {
  Write("t.csv", "image,caption\na.jpg,one\nb.jpg,two\nc.jpg,three\nd.jpg,four\n");
  Write("p.tsv", "x\ty\nx\n\nx\r\n");
  ASSERT_EQ(Run({"filter-cc3m", "--csv", Path("t.csv"), "--phrases", Path("p.tsv"), "--out",
                 Path("kept.csv")}),
            0)
      << said_;
  EXPECT_EQ(ReadBytes(folder_.path() / "kept.csv"),
            "image,caption\na.jpg,one\nb.jpg,two\nd.jpg,four\n");
}

TEST_F(FilterCommandTest, PhrasesBelongToTheLinesOfTheTable) {
  Write("t.csv", "image,caption\na.jpg,c1\nb.jpg,c2\na.jpg,c3\n");
  Write("p.tsv", "x\ny\nx\n");
  ASSERT_EQ(Run({"filter-cc3m", "--csv", Path("t.csv"), "--phrases", Path("p.tsv"), "--out",
                 Path("kept.csv"), "--min-frequency", "2"}),
            0)
      << said_;
  EXPECT_EQ(ReadBytes(folder_.path() / "kept.csv"), "image,caption\na.jpg,c1\na.jpg,c3\n");
}

TEST_F(FilterCommandTest, WrongUseIsTwoAndOneLine) {
  Write("t.csv", "image,caption\na.jpg,one\n");
  Write("none.csv", "image,caption\n");
  Write("p.tsv", "x\ny\n");
  Write("cc.tsv", "fine\thttp://x\nno tab here\n");
  const std::vector<std::pair<std::vector<std::string>, std::string>> wrong = {
      {{}, "--cc3m or --csv"},
      {{"--cc3m", Path("cc.tsv"), "--csv", Path("t.csv")}, "--cc3m or --csv"},
      {{"--cc3m", Path("cc.tsv")}, "cc.tsv:2: has 1 fields"},
      {{"--csv", Path("none.csv")}, "no captions"},
      {{"--csv", Path("t.csv"), "--phrases", Path("p.tsv")}, "has 2 lines for 1 captions"},
      {{"--csv", Path("t.csv"), "--phrases", Path("nowhere")}, "nowhere: cannot be read"},
      {{"--csv", Path("t.csv"), "--cap", "0"}, "--cap"},
  };
  for (const auto& [more, message] : wrong) {
    std::vector<std::string> args = {"filter-cc3m", "--out", Path("kept.csv")};
    args.insert(args.end(), more.begin(), more.end());
    EXPECT_EQ(Run(args), 2) << said_;
    EXPECT_THAT(said_, HasSubstr(message));
    EXPECT_EQ(said_.find('\n'), said_.size() - 1) << said_;
    EXPECT_FALSE(std::filesystem::exists(folder_.path() / "kept.csv"));
  }
}

}  // namespace
}  // namespace llava
