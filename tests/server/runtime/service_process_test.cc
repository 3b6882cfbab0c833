#include "server/runtime/service_process.h"

#include <gmock/gmock.h>
#include <grpcpp/impl/service_type.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "server/runtime/bounded_queue.h"
#include "server/runtime/host_port.h"
#include "server/runtime/process_metrics.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using std::chrono::milliseconds;

constexpr auto kPatience = kSlowdown * std::chrono::seconds(60);

TEST(AdmissionTest, RefusesWhileDrainingAndWaitsForTheRest) {
  Admission admission;
  EXPECT_TRUE(admission.Enter());
  admission.StartDraining();
  EXPECT_FALSE(admission.Enter());
  EXPECT_FALSE(admission.WaitUntilIdle(CondVar::Clock::now() + milliseconds(5)));
  std::thread worker([&] {
    std::this_thread::sleep_for(milliseconds(20));
    admission.Leave();
  });
  EXPECT_TRUE(admission.WaitUntilIdle(CondVar::Clock::now() + std::chrono::seconds(60)));
  worker.join();
  EXPECT_EQ(admission.in_flight(), 0);
}

TEST(BoundedQueueTest, RefusesWhenFullOrClosedAndDrains) {
  BoundedQueue<int> queue(2);
  int one = 1, two = 2, three = 3;
  EXPECT_TRUE(queue.TryPush(one));
  EXPECT_TRUE(queue.TryPush(two));
  EXPECT_FALSE(queue.TryPush(three));
  EXPECT_EQ(three, 3);
  queue.Close();
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_EQ(queue.Pop(), 2);
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

TEST(BoundedQueueTest, WaitsForAnItemOrTheEnd) {
  BoundedQueue<int> queue(8);
  std::thread producer([&] {
    for (int i = 0; i < 3; ++i) {
      std::this_thread::sleep_for(milliseconds(5));
      queue.TryPush(i);
    }
    queue.Close();
  });
  for (int i = 0; i < 3; ++i) EXPECT_EQ(queue.Pop(), i);
  EXPECT_EQ(queue.Pop(), std::nullopt);
  producer.join();
}

// A whole life in a child process: signals and exit codes belong to processes. Its work ends when
// it is told to drain, never, or with a second signal.
enum class Work { kEnds, kNeverEnds, kIsInterrupted };
int Life(milliseconds drain_timeout, Work work) {
  ProcessOptions options;
  options.drain_timeout = drain_timeout;
  options.log_level = "error";
  Metrics metrics("probe");
  ServiceProcess process("llava-probe", options, metrics);
  grpc::Service none;
  if (const int code = process.Start({&none}, {"probe"}); code != 0) return code;
  const auto shown = [&](const std::string& line) {
    return process.pages({}).at("/metrics")(HttpRequest()).body.find("\n" + line) !=
           std::string::npos;
  };
  if (!shown("llava_ready 0\n")) return 98;
  process.SetReady(true);
  if (!shown("llava_ready 1\n")) return 97;
  process.admission().Enter();
  std::thread worker([&] {
    kill(getpid(), SIGTERM);
    while (!process.admission().draining()) std::this_thread::sleep_for(milliseconds(1));
    if (work == Work::kEnds) process.admission().Leave();
    if (work == Work::kIsInterrupted) kill(getpid(), SIGINT);
  });
  int left = -1;  // of what was let in
  bool draining_shown = false;
  const int code = process.Run({}, [&] {
    left = process.admission().in_flight();
    draining_shown = shown("llava_ready 0\n");
  });
  worker.join();
  if (!draining_shown) return 96;
  return code == 0 && left == (work == Work::kEnds ? 0 : 1) ? 0 : 99;
}

TEST(ServiceProcessDeathTest, DrainsAndEndsWithZero) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(Life(std::chrono::hours(1), Work::kEnds)), ::testing::ExitedWithCode(0),
              "");
}

TEST(ServiceProcessDeathTest, DrainTimeoutEndsTheWait) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(Life(milliseconds(10), Work::kNeverEnds)), ::testing::ExitedWithCode(0),
              "");
}

TEST(ServiceProcessDeathTest, SecondSignalEndsAtOnce) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(Life(std::chrono::hours(1), Work::kIsInterrupted)),
              ::testing::ExitedWithCode(128 + SIGINT), "");
}

// A device is lost while work is under way on another one. A signal during that, as of who looks at
// /livez, does not cut it short.
int LifeWithALostDevice() {
  ProcessOptions options;
  options.drain_timeout = std::chrono::hours(1);
  options.log_level = "error";
  Metrics metrics("probe");
  ServiceProcess process("llava-probe", options, metrics);
  grpc::Service none;
  if (const int code = process.Start({&none}, {"probe"}); code != 0) return code;
  process.SetReady(true);
  process.admission().Enter();
  const auto live = [&] { return process.pages({}).at("/livez")(HttpRequest()); };
  bool told = live().status == 200;
  std::thread worker([&] {
    process.Fail("cuda:1: an illegal address");
    const HttpResponse response = live();
    told = told && response.status == 503 &&
           response.body.find("an illegal address") != std::string::npos;
    while (!process.admission().draining()) std::this_thread::sleep_for(milliseconds(1));
    kill(getpid(), SIGTERM);
    std::this_thread::sleep_for(milliseconds(50));
    process.admission().Leave();
  });
  const int code = process.Run();
  worker.join();
  return told ? code : 99;
}

TEST(ServiceProcessDeathTest, ALostDeviceEndsTheProcessWhenItsWorkHasEnded) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::exit(LifeWithALostDevice()), ::testing::ExitedWithCode(kExitDeviceLost), "");
}

TEST(ServiceProcessTest, TellsOfItself) {
  const auto value = [](const std::string& name) {
    Metrics metrics("probe");
    ShowProcess(metrics);
    const std::string text = metrics.Render();
    const size_t at = text.find("\n" + name + " ");
    return at == std::string::npos ? -1 : std::stod(text.substr(at + name.size() + 2));
  };
  EXPECT_GT(value("llava_process_resident_memory_bytes"), 1 << 20);
  EXPECT_LT(value("llava_process_resident_memory_bytes"), 1e12);
  const double before = value("llava_process_open_fds");
  std::vector<int> files;
  for (int i = 0; i < 100; ++i) files.push_back(dup(2));
  EXPECT_NEAR(value("llava_process_open_fds"), before + 100, 20) << "others open files, too";
  for (const int file : files) close(file);
}

TEST(ServiceProcessDeathTest, TakenPortHasItsOwnExitCode) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  Metrics metrics("probe");
  const auto holder =
      HttpServer::Start(HttpServerOptions{}, std::map<std::string, HttpServer::Page>{});
  ASSERT_TRUE(holder.ok());
  EXPECT_EXIT(
      {
        ProcessOptions options;
        options.port = (*holder)->port();
        ServiceProcess process("llava-probe", options, metrics);
        grpc::Service none;
        std::exit(process.Start({&none}, {}));
      },
      ::testing::ExitedWithCode(kExitPortInUse), "cannot listen on 127.0.0.1");
}

TEST(ServiceProcessDeathTest, ListensOnIPv6HoweverItIsWritten) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  HttpServerOptions probe;
  probe.host = "::1";
  if (!HttpServer::Start(probe, std::map<std::string, HttpServer::Page>{}).ok()) {
    GTEST_SKIP() << "this machine has no IPv6";
  }
  for (const char* host : {"::1", "[::1]"}) {
    EXPECT_EXIT(
        {
          ProcessOptions options;
          options.host = host;
          Metrics metrics("probe");
          ServiceProcess process("llava-probe", options, metrics);
          grpc::Service none;
          const int code = process.Start({&none}, {});
          const auto channel = grpc::CreateChannel(HostPort("::1", process.port()),
                                                   grpc::InsecureChannelCredentials());
          const bool there =
              code == 0 && channel->WaitForConnected(std::chrono::system_clock::now() + kPatience);
          std::exit(there && options.on_loopback() ? 0 : 99);
        },
        ::testing::ExitedWithCode(0), "")
        << host;
  }
}

TEST(HostPortTest, PutsIPv6InBrackets) {
  EXPECT_EQ(HostPort("127.0.0.1", 80), "127.0.0.1:80");
  EXPECT_EQ(HostPort("localhost", 80), "localhost:80");
  EXPECT_EQ(HostPort("::1", 80), "[::1]:80");
  EXPECT_EQ(HostPort("[::1]", 80), "[::1]:80");
  for (const char* host : {"localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]"}) {
    EXPECT_TRUE(IsLoopbackHost(host)) << host;
  }
  for (const char* host : {"", "127.0.0.1.example.com", "128.0.0.1", "::", "localhost.", "127.1"}) {
    EXPECT_FALSE(IsLoopbackHost(host)) << host;
  }
  for (const char* host : {"::", "[::]", "0.0.0.0", "localhost"}) EXPECT_TRUE(IsListenHost(host));
  for (const char* host : {"", "[]", "[127.0.0.1]", "gateway.example", "::1]", "127.0.0.1:80"}) {
    EXPECT_FALSE(IsListenHost(host)) << host;
  }
}

TEST(ProcessOptionsTest, AHostThatIsNoneIsAWrongFlag) {
  ProcessOptions options;
  Settings settings("llava-probe", "");
  options.Declare(settings);
  const char* arguments[] = {"llava-probe", "--host", "gateway.example", "--insecure",
                             "--check-config"};
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(settings.Parse(5, arguments), std::optional<int>(kExitUsage));
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::HasSubstr("--host"));
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("no address")), kExitUsage);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("taken")), kExitPortInUse);
}

TEST(ProcessOptionsTest, HelpTellsTheExitCodesOfTheProgram) {
  for (const bool loads_models : {false, true}) {
    ProcessOptions options;
    Settings settings("llava-probe", "Tests help.");
    options.Declare(settings);
    std::string device;
    if (loads_models) settings.Add("device", &device, "Where the model is");
    const char* const arguments[] = {"llava-probe", "--help"};
    ::testing::internal::CaptureStdout();
    EXPECT_EQ(settings.Parse(2, arguments), 0);
    const std::string help = ::testing::internal::GetCapturedStdout();
    const size_t at = help.find("Exit codes: ");
    ASSERT_NE(at, std::string::npos) << help;
    const auto tells = [&](int code) {
      return help.find(" " + std::to_string(code) + " ", at) != std::string::npos;
    };
    for (const int code : {0, 1, int{kExitUsage}, int{kExitPortInUse}, 128}) {
      EXPECT_TRUE(tells(code)) << code;
    }
    for (const int code : {int{kExitModelMissing}, int{kExitDeviceMissing}, int{kExitNoMemory},
                           int{kExitDeviceLost}}) {
      EXPECT_EQ(tells(code), loads_models) << code;
    }
  }
}

TEST(ProcessOptionsTest, RefusesABindToStrangers) {
  for (const bool insecure : {false, true}) {
    ProcessOptions options;
    Settings settings("llava-probe", "");
    options.Declare(settings);
    const char* arguments[] = {"llava-probe", "--host", "0.0.0.0", "--insecure=true"};
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(settings.Parse(insecure ? 4 : 3, arguments),
              insecure ? std::nullopt : std::optional<int>(2));
    EXPECT_EQ(::testing::internal::GetCapturedStderr().empty(), insecure);
  }
}

}  // namespace
}  // namespace llava
