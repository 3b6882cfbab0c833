#include "server/wire/fixed_model_service.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace llava {
namespace {

class FixedModelServiceTest : public ::testing::Test {
 protected:
  FixedModelServiceTest() {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = v1::ModelService::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                                          grpc::InsecureChannelCredentials()));
  }

  void SetReady() {
    v1::ModelInfo info;
    info.mutable_model()->set_name("emoji");
    info.mutable_model()->set_version(3);
    service_.SetReady(info, [] { return ModelLoad{2, 5, 1000}; });
  }

  v1::GetModelStatusResponse Status(const std::string& name, uint64_t version,
                                    grpc::StatusCode expected = grpc::StatusCode::OK) {
    grpc::ClientContext context;
    v1::GetModelStatusRequest request;
    request.mutable_model()->set_name(name);
    request.mutable_model()->set_version(version);
    v1::GetModelStatusResponse response;
    EXPECT_EQ(stub_->GetModelStatus(&context, request, &response).error_code(), expected);
    return response;
  }

  FixedModelService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::ModelService::Stub> stub_;
};

TEST_F(FixedModelServiceTest, TellsTheLifeOfItsVersion) {
  EXPECT_EQ(Status("", 0).versions(0).state(), v1::MODEL_STATE_LOADING);
  SetReady();
  const v1::GetModelStatusResponse ready = Status("emoji", 3);
  ASSERT_EQ(ready.versions_size(), 1);
  EXPECT_EQ(ready.versions(0).state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(ready.versions(0).in_flight(), 2u);
  EXPECT_EQ(ready.versions(0).queued(), 5u);
  EXPECT_EQ(ready.versions(0).weight_bytes(), 1000u);
  EXPECT_EQ(ready.versions(0).load_progress(), 1);
  EXPECT_GT(ready.versions(0).since().seconds(), 0);
  EXPECT_EQ(Status("emoji", 4).versions_size(), 0);
  Status("other", 0, grpc::StatusCode::NOT_FOUND);
  service_.SetFailed("worker died");
  EXPECT_EQ(Status("emoji", 0).versions(0).state(), v1::MODEL_STATE_FAILED);
  EXPECT_EQ(Status("emoji", 0).versions(0).message(), "worker died");
  service_.SetDraining();
  EXPECT_EQ(Status("emoji", 0).versions(0).state(), v1::MODEL_STATE_DRAINING);
}

TEST_F(FixedModelServiceTest, ListsItsModelOnceReady) {
  const auto list = [this](const std::string& name, v1::ListModelsResponse* response) {
    grpc::ClientContext context;
    v1::ListModelsRequest request;
    request.set_name(name);
    return stub_->ListModels(&context, request, response).error_code();
  };
  v1::ListModelsResponse response;
  EXPECT_EQ(list("", &response), grpc::StatusCode::OK);
  EXPECT_EQ(response.models_size(), 0);
  SetReady();
  EXPECT_EQ(list("emoji", &response), grpc::StatusCode::OK);
  ASSERT_EQ(response.models_size(), 1);
  EXPECT_EQ(response.models(0).model().version(), 3u);
  EXPECT_EQ(list("other", &response), grpc::StatusCode::NOT_FOUND);
}

TEST_F(FixedModelServiceTest, RefusesToChangeWhatIsLoaded) {
  const auto code = [](auto call) {
    grpc::ClientContext context;
    return call(&context).error_code();
  };
  v1::LoadModelResponse loaded;
  v1::UnloadModelResponse unloaded;
  v1::SetLabelResponse labelled;
  v1::RollbackResponse rolled_back;
  EXPECT_EQ(code([&](auto* c) { return stub_->LoadModel(c, {}, &loaded); }),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(code([&](auto* c) { return stub_->UnloadModel(c, {}, &unloaded); }),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(code([&](auto* c) { return stub_->SetLabel(c, {}, &labelled); }),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(code([&](auto* c) { return stub_->Rollback(c, {}, &rolled_back); }),
            grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace llava
