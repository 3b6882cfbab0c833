#include "server/lifecycle/model_process.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/runtime/exit_code.h"
#include "tests/server/lifecycle/fake_loader.h"
#include "tests/server/lifecycle/test_repository.h"

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
    const HttpResponse answer = process.pages({}).at(path)(HttpRequest{});
    return std::to_string(answer.status) + " " + answer.body;
  }

  // As grpc.health.v1 says it of a name.
  bool Healthy(const std::string& name) {
    grpc::GenericStub stub(grpc::CreateChannel(absl::StrCat("127.0.0.1:", process.port()),
                                               grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice request(
        absl::StrCat("\n", std::string(1, static_cast<char>(name.size())), name));
    grpc::ByteBuffer answer;
    grpc::Status status;
    const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                            grpc::ByteBuffer(&request, 1), &queue);
    call->StartCall();
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    grpc::Slice bytes;
    return status.ok() && answer.DumpToSingleSlice(&bytes).ok() && bytes.size() == 2 &&
           bytes.begin()[1] == 1;  // {status: SERVING}
  }

  Metrics metrics{"test"};
  ServiceProcess process{"llava-test", ProcessOptions{}, metrics};
  ModelManager::Options options;
};

TEST(ModelProcessTest, IsReadyWhileAnyModelIsServed) {
  ConnectedProcess here;
  EXPECT_EQ(here.Page("/readyz").substr(0, 3), "503");
  here.options.on_first_loads();
  EXPECT_NE(here.Page("/readyz").find("no version is served"), std::string::npos);
  here.options.on_serving("a", 1);
  EXPECT_EQ(here.Page("/readyz").substr(0, 3), "200");
  here.options.on_serving("b", 2);
  here.options.on_serving("a", 0);
  EXPECT_EQ(here.Page("/readyz").substr(0, 3), "200");
  here.options.on_serving("b", 0);
  const std::string page = here.Page("/readyz");
  EXPECT_EQ(page.substr(0, 3), "503");
  EXPECT_NE(page.find("no version is served"), page.npos) << page;
}

TEST(ModelProcessTest, IsReadyOnceTheFirstLoadsAreOver) {
  ConnectedProcess here;
  here.options.on_serving("a", 1);
  const std::string page = here.Page("/readyz");
  EXPECT_EQ(page.substr(0, 3), "503");
  EXPECT_NE(page.find("other models"), page.npos) << page;
  EXPECT_FALSE(here.Healthy(""));
  EXPECT_TRUE(here.Healthy("a"));
  here.options.on_serving("b", 1);
  EXPECT_EQ(here.Page("/readyz").substr(0, 3), "503");
  EXPECT_TRUE(here.Healthy("a"));
  EXPECT_TRUE(here.Healthy("b"));
  here.options.on_first_loads();
  EXPECT_EQ(here.Page("/readyz").substr(0, 3), "200");
  EXPECT_TRUE(here.Healthy(""));
}

// 0 if the process is ready when it says so; it serves one model, and then another.
int CodeOfReadiness() {
  TestRepository repository;
  repository.Publish("a", 1);
  repository.Publish("b", 2);
  ConnectedProcess here;
  FakeLoader loader;
  loader.HoldLoadsOf(2);
  here.options.root = repository.root();
  here.options.must_start = true;
  here.options.on_serving = [&, tell = here.options.on_serving](const std::string& name, int n) {
    tell(name, n);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // whoever waits for one goes on
    loader.HoldLoadsOf(0);
  };
  ModelManager manager(here.options, loader, here.metrics);
  std::string page;
  const auto on_ready = [&] {
    page = here.Page("/readyz");
    kill(getpid(), SIGTERM);
  };
  const int code = RunModelProcess({.program = "llava-test",
                                    .begin = std::chrono::steady_clock::now(),
                                    .host = "127.0.0.1",
                                    .on_ready = on_ready,
                                    .stop_workers = [] { return true; }},
                                   here.process, manager);
  return page.substr(0, 3) == "200" ? code : 99;
}

TEST(ModelProcessDeathTest, SaysThatItIsReadyOnceItIs) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(CodeOfReadiness()), ::testing::ExitedWithCode(0), "");
}

TEST(ModelProcessTest, ALostDeviceEndsIt) {
  ConnectedProcess here;
  EXPECT_FALSE(here.process.EndAsked());
  here.options.on_device_lost("cuda:0 is gone");
  EXPECT_TRUE(here.process.EndAsked());
  EXPECT_EQ(here.Page("/livez").substr(0, 3), "503");
}

// The exit code of a process in which whoever ends it waits for a device for ever.
int CodeOfAHangingEnd(bool lost) {
  TestRepository repository;
  std::filesystem::create_directories(repository.root());
  ConnectedProcess here;
  FakeLoader loader;
  here.options.root = repository.root();
  if (lost) loader.LoseDevice("cuda:0 is gone");
  ModelManager manager(here.options, loader, here.metrics);
  if (!lost) kill(getpid(), SIGTERM);
  const auto hangs = [] {
    std::promise<bool> never;
    return never.get_future().get();
  };
  return RunModelProcess({.program = "llava-test",
                          .begin = std::chrono::steady_clock::now(),
                          .host = "127.0.0.1",
                          .stop_workers = hangs,
                          .end_limit = std::chrono::milliseconds(50)},
                         here.process, manager);
}

TEST(ModelProcessDeathTest, AnEndThatHangsIsCutOff) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(CodeOfAHangingEnd(true)), ::testing::ExitedWithCode(kExitDeviceLost), "");
  EXPECT_EXIT(std::exit(CodeOfAHangingEnd(false)), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace llava
