#include "server/runtime/logging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace llava {
namespace {

using testing::HasSubstr;

std::string Logged(const std::string& format, const std::string& value) {
  InitLogging({"test", "info", format});
  testing::internal::CaptureStderr();
  LogInfo("it happened", {{"what", value}, {"code", "1"}});
  return testing::internal::GetCapturedStderr();
}

TEST(LoggingTest, ALongValueIsCut) {
  for (const char* format : {"text", "json"}) {
    const std::string line = Logged(format, std::string(100'000, '\1'));
    EXPECT_LT(line.size(), 20'000u) << "six bytes for each of them";
    EXPECT_THAT(line, HasSubstr("\\u0001... (100000 bytes)"));
  }
}

// A stranger's text can neither begin a line or a field nor steer a terminal.
TEST(LoggingTest, AValueStaysOne) {
  EXPECT_THAT(Logged("text", "plain"), HasSubstr("it happened what=plain code=1\n"));
  EXPECT_THAT(Logged("text", ""), HasSubstr("what= code=1\n"));
  EXPECT_THAT(Logged("text", "x code=2"), HasSubstr("what=\"x code=2\" code=1\n"));
  for (const std::string value :
       {"x\n2026-01-01 error forged", "x\rforged", "\x1b[2Jx", "x\"y", "x\x7f",
        "\xc2\x9b"
        "2Jx",
        "x\xe2\x80\xa8y", "\xff\xfe", "{}%s%n"}) {
    for (const char* format : {"text", "json"}) {
      const std::string line = Logged(format, value);
      EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
      for (const char forbidden : {'\r', '\x1b'}) {
        EXPECT_EQ(line.find(forbidden), std::string::npos) << line;
      }
    }
    for (const char c : Logged("text", value)) EXPECT_TRUE((c >= ' ' && c <= '~') || c == '\n');
  }
}

}  // namespace
}  // namespace llava
