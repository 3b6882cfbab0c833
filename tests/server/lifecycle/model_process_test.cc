#include "server/lifecycle/model_process.h"

#include <gtest/gtest.h>

#include <string>

namespace llava {
namespace {

TEST(ModelProcessTest, ExitCodesTellWhatToMend) {
  const auto code = [](const absl::Status& status) { return ReportLoadFailure("llava-x", status); };
  EXPECT_EQ(code(absl::InvalidArgumentError("settings")), kExitUsage);
  EXPECT_EQ(code(absl::NotFoundError("nothing there")), kExitModelMissing);
  EXPECT_EQ(code(absl::DataLossError("broken")), kExitModelMissing);
  EXPECT_EQ(code(absl::PermissionDeniedError("closed")), kExitModelMissing);
  EXPECT_EQ(code(absl::FailedPreconditionError("no GPU")), kExitDeviceMissing);
  EXPECT_EQ(code(absl::ResourceExhaustedError("no memory")), kExitNoMemory);
  EXPECT_EQ(code(absl::InternalError("the self-test fails")), 1);
}

// A server that can be asked, on ports of its own.
class ConnectedProcess {
 public:
  ConnectedProcess() {
    ConnectHealth(options, process);
    EXPECT_EQ(process.Start({}, {}), 0);
  }
  // "200 ready", as /readyz and /livez say.
  std::string Page(const std::string& path) {
    const HttpResponse answer = process.pages().at(path)(HttpRequest{});
    return std::to_string(answer.status) + " " + answer.body;
  }

  Metrics metrics{"test"};
  ServiceProcess process{"llava-test", ProcessOptions{}, metrics};
  ModelManager::Options options;
};

TEST(ModelProcessTest, IsReadyWhileAnyModelIsServed) {
  ConnectedProcess here;
  EXPECT_EQ(here.Page("/readyz").substr(0, 3), "503");
  here.options.on_serving("a", 1);
  here.options.on_serving("b", 2);
  here.options.on_serving("a", 0);
  EXPECT_EQ(here.Page("/readyz").substr(0, 3), "200");
  here.options.on_serving("b", 0);
  const std::string page = here.Page("/readyz");
  EXPECT_EQ(page.substr(0, 3), "503");
  EXPECT_NE(page.find("no version is served"), page.npos) << page;
}

TEST(ModelProcessTest, ALostDeviceEndsIt) {
  ConnectedProcess here;
  EXPECT_FALSE(here.process.EndAsked());
  here.options.on_device_lost("cuda:0 is gone");
  EXPECT_TRUE(here.process.EndAsked());
  EXPECT_EQ(here.Page("/livez").substr(0, 3), "503");
}

}  // namespace
}  // namespace llava
