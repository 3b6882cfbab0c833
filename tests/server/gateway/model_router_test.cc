#include "server/gateway/model_router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "tests/support/fake_backends.h"

namespace llava {
namespace {

using testing::HasSubstr;

class ModelRouterTest : public testing::Test {
 protected:
  void Start() {
    vision_.Start([] {});
    llm_.Start([] {});
    Refresh();
  }
  void Refresh() {
    std::promise<void> done;
    router_.Refresh([&] { done.set_value(); });
    done.get_future().wait();
  }

  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  FakeVision fake_vision_;
  FakeLlm fake_llm_;
  BackendPool vision_{
      {"vision", "llava-vision", "--vision"}, fake_vision_.server().address(), gateway_metrics_};
  BackendPool llm_{{"llm", "llava-llm", "--llm"}, fake_llm_.server().address(), gateway_metrics_};
  ModelRouter router_{vision_, llm_, ""};
};

TEST_F(ModelRouterTest, PrefersTheNewestVersionThatCanSee) {
  fake_llm_.models().Set({FakeTower(), FakeLanguageModel("m", 2), FakeLanguageModel("m", 5, 'x'),
                          FakeLanguageModel("m", 3)});
  Start();
  EXPECT_EQ(router_.Find("", 0, true)->model.model().version(), 3U);
  EXPECT_EQ(router_.Find("m", 0, false)->model.model().version(), 3U);
  EXPECT_EQ(router_.Find("m", 0, true)->numerics, "cpu-f32");
  EXPECT_EQ(router_.Find("m", 5, false)->model.model().version(), 5U);
  EXPECT_EQ(router_.Find("m", 5, true).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(router_.Find("m", 4, true).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(router_.Find("n", 0, true).status().message()),
              HasSubstr("known are: m"));
  EXPECT_EQ(router_.LanguageModels()->size(), 3U) << "a tower is no language model";
  EXPECT_TRUE(router_.Ready().ok());
}

TEST_F(ModelRouterTest, AsksAgainBeforeGivingUp) {
  Start();
  fake_llm_.models().Set({FakeLanguageModel("new", 1)});
  std::promise<absl::StatusOr<Route>> found;
  router_.Resolve("new", 0, true, [&](auto route) { found.set_value(std::move(route)); });
  EXPECT_TRUE(found.get_future().get().ok());
}

TEST_F(ModelRouterTest, AServiceWithoutModelsIsNotReady) {
  fake_llm_.models().Set({});
  Start();
  EXPECT_EQ(router_.Ready().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(router_.Ready().message()), HasSubstr("serves no model"));
}

}  // namespace
}  // namespace llava
