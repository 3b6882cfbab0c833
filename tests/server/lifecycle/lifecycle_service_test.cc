#include "server/lifecycle/lifecycle_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "tests/server/lifecycle/fake_loader.h"
#include "tests/server/lifecycle/test_repository.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using grpc::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class LifecycleServiceTest : public ::testing::Test {
 protected:
  void Start(bool admin = true, bool fixed = false) {
    ModelManager::Options options;
    if (fixed) {
      options.fixed = VersionRef{"emoji", 1, repository_.Folder("emoji", 1)};
    } else {
      options.root = repository_.root();
      options.names = {"emoji"};
    }
    manager_ = std::make_unique<ModelManager>(options, loader_, metrics_);
    service_ = std::make_unique<LifecycleService>(*manager_, admin);
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::ModelService::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                                          grpc::InsecureChannelCredentials()));
    manager_->Start();
  }
  void TearDown() override {
    if (manager_) manager_->Stop();
    if (server_) server_->Shutdown(std::chrono::system_clock::now() + seconds(1));
  }

  static v1::ModelVersion Version(uint64_t version, const std::string& name = "emoji") {
    v1::ModelVersion model;
    model.set_name(name);
    model.set_version(version);
    return model;
  }
  grpc::Status Load(uint64_t version, v1::ModelVersionStatus* result = nullptr,
                    const std::string& name = "emoji") {
    grpc::ClientContext context;
    v1::LoadModelRequest request;
    *request.mutable_model() = Version(version, name);
    v1::LoadModelResponse response;
    const grpc::Status status = stub_->LoadModel(&context, request, &response);
    if (result != nullptr) *result = response.status();
    return status;
  }
  grpc::Status SetLabel(const std::string& label, uint64_t version, uint64_t* before = nullptr) {
    grpc::ClientContext context;
    v1::SetLabelRequest request;
    request.set_name("emoji");
    request.set_label(label);
    request.set_version(version);
    v1::SetLabelResponse response;
    const grpc::Status status = stub_->SetLabel(&context, request, &response);
    if (before != nullptr) *before = response.previous_version();
    return status;
  }
  v1::ModelState State(uint64_t version) {
    grpc::ClientContext context;
    v1::GetModelStatusRequest request;
    *request.mutable_model() = Version(version);
    v1::GetModelStatusResponse response;
    const grpc::Status status = stub_->GetModelStatus(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.versions_size() == 1 ? response.versions(0).state()
                                         : v1::MODEL_STATE_UNSPECIFIED;
  }

  TestRepository repository_;
  Metrics metrics_{"test"};
  FakeLoader loader_;
  std::unique_ptr<ModelManager> manager_;
  std::unique_ptr<LifecycleService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::ModelService::Stub> stub_;
};

TEST_F(LifecycleServiceTest, ListsAndTells) {
  repository_.Publish("emoji", 1);
  repository_.Publish("emoji", 2);
  Start();
  ASSERT_TRUE(Eventually([&] { return State(2) == v1::MODEL_STATE_READY; }));
  grpc::ClientContext context, others, statuses;
  v1::ListModelsResponse models;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).model().version(), 2U);
  v1::ListModelsRequest other;
  other.set_name("other");
  const grpc::Status unknown = stub_->ListModels(&others, other, &models);
  EXPECT_EQ(unknown.error_code(), StatusCode::NOT_FOUND);
  EXPECT_THAT(unknown.error_message(), HasSubstr("emoji"));
  v1::GetModelStatusResponse all;
  ASSERT_TRUE(stub_->GetModelStatus(&statuses, {}, &all).ok());
  ASSERT_EQ(all.versions_size(), 2);
  EXPECT_EQ(all.versions(0).model().version(), 2U) << "the newest first";
}

TEST_F(LifecycleServiceTest, LoadAnswersWhenItIsReady) {
  repository_.Publish("emoji", 1);
  repository_.Publish("emoji", 2);
  Start();
  v1::ModelVersionStatus status;
  const grpc::Status loaded = Load(1, &status);
  ASSERT_TRUE(loaded.ok()) << loaded.error_message();
  EXPECT_EQ(status.state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(Load(7).error_code(), StatusCode::NOT_FOUND);
  repository_.Publish("emoji", 3, "nonsense");
  const grpc::Status failed = Load(3);
  EXPECT_EQ(failed.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(failed.error_message(), HasSubstr("says nonsense"));

  grpc::ClientContext context;
  v1::UnloadModelRequest request;
  *request.mutable_model() = Version(1);
  v1::UnloadModelResponse response;
  ASSERT_TRUE(stub_->UnloadModel(&context, request, &response).ok());
  EXPECT_EQ(response.status().state(), v1::MODEL_STATE_UNLOADED);
}

TEST_F(LifecycleServiceTest, ADeadlineEndsTheCallNotTheLoad) {
  repository_.Publish("emoji", 1);
  loader_.CloseGate();
  Start();
  ASSERT_TRUE(Eventually([&] { return loader_.loads(1) == 1; }));
  grpc::ClientContext late, cancelled;
  late.set_deadline(std::chrono::system_clock::now() + milliseconds(50));
  v1::LoadModelRequest request;
  *request.mutable_model() = Version(1);
  v1::LoadModelResponse response;
  EXPECT_EQ(stub_->LoadModel(&late, request, &response).error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  std::thread cancels([&] {
    std::this_thread::sleep_for(milliseconds(50));
    cancelled.TryCancel();
  });
  EXPECT_EQ(stub_->LoadModel(&cancelled, request, &response).error_code(), StatusCode::CANCELLED);
  cancels.join();
  loader_.OpenGate();
  EXPECT_TRUE(Eventually([&] { return State(1) == v1::MODEL_STATE_READY; }));
  EXPECT_EQ(loader_.loads(1), 1);
}

TEST_F(LifecycleServiceTest, CallsThatWaitEndWithTheManager) {
  repository_.Publish("emoji", 1);
  loader_.CloseGate();
  Start();
  std::thread stops([&] {
    Eventually([&] { return loader_.loads(1) == 1; });
    std::this_thread::sleep_for(milliseconds(50));
    manager_->Stop();
  });
  EXPECT_EQ(Load(1).error_code(), StatusCode::UNAVAILABLE);
  stops.join();
}

TEST_F(LifecycleServiceTest, LabelsAreWrittenAndFollowed) {
  for (const uint64_t version : {1, 2}) repository_.Publish("emoji", version);
  Start();
  uint64_t before = 9;
  ASSERT_TRUE(SetLabel("stable", 1, &before).ok());
  EXPECT_EQ(before, 0U);
  EXPECT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{1}; }));
  ASSERT_TRUE(SetLabel("stable", 2, &before).ok());
  EXPECT_EQ(before, 1U);
  EXPECT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{2}; }));
  ASSERT_TRUE(SetLabel("stable", 2, &before).ok()) << "again";
  EXPECT_EQ(before, 2U);
  EXPECT_EQ(SetLabel("stable", 7).error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(SetLabel("12", 1).error_code(), StatusCode::INVALID_ARGUMENT);

  const auto rollback = [&](v1::RollbackResponse* response) {
    grpc::ClientContext context;
    v1::RollbackRequest request;
    request.set_name("emoji");
    return stub_->Rollback(&context, request, response);
  };
  v1::RollbackResponse back;
  ASSERT_TRUE(rollback(&back).ok());
  EXPECT_EQ(back.stable().version(), 1U);
  EXPECT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{1}; }));
  EXPECT_EQ(rollback(&back).error_code(), StatusCode::FAILED_PRECONDITION) << "nothing before";
}

TEST_F(LifecycleServiceTest, RefusesChangesWhereTheyAreNotAllowed) {
  repository_.Publish("emoji", 1);
  Start(/*admin=*/false);
  EXPECT_EQ(Load(1).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(SetLabel("stable", 1).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(Eventually([&] { return State(1) == v1::MODEL_STATE_READY; })) << "reading is free";
}

TEST_F(LifecycleServiceTest, AFolderHasNoPlaceForLabels) {
  repository_.Publish("emoji", 1);
  Start(/*admin=*/true, /*fixed=*/true);
  const grpc::Status status = SetLabel("stable", 1);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("repository"));
  EXPECT_TRUE(Load(1).ok());
}

// Of the deployment, not of the caller: a volume that is mounted read-only may answer either way.
TEST(LabelsRefusedTest, AFolderThatIsClosedIsNoLackOfRights) {
  for (const int error : {EROFS, EACCES, EPERM}) {
    const absl::Status status = LabelsRefused("/models/emoji", error);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(status.message(), HasSubstr("/models/emoji: labels cannot be written here: "));
    EXPECT_THAT(status.message(), HasSubstr("llava-model label"));
  }
  EXPECT_EQ(LabelsRefused("/models/emoji", ENOENT).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LabelsRefused("/models/emoji", EIO).code(), absl::StatusCode::kUnavailable);
}

TEST_F(LifecycleServiceTest, LongNamesAreNotRepeated) {
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Eventually([&] { return State(1) == v1::MODEL_STATE_READY; }));
  const std::string name(500'000, '\1');
  const auto refused = [](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_LT(status.error_message().size(), 300u);
    EXPECT_THAT(status.error_message(), HasSubstr("has 500000 bytes, allowed are "));
  };
  refused(Load(1, nullptr, name));
  refused(SetLabel(name, 1));
  grpc::ClientContext listing, looking, stepping;
  v1::ListModelsRequest list;
  list.set_name(name);
  v1::ListModelsResponse models;
  refused(stub_->ListModels(&listing, list, &models));
  v1::GetModelStatusRequest state;
  *state.mutable_model() = Version(1, name);
  v1::GetModelStatusResponse statuses;
  refused(stub_->GetModelStatus(&looking, state, &statuses));
  v1::RollbackRequest back;
  back.set_name(name);
  v1::RollbackResponse stable;
  refused(stub_->Rollback(&stepping, back, &stable));
}

}  // namespace
}  // namespace llava
