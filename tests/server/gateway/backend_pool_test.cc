#include "server/gateway/backend_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <map>
#include <memory>
#include <set>

#include "server/runtime/status.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_backends.h"

namespace llava {
namespace {

using testing::HasSubstr;

TEST(BackendAddressTest, OneSeveralAndNames) {
  const auto one = ParseBackendAddresses("127.0.0.1:8021");
  ASSERT_EQ(one->size(), 1u);
  EXPECT_EQ(one->at(0).host, "127.0.0.1");
  EXPECT_EQ(one->at(0).port, "8021");
  EXPECT_FALSE(one->at(0).expand);
  const auto several = ParseBackendAddresses("a:1,dns:///llava-llm:8021,[::1]:2");
  ASSERT_EQ(several->size(), 3u);
  EXPECT_TRUE(several->at(1).expand);
  EXPECT_EQ(several->at(1).host, "llava-llm");
  EXPECT_EQ(several->at(2).host, "[::1]");
}

TEST(BackendAddressTest, RefusesWhatIsNoAddress) {
  for (const char* text : {"", "a", "a:", ":1", "a:0", "a:65536", "a:1,", "a:x", "dns:///a"}) {
    EXPECT_EQ(ParseBackendAddresses(text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

class BackendPoolTest : public testing::Test {
 protected:
  // Services of the language model "m", each with the versions given.
  void Start(const std::vector<std::vector<uint64_t>>& versions) {
    std::string addresses;
    for (const auto& each : versions) {
      services_.push_back(std::make_unique<FakeLlm>());
      std::vector<v1::ModelInfo> models;
      for (const uint64_t version : each) models.push_back(FakeLanguageModel("m", version));
      services_.back()->models().Set(models);
      addresses += (addresses.empty() ? "" : ",") + services_.back()->server().address();
    }
    pool_ = std::make_unique<BackendPool>(Backend::Names{"llm", "llava-llm", "--llm"}, addresses,
                                          gateway_metrics_);
    pool_->Start([] {});
    ASSERT_TRUE(Eventually([&] {
      Refresh();
      const auto all = pool_->all();
      return all.size() == versions.size() &&
             std::all_of(all.begin(), all.end(), [](const auto& each) { return each->up(); });
    }));
  }
  void Refresh() {
    std::promise<void> done;
    pool_->Refresh([&] { done.set_value(); });
    done.get_future().wait();
  }
  static BackendPool::Serves Version(uint64_t version) {
    return [version](const v1::ModelInfo& model) { return model.model().version() == version; };
  }
  std::string Address(size_t service) { return services_[service]->server().address(); }
  std::string Pick(const std::string& key, const Backend* except = nullptr, uint64_t version = 1) {
    const auto picked = pool_->Pick(key, Version(version), except);
    return picked.ok() ? (*picked)->address() : "";
  }
  std::shared_ptr<Backend> At(const std::string& address) {
    for (auto& each : pool_->all()) {
      if (each->address() == address) return each;
    }
    return nullptr;
  }

  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  std::vector<std::unique_ptr<FakeLlm>> services_;
  std::unique_ptr<BackendPool> pool_;
};

TEST_F(BackendPoolTest, SessionsStayWithTheirServiceAndAreSpread) {
  Start({{1}, {1}, {1}});
  std::map<std::string, int> sessions;
  for (int i = 0; i < 300; ++i) {
    const std::string key = "session " + std::to_string(i);
    const std::string address = Pick(key);
    EXPECT_EQ(Pick(key), address);
    ++sessions[address];
  }
  ASSERT_EQ(sessions.size(), 3u);
  for (const auto& [address, count] : sessions) EXPECT_GT(count, 60) << address;
}

TEST_F(BackendPoolTest, OnlySessionsOfALostServiceMove) {
  Start({{1}, {1}, {1}});
  std::map<std::string, std::string> before;
  for (int i = 0; i < 100; ++i) {
    const std::string key = std::to_string(i);
    before[key] = Pick(key);
  }
  const std::string lost = Address(1);
  services_[1]->server().Stop();
  Refresh();
  for (const auto& [key, address] : before) {
    if (address == lost) {
      EXPECT_NE(Pick(key), lost);
    } else {
      EXPECT_EQ(Pick(key), address);
    }
  }
  EXPECT_TRUE(pool_->table().status.ok()) << "two are left";
  services_[1]->server().Start();
  while (!At(lost)->table().status.ok()) Refresh();
  for (const auto& [key, address] : before) EXPECT_EQ(Pick(key), address);
}

TEST_F(BackendPoolTest, ServicesAreChosenByVersion) {
  Start({{1}, {1, 2}});
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Pick(std::to_string(i), nullptr, 2), Address(1));
  EXPECT_EQ(pool_->table().models.size(), 2u) << "each version once";
  const auto none = pool_->Pick("key", Version(3));
  EXPECT_EQ(none.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(BackendPoolTest, AFullServicePassesSessionsOn) {
  Start({{1}, {1}});
  const std::string home = Pick("key");
  const auto lease = At(home);
  lease->running = 7;
  EXPECT_EQ(Pick("key"), home) << "few answers share a step at no cost";
  lease->running = 9;
  EXPECT_NE(Pick("key"), home);
  const std::string other = Pick("key");
  At(other)->running = 9;
  EXPECT_EQ(Pick("key"), home) << "both are as full";
  lease->running = At(other)->running = 0;
}

TEST_F(BackendPoolTest, TheOneThatFailedIsAvoidedUnlessItIsAlone) {
  Start({{1}, {1, 2}});
  const auto first = At(Pick("key"));
  EXPECT_NE(Pick("key", first.get()), first->address());
  const auto only = At(Address(1));
  EXPECT_EQ(Pick("key", only.get(), 2), Address(1));
}

TEST_F(BackendPoolTest, AServiceWhoseCallsFailIsEjected) {
  Start({{1}, {1}});
  const auto home = At(Pick("key"));
  for (int i = 0; i < 4; ++i) home->Report(absl::InternalError("no"));
  home->Report(absl::OkStatus());
  for (int i = 0; i < 4; ++i) home->Report(absl::InternalError("no"));
  home->Report(absl::InvalidArgumentError("the caller's fault"));
  EXPECT_EQ(Pick("key"), home->address());
  home->Report(absl::UnavailableError("gone"));
  EXPECT_NE(Pick("key"), home->address());
  EXPECT_FALSE(home->willing());
  home->Report(absl::OkStatus());  // an answer that began before
  EXPECT_EQ(Pick("key"), home->address());
}

TEST_F(BackendPoolTest, AServiceThatAsksForPatienceGetsIt) {
  Start({{1}, {1}});
  const auto home = At(Pick("key"));
  home->Report(OverloadedError("full", std::chrono::minutes(1)));
  EXPECT_NE(Pick("key"), home->address());
  home->Report(absl::OkStatus());
  home->Report(OverloadedError("full", std::chrono::milliseconds(100)));
  while (!home->willing()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(Pick("key"), home->address());
}

TEST_F(BackendPoolTest, WhatIsDownIsTriedWhenAllAre) {
  Start({{1}, {1}});
  const std::string home = Pick("key");
  for (auto& service : services_) service->server().Stop();
  Refresh();
  EXPECT_EQ(Pick("key"), home) << "it may be back, and the call tells best";
  const auto table = pool_->table();
  EXPECT_EQ(table.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(table.status.message()), HasSubstr("start llava-llm or check --llm"));
}

// One that is being told of finds no other that is gone by then.
TEST_F(BackendPoolTest, AChangeWhileThePoolEnds) {
  for (int i = 0; i < 2; ++i) services_.push_back(std::make_unique<FakeLlm>());
  pool_ = std::make_unique<BackendPool>(Backend::Names{"llm", "llava-llm", "--llm"},
                                        Address(0) + "," + Address(1), gateway_metrics_);
  std::atomic<bool> lost = false;
  std::promise<void> told;
  bool empty = false;
  pool_->Start([&, pool = pool_.get()] {
    if (!lost.exchange(false)) return;
    told.set_value();
    empty = Eventually([pool] { return pool->all().empty(); }) && pool->table().models.empty();
  });
  Refresh();
  lost = true;
  services_[1]->server().Stop();
  told.get_future().wait();
  pool_.reset();
  EXPECT_TRUE(empty);
}

TEST_F(BackendPoolTest, WhoHasNeverAnsweredMayHaveAnything) {
  FakeLlm service;
  const std::string addresses = service.server().address() + ",dns:///a.name:1";
  const auto make = [&](std::chrono::milliseconds patience) {
    return std::make_unique<BackendPool>(Backend::Names{"llm", "llava-llm", "--llm"}, addresses,
                                         gateway_metrics_, TlsFiles{}, patience);
  };
  pool_ = make(std::chrono::hours(1));  // and nobody looks its name up
  EXPECT_THAT(std::string(pool_->table().unheard.message()),
              HasSubstr("name a.name of the llm service stands for no address"));
  EXPECT_NE(RetryAfter(pool_->table().unheard), std::nullopt);
  pool_ = make(std::chrono::milliseconds(0));
  EXPECT_TRUE(pool_->table().unheard.ok());

  Start({{1}, {1}});
  EXPECT_TRUE(pool_->table().unheard.ok());
  services_[1]->server().Stop();
  Refresh();
  EXPECT_TRUE(pool_->table().unheard.ok()) << "what it has is known";
}

TEST_F(BackendPoolTest, ANameIsLookedUp) {
  FakeLlm service;
  service.models().Set({FakeLanguageModel("m", 1)});
  const std::string address = service.server().address();
  const std::string port = address.substr(address.rfind(':'));
  pool_ = std::make_unique<BackendPool>(Backend::Names{"llm", "llava-llm", "--llm"},
                                        "dns:///localhost" + port, gateway_metrics_);
  EXPECT_EQ(pool_->Pick("key", Version(1)).status().code(), absl::StatusCode::kUnavailable);
  pool_->Start([] {});
  // localhost may stand for an address of IPv6 too, where nobody listens.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (Pick("key").empty() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(Pick("key"), address);
}

}  // namespace
}  // namespace llava
