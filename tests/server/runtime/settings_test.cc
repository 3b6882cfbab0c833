#include "server/runtime/settings.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace llava {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

class SettingsTest : public ::testing::Test {
 protected:
  SettingsTest() : settings_("llava-probe", "Tests settings.") {
    settings_.Add("name", &name_, "A name");
    settings_.Add("port", &port_, "A port", 0, 65535);
    settings_.Add("rate", &rate_, "A rate", 0, 2);
    settings_.Add("wait", &wait_, "A time");
    settings_.AddBytes("budget", &budget_, "Bytes");
    settings_.AddChoice("mode", &mode_, "A mode", {"fast", "exact"});
    settings_.AddChoice("type", &type_, "A type", {"float32", "bfloat16"});
    settings_.Add("loud", &loud_, "Noise");
  }
  ~SettingsTest() override {
    for (const char* variable : {"LLAVA_PROBE_PORT", "LLAVA_PROBE_NAME"}) unsetenv(variable);
  }

  std::optional<int> Parse(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "llava-probe");
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const auto code = settings_.Parse(static_cast<int>(arguments.size()), arguments.data());
    out_ = ::testing::internal::GetCapturedStdout();
    err_ = ::testing::internal::GetCapturedStderr();
    return code;
  }

  std::string File(const std::string& text) { return folder_.Write("settings.yaml", text); }

  const TempFolder folder_;
  Settings settings_;
  std::string name_ = "none", mode_ = "fast", type_ = "float32", out_, err_;
  int port_ = 1;
  double rate_ = 0.5;
  std::chrono::milliseconds wait_{1500};
  uint64_t budget_ = 1 << 20;
  bool loud_ = false;
};

TEST_F(SettingsTest, KeepsDefaults) {
  EXPECT_EQ(Parse({}), std::nullopt);
  EXPECT_EQ(name_, "none");
  EXPECT_EQ(port_, 1);
  EXPECT_EQ(wait_.count(), 1500);
  EXPECT_EQ(budget_, 1u << 20);
}

TEST_F(SettingsTest, RefusesWhatDoesNotFit) {
  for (const char* wait : {"inf", "nan", "-1s", "1e300h", "101e4h", "1e9999s"}) {
    EXPECT_EQ(Parse({"--wait", wait}), 2) << wait;
    EXPECT_THAT(err_, HasSubstr("--wait")) << wait;
  }
  for (const char* budget : {"inf", "nan", "-1", "1e300G", "1e12M"}) {
    EXPECT_EQ(Parse({"--budget", budget}), 2) << budget;
  }
  EXPECT_EQ(budget_, 1u << 20);
  EXPECT_EQ(Parse({"--wait", "87600h", "--budget", "1e8G"}), std::nullopt) << err_;
}

TEST_F(SettingsTest, ReadsFlagsOfEveryKind) {
  EXPECT_EQ(Parse({"--name", "x y", "--port=80", "--rate", "1.25", "--wait", "2m", "--budget", "3G",
                   "--mode", "exact", "--loud"}),
            std::nullopt)
      << err_;
  EXPECT_EQ(name_, "x y");
  EXPECT_EQ(port_, 80);
  EXPECT_EQ(rate_, 1.25);
  EXPECT_EQ(wait_.count(), 120'000);
  EXPECT_EQ(budget_, 3ull << 30);
  EXPECT_EQ(mode_, "exact");
  EXPECT_TRUE(loud_);
}

TEST_F(SettingsTest, NoTimeNeedsNoUnit) {
  std::chrono::microseconds pause{200};
  settings_.Add("pause", &pause, "A short time");
  EXPECT_EQ(Parse({"--wait", "0", "--pause", "0"}), std::nullopt) << err_;
  EXPECT_EQ(wait_.count(), 0);
  EXPECT_EQ(pause.count(), 0);
  for (const char* wait : {"5", "0x", "00m1", ""}) {
    EXPECT_EQ(Parse({"--wait", wait}), 2) << wait;
    EXPECT_THAT(err_, HasSubstr("--wait")) << wait;
  }
  EXPECT_THAT(err_, HasSubstr("is not a number with a unit of: h m ms s"));
}

TEST_F(SettingsTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const std::string path = File("name: file\nport: 2\nrate: 1\nlog_unused: 1\n");
  EXPECT_EQ(Parse({"--config", path.c_str()}), 2);
  EXPECT_THAT(err_, HasSubstr("/settings.yaml:4: unknown setting log_unused"));

  setenv("LLAVA_PROBE_PORT", "3", 1);
  setenv("LLAVA_PROBE_NAME", "environment", 1);
  const std::string good = File("name: file\nport: 2\nrate: 1\nloud: true\n");
  EXPECT_EQ(Parse({"--config", good.c_str(), "--name", "flag"}), std::nullopt) << err_;
  EXPECT_EQ(name_, "flag");
  EXPECT_EQ(port_, 3);
  EXPECT_EQ(rate_, 1);
  EXPECT_TRUE(loud_);
  EXPECT_EQ(mode_, "fast");
}

TEST_F(SettingsTest, TheLastOfRepeatedFlagsCounts) {
  EXPECT_EQ(Parse({"--port", "1", "--port=2", "--loud", "--loud=false"}), std::nullopt) << err_;
  EXPECT_EQ(port_, 2);
  EXPECT_FALSE(loud_);
}

TEST_F(SettingsTest, ReadsJson) {
  const std::string path = File("{\"port\": 9, \"mode\": \"exact\"}");
  EXPECT_EQ(Parse({"--config", path.c_str()}), std::nullopt) << err_;
  EXPECT_EQ(port_, 9);
  EXPECT_EQ(mode_, "exact");
}

TEST_F(SettingsTest, PrintsConfigWithOrigin) {
  EXPECT_EQ(Parse({"--port", "7", "--print-config"}), 0);
  EXPECT_THAT(out_, AllOf(HasSubstr("port: 7  # flag"), HasSubstr("mode: fast  # default")));
}

TEST_F(SettingsTest, HelpAndVersionEndWell) {
  EXPECT_EQ(Parse({"--help"}), 0);
  EXPECT_THAT(out_, AllOf(HasSubstr("--budget"), HasSubstr("LLAVA_PROBE_NAME")));
  EXPECT_EQ(Parse({"--version"}), 0);
  EXPECT_THAT(out_, HasSubstr("llava-probe 0."));
}

TEST_F(SettingsTest, Bf16IsAnotherWordForBfloat16) {
  EXPECT_EQ(Parse({"--help"}), 0);
  EXPECT_THAT(out_, AllOf(HasSubstr("float32|bfloat16"), Not(HasSubstr("bf16"))));
  EXPECT_EQ(Parse({"--type", "bf16"}), std::nullopt) << err_;
  EXPECT_EQ(type_, "bfloat16");
  EXPECT_EQ(Parse({"--mode", "bf16"}), 2);
}

TEST_F(SettingsTest, CheckRunsOnValues) {
  settings_.Check([this] {
    return port_ == 13 ? absl::InvalidArgumentError("13 is unlucky") : absl::OkStatus();
  });
  EXPECT_EQ(Parse({"--port", "13", "--check-config"}), 2);
  EXPECT_EQ(err_, "llava-probe: 13 is unlucky\n");
  EXPECT_EQ(Parse({"--port", "14", "--check-config"}), 0);
  EXPECT_EQ(Parse({"--port", "13", "--print-config"}), 2);
  EXPECT_THAT(out_, HasSubstr("port: 13  # flag")) << "what does not fit is to be seen";
}

struct BadCase {
  std::vector<const char*> arguments;
  const char* message;
};

class SettingsBadTest : public SettingsTest, public ::testing::WithParamInterface<BadCase> {};

TEST_P(SettingsBadTest, OneClearLineAndExitTwo) {
  EXPECT_EQ(Parse(GetParam().arguments), 2);
  EXPECT_THAT(err_, AllOf(HasSubstr(GetParam().message), EndsWith("\n")));
  EXPECT_EQ(std::count(err_.begin(), err_.end(), '\n'), 1) << err_;
}

INSTANTIATE_TEST_SUITE_P(
    All, SettingsBadTest,
    ::testing::Values(BadCase{{"--nonsense"}, "--nonsense"}, BadCase{{"extra"}, "extra"},
                      BadCase{{"--port", "70000"},
                              "--port (flag): \"70000\" is not a number from 0 to"},
                      BadCase{{"--port", "8x"}, "--port"}, BadCase{{"--rate", "nan"}, "--rate"},
                      BadCase{{"--wait", "5"}, "number with a unit"},
                      BadCase{{"--budget", "2T"}, "--budget"},
                      BadCase{{"--mode", "odd"}, "fast|exact"}, BadCase{{"--loud=perhaps"}, "loud"},
                      BadCase{{"--config", "/does/not/exist"}, "cannot read the config file"}));

}  // namespace
}  // namespace llava
