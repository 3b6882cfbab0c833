#include "server/lifecycle/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

VersionPolicy Policy(const std::string& text) {
  auto policy = VersionPolicy::Parse(text);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return *policy;
}

RepositoryModel Model(const std::vector<uint64_t>& versions) {
  RepositoryModel model;
  for (const uint64_t version : versions) model.versions[version] = "mark";
  return model;
}

TEST(VersionPolicy, ReadsWhatItWrites) {
  for (const char* text : {"auto", "latest:1", "latest:3", "labels", "4", "2,7,11"}) {
    EXPECT_EQ(Policy(text).ToString(), text);
  }
  EXPECT_EQ(Policy("latest").ToString(), "latest:1");
}

TEST(VersionPolicy, RefusesWhatMeansNothing) {
  for (const char* text : {"", "newest", "latest:0", "latest:x", "latest:1:2", "latest:", "0", "1,",
                           "1,x", "-1", "labels:2", "latest:99999999999999999999"}) {
    const auto policy = VersionPolicy::Parse(text);
    ASSERT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(policy.status().message()), HasSubstr("latest:N"));
  }
}

struct Case {
  const char* name;
  const char* policy;
  RepositoryModel model;
  std::set<uint64_t> failed;
  VersionWishes wishes;
  std::vector<uint64_t> targets, wanted;
};

RepositoryModel Labelled(const std::vector<uint64_t>& versions,
                         std::map<std::string, uint64_t> labels,
                         std::vector<uint64_t> stable_before = {}) {
  RepositoryModel model = Model(versions);
  model.marks.labels = std::move(labels);
  if (!stable_before.empty()) model.marks.history["stable"] = std::move(stable_before);
  return model;
}

TEST(ChooseVersions, Table) {
  const std::vector<Case> cases = {
      {"nothing there", "latest", Model({}), {}, {}, {}, {}},
      {"the newest", "latest", Model({1, 2, 9}), {}, {}, {9}, {9}},
      {"the two newest, newest first", "latest:2", Model({1, 2, 9}), {}, {}, {9, 2}, {9, 2}},
      {"more asked than there are", "latest:5", Model({3, 4}), {}, {}, {4, 3}, {4, 3}},
      {"the older stands in for the failed", "latest", Model({1, 2, 3}), {3}, {}, {3}, {3, 2}},
      {"and the one before if that failed too",
       "latest",
       Model({1, 2, 3}),
       {2, 3},
       {},
       {3},
       {3, 1}},
      {"one stand-in for each failed",
       "latest:2",
       Model({1, 2, 3, 4}),
       {3, 4},
       {},
       {4, 3},
       {4, 3, 2, 1}},
      {"all failed", "latest", Model({1, 2}), {1, 2}, {}, {2}, {2}},
      {"labels: stable, canary, then the others",
       "labels",
       Labelled({1, 2, 3, 4, 5}, {{"canary", 5}, {"eu", 2}, {"next", 3}, {"stable", 4}}),
       {},
       {},
       {4, 5, 3, 2},
       {4, 5, 3, 2}},
      {"two labels on one version",
       "labels",
       Labelled({1, 2}, {{"canary", 2}, {"stable", 2}}),
       {},
       {},
       {2},
       {2}},
      {"no labels ask for nothing", "labels", Model({1, 2}), {}, {}, {}, {}},
      {"a label of a version that is gone asks for nothing",
       "labels",
       Labelled({1}, {{"canary", 7}, {"stable", 1}}),
       {},
       {},
       {1},
       {1}},
      {"who was stable before stands in",
       "labels",
       Labelled({1, 2, 3}, {{"stable", 3}}, {1, 2}),
       {3},
       {},
       {3},
       {3, 2}},
      {"also for a version that is gone",
       "labels",
       Labelled({1, 2}, {{"stable", 3}}, {1, 2}),
       {},
       {},
       {},
       {2}},
      {"a canary has no stand-in",
       "labels",
       Labelled({1, 2, 3}, {{"canary", 3}, {"stable", 2}}, {1}),
       {3},
       {},
       {2, 3},
       {2, 3}},
      {"auto without labels", "auto", Model({1, 2}), {}, {}, {2}, {2}},
      {"auto with a canary only", "auto", Labelled({1, 2}, {{"canary", 1}}), {}, {}, {2}, {2}},
      {"auto with stable",
       "auto",
       Labelled({1, 2, 3}, {{"canary", 2}, {"stable", 1}}),
       {},
       {},
       {1, 2},
       {1, 2}},
      {"auto: stable is gone, and nothing was before",
       "auto",
       Labelled({1, 2}, {{"stable", 9}}),
       {},
       {},
       {2},
       {2}},
      {"auto does not turn to latest because stable fails",
       "auto",
       Labelled({1, 2}, {{"stable", 1}}),
       {1},
       {},
       {1},
       {1}},
      {"latest passes over what a guard rejected",
       "latest:2",
       Labelled({1, 2, 3}, {{"rejected-3", 3}}),
       {},
       {},
       {2, 1},
       {2, 1}},
      {"unless there is nothing else",
       "latest",
       Labelled({2, 3}, {{"rejected-3", 3}, {"rejected-2", 2}}),
       {},
       {},
       {3},
       {3}},
      {"a rejection is no reason to load",
       "labels",
       Labelled({1, 2, 3}, {{"rejected-3", 3}, {"stable", 2}}),
       {},
       {},
       {2},
       {2}},
      {"nor to stand in",
       "labels",
       Labelled({1, 2, 3}, {{"rejected-2", 2}, {"stable", 3}}, {1, 2}),
       {3},
       {},
       {3},
       {3, 1}},
      {"exactly these", "1,3", Model({1, 2, 3, 4}), {}, {}, {3, 1}, {3, 1}},
      {"exactly these, if they are there", "1,3", Model({3, 4}), {}, {}, {3}, {3}},
      {"nobody stands in for these", "3", Model({1, 3}), {3}, {}, {3}, {3}},
      {"a wish to load", "latest", Model({1, 2, 3}), {}, {{1}, {}}, {3}, {3, 1}},
      {"a wish for what is not there", "latest", Model({3}), {}, {{1}, {}}, {3}, {3}},
      {"a wish to unload brings nobody else", "latest", Model({1, 2, 3}), {}, {{}, {3}}, {3}, {}},
      {"who is unloaded stands in for nobody",
       "latest",
       Model({1, 2, 3}),
       {3},
       {{}, {2}},
       {3},
       {3, 1}},
      {"who failed and is unloaded needs no stand-in",
       "latest",
       Model({1, 2, 3}),
       {3},
       {{}, {3}},
       {3},
       {}},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.name);
    const VersionChoice choice =
        ChooseVersions(Policy(each.policy), each.model, each.failed, each.wishes);
    EXPECT_EQ(choice.targets, each.targets);
    EXPECT_EQ(choice.wanted, each.wanted);
  }
}

}  // namespace
}  // namespace llava
