// The models of the fakes: labels, states, changes.

#include <thread>
#include <utility>

#include "tests/support/fake_backends.h"

namespace llava {

uint64_t FakeLabels::Set(const std::string& name, const std::string& label, uint64_t version) {
  std::lock_guard lock(mutex_);
  auto& history = history_[{name, label}];
  const uint64_t before = history.empty() ? 0 : history.back();
  if (version != before) history.push_back(version);
  return before;
}

uint64_t FakeLabels::Rollback(const std::string& name) {
  std::lock_guard lock(mutex_);
  auto& history = history_[{name, "stable"}];
  if (history.size() < 2) return 0;
  history.pop_back();
  return history.back();
}

std::vector<std::string> FakeLabels::Of(const std::string& name, uint64_t version) const {
  std::lock_guard lock(mutex_);
  std::vector<std::string> labels;
  for (const auto& [key, history] : history_) {
    if (key.first == name && !history.empty() && history.back() == version) {
      labels.push_back(key.second);
    }
  }
  return labels;
}

void FakeModels::ShareLabels(const FakeModels& other) {
  std::shared_ptr<FakeLabels> labels;
  {
    std::lock_guard lock(other.mutex_);
    labels = other.labels_;
  }
  std::lock_guard lock(mutex_);
  labels_ = std::move(labels);
}

void FakeModels::Refuse(grpc::Status status) {
  std::lock_guard lock(mutex_);
  refusal_ = std::move(status);
}

void FakeModels::SetHealth(uint64_t version, double drift, uint64_t nan_outputs) {
  std::lock_guard lock(mutex_);
  health_[version] = {drift, nan_outputs};
}

int FakeModels::changes() const {
  std::lock_guard lock(mutex_);
  return changes_;
}

grpc::Status FakeModels::Change(const std::string& name) {
  std::lock_guard lock(mutex_);
  for (const auto& model : models_) {
    if (model.model().name() != name) continue;
    ++changes_;
    return refusal_;
  }
  return {grpc::StatusCode::NOT_FOUND, "no such model"};
}

void FakeModels::PauseLoads() {
  std::lock_guard lock(mutex_);
  pause_loads_ = true;
}

grpc::Status FakeModels::LoadModel(grpc::ServerContext* context,
                                   const v1::LoadModelRequest* request,
                                   v1::LoadModelResponse* response) {
  const v1::ModelVersion& model = request->model();
  if (auto status = Change(model.name()); !status.ok()) return status;
  bool pause = false;
  {
    std::lock_guard lock(mutex_);
    pause = pause_loads_;
  }
  while (pause) {
    if (context->IsCancelled()) return grpc::Status::CANCELLED;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::lock_guard lock(mutex_);
  models_.push_back(models_.front());
  *models_.back().mutable_model() = model;
  *response->mutable_status()->mutable_model() = model;
  response->mutable_status()->set_state(v1::MODEL_STATE_READY);
  return grpc::Status::OK;
}

grpc::Status FakeModels::UnloadModel(grpc::ServerContext*, const v1::UnloadModelRequest* request,
                                     v1::UnloadModelResponse* response) {
  const v1::ModelVersion& model = request->model();
  if (auto status = Change(model.name()); !status.ok()) return status;
  std::lock_guard lock(mutex_);
  std::erase_if(models_, [&model](const v1::ModelInfo& each) {
    return each.model().name() == model.name() && each.model().version() == model.version();
  });
  *response->mutable_status()->mutable_model() = model;
  response->mutable_status()->set_state(v1::MODEL_STATE_UNLOADED);
  return grpc::Status::OK;
}

grpc::Status FakeModels::SetLabel(grpc::ServerContext*, const v1::SetLabelRequest* request,
                                  v1::SetLabelResponse* response) {
  if (auto status = Change(request->name()); !status.ok()) return status;
  std::lock_guard lock(mutex_);
  response->set_previous_version(
      labels_->Set(request->name(), request->label(), request->version()));
  return grpc::Status::OK;
}

grpc::Status FakeModels::Rollback(grpc::ServerContext*, const v1::RollbackRequest* request,
                                  v1::RollbackResponse* response) {
  if (auto status = Change(request->name()); !status.ok()) return status;
  std::lock_guard lock(mutex_);
  const uint64_t version = labels_->Rollback(request->name());
  if (version == 0) return {grpc::StatusCode::FAILED_PRECONDITION, "no earlier stable version"};
  response->mutable_stable()->set_name(request->name());
  response->mutable_stable()->set_version(version);
  return grpc::Status::OK;
}

void FakeModels::Set(std::vector<v1::ModelInfo> models, std::vector<v1::ModelInfo> coming) {
  std::lock_guard lock(mutex_);
  models_ = std::move(models);
  coming_ = std::move(coming);
  listed_.reset();
}

void FakeModels::Exchange(std::vector<v1::ModelInfo> models, std::vector<v1::ModelInfo> coming) {
  std::lock_guard lock(mutex_);
  listed_ = std::exchange(models_, std::move(models));
  coming_ = std::move(coming);
}

void FakeModels::ListServed() {
  std::lock_guard lock(mutex_);
  listed_.reset();
}

std::vector<v1::ModelInfo> FakeModels::Get() const {
  std::lock_guard lock(mutex_);
  return models_;
}

grpc::Status FakeModels::ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                                    v1::ListModelsResponse* response) {
  std::lock_guard lock(mutex_);
  for (const auto& model : listed_ ? *listed_ : models_) {
    v1::ModelInfo& listed = *response->add_models();
    listed = model;
    for (const auto& label : labels_->Of(model.model().name(), model.model().version())) {
      listed.add_labels(label);
    }
  }
  if (listed_) return grpc::Status::OK;
  for (const auto& model : coming_) {  // as services do, which have not read it yet
    v1::ModelInfo& listed = *response->add_coming();
    listed.mutable_model()->set_name(model.model().name());
    listed.mutable_model()->set_version(model.model().version());
    *listed.mutable_labels() = model.labels();
  }
  return grpc::Status::OK;
}

grpc::Status FakeModels::GetModelStatus(grpc::ServerContext*,
                                        const v1::GetModelStatusRequest* request,
                                        v1::GetModelStatusResponse* response) {
  for (const auto& model : Get()) {
    const std::string& name = request->model().name();
    if (!name.empty() && name != model.model().name()) continue;
    auto* status = response->add_versions();
    *status->mutable_model() = model.model();
    status->set_state(v1::MODEL_STATE_READY);
    std::lock_guard lock(mutex_);
    const Health health = health_[model.model().version()];
    status->set_self_test_drift(health.drift);
    status->set_nan_outputs(health.nan_outputs);
  }
  if (response->versions().empty()) return {grpc::StatusCode::NOT_FOUND, "no such model"};
  return grpc::Status::OK;
}

std::string FakePicture(int seed, int width, int height) {
  const int row = (width * 3 + 3) / 4 * 4;
  const int pixels = row * height;
  std::string file = "BM";
  const auto number = [&file](uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) file.push_back(static_cast<char>(value >> (8 * i)));
  };
  number(static_cast<uint32_t>(54 + pixels), 4);
  number(0, 4);
  number(54, 4);
  number(40, 4);
  number(static_cast<uint32_t>(width), 4);
  number(static_cast<uint32_t>(height), 4);
  number(1, 2);
  number(24, 2);
  number(0, 4);
  number(static_cast<uint32_t>(pixels), 4);
  for (int i = 0; i < 4; ++i) number(0, 4);
  file.append(static_cast<size_t>(pixels), static_cast<char>(seed));
  return file;
}

}  // namespace llava
