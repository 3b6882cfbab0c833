#include "server/gateway/keys_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::Not;

class KeysCommandTest : public testing::Test {
 protected:
  // Exit status; what went to stdout is in `out_`, to stderr in `err_`.
  int Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "keys");
    arguments.push_back("--keys-file=" + path_);
    std::vector<const char*> argv;
    for (const std::string& each : arguments) argv.push_back(each.c_str());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = RunKeysCommand(static_cast<int>(argv.size()), argv.data());
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return code;
  }
  std::string Text() {
    std::ifstream file(path_);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  std::string Lookup(const std::string& key) {
    Metrics metrics("gateway");
    const auto keys = ApiKeys::Open(path_, metrics);
    if (!keys.ok()) return std::string(keys.status().message());
    const auto caller = (*keys)->Identify("Bearer " + key);
    return caller.ok() ? caller->name() + " " + ToString(caller->role()) : "nobody";
  }

  TempFolder folder_;
  const std::string path_ = folder_.At("keys.yaml");
  std::string out_, err_;
};

TEST_F(KeysCommandTest, MakesKeysThatWorkAndAreKeptAsHashesOnly) {
  ASSERT_EQ(Run({"add", "ann", "--weight", "2", "--requests-per-minute", "60"}), 0) << err_;
  const std::string ann = out_.substr(0, out_.find('\n'));
  EXPECT_GE(ann.size(), 48u);
  EXPECT_THAT(Text(), Not(HasSubstr(ann)));
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_EQ(Run({"add", "root", "--role", "admin"}), 0);
  const std::string root = out_.substr(0, out_.find('\n'));
  EXPECT_NE(ann, root);
  EXPECT_EQ(Lookup(ann), "ann user");
  EXPECT_EQ(Lookup(root), "root admin");

  ASSERT_EQ(Run({"list"}), 0);
  EXPECT_THAT(out_, HasSubstr("ann  user  weight 2"));
  EXPECT_THAT(out_, HasSubstr("requests-per-minute: 60"));

  EXPECT_EQ(Run({"add", "ann"}), 2) << "the name is taken";
  EXPECT_THAT(err_, HasSubstr("ann stands there twice"));
  ASSERT_EQ(Run({"revoke", "ann"}), 0);
  EXPECT_EQ(Lookup(ann), "nobody");
  EXPECT_EQ(Lookup(root), "root admin");
  EXPECT_EQ(Run({"revoke", "ann"}), 1);
  ASSERT_EQ(Run({"revoke", "root"}), 0);
  EXPECT_EQ(Lookup(root), "nobody");
  ASSERT_EQ(Run({"add", "carl"}), 0) << "after the last one went: " << err_;
  EXPECT_EQ(Lookup(out_.substr(0, out_.find('\n'))), "carl user");
}

TEST_F(KeysCommandTest, LeavesTheRestOfTheFileAsItIs) {
  const std::string hash(64, 'a'), other(64, 'b');
  const std::string text = "# head\n- name: ann  # block form\n  sha256: " + hash +
                           "\n\n# about bob\n- {name: bob, sha256: " + other + "}\n# foot\n";
  const auto without_ann = RemoveKeyLines(text, "ann");
  ASSERT_TRUE(without_ann.ok()) << without_ann.status();
  EXPECT_EQ(*without_ann, "# head\n- {name: bob, sha256: " + other + "}\n# foot\n");
  ApiKey carl;
  carl.name = "carl";
  carl.hashes = {HashBytes("x")};
  const auto with_carl = AddKeyLine(text, carl);
  ASSERT_TRUE(with_carl.ok());
  EXPECT_EQ(with_carl->substr(0, text.size()), text);
}

TEST_F(KeysCommandTest, OfManyAtATimeNoneIsLost) {
  constexpr int kMany = 8;
  const std::string file = "--keys-file=" + path_;
  std::array<int, kMany> codes;
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  std::vector<std::thread> threads;
  for (int i = 0; i < kMany; ++i) {
    threads.emplace_back([&, i] {
      const std::string name = "user" + std::to_string(i);
      const std::array<const char*, 4> argv = {"keys", "add", name.c_str(), file.c_str()};
      codes[i] = RunKeysCommand(argv.size(), argv.data());
    });
  }
  for (std::thread& thread : threads) thread.join();
  testing::internal::GetCapturedStdout();
  err_ = testing::internal::GetCapturedStderr();
  EXPECT_THAT(codes, testing::Each(0)) << err_;
  const auto keys = ParseApiKeys(Text());
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(keys->size(), static_cast<size_t>(kMany));
}

// Else the gateway's user could not read the file any more.
TEST_F(KeysCommandTest, AFileKeepsItsOwner) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  ASSERT_EQ(Run({"add", "ann"}), 0) << err_;
  ASSERT_EQ(chown(path_.c_str(), 12345, 23456), 0);
  ASSERT_EQ(Run({"add", "bob"}), 0) << err_;
  ASSERT_EQ(Run({"revoke", "ann"}), 0) << err_;
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 12345U);
  EXPECT_EQ(info.st_gid, 23456U);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
}

TEST_F(KeysCommandTest, RefusesBadNamesRolesAndFiles) {
  EXPECT_EQ(Run({"add", "no good"}), 2);
  EXPECT_EQ(Run({"add", "ann", "--role", "king"}), 2);
  EXPECT_THAT(err_, HasSubstr("king"));
  EXPECT_EQ(Run({"add"}), 2);
  EXPECT_EQ(Run({}), 2);
  EXPECT_FALSE(std::filesystem::exists(path_));
  std::ofstream(path_) << "nonsense";
  EXPECT_EQ(Run({"add", "ann"}), 2);
  EXPECT_EQ(Text(), "nonsense");
}

}  // namespace
}  // namespace llava
