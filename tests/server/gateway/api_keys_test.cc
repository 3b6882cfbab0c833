#include "server/gateway/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/eventually.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kHash = std::string(64, 'a');

// The message about a keys file that is wrong.
std::string Complaint(const std::string& text) {
  const auto keys = ParseApiKeys(text);
  EXPECT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(keys.status().message());
}

TEST(ApiKeysTest, ReadsAllFields) {
  const auto keys = ParseApiKeys(absl::StrCat(
      "# ours\n- {name: ann, sha256: ", kHash, "}\n- name: bob@home\n  role: admin\n  weight: 3\n",
      "  requests-per-minute: 1\n  tokens_per_minute: 2\n  concurrent-turns: 3\n  sessions: 4\n",
      "  turns-per-session: 5\n  pictures: 6\n  picture-bytes: 7\n  sha256: [",
      std::string(64, 'B'), ", ", std::string(64, 'c'), "]\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 2u);
  EXPECT_EQ((*keys)[0].name, "ann");
  EXPECT_EQ((*keys)[0].role, KeyRole::kUser);
  EXPECT_EQ((*keys)[0].weight, 1u);
  EXPECT_EQ((*keys)[0].limits.sessions, 0);
  const ApiKey& bob = (*keys)[1];
  EXPECT_EQ(bob.role, KeyRole::kAdmin);
  EXPECT_EQ(bob.weight, 3u);
  EXPECT_EQ(bob.hashes.size(), 2u);
  EXPECT_EQ(bob.limits.requests_per_minute, 1);
  EXPECT_EQ(bob.limits.tokens_per_minute, 2);
  EXPECT_EQ(bob.limits.concurrent_turns, 3);
  EXPECT_EQ(bob.limits.sessions, 4);
  EXPECT_EQ(bob.limits.turns_per_session, 5);
  EXPECT_EQ(bob.limits.pictures, 6);
  EXPECT_EQ(bob.limits.picture_bytes, 7);
  EXPECT_TRUE(ParseApiKeys("[]").ok());
}

TEST(ApiKeysTest, NamesWhatIsWrongAndWhere) {
  EXPECT_THAT(Complaint(""), HasSubstr("empty"));
  EXPECT_THAT(Complaint("name: ann"), HasSubstr("list"));
  EXPECT_THAT(Complaint("- ann"), HasSubstr("not a key"));
  EXPECT_THAT(Complaint("[]\n- {name: ann, sha256: " + kHash + "}"), HasSubstr("line 2"));
  EXPECT_THAT(Complaint("- {name: [\n"), HasSubstr("line"));
  EXPECT_THAT(Complaint("\n- {sha256: " + kHash + "}"), HasSubstr("line 2: a key has no name"));
  EXPECT_THAT(Complaint("- {name: ann}"), HasSubstr("ann has no sha256"));
  EXPECT_THAT(Complaint("- {name: ann, sha256: 12}"), HasSubstr("64 hex digits"));
  EXPECT_THAT(Complaint("- {name: a b, sha256: " + kHash + "}"), HasSubstr("letters"));
  EXPECT_THAT(Complaint("- {name: ann, role: king, sha256: " + kHash + "}"), HasSubstr("king"));
  EXPECT_THAT(Complaint("- {name: ann, weight: 0, sha256: " + kHash + "}"), HasSubstr("weight"));
  EXPECT_THAT(Complaint("- {name: ann, sessions: -1, sha256: " + kHash + "}"),
              HasSubstr("sessions"));
  EXPECT_THAT(Complaint("- {name: ann, color: red, sha256: " + kHash + "}"), HasSubstr("color"));
  EXPECT_THAT(Complaint("- {name: ann, name: bob, sha256: " + kHash + "}"), HasSubstr("twice"));
  const std::string ann = "- {name: ann, sha256: " + kHash + "}\n";
  EXPECT_THAT(Complaint(ann + "- {name: ann, sha256: " + std::string(64, 'b') + "}"),
              HasSubstr("line 2: ann stands there twice"));
  EXPECT_THAT(Complaint(ann + "- {name: bob, sha256: " + kHash + "}"), HasSubstr("another name"));
}

class KeysFileTest : public testing::Test {
 protected:
  static std::string Line(const std::string& name, const std::string& key) {
    return absl::StrCat("- {name: ", name, ", sha256: ", ToHex(HashBytes(key)), "}\n");
  }
  // At once, so that nobody reads half of it.
  void Write(const std::string& text) {
    std::ofstream(path_ + ".new") << text;
    std::filesystem::rename(path_ + ".new", path_);
  }
  std::string NameOf(const std::string& authorization) {
    const auto caller = keys_->Identify(authorization);
    return caller.ok() ? caller->name() : absl::StrCat("! ", caller.status().message());
  }

  TempFolder folder_;
  const std::string path_ = folder_.At("keys.yaml");
  Metrics metrics_{"gateway"};
  std::unique_ptr<ApiKeys> keys_;
};

TEST_F(KeysFileTest, LetsInWhoHasAKey) {
  Write(Line("ann", "secret-a") + Line("bob", "secret-b"));
  auto opened = ApiKeys::Open(path_, metrics_);
  ASSERT_TRUE(opened.ok()) << opened.status();
  keys_ = *std::move(opened);
  EXPECT_TRUE(keys_->required());
  EXPECT_EQ(NameOf("Bearer secret-a"), "ann");
  EXPECT_EQ(NameOf("bearer secret-b"), "bob");
  EXPECT_THAT(NameOf(""), HasSubstr("authorization: Bearer"));
  EXPECT_THAT(NameOf("Basic secret-a"), HasSubstr("Bearer"));
  EXPECT_THAT(NameOf("Bearer secret-"), HasSubstr("not known"));
  EXPECT_THAT(NameOf("Bearer  secret-a"), HasSubstr("not known"));
  EXPECT_THAT(NameOf("Bearer "), HasSubstr("not known"));
  EXPECT_THAT(NameOf("Bearer"), HasSubstr("form"));
}

TEST_F(KeysFileTest, EachOfManyKeysIsFound) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += Line(absl::StrCat("k", i), absl::StrCat("secret-", i));
  Write(text + "- {name: two, sha256: [" + ToHex(HashBytes("old")) + ", " +
        ToHex(HashBytes("new")) + "]}\n");
  keys_ = *ApiKeys::Open(path_, metrics_);
  for (const int i : {0, 1, 250, 499}) {
    EXPECT_EQ(NameOf(absl::StrCat("Bearer secret-", i)), absl::StrCat("k", i));
  }
  EXPECT_EQ(NameOf("Bearer old"), "two");
  EXPECT_EQ(NameOf("Bearer new"), "two");
  EXPECT_THAT(NameOf("Bearer secret-500"), HasSubstr("not known"));
  // The hash of a key is none.
  EXPECT_THAT(NameOf("Bearer " + ToHex(HashBytes("old"))), HasSubstr("not known"));
}

TEST_F(KeysFileTest, WithoutAFileEverybodyIsAdmin) {
  keys_ = *ApiKeys::Open("", metrics_);
  EXPECT_FALSE(keys_->required());
  ASSERT_TRUE(keys_->Identify("").ok());
  EXPECT_TRUE(keys_->Identify("Bearer x")->is_admin());
}

TEST_F(KeysFileTest, ReadsAgainWhatChangesAndKeepsTheOldKeysOfABrokenFile) {
  Write(Line("ann", "a"));
  keys_ = *ApiKeys::Open(path_, metrics_);
  const auto ann = *keys_->Identify("Bearer a");
  Write("- {name: bob, sha2");
  ASSERT_TRUE(Eventually([&] {
    return absl::StrContains(metrics_.Render(),
                             "llava_gateway_keys_file_reads_total{result=\"failed\"} 1");
  }));
  EXPECT_EQ(NameOf("Bearer a"), "ann");
  EXPECT_TRUE(absl::StrContains(metrics_.Render(), "llava_gateway_keys_file_ok 0"));
  Write(Line("bob", "b"));
  ASSERT_TRUE(Eventually([&] { return NameOf("Bearer b") == "bob"; }));
  EXPECT_TRUE(absl::StrContains(metrics_.Render(), "llava_gateway_keys_file_ok 1"));
  EXPECT_THAT(NameOf("Bearer a"), HasSubstr("not known"));
  EXPECT_EQ(ann.name(), "ann") << "what a running call was told stays";
  std::filesystem::remove(path_);
  ASSERT_TRUE(Eventually([&] {
    return absl::StrContains(metrics_.Render(),
                             "llava_gateway_keys_file_reads_total{result=\"failed\"} 2");
  }));
  EXPECT_EQ(NameOf("Bearer b"), "bob");
}

// A folder in its place cannot be read, whoever asks.
TEST_F(KeysFileTest, WhatCouldNotBeReadIsReadWhenItCan) {
  Write(Line("ann", "a"));
  keys_ = *ApiKeys::Open(path_, metrics_);
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  const auto failed = [&](int least) {
    for (int i = least; i < least + 1000; ++i) {
      if (absl::StrContains(
              metrics_.Render(),
              absl::StrCat("llava_gateway_keys_file_reads_total{result=\"failed\"} ", i, "\n"))) {
        return true;
      }
    }
    return false;
  };
  EXPECT_TRUE(Eventually([&] { return failed(2); })) << "it is tried again";
  EXPECT_EQ(NameOf("Bearer a"), "ann");
  std::filesystem::remove(path_);
  Write(Line("bob", "b"));
  EXPECT_TRUE(Eventually([&] { return NameOf("Bearer b") == "bob"; }));
}

TEST_F(KeysFileTest, AChangeOfTheModeIsAChange) {
  Write(Line("ann", "a"));
  keys_ = *ApiKeys::Open(path_, metrics_);
  std::filesystem::permissions(path_, std::filesystem::perms::owner_read);
  EXPECT_TRUE(Eventually([&] {
    return absl::StrContains(metrics_.Render(),
                             "llava_gateway_keys_file_reads_total{result=\"ok\"} 2");
  }));
}

TEST_F(KeysFileTest, RefusesToStartOnABrokenFile) {
  const auto missing = ApiKeys::Open(path_, metrics_);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("--keys-file"));
  Write("- nonsense");
  EXPECT_THAT(std::string(ApiKeys::Open(path_, metrics_).status().message()),
              AllOf(HasSubstr("line 1"), HasSubstr("--keys-file")));
}

}  // namespace
}  // namespace llava
