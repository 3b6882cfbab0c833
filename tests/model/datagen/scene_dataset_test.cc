#include "model/datagen/scene_dataset.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "model/data/questions/question_lists.h"
#include "model/data/scenes/captions.h"
#include "model/data/scenes/render.h"
#include "model/datagen/scene_records.h"
#include "model/image/decode.h"
#include "model/progress/stop_request.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Every file of a folder by its name.
std::map<std::string, std::string> Contents(const fs::path& folder) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    contents[fs::relative(entry.path(), folder).string()] = ReadBytes(entry.path());
  }
  return contents;
}

class SceneDatasetTest : public testing::Test {
 protected:
  SceneDatasetTest() {
    options_.out = folder_.path() / "a";
    options_.count = 40;
    options_.first = 7;
    options_.seed = 5;
    options_.wordings = {BriefQuestions(), DetailedQuestions()};
    options_.stage1 = options_.stage2 = true;
    options_.scenes.max_objects = 4;
    options_.scenes.num_categories = kLargeCategorySet;
  }
  ~SceneDatasetTest() override { std::fclose(log_); }

  void Make() { ASSERT_TRUE(WriteSceneDataset(options_, log_)); }
  json Read(const char* name) const { return json::parse(ReadBytes(options_.out / name)); }
  Scene At(uint64_t number) const { return SampleScene(options_.scenes, options_.seed, number); }

  const TempFolder folder_;
  SceneDatasetOptions options_;
  std::FILE* log_ = std::tmpfile();
};

TEST_F(SceneDatasetTest, PicturesAreThoseOfTheScenes) {
  Make();
  SceneRenderer renderer;
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(options_.out / "images")) {
    names.insert(entry.path().filename());
  }
  EXPECT_EQ(names.size(), 40u);
  EXPECT_EQ(*names.begin(), "000007.png");
  EXPECT_EQ(*names.rbegin(), "000046.png");
  for (uint64_t number = 7; number < 47; ++number) {
    const std::string png = ReadBytes(options_.out / "images" / SceneFileName(number));
    const Image image = DecodeImage({reinterpret_cast<const uint8_t*>(png.data()), png.size()});
    EXPECT_EQ(image.rgb, renderer.Render(At(number)).rgb) << number;
  }
}

TEST_F(SceneDatasetTest, CocoFilesHoldTheRecords) {
  Make();
  const json captions = Read("captions.json"), instances = Read("instances.json");
  for (const json* file : {&captions, &instances}) {
    ASSERT_EQ(file->at("images").size(), 40u);
    for (const json& image : file->at("images")) {
      EXPECT_EQ(image.at("file_name"), SceneFileName(image.at("id")));
      EXPECT_EQ(image.at("width"), kSceneSide);
      EXPECT_EQ(image.at("height"), kSceneSide);
    }
    ASSERT_EQ(file->at("categories").size(), 96u);
    EXPECT_EQ(file->at("categories")[0],
              json({{"id", 1}, {"name", "lion"}, {"supercategory", "animal"}}));
    uint64_t id = 0;
    for (const json& annotation : file->at("annotations")) EXPECT_EQ(annotation.at("id"), ++id);
  }
  ASSERT_EQ(captions.at("annotations").size(), 200u);
  std::map<uint64_t, std::set<std::string>> said;
  for (const json& caption : captions.at("annotations")) {
    said[caption.at("image_id")].insert(caption.at("caption").get<std::string>());
  }
  std::map<uint64_t, std::vector<json>> boxes;
  for (const json& instance : instances.at("annotations")) {
    boxes[instance.at("image_id")].push_back(instance);
  }
  for (uint64_t number = 7; number < 47; ++number) {
    const Scene scene = At(number);
    EXPECT_EQ(said[number].size(), 5u);
    EXPECT_TRUE(said[number].contains("A picture of " + ListThings(scene) + "."));
    ASSERT_EQ(boxes[number].size(), scene.objects.size());
    for (size_t i = 0; i < scene.objects.size(); ++i) {
      const PixelBox box = BoxOf(scene.objects[i]);
      const json& instance = boxes[number][i];
      EXPECT_EQ(instance.at("bbox"), json({box.x, box.y, box.width, box.height}));
      EXPECT_EQ(instance.at("category_id"), scene.objects[i].category + 1);
      EXPECT_EQ(instance.at("area"), box.width * box.height);
      EXPECT_EQ(instance.at("iscrowd"), 0);
    }
  }
}

// What LLaVA's loader needs: id, image, human and gpt by turns, <image> once, in the first
// question.
void ExpectLlavaRecord(const json& record) {
  EXPECT_EQ(record.size(), 3u);
  const std::string id = record.at("id");
  EXPECT_EQ(record.at("image"), id.substr(id.find('-') + 1, 6) + ".png");
  const json& turns = record.at("conversations");
  ASSERT_GE(turns.size(), 2u);
  EXPECT_EQ(turns.size() % 2, 0u);
  for (size_t i = 0; i < turns.size(); ++i) {
    EXPECT_EQ(turns[i].at("from"), i % 2 == 0 ? "human" : "gpt");
    const std::string value = turns[i].at("value");
    EXPECT_FALSE(value.empty());
    const bool before = value.starts_with("<image>\n"), after = value.ends_with("\n<image>");
    EXPECT_EQ(before + after, i == 0 ? 1 : 0) << value;
    EXPECT_EQ(value.find("<image>"), before ? 0 : after ? value.size() - 7 : value.npos);
  }
}

TEST_F(SceneDatasetTest, Stage1IsBriefQuestionAndCaption) {
  Make();
  const json records = Read("stage1.json");
  ASSERT_EQ(records.size(), 40u);
  std::set<std::string> questions, ids;
  int before = 0;
  for (const json& record : records) {
    ExpectLlavaRecord(record);
    EXPECT_EQ(record.at("conversations").size(), 2u);
    EXPECT_TRUE(record.at("id").get<std::string>().starts_with("brief-0000"));
    ids.insert(record.at("id").get<std::string>());
    std::string question = record.at("conversations")[0].at("value");
    before += question.starts_with("<image>");
    question.erase(question.find("<image>"), 7);
    std::erase(question, '\n');
    questions.insert(question);
  }
  EXPECT_EQ(ids.size(), 40u);
  EXPECT_GE(questions.size(), 8u);
  for (const std::string& known : BriefQuestions()) questions.erase(known);
  EXPECT_TRUE(questions.empty());
  EXPECT_GE(before, 10);
  EXPECT_LE(before, 30);
}

TEST_F(SceneDatasetTest, Stage2HasThreeKinds) {
  Make();
  const json records = Read("stage2.json");
  std::map<std::string, int> kinds;
  for (const json& record : records) {
    ExpectLlavaRecord(record);
    const std::string id = record.at("id");
    const std::string kind = id.substr(0, id.find('-'));
    ++kinds[kind];
    const size_t turns = record.at("conversations").size() / 2;
    if (kind == "conversation") {
      EXPECT_GE(turns, 4u);
      continue;
    }
    EXPECT_EQ(turns, 1u);
    if (kind == "detail") {
      const Scene scene = At(std::stoull(id.substr(id.find('-') + 1)));
      EXPECT_EQ(record.at("conversations")[1].at("value"), DetailedDescription(scene));
    }
  }
  EXPECT_EQ(kinds["conversation"], 40);
  EXPECT_EQ(kinds["detail"], 40);  // snapped places always have a name
  EXPECT_GE(kinds["reasoning"], 30);
  EXPECT_EQ(kinds.size(), 3u);
  EXPECT_EQ(Read("dataset.json").at("contents").at("stage2_records"), records.size());
}

TEST_F(SceneDatasetTest, Stage1MayHaveDetailedDescriptionsToo) {
  options_.stage1_detail = true;
  Make();
  const json records = Read("stage1.json"), stage2 = Read("stage2.json");
  ASSERT_EQ(records.size(), 80u);
  EXPECT_EQ(Read("dataset.json").at("contents").at("stage1_records"), 80);
  for (size_t i = 0; i < records.size(); i += 2) {
    ExpectLlavaRecord(records[i + 1]);
    EXPECT_EQ(records[i].at("image"), records[i + 1].at("image")) << "one picture stands together";
    EXPECT_TRUE(records[i].at("id").get<std::string>().starts_with("brief-"));
    EXPECT_NE(std::find(stage2.begin(), stage2.end(), records[i + 1]), stage2.end());
  }
}

TEST_F(SceneDatasetTest, Stage2MayHaveShortDialoguesToo) {
  Make();
  const json without = Read("stage2.json");
  options_.out = folder_.path() / "b";
  options_.dialogues = 5;
  Make();
  const json records = Read("stage2.json");
  ASSERT_EQ(records.size(), without.size() + 5 * 40);
  EXPECT_EQ(Read("dataset.json").at("contents").at("stage2_records"), records.size());
  std::set<std::string> texts;
  json others = json::array();
  size_t longest = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    const json& record = records[i];
    ExpectLlavaRecord(record);
    const std::string id = record.at("id");
    if (!id.starts_with("dialogue-")) {
      others.push_back(record);
      continue;
    }
    EXPECT_EQ(id.size(), std::string("dialogue-000042-3").size());
    EXPECT_EQ(record.at("image"), records[i - 1].at("image")) << "one picture stands together";
    texts.insert(record.at("conversations").dump());
    longest = std::max(longest, record.at("conversations").size());
  }
  EXPECT_EQ(others, without);
  EXPECT_GE(texts.size(), 150u);
  EXPECT_GE(longest, 4u) << "some are chains";
}

TEST_F(SceneDatasetTest, Stage2MayHoldSomeKindsOnly) {
  options_.dialogues = 6;
  Make();
  const json all = Read("stage2.json");
  EXPECT_EQ(Read("dataset.json").at("settings").at("kinds"),
            json({"conversation", "detail", "reasoning"}));

  options_.out = folder_.path() / "b";
  options_.dialogues = 0;
  options_.kinds.conversation = false;
  Make();
  json others = json::array();
  for (const json& record : all) {
    const std::string id = record.at("id");
    if (id.starts_with("detail-") || id.starts_with("reasoning-")) others.push_back(record);
  }
  EXPECT_EQ(Read("stage2.json"), others) << "the same as beside the other kinds";
  EXPECT_EQ(Read("dataset.json").at("settings").at("kinds"), json({"detail", "reasoning"}));

  options_.out = folder_.path() / "c";
  options_.dialogues = 6;
  options_.kinds = {.conversation = true, .detail = false, .reasoning = false};
  Make();
  const json talk = Read("stage2.json");
  EXPECT_EQ(talk.size(), 40u + 6 * 40);
  std::map<std::string, int> asked;
  for (const json& record : talk) {
    ExpectLlavaRecord(record);
    const std::string id = record.at("id");
    EXPECT_TRUE(id.starts_with("conversation-") || id.starts_with("dialogue-")) << id;
    for (const json& turn : record.at("conversations")) {
      const std::string value = turn.at("value");
      for (const char* fact : {" eat ", " fly?", " alive", "living thing", "kind", "sort of thing",
                               "belong together", "What color is it", "Describe the picture.",
                               "Describe this picture", "Tell me about the"}) {
        EXPECT_EQ(value.find(fact), std::string::npos) << value;
      }
      for (const std::string& detailed : DetailedQuestions()) {
        EXPECT_EQ(value.find(detailed), std::string::npos);
      }
      for (const char* shown : {"How many", "left", "background", "And "}) {
        asked[shown] += value.find(shown) != std::string::npos;
      }
    }
  }
  for (const auto& [shown, times] : asked) EXPECT_GE(times, 5) << shown;
  EXPECT_EQ(Read("dataset.json").at("settings").at("kinds"), json({"conversation"}));
}

TEST_F(SceneDatasetTest, GoesOnWithTheSameKindsOnly) {
  const auto stopped = [this] {
    const StopRequest stop;
    raise(SIGINT);
    return WriteSceneDataset(options_, log_);
  };
  options_.kinds.reasoning = false;
  ASSERT_FALSE(stopped());
  options_.kinds.reasoning = true;
  EXPECT_THROW(WriteSceneDataset(options_, log_), FolderRefused);
  options_.kinds.reasoning = false;
  Make();
}

TEST_F(SceneDatasetTest, EqualSeedsGiveEqualBytes) {
  options_.jobs = 1;
  Make();
  const auto first = Contents(options_.out);
  options_.out = folder_.path() / "b";
  options_.jobs = 4;
  Make();
  EXPECT_TRUE(Contents(options_.out) == first);
  EXPECT_EQ(first.size(), 40u + 5u);
  options_.out = folder_.path() / "c";
  options_.seed = 6;
  Make();
  EXPECT_TRUE(Contents(options_.out).at("images/000007.png") != first.at("images/000007.png"));
}

TEST_F(SceneDatasetTest, GoesOnAfterAnInterruption) {
  options_.count = 400;
  Make();
  const auto whole = Contents(options_.out);

  options_.out = folder_.path() / "b";
  {
    const StopRequest stop;
    raise(SIGINT);
    EXPECT_FALSE(WriteSceneDataset(options_, log_));
    EXPECT_EQ(StopRequest::Signal(), SIGINT);
  }
  EXPECT_EQ(Contents(options_.out).size(), 1u);  // the marker alone
  // As if it had been killed later: some pictures are there, some files are half written.
  for (const char* name : {"images/000007.png", "images/000300.png"}) {
    std::ofstream(options_.out / name, std::ios::binary) << whole.at(name);
  }
  std::ofstream(options_.out / "images/000008.png.part") << "half";
  std::ofstream(options_.out / "stage1.json.part") << "[\n{";
  const auto kept = fs::last_write_time(options_.out / "images/000300.png");
  Make();
  EXPECT_TRUE(Contents(options_.out) == whole);
  EXPECT_EQ(fs::last_write_time(options_.out / "images/000300.png"), kept);
  EXPECT_THROW(WriteSceneDataset(options_, log_), FolderRefused);
}

// Pictures are synced at the end: until then a power cut may leave a name with no bytes, with some
// of them, or with zeros.
TEST_F(SceneDatasetTest, DrawsPicturesAgainThatAPowerCutLeftBroken) {
  Make();
  const auto whole = Contents(options_.out);
  options_.out = folder_.path() / "b";
  {
    const StopRequest stop;
    raise(SIGINT);
    ASSERT_FALSE(WriteSceneDataset(options_, log_));
  }
  std::string half = whole.at("images/000008.png"), zeros = whole.at("images/000009.png");
  half.resize(half.size() / 2);
  std::fill(zeros.begin() + 60, zeros.begin() + 90, '\0');
  std::ofstream(options_.out / "images/000007.png").flush();
  std::ofstream(options_.out / "images/000008.png", std::ios::binary) << half;
  std::ofstream(options_.out / "images/000009.png", std::ios::binary) << zeros;
  Make();
  EXPECT_TRUE(Contents(options_.out) == whole);
}

TEST_F(SceneDatasetTest, RecordsWithoutPicturesAreTheSame) {
  Make();
  const json records = Read("stage2.json"), captions = Read("captions.json");
  options_.out = folder_.path() / "b";
  options_.pictures = false;
  Make();
  EXPECT_TRUE(fs::is_empty(options_.out / "images"));
  EXPECT_EQ(Read("stage2.json"), records);
  EXPECT_EQ(Read("captions.json"), captions);
  EXPECT_EQ(Read("dataset.json").at("settings").at("pictures"), false);
  EXPECT_EQ(Read("dataset.json").at("contents").at("images"), 0);
}

TEST_F(SceneDatasetTest, WritesOnlyWhatIsAskedFor) {
  options_.stage1 = options_.stage2 = false;
  Make();
  const auto contents = Contents(options_.out);
  EXPECT_EQ(contents.size(), 40u + 3u);
  EXPECT_FALSE(contents.contains("stage1.json"));
}

TEST_F(SceneDatasetTest, RefusesWrongOptionsBeforeTouchingAnything) {
  options_.scenes.max_objects = 9;
  EXPECT_THROW(WriteSceneDataset(options_, log_), std::invalid_argument);
  options_.scenes.max_objects = 3;
  options_.count = 0;
  EXPECT_THROW(WriteSceneDataset(options_, log_), std::invalid_argument);
  options_.count = 1;
  options_.stage1 = false;
  options_.stage1_detail = true;
  EXPECT_THROW(WriteSceneDataset(options_, log_), std::invalid_argument);
  options_.stage1_detail = options_.stage2 = false;
  options_.dialogues = 2;
  EXPECT_THROW(WriteSceneDataset(options_, log_), std::invalid_argument);
  options_.stage2 = true;
  options_.kinds.conversation = false;
  EXPECT_THROW(WriteSceneDataset(options_, log_), std::invalid_argument);
  options_.dialogues = 0;
  options_.kinds.detail = options_.kinds.reasoning = false;
  EXPECT_THROW(WriteSceneDataset(options_, log_), std::invalid_argument);
  EXPECT_FALSE(fs::exists(options_.out));
}

TEST_F(SceneDatasetTest, APictureThatCannotBeWrittenIsAnError) {
  {
    const StopRequest stop;
    raise(SIGTERM);
    ASSERT_FALSE(WriteSceneDataset(options_, log_));
  }
  fs::create_directories(options_.out / "images/000020.png.part/in_the_way");
  const StopRequest stop;
  try {
    WriteSceneDataset(options_, log_);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("images/000020.png.part: cannot create"),
              std::string::npos)
        << error.what();
  }
  EXPECT_FALSE(fs::exists(options_.out / "captions.json"));
}

}  // namespace
}  // namespace llava
