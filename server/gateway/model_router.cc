#include "server/gateway/model_router.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

std::string ShortHex(const std::string& digest) {
  return absl::BytesToHexString(digest.substr(0, 6));
}

const v1::ModelInfo* FindTower(const ModelTable& vision, const v1::ModelInfo& model) {
  for (const v1::ModelInfo& tower : vision.models) {
    if (tower.kind() == v1::MODEL_KIND_TOWER &&
        tower.vision_spec().tower_digest() == model.vision_spec().tower_digest()) {
      return &tower;
    }
  }
  return nullptr;
}

absl::Status NoModel(const std::string& name, const std::vector<v1::ModelInfo>& models) {
  std::set<std::string> known;
  for (const v1::ModelInfo& model : models) known.insert(model.model().name());
  if (known.empty()) {
    return OverloadedError("the llm service serves no model yet; load one there",
                           std::chrono::seconds(1));
  }
  return absl::NotFoundError(
      absl::StrCat("no model \"", name, "\"; known are: ", absl::StrJoin(known, ", ")));
}

}  // namespace

absl::StatusOr<std::vector<v1::ModelInfo>> ModelRouter::LanguageModels() const {
  const ModelTable llm = llm_.table();
  if (!llm.status.ok()) return llm.status;
  std::vector<v1::ModelInfo> models;
  for (const v1::ModelInfo& model : llm.models) {
    if (model.kind() == v1::MODEL_KIND_LANGUAGE) models.push_back(model);
  }
  return models;
}

std::string ModelRouter::DefaultModel() const {
  if (!default_model_.empty()) return default_model_;
  const auto models = LanguageModels();
  return models.ok() && !models->empty() ? models->front().model().name() : "";
}

absl::StatusOr<Route> ModelRouter::Find(const std::string& name, uint64_t version,
                                        bool pictures) const {
  const auto models = LanguageModels();
  if (!models.ok()) return models.status();
  const std::string wanted = name.empty() ? DefaultModel() : name;
  std::vector<v1::ModelInfo> versions;
  for (const v1::ModelInfo& model : *models) {
    if (model.model().name() == wanted) versions.push_back(model);
  }
  if (versions.empty()) return NoModel(wanted, *models);
  std::sort(versions.begin(), versions.end(),
            [](const auto& a, const auto& b) { return a.model().version() > b.model().version(); });
  if (version != 0) {
    std::vector<uint64_t> known;
    for (const v1::ModelInfo& each : versions) known.push_back(each.model().version());
    std::erase_if(versions, [&](const auto& each) { return each.model().version() != version; });
    if (versions.empty()) {
      return absl::NotFoundError(absl::StrCat("model \"", wanted, "\" has no version ", version,
                                              "; it has: ", absl::StrJoin(known, ", ")));
    }
  }
  const ModelTable vision = vision_.table();
  for (const v1::ModelInfo& each : versions) {
    if (const auto* tower = FindTower(vision, each)) return Route{each, tower->numerics()};
  }
  if (!pictures) return Route{versions.front(), ""};
  if (!vision.status.ok()) return vision.status;
  std::vector<std::string> towers;
  for (const v1::ModelInfo& tower : vision.models) {
    towers.push_back(
        absl::StrCat(tower.model().name(), " ", ShortHex(tower.vision_spec().tower_digest())));
  }
  return OverloadedError(
      absl::StrCat("model \"", wanted, "\" version ", versions.front().model().version(),
                   " needs the vision tower ",
                   ShortHex(versions.front().vision_spec().tower_digest()),
                   ", the vision service has: ", absl::StrJoin(towers, ", "),
                   "; start llava-vision with that tower"),
      std::chrono::seconds(1));
}

absl::StatusOr<std::shared_ptr<Backend>> ModelRouter::PickLlm(const Route& route,
                                                              std::string_view key,
                                                              const Backend* except) const {
  const v1::ModelVersion& wanted = route.model.model();
  return llm_.Pick(
      key,
      [&](const v1::ModelInfo& model) {
        return model.kind() == v1::MODEL_KIND_LANGUAGE && model.model().name() == wanted.name() &&
               model.model().version() == wanted.version() &&
               model.model().digest() == wanted.digest();
      },
      except);
}

absl::StatusOr<std::shared_ptr<Backend>> ModelRouter::PickVision(const Route& route,
                                                                 std::string_view image) const {
  const std::string& wanted = route.model.vision_spec().tower_digest();
  return vision_.Pick(image, [&](const v1::ModelInfo& model) {
    return model.kind() == v1::MODEL_KIND_TOWER && model.vision_spec().tower_digest() == wanted;
  });
}

void ModelRouter::Refresh(std::function<void()> done) {
  auto left = std::make_shared<std::atomic<int>>(2);
  const auto one = [left, done = std::move(done)] {
    if (--*left == 0) done();
  };
  vision_.Refresh(one);
  llm_.Refresh(one);
}

void ModelRouter::Resolve(const std::string& name, uint64_t version, bool pictures,
                          std::function<void(absl::StatusOr<Route>)> done) {
  auto route = Find(name, version, pictures);
  if (route.ok()) return done(std::move(route));
  Refresh([=, this, done = std::move(done)] { done(Find(name, version, pictures)); });
}

absl::Status ModelRouter::Ready() const {
  for (const BackendPool* service : {&vision_, &llm_}) {
    if (const auto status = service->table().status; !status.ok()) return status;
  }
  return Find("", 0, /*pictures=*/true).status();
}

}  // namespace llava
