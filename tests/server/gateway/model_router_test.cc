#include "server/gateway/model_router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "absl/strings/match.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_backends.h"

namespace llava {
namespace {

using testing::HasSubstr;

class ModelRouterTest : public testing::Test {
 protected:
  void Start() {
    vision_.Start([] {});
    llm_.Start([] {});
    // A first connection may fail on a busy machine.
    ASSERT_TRUE(Eventually([this] {
      Refresh();
      return !absl::StrContains(router_.Ready().message(), "is not reachable");
    }));
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
  const auto find = [this](std::string name, uint64_t version, bool pictures) {
    return router_.Find({.name = std::move(name), .version = version}, pictures);
  };
  EXPECT_EQ(find("", 0, true)->model.model().version(), 3U);
  EXPECT_EQ(find("m", 0, false)->model.model().version(), 3U);
  EXPECT_EQ(find("m", 0, true)->numerics, "cpu-f32");
  EXPECT_EQ(find("m", 5, false)->model.model().version(), 5U);
  EXPECT_EQ(find("m", 5, true).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(find("m", 4, true).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(find("n", 0, true).status().message()), HasSubstr("known are: m"));
  EXPECT_EQ(router_.LanguageModels()->size(), 3U) << "a tower is no language model";
  EXPECT_TRUE(router_.Ready().ok());
}

TEST_F(ModelRouterTest, AsksAgainBeforeGivingUp) {
  Start();
  fake_llm_.models().Set({FakeLanguageModel("new", 1)});
  std::promise<absl::StatusOr<Route>> found;
  router_.Resolve({.name = "new"}, true, [&](auto route) { found.set_value(std::move(route)); });
  EXPECT_TRUE(found.get_future().get().ok());
}

TEST_F(ModelRouterTest, ACanaryGetsItsShareOfTheSessions) {
  fake_llm_.models().Set({FakeLanguageModel("m", 1), FakeLanguageModel("m", 2)});
  v1::SetLabelRequest label;
  v1::SetLabelResponse labelled;
  label.set_name("m");
  for (const auto& [name, version] : {std::pair("stable", 1), std::pair("canary", 2)}) {
    label.set_label(name);
    label.set_version(static_cast<uint64_t>(version));
    ASSERT_TRUE(fake_llm_.models().SetLabel(nullptr, &label, &labelled).ok());
  }
  Start();
  const auto share = [this] {
    int canaries = 0;
    for (int i = 0; i < 1000; ++i) {
      const auto route = router_.Find({.name = "m", .key = std::to_string(i)}, true);
      canaries += route->model.model().version() == 2 ? 1 : 0;
    }
    return canaries;
  };
  EXPECT_EQ(share(), 0);
  EXPECT_EQ(router_.SetCanaryShare("m", 0.25), 0);
  EXPECT_NEAR(share(), 250, 45);
  EXPECT_EQ(router_.SetCanaryShare("m", 1), 0.25);
  EXPECT_EQ(share(), 1000);
  EXPECT_EQ(router_.Find({.name = "m", .version = 1, .key = "1"}, true)->model.model().version(),
            1u);
  // Without its tower it gets nobody who brings a picture.
  fake_llm_.models().Set({FakeLanguageModel("m", 1), FakeLanguageModel("m", 2, 'x')});
  Refresh();
  EXPECT_EQ(share(), 0);
}

TEST_F(ModelRouterTest, TheDefaultModelMayNameALabel) {
  fake_llm_.models().Set({FakeLanguageModel("m", 1), FakeLanguageModel("m", 2)});
  Start();
  const ModelRouter router(vision_, llm_, "m@1");
  EXPECT_EQ(router.Find({}, true)->model.model().version(), 1u);
  EXPECT_EQ(router.Find({.version = 2}, true)->model.model().version(), 2u);
  EXPECT_EQ(router.Find({.name = "m"}, true)->model.model().version(), 2u);
}

// A service tells no more than name, version and labels of what it is to load.
TEST_F(ModelRouterTest, TheDefaultStaysWhileItIsLoadedAnew) {
  const v1::ModelInfo a = FakeLanguageModel("a", 1), b = FakeLanguageModel("b", 1);
  fake_llm_.models().Set({a, b});
  Start();
  EXPECT_EQ(router_.DefaultModel(), "a");
  fake_llm_.models().Set({b}, {a});
  Refresh();
  EXPECT_EQ(router_.DefaultModel(), "a");
  EXPECT_EQ(router_.Find({}, false).status().code(), absl::StatusCode::kUnavailable);
  fake_llm_.models().Set({a, b});
  Refresh();
  EXPECT_EQ(router_.DefaultModel(), "a");
  fake_llm_.models().Set({b});
  Refresh();
  EXPECT_EQ(router_.DefaultModel(), "b") << "nobody has it any more";
}

TEST_F(ModelRouterTest, OnlyADefaultThatWasSetIsNeededToBeReady) {
  const v1::ModelInfo a = FakeLanguageModel("a", 1), b = FakeLanguageModel("b", 1);
  const ModelRouter chosen(vision_, llm_, "a");
  fake_llm_.models().Set({b}, {a});
  Start();
  EXPECT_EQ(router_.DefaultModel(), "a");
  EXPECT_TRUE(router_.Ready().ok()) << router_.Ready() << ": who asks for b gets an answer";
  EXPECT_EQ(chosen.Ready().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(chosen.Ready().message()), HasSubstr("is loading a 1"));
  fake_llm_.models().Set({FakeLanguageModel("b", 1, 'x')}, {a});
  Refresh();
  EXPECT_THAT(std::string(router_.Ready().message()), HasSubstr("is loading a 1"))
      << "b cannot look at pictures";
}

// Its address may stay silent for good.
TEST_F(ModelRouterTest, OthersAreServedWhileTheDefaultIsDown) {
  FakeLlm other;
  other.models().Set({FakeLanguageModel("a", 1)});
  BackendPool llm({"llm", "llava-llm", "--llm"},
                  fake_llm_.server().address() + "," + other.server().address(), gateway_metrics_);
  const ModelRouter router(vision_, llm, "");
  const auto ready = [&](size_t models) {
    return Eventually([&] {
      std::promise<void> done;
      llm.Refresh([&] { done.set_value(); });
      done.get_future().wait();
      const auto served = router.LanguageModels();
      return served.ok() && served->size() == models && router.Ready().ok();
    });
  };
  Start();
  llm.Start([] {});
  ASSERT_TRUE(ready(2)) << router.Ready();
  EXPECT_EQ(router.DefaultModel(), "a");
  other.server().Stop();
  EXPECT_TRUE(ready(1)) << router.Ready();
  EXPECT_EQ(router.DefaultModel(), "a");
  EXPECT_EQ(router.Find({}, false).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ModelRouterTest, AServiceWithoutModelsIsNotReady) {
  fake_llm_.models().Set({});
  Start();
  EXPECT_EQ(router_.Ready().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(router_.Ready().message()), HasSubstr("serves no model"));
}

}  // namespace
}  // namespace llava
