// A process that is told to end while its model is loading.

#include <grpcpp/generic/async_generic_service.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "server/lifecycle/model_manager.h"
#include "server/runtime/service_process.h"
#include "tests/server/lifecycle/fake_loader.h"
#include "tests/server/lifecycle/test_repository.h"

namespace llava {
namespace {

// As the mains do: a load that goes on until it is told to stop, and a signal meanwhile.
int LifeThatEndsWhileLoading(int number) {
  ProcessOptions options;
  options.log_level = "error";
  Metrics metrics("probe");
  TestRepository repository;
  repository.Publish("emoji", 1);
  FakeLoader loader;
  loader.CloseGate();
  ServiceProcess process("llava-probe", options, metrics);
  ModelManager::Options managed;
  managed.root = repository.root();
  managed.names = {"emoji"};
  managed.must_start = true;
  ModelManager manager(managed, loader, metrics);
  grpc::CallbackGenericService service;  // any callback service: health alone cannot be polled
  grpc::Service none;
  if (const int code = process.Start({&none}, {"probe"}); code != 0) return code;
  if (process.EndAsked()) return 97;
  manager.Start();
  std::thread killer([&] {
    while (loader.loads(1) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    kill(getpid(), number);
  });
  const auto status = manager.WaitUntilServing([&] { return process.EndAsked(); });
  killer.join();
  if (!absl::IsCancelled(status) || !process.EndAsked()) return 98;
  return process.Run([&] { manager.Drain(); }, [&] { manager.Stop(); });
}

TEST(ModelManagerDeathTest, ASignalWhileTheModelLoadsEndsTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  for (const int number : {SIGTERM, SIGINT}) {
    EXPECT_EXIT(std::exit(LifeThatEndsWhileLoading(number)), ::testing::ExitedWithCode(0), "");
  }
}

}  // namespace
}  // namespace llava
