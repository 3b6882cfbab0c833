#include <fstream>
#include <functional>
#include <optional>
#include <string>

#include "server/gateway/gateway_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(GatewayOptionsTest, EachFlagIsRead) {
  const TempFolder folder;
  const std::string keys = folder.At("keys.yaml");
  std::ofstream(keys) << "[]";
  const std::string keys_flag = "--keys-file=" + keys;
  GatewayOptions options;
  Settings settings("llava-gateway", "test");
  options.Declare(settings);
  const char* const flags[] = {"llava-gateway",
                               "--vision=v:1",
                               "--llm=l:2",
                               "--default-model=emoji",
                               "--canary-share=0.25",
                               "--rollout=auto",
                               "--rollout-window=90s",
                               "--rollout-min-turns=12",
                               "--rollout-min-time=13s",
                               "--rollout-error-tolerance=0.14",
                               "--rollout-latency-ratio=1.75",
                               "--rollout-max-drift=0.125",
                               "--data-dir=/tmp/x",
                               keys_flag.c_str(),
                               "--metrics-open",
                               "--http-connections=9",
                               "--http-body-timeout=8s",
                               "--http-bodies-bytes=2M",
                               "--max-running-turns=5",
                               "--max-waiting-turns=6",
                               "--turn-queue-timeout=7s",
                               "--max-image-bytes=1K",
                               "--max-image-pixels=2048",
                               "--max-images-per-turn=3",
                               "--max-turn-bytes=4K",
                               "--request-bytes=5M",
                               "--session-ttl=24h",
                               "--resume-grace=3s",
                               "--continue-timeout=4s",
                               "--max-turns-per-session=11",
                               "--max-images-per-session=12",
                               "--request-timeout=5s"};
  EXPECT_EQ(settings.Parse(std::size(flags), flags), std::nullopt);
  EXPECT_EQ(options.vision, "v:1");
  EXPECT_EQ(options.llm, "l:2");
  EXPECT_EQ(options.default_model, "emoji");
  EXPECT_EQ(options.canary_share, 0.25);
  EXPECT_EQ(options.rollout.mode, "auto");
  EXPECT_EQ(options.rollout.window, std::chrono::seconds(90));
  EXPECT_EQ(options.rollout.limits.min_turns, 12u);
  EXPECT_EQ(options.rollout.limits.min_time, std::chrono::seconds(13));
  EXPECT_EQ(options.rollout.limits.error_tolerance, 0.14);
  EXPECT_EQ(options.rollout.limits.latency_ratio, 1.75);
  EXPECT_EQ(options.rollout.limits.max_drift, 0.125);
  EXPECT_EQ(options.data_dir, "/tmp/x");
  EXPECT_EQ(options.keys_file, keys);
  EXPECT_TRUE(options.metrics_open);
  EXPECT_EQ(options.http_limits.connections, 9);
  EXPECT_EQ(options.http_limits.body_timeout, std::chrono::seconds(8));
  EXPECT_EQ(options.http_limits.bodies_bytes, 2u << 20);
  EXPECT_EQ(options.gate.max_running, 5);
  EXPECT_EQ(options.gate.max_waiting, 6);
  EXPECT_EQ(options.gate.max_wait, std::chrono::seconds(7));
  EXPECT_EQ(options.max_image_bytes, 1024U);
  EXPECT_EQ(options.image_limits().max_pixels, 2048U);
  EXPECT_EQ(options.max_images_per_turn, 3);
  EXPECT_EQ(options.max_turn_bytes, 4096U);
  EXPECT_EQ(options.request_bytes, 5u << 20);
  EXPECT_EQ(options.session_ttl, std::chrono::hours(24));
  EXPECT_EQ(options.resume_grace, std::chrono::seconds(3));
  EXPECT_EQ(options.continue_timeout, std::chrono::seconds(4));
  EXPECT_EQ(options.max_turns_per_session, 11);
  EXPECT_EQ(options.max_images_per_session, 12);
  EXPECT_EQ(options.request_timeout, std::chrono::seconds(5));
}

TEST(GatewayOptionsTest, NamesTheBadSetting) {
  const auto complaint = [](const std::function<void(GatewayOptions&)>& spoil) {
    GatewayOptions options;
    spoil(options);
    return std::string(options.Check().message());
  };
  EXPECT_EQ(complaint([](auto&) {}), "");
  EXPECT_THAT(complaint([](auto& o) { o.vision = "host"; }), HasSubstr("--vision host"));
  EXPECT_THAT(complaint([](auto& o) { o.llm = "host:0"; }), HasSubstr("--llm host:0"));
  EXPECT_THAT(complaint([](auto& o) { o.llm = ":80"; }), HasSubstr("HOST:PORT"));
  EXPECT_THAT(complaint([](auto& o) { o.llm = "host:80x"; }), HasSubstr("HOST:PORT"));
  EXPECT_THAT(complaint([](auto& o) { o.default_model = "m@"; }), HasSubstr("--default-model"));
  EXPECT_THAT(complaint([](auto& o) { o.rollout.window = {}; }), HasSubstr("--rollout-window"));
  EXPECT_THAT(complaint([](auto& o) { o.data_dir = ""; }), HasSubstr("--data-dir"));
  EXPECT_THAT(complaint([](auto& o) { o.max_image_bytes = 0; }), HasSubstr("--max-image-bytes"));
  EXPECT_THAT(complaint([](auto& o) { o.request_bytes = o.max_turn_bytes - 1; }),
              HasSubstr("--request-bytes"));
  EXPECT_THAT(complaint([](auto& o) { o.http_limits.bodies_bytes = 1u << 20; }),
              HasSubstr("--http-bodies-bytes"));
  EXPECT_THAT(complaint([](auto& o) { o.http_limits.body_timeout = {}; }),
              HasSubstr("--http-body-timeout"));
  EXPECT_THAT(complaint([](auto& o) { o.request_timeout = {}; }), HasSubstr("--request-timeout"));
}

TEST(GatewayOptionsTest, AWrongKeysFileIsAWrongSetting) {
  const TempFolder folder;
  GatewayOptions options;
  options.keys_file = folder.At("keys.yaml");
  EXPECT_THAT(std::string(options.Check().message()), HasSubstr("--keys-file"));
  std::ofstream(options.keys_file) << "- nonsense";
  EXPECT_THAT(std::string(options.Check().message()),
              AllOf(HasSubstr("line 1"), HasSubstr("--keys-file")));
  options.backup_to = folder.At("copy");
  EXPECT_TRUE(options.Check().ok()) << "nobody is asked for a key";
  options.backup_to.clear();
  std::ofstream(options.keys_file) << "[]";
  EXPECT_TRUE(options.Check().ok());
  options.keys_file = folder.At("pipe");
  ASSERT_EQ(mkfifo(options.keys_file.c_str(), 0600), 0);
  EXPECT_TRUE(options.Check().ok()) << "what can be read once is for the start";
}

}  // namespace
}  // namespace llava
