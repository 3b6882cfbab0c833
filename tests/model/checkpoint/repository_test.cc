#include "model/checkpoint/repository.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <thread>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/version_draft.h"
#include "tests/model/checkpoint/unprivileged.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

// A version's folder as far as the repository looks into it.
void MakeVersion(const fs::path& root, const std::string& name, uint64_t version,
                 const std::string& kind = "language", char tower = '0') {
  Manifest manifest;
  manifest.kind = kind == "tower" ? Manifest::Kind::kTower : Manifest::Kind::kLanguage;
  manifest.name = name;
  manifest.version = version;
  manifest.tower_digest = HashBytes(std::string(1, tower));
  const fs::path folder = root / name / std::to_string(version);
  fs::create_directories(folder);
  WriteBytes(folder / "manifest.json", manifest.ToJson());
}

void MakeOld(const fs::path& path) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(25));
}

std::vector<std::string> NamesOf(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

class RepositoryTest : public testing::Test {
 protected:
  RepositoryTest() {
    for (const uint64_t version : {1, 2, 3, 10}) MakeVersion(root(), "m", version);
  }
  const fs::path& root() const { return folder_.path(); }

  const TempFolder folder_;
  ModelRepository repository_{folder_.path()};
};

TEST_F(RepositoryTest, ListsWholeVersionsOnly) {
  for (const char* name : {"007", "0", "-3", "x", ".tmp-1", "99999999999999999999"}) {
    fs::create_directories(root() / "m" / name);
    WriteBytes(root() / "m" / name / "manifest.json", "{}");
  }
  fs::create_directories(root() / "m/11");   // no manifest
  WriteBytes(root() / "m/12", "a file");     // no folder
  fs::create_directories(root() / "empty");  // no model yet
  fs::create_directories(root() / "lost+found");
  WriteBytes(root() / "README", "a file");
  MakeVersion(root(), ".hidden", 1);
  MakeVersion(root(), "another", 1);
  EXPECT_THAT(repository_.Versions("m"), ElementsAre(1, 2, 3, 10));
  EXPECT_THAT(repository_.Models(), ElementsAre("another", "m"));
  EXPECT_THAT(repository_.Versions("nobody"), IsEmpty());
  EXPECT_THAT(ModelRepository(root() / "nowhere").Models(), IsEmpty());
  EXPECT_EQ(repository_.Folder("m", 3), root() / "m/3");
  EXPECT_THROW(repository_.Versions("../m"), std::invalid_argument);
}

TEST_F(RepositoryTest, LabelsMoveAndComeBack) {
  EXPECT_THAT(repository_.Marks("m").labels, IsEmpty());
  EXPECT_EQ(repository_.SetLabel("m", "stable", 1), 0u);
  EXPECT_EQ(repository_.SetLabel("m", "canary", 3), 0u);
  EXPECT_EQ(repository_.SetLabel("m", "stable", 2), 1u);
  EXPECT_EQ(repository_.SetLabel("m", "stable", 2), 2u);  // changes nothing
  EXPECT_EQ(repository_.SetLabel("m", "stable", 3), 2u);
  const ModelMarks marks = ModelRepository(root()).Marks("m");
  EXPECT_THAT(marks.labels,
              UnorderedElementsAre(testing::Pair("stable", 3), testing::Pair("canary", 3)));
  EXPECT_THAT(marks.history.at("stable"), ElementsAre(1, 2));
  EXPECT_EQ(repository_.Rollback("m"), 2u);
  EXPECT_EQ(repository_.Rollback("m"), 1u);
  EXPECT_THAT(ErrorOf([&] { repository_.Rollback("m"); }),
              HasSubstr("no other version was stable"));
  EXPECT_EQ(repository_.Marks("m").labels.at("stable"), 1u);
  EXPECT_EQ(repository_.SetLabel("m", "canary", 0), 3u);
  EXPECT_FALSE(repository_.Marks("m").labels.contains("canary"));
}

TEST_F(RepositoryTest, RollsBackOverVersionsThatAreGone) {
  for (const uint64_t version : {1, 2, 3}) repository_.SetLabel("m", "stable", version);
  fs::remove_all(root() / "m/2");
  EXPECT_EQ(repository_.Rollback("m"), 1u);
}

TEST_F(RepositoryTest, RefusesWhatIsNotThere) {
  EXPECT_THAT(ErrorOf([&] { repository_.SetLabel("m", "stable", 4); }),
              AllOf(HasSubstr("/m: has no version 4")));
  EXPECT_THROW(repository_.SetLabel("m", "stable", 4), std::invalid_argument);
  EXPECT_THROW(repository_.SetLabel("nobody", "stable", 1), std::invalid_argument);
  EXPECT_FALSE(fs::exists(root() / "nobody"));
  EXPECT_THROW(repository_.Pin("m", 4, true), std::invalid_argument);
  EXPECT_THROW(repository_.Rollback("m"), std::invalid_argument);
  EXPECT_THROW(repository_.Gc("m", 0, true), std::invalid_argument);
  for (const char* label : {"", "7", "a b", ".x", "-x", "a/b"}) {
    EXPECT_THROW(repository_.SetLabel("m", label, 1), std::invalid_argument) << label;
  }
}

TEST_F(RepositoryTest, NamesTheMarksThatItCannotRead) {
  const fs::path path = root() / "m/labels.json";
  const auto error = [&](const std::string& content) {
    WriteBytes(path, content);
    return ErrorOf([&] { repository_.Marks("m"); });
  };
  EXPECT_THAT(error("{"), HasSubstr(path.string()));
  EXPECT_THAT(error(R"({"format_version": 2, "labels": {}, "history": {}, "pinned": []})"),
              AllOf(HasSubstr("format_version"), HasSubstr("is 2; this program reads 1")));
  EXPECT_THAT(error(R"({"format_version": 1, "labels": {"stable": -1}, "history": {},
                        "pinned": []})"),
              HasSubstr("stable"));
  EXPECT_THAT(error(R"({"format_version": 1, "labels": {}, "history": {}, "pinned": [0]})"),
              HasSubstr("pinned"));
  // And does not write over them.
  EXPECT_THROW(repository_.SetLabel("m", "stable", 1), std::runtime_error);
  EXPECT_THAT(ReadBytes(path), HasSubstr("[0]"));
}

// Every one of many writers at once changes what the others wrote.
TEST_F(RepositoryTest, WritersOfMarksDoNotMeet) {
  constexpr int kThreads = 4, kEach = 10;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      ModelRepository mine(root());
      for (int i = 0; i < kEach; ++i) {
        mine.SetLabel("m", "t" + std::to_string(t), 1 + static_cast<uint64_t>(i) % 2);
        mine.Pin("m", 3, i % 2 == 0);
        mine.Marks("m");  // whole at any time
      }
    });
  }
  for (auto& thread : threads) thread.join();
  const ModelMarks marks = repository_.Marks("m");
  for (int t = 0; t < kThreads; ++t) {
    EXPECT_EQ(marks.history.at("t" + std::to_string(t)).size(), kEach - 1);
  }
}

TEST_F(RepositoryTest, CollectsWhatNobodyNeeds) {
  for (uint64_t version = 4; version < 10; ++version) MakeVersion(root(), "m", version);
  repository_.SetLabel("m", "stable", 2);
  repository_.SetLabel("m", "stable", 5);
  repository_.SetLabel("m", "rejected-6", 6);
  repository_.SetLabel("m", "rejected-9", 9);
  repository_.Pin("m", 1, true);
  repository_.Pin("m", 3, true);
  repository_.Pin("m", 3, false);
  EXPECT_THAT(repository_.Gc("m", 2, /*dry_run=*/true), ElementsAre(2, 3, 4, 6, 7, 8));
  EXPECT_EQ(repository_.Versions("m").size(), 10u);
  EXPECT_THAT(repository_.Gc("m", 2, /*dry_run=*/false), ElementsAre(2, 3, 4, 6, 7, 8));
  EXPECT_THAT(NamesOf(root() / "m"),
              UnorderedElementsAre("1", "5", "9", "10", "labels.json", ".lock"));
  EXPECT_THAT(repository_.Marks("m").labels,
              UnorderedElementsAre(testing::Pair("stable", 5), testing::Pair("rejected-9", 9)));
  EXPECT_THAT(repository_.Gc("m", 2, /*dry_run=*/false), IsEmpty());
}

TEST_F(RepositoryTest, KeepsTheTowersOfLanguageModelsThatStay) {
  MakeVersion(root(), "t", 1, "tower", 'a');
  MakeVersion(root(), "t", 2, "tower", 'b');
  MakeVersion(root(), "t", 3, "tower", 'c');
  MakeVersion(root(), "t", 4, "tower", 'd');
  MakeVersion(root(), "u", 1, "language", 'a');
  MakeVersion(root(), "t", 5, "language", 'b');  // of the same name, collected with it
  MakeVersion(root(), "t", 6, "language", 'c');
  EXPECT_THAT(repository_.Gc("t", 1, true), ElementsAre(2, 4, 5));
}

// It may be one of those that need the tower: an error of the disk must not cost it.
TEST_F(RepositoryTest, RemovesNoTowerThatAnUnreadableModelMayNeed) {
  for (const uint64_t version : {1, 2}) MakeVersion(root(), "t", version, "tower", 'a');
  MakeVersion(root(), "u", 1, "language", 'a');
  MakeVersion(root(), "t", 3, "tower", 'b');
  const std::string whole = ReadBytes(root() / "u/1/manifest.json");
  WriteBytes(root() / "u/1/manifest.json", whole.substr(0, whole.size() / 2));
  for (const bool dry_run : {true, false}) {
    EXPECT_THAT(ErrorOf([&] { repository_.Gc("t", 1, dry_run); }),
                AllOf(HasSubstr("t/1: nothing is removed"), HasSubstr("u/1/manifest.json")));
  }
  EXPECT_THAT(repository_.Versions("t"), ElementsAre(1, 2, 3));
  EXPECT_THAT(repository_.Gc("m", 2, true), ElementsAre(1, 2)) << "language models need no care";
  WriteBytes(root() / "m/2/manifest.json", "{");
  EXPECT_THAT(repository_.Gc("m", 2, true), ElementsAre(1)) << "what it is nobody knows";
  WriteBytes(root() / "m/2/manifest.json", ReadBytes(root() / "m/1/manifest.json"));
  fs::remove(root() / "u/1/manifest.json");  // gone is no fault
  EXPECT_THAT(repository_.Gc("t", 1, true), ElementsAre(1, 2));
}

TEST_F(RepositoryTest, RemovesTheDraftsOfTheDeadOnly) {
  std::optional<VersionDraft> living(std::in_place, root(), "m", "{}");
  const fs::path dead = root() / "m/.tmp-dead", fresh = root() / "m/.tmp-fresh";
  const fs::path dead_lock = root() / "m/.tmp-dead.lock", lone_lock = root() / "m/.tmp-lone.lock";
  const fs::path half_marks = root() / "m/labels.json.tmp-1", half_gone = root() / "m/.gc-9-x";
  for (const fs::path& path : {dead, fresh, half_gone}) {
    fs::create_directories(path);
    WriteBytes(path / "model.safetensors", "half");
  }
  for (const fs::path& path : {dead_lock, lone_lock, half_marks}) WriteBytes(path, "");
  MakeOld(dead / "model.safetensors");
  for (const fs::path& path : {living->path(), dead, dead_lock, lone_lock, half_marks}) {
    MakeOld(path);
  }
  EXPECT_THAT(repository_.Versions("m"), ElementsAre(1, 2, 3, 10));
  EXPECT_THAT(repository_.Gc("m", 10, false), IsEmpty());
  for (const fs::path& path : {dead, dead_lock, lone_lock, half_marks, half_gone}) {
    EXPECT_FALSE(fs::exists(path)) << path;
  }
  EXPECT_TRUE(fs::exists(fresh));
  EXPECT_TRUE(fs::exists(living->path()));
  // What the draft had is gone with it, its lock too.
  living.reset();
  EXPECT_THAT(NamesOf(root() / "m"),
              UnorderedElementsAre("1", "2", "3", "10", ".lock", ".tmp-fresh"));
}

TEST_F(RepositoryTest, NamesWhatItMayNotDo) {
  const Unprivileged user(root());
  // A version that may not be entered is there, but tells why it cannot be opened.
  fs::permissions(root() / "m/2", fs::perms::none);
  EXPECT_THAT(repository_.Versions("m"), ElementsAre(1, 2, 3, 10));
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(root() / "m/2"); }),
              AllOf(HasSubstr("m/2"), HasSubstr("Permission denied")));
  fs::permissions(root() / "m", fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_THAT(ErrorOf([&] { repository_.SetLabel("m", "stable", 1); }),
              AllOf(HasSubstr("/m/.lock: "), HasSubstr("Permission denied")));
  EXPECT_THAT(ErrorOf([&] { VersionDraft(root(), "m", "{}"); }),
              AllOf(HasSubstr("/m/.tmp-"), HasSubstr("Permission denied")));
  fs::permissions(root() / "m", fs::perms::none);
  EXPECT_THAT(repository_.Models(), ElementsAre("m"));
  EXPECT_THAT(ErrorOf([&] { repository_.Versions("m"); }),
              HasSubstr("/m: cannot list: Permission denied"));
  fs::permissions(root() / "m", fs::perms::owner_all);
  fs::permissions(root() / "m/2", fs::perms::owner_all);
}

}  // namespace
}  // namespace llava
