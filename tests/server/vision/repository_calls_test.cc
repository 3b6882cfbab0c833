// The repository calls of the Open Inference Protocol over loopback.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "server/runtime/mutex.h"
#include "server/vision/inference_service.h"
#include "tests/server/vision/vision_test_server.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using ::testing::ElementsAre;

class RepositoryCallsTest : public ::testing::Test {
 protected:
  RepositoryCallsTest() : stub_(inference::GRPCInferenceService::NewStub(here_.channel)) {}

  RepositoryCalls Calls() {
    RepositoryCalls calls;
    calls.statuses = [this] { return statuses_; };
    calls.load = [this](const std::string& name, uint64_t version, auto done) {
      return Ask("load " + name + " " + std::to_string(version),
                 name == "gpt" ? absl::NotFoundError("no model " + name) : absl::OkStatus(), done);
    };
    calls.unload = [this](const std::string& name, uint64_t version, auto done) {
      return Ask("unload " + name + " " + std::to_string(version), absl::OkStatus(), done);
    };
    calls.forget = [this](uint64_t call) {
      MutexLock lock(mutex_);
      forgotten_.insert(call);
      return true;
    };
    return calls;
  }
  // Answers at once, but for what is asked of the model "slow". Its number is its place.
  uint64_t Ask(const std::string& what, const absl::Status& status,
               const ModelManager::OnDone& done) {
    const bool slow = what.find(" slow ") != std::string::npos;
    uint64_t number = 0;
    {
      MutexLock lock(mutex_);
      asked_.push_back(what);
      number = asked_.size();
      if (slow) late_.push_back(done);
    }
    if (!slow && status.ok()) done(v1::ModelVersionStatus());
    if (!slow && !status.ok()) done(status);
    return number;
  }
  // Makes `call`, whose caller goes when all in all so many answers are late.
  template <typename Call>
  void IsCancelled(size_t late, const Call& call) {
    grpc::ClientContext context;
    std::thread goes([&] {
      EXPECT_TRUE(Eventually([&] {
        MutexLock lock(mutex_);
        return late_.size() == late;
      }));
      context.TryCancel();
    });
    EXPECT_EQ(call(context).error_code(), grpc::StatusCode::CANCELLED);
    goes.join();
  }
  bool Forgets(const std::set<uint64_t>& calls) {
    return Eventually([&] {
      MutexLock lock(mutex_);
      return forgotten_ == calls;
    });
  }

  std::vector<v1::ModelVersionStatus> statuses_;
  Mutex mutex_;  // guards those below
  std::vector<std::string> asked_;
  std::vector<ModelManager::OnDone> late_;
  std::set<uint64_t> forgotten_;
  VisionTestServer here_{Calls()};
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

TEST_F(RepositoryCallsTest, TheRepositoryIsTheManagers) {
  const auto add = [this](uint64_t version, v1::ModelState state, const std::string& message) {
    v1::ModelVersionStatus& status = statuses_.emplace_back();
    status.mutable_model()->set_name("clip");
    status.mutable_model()->set_version(version);
    status.set_state(state);
    status.set_message(message);
  };
  add(9, v1::MODEL_STATE_FAILED, "cut off");
  add(8, v1::MODEL_STATE_WARMING, "");
  add(7, v1::MODEL_STATE_READY, "");
  add(6, v1::MODEL_STATE_DRAINING, "");
  grpc::ClientContext contexts[8];
  inference::RepositoryIndexRequest index_request;
  inference::RepositoryIndexResponse index;
  ASSERT_TRUE(stub_->RepositoryIndex(&contexts[0], index_request, &index).ok());
  std::vector<std::string> states;
  for (const auto& model : index.models()) states.push_back(model.version() + model.state());
  EXPECT_THAT(states, ElementsAre("9UNAVAILABLE", "8LOADING", "7READY", "6UNLOADING"));
  EXPECT_EQ(index.models(0).reason(), "cut off");
  index_request.set_ready(true);
  ASSERT_TRUE(stub_->RepositoryIndex(&contexts[1], index_request, &index).ok());
  EXPECT_EQ(index.models_size(), 1);

  inference::RepositoryModelLoadRequest load;
  inference::RepositoryModelLoadResponse loaded;
  load.set_model_name("clip");
  EXPECT_TRUE(stub_->RepositoryModelLoad(&contexts[2], load, &loaded).ok());
  load.set_model_name("gpt");
  EXPECT_EQ(stub_->RepositoryModelLoad(&contexts[3], load, &loaded).error_code(),
            grpc::StatusCode::NOT_FOUND);
  (*load.mutable_parameters())["config"].set_string_param("{}");
  EXPECT_EQ(stub_->RepositoryModelLoad(&contexts[4], load, &loaded).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  inference::RepositoryModelUnloadRequest unload;
  inference::RepositoryModelUnloadResponse unloaded;
  unload.set_model_name("clip");
  EXPECT_TRUE(stub_->RepositoryModelUnload(&contexts[5], unload, &unloaded).ok());
  EXPECT_THAT(asked_, ElementsAre("load clip 0", "load gpt 0", "unload clip 9", "unload clip 8",
                                  "unload clip 7", "unload clip 6"))
      << "none may stand in for another";
  unload.set_model_name("gpt");
  EXPECT_EQ(stub_->RepositoryModelUnload(&contexts[6], unload, &unloaded).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(RepositoryCallsTest, WhoHasGoneWaitsForNoVersion) {
  for (const uint64_t version : {2, 1}) {
    v1::ModelVersionStatus& status = statuses_.emplace_back();
    status.mutable_model()->set_name("slow");
    status.mutable_model()->set_version(version);
    status.set_state(v1::MODEL_STATE_READY);
  }
  inference::RepositoryModelLoadRequest load;
  inference::RepositoryModelLoadResponse loaded;
  load.set_model_name("slow");
  IsCancelled(1,
              [&](auto& context) { return stub_->RepositoryModelLoad(&context, load, &loaded); });
  EXPECT_TRUE(Forgets({1}));
  inference::RepositoryModelUnloadRequest unload;
  inference::RepositoryModelUnloadResponse unloaded;
  unload.set_model_name("slow");
  IsCancelled(
      3, [&](auto& context) { return stub_->RepositoryModelUnload(&context, unload, &unloaded); });
  EXPECT_TRUE(Forgets({1, 2, 3}));
  for (const auto& done : late_) done(v1::ModelVersionStatus());  // to nobody
}

}  // namespace
}  // namespace llava
