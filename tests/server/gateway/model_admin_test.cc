// Changes at all processes, through ModelService of the gateway.

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <vector>

#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

// Two language services and one tower.
class ModelAdminTest : public GatewayTest {
 protected:
  ModelAdminTest() {
    options_.llm += "," + other_.server().address();
    for (FakeLlm* llm : {&llm_, &other_}) {
      llm->models().Set({FakeLanguageModel("emoji", 1), FakeLanguageModel("emoji", 2)});
    }
  }

  grpc::Status SetLabel(const std::string& label, uint64_t version, uint64_t* before = nullptr) {
    v1::SetLabelRequest request;
    request.set_name("emoji");
    request.set_label(label);
    request.set_version(version);
    v1::SetLabelResponse response;
    const auto status = models_->SetLabel(Context().get(), request, &response);
    if (before != nullptr) *before = response.previous_version();
    return status;
  }
  grpc::Status Rollback(uint64_t* stable) {
    v1::RollbackRequest request;
    request.set_name("emoji");
    v1::RollbackResponse response;
    const auto status = models_->Rollback(Context().get(), request, &response);
    *stable = response.stable().version();
    return status;
  }
  std::vector<std::string> Labels(uint64_t version) {
    v1::ListModelsRequest request;
    request.set_name("emoji");
    v1::ListModelsResponse response;
    EXPECT_TRUE(models_->ListModels(Context().get(), request, &response).ok());
    for (const auto& model : response.models()) {
      if (model.model().version() == version) return {model.labels().begin(), model.labels().end()};
    }
    return {};
  }

  FakeLlm other_;
};

TEST_F(ModelAdminTest, AChangeGoesToAllThatServeTheModel) {
  StartGateway();
  ASSERT_TRUE(SetLabel("stable", 1).ok());
  EXPECT_EQ(llm_.models().changes(), 1);
  EXPECT_EQ(other_.models().changes(), 1);
  EXPECT_EQ(vision_.models().changes(), 0) << "it serves another model";
  EXPECT_THAT(Labels(1), ElementsAre("stable")) << "seen at once";

  v1::LoadModelRequest load;
  load.mutable_model()->set_name("emoji");
  load.mutable_model()->set_version(3);
  v1::LoadModelResponse loaded;
  ASSERT_TRUE(models_->LoadModel(Context().get(), load, &loaded).ok());
  EXPECT_EQ(loaded.status().state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(llm_.models().Get().size(), 3u);
  EXPECT_EQ(other_.models().Get().size(), 3u);
  v1::UnloadModelRequest unload;
  *unload.mutable_model() = load.model();
  v1::UnloadModelResponse unloaded;
  ASSERT_TRUE(models_->UnloadModel(Context().get(), unload, &unloaded).ok());
  EXPECT_EQ(other_.models().Get().size(), 2u);

  v1::SetLabelRequest tower;
  tower.set_name("tower");
  tower.set_label("stable");
  tower.set_version(1);
  v1::SetLabelResponse response;
  ASSERT_TRUE(models_->SetLabel(Context().get(), tower, &response).ok());
  EXPECT_EQ(vision_.models().changes(), 1);
}

TEST_F(ModelAdminTest, ProcessesThatShareARepositoryAreOne) {
  other_.models().ShareLabels(llm_.models());
  StartGateway();
  uint64_t before = 7, stable = 0;
  ASSERT_TRUE(SetLabel("stable", 1, &before).ok());
  EXPECT_EQ(before, 0u);
  ASSERT_TRUE(SetLabel("stable", 2, &before).ok());
  EXPECT_EQ(before, 1u);
  ASSERT_TRUE(Rollback(&stable).ok());
  EXPECT_EQ(stable, 1u) << "one step, not one for each process";
  EXPECT_THAT(Labels(1), ElementsAre("stable"));
  EXPECT_EQ(Rollback(&stable).error_code(), StatusCode::FAILED_PRECONDITION);
}

TEST_F(ModelAdminTest, ProcessesWithRepositoriesOfTheirOwnFollow) {
  StartGateway();
  uint64_t stable = 0;
  ASSERT_TRUE(SetLabel("stable", 1).ok());
  ASSERT_TRUE(SetLabel("stable", 2).ok());
  ASSERT_TRUE(Rollback(&stable).ok());
  EXPECT_EQ(stable, 1u);
  for (FakeLlm* llm : {&llm_, &other_}) {
    v1::ListModelsResponse models;
    llm->models().ListModels(nullptr, nullptr, &models);
    EXPECT_THAT(models.models(0).labels(), ElementsAre("stable"));
  }
}

// Who repeats a step back takes another one.
TEST_F(ModelAdminTest, AStepBackThatNotAllKnowIsNotToBeRepeated) {
  for (FakeLlm* llm : {&llm_, &other_}) {
    llm->models().Set({FakeLanguageModel("emoji", 1), FakeLanguageModel("emoji", 2),
                       FakeLanguageModel("emoji", 3)});
  }
  other_.models().ShareLabels(llm_.models());
  StartGateway();
  for (const uint64_t version : {1, 2, 3}) ASSERT_TRUE(SetLabel("stable", version).ok());
  other_.server().Stop();
  uint64_t stable = 0;
  const grpc::Status status = Rollback(&stable);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_FALSE(RetryAfter(FromGrpc(status)));
  EXPECT_THAT(status.error_message(), HasSubstr("\"emoji\" went back to version 2"));
  EXPECT_THAT(status.error_message(), HasSubstr("llm " + other_.server().address()));
  EXPECT_THAT(status.error_message(), HasSubstr("SetLabel stable 2"));
  EXPECT_THAT(Labels(2), ElementsAre("stable"));
  other_.server().Start();
  ASSERT_TRUE(Eventually([&] { return SetLabel("stable", 2).ok(); }));
  EXPECT_THAT(Labels(2), ElementsAre("stable"));
}

TEST_F(ModelAdminTest, AProcessThatIsLostMayHaveSteppedBack) {
  other_.models().ShareLabels(llm_.models());
  StartGateway();
  ASSERT_TRUE(SetLabel("stable", 1).ok());
  ASSERT_TRUE(SetLabel("stable", 2).ok());
  const int before = other_.models().changes();
  llm_.models().Refuse({StatusCode::UNAVAILABLE, "connection reset"});
  uint64_t stable = 0;
  const grpc::Status status = Rollback(&stable);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("may have gone back: connection reset"));
  EXPECT_EQ(other_.models().changes(), before) << "the next one would step back again";
}

TEST_F(ModelAdminTest, WhoIsKnownToBeDownKeepsNobodyFromSteppingBack) {
  StartGateway();
  ASSERT_TRUE(SetLabel("stable", 1).ok());
  ASSERT_TRUE(SetLabel("stable", 2).ok());
  llm_.server().Stop();
  ASSERT_TRUE(
      Eventually([&] { return Metric("llava_gateway_backends_down{backend=\"llm\"}") == 1; }));
  uint64_t stable = 0;
  const grpc::Status status = Rollback(&stable);
  EXPECT_THAT(status.error_message(), HasSubstr("went back to version 1"));
  v1::ListModelsResponse models;
  other_.models().ListModels(nullptr, nullptr, &models);
  EXPECT_THAT(models.models(0).labels(), ElementsAre("stable"));
}

TEST_F(ModelAdminTest, WhoFailedIsNamed) {
  StartGateway();
  other_.models().Refuse({StatusCode::RESOURCE_EXHAUSTED, "no memory for it"});
  v1::LoadModelRequest load;
  load.mutable_model()->set_name("emoji");
  load.mutable_model()->set_version(3);
  v1::LoadModelResponse loaded;
  const auto status = models_->LoadModel(Context().get(), load, &loaded);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("done by 1 of 2 processes"));
  EXPECT_THAT(status.error_message(),
              HasSubstr("llm " + other_.server().address() + ": RESOURCE_EXHAUSTED: no memory"));
  EXPECT_EQ(llm_.models().Get().size(), 3u) << "it keeps what it has";
}

TEST_F(ModelAdminTest, StatusOfAllAndWhoIsSilent) {
  StartGateway();
  v1::GetModelStatusRequest request;
  request.mutable_model()->set_name("emoji");
  v1::GetModelStatusResponse response;
  ASSERT_TRUE(models_->GetModelStatus(Context().get(), request, &response).ok());
  ASSERT_EQ(response.versions_size(), 4);
  EXPECT_EQ(response.versions(0).process(), "llm " + llm_.server().address());
  EXPECT_EQ(response.versions(3).process(), "llm " + other_.server().address());
  EXPECT_TRUE(response.silent_processes().empty());

  other_.server().Stop();
  response.Clear();
  ASSERT_TRUE(models_->GetModelStatus(Context().get(), request, &response).ok());
  EXPECT_EQ(response.versions_size(), 2);
  ASSERT_EQ(response.silent_processes_size(), 1);
  EXPECT_THAT(response.silent_processes().at("llm " + other_.server().address()),
              HasSubstr("not reachable"));

  v1::ListModelsRequest list;
  list.set_name("emoji");
  v1::ListModelsResponse listed;
  ASSERT_TRUE(Eventually([&] {
    listed.Clear();
    return models_->ListModels(Context().get(), list, &listed).ok() && listed.models_size() == 2 &&
           listed.models(0).processes_size() == 1;
  }));
  EXPECT_EQ(listed.models(0).processes(0), "llm " + llm_.server().address());
}

TEST_F(ModelAdminTest, WhatIsUnknownOrIncompleteIsRefused) {
  StartGateway();
  v1::SetLabelRequest label;
  v1::SetLabelResponse labelled;
  label.set_name("nobody");
  label.set_label("stable");
  label.set_version(1);
  EXPECT_EQ(models_->SetLabel(Context().get(), label, &labelled).error_code(),
            StatusCode::NOT_FOUND);
  label.set_name("emoji");
  label.set_label("");
  EXPECT_EQ(models_->SetLabel(Context().get(), label, &labelled).error_code(),
            StatusCode::INVALID_ARGUMENT);
  v1::LoadModelRequest load;
  load.mutable_model()->set_name("emoji");
  v1::LoadModelResponse loaded;
  const auto status = models_->LoadModel(Context().get(), load, &loaded);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("model.version"));
}

}  // namespace
}  // namespace llava
