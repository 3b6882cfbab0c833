#pragma once

// A model manager over a repository of small files and a loader that can be told what to do.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "server/lifecycle/model_manager.h"
#include "server/runtime/mutex.h"
#include "tests/server/lifecycle/fake_loader.h"
#include "tests/server/lifecycle/test_repository.h"
#include "tests/support/eventually.h"
#include "tests/support/slowdown.h"

namespace llava {

class ModelManagerTest : public ::testing::Test {
 protected:
  ModelManagerTest() {
    options_.root = repository_.root();
    options_.names = {"emoji"};
    options_.poll_interval = std::chrono::milliseconds(100);
    options_.retry_delay = std::chrono::milliseconds(50);
    options_.on_serving = [this](const std::string& model, int serving) {
      MutexLock lock(mutex_);
      serving_[model] = serving;
    };
  }
  ~ModelManagerTest() override {
    manager_.reset();
    EXPECT_EQ(loader_.alive(), 0) << "every servable is freed";
    EXPECT_THAT(loader_.routed(), ::testing::IsEmpty());
  }

  void Start() {
    manager_ = std::make_unique<ModelManager>(options_, loader_, metrics_);
    manager_->Start();
  }
  v1::ModelVersionStatus Status(uint64_t version) {
    const auto statuses = manager_->Statuses("emoji", version);
    return statuses.ok() && !statuses->empty() ? statuses->front() : v1::ModelVersionStatus();
  }
  bool Reaches(uint64_t version, v1::ModelState state) {
    return Eventually([&] { return Status(version).state() == state; });
  }
  // Such a message is there as long as no other try is under way.
  bool FailsSaying(uint64_t version, const std::string& part) {
    return Eventually([&] {
      const v1::ModelVersionStatus status = Status(version);
      return status.state() == v1::MODEL_STATE_FAILED &&
             status.message().find(part) != std::string::npos;
    });
  }
  // States are told a moment before they are counted.
  bool Shows(const std::string& line) {
    return Eventually([&] { return metrics_.Render().find(line) != std::string::npos; });
  }
  absl::StatusOr<v1::ModelVersionStatus> Wait(bool load, uint64_t version,
                                              const std::string& name = "emoji") {
    auto promise = std::make_shared<std::promise<absl::StatusOr<v1::ModelVersionStatus>>>();
    auto done = [promise](const absl::StatusOr<v1::ModelVersionStatus>& result) {
      promise->set_value(result);
    };
    load ? manager_->Load(name, version, done) : manager_->Unload(name, version, done);
    auto future = promise->get_future();
    if (future.wait_for(std::chrono::seconds(60 * kSlowdown)) != std::future_status::ready) {
      return absl::DeadlineExceededError("no answer");
    }
    return future.get();
  }
  int Serving(const std::string& model) {
    MutexLock lock(mutex_);
    const auto found = serving_.find(model);
    return found == serving_.end() ? -1 : found->second;
  }

  TestRepository repository_;
  Metrics metrics_{"test"};
  FakeLoader loader_;
  ModelManager::Options options_;
  std::unique_ptr<ModelManager> manager_;
  Mutex mutex_;
  std::map<std::string, int> serving_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
