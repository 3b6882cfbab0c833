#include "server/gateway/model_router.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/logging.h"
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

std::vector<v1::ModelInfo> Language(const std::vector<v1::ModelInfo>& all) {
  std::vector<v1::ModelInfo> models;
  for (const v1::ModelInfo& model : all) {
    if (model.kind() == v1::MODEL_KIND_LANGUAGE) models.push_back(model);
  }
  return models;
}

absl::Status NoModel(const std::string& name, const std::vector<v1::ModelInfo>& models) {
  std::set<std::string> known;
  for (const v1::ModelInfo& model : models) known.insert(model.model().name());
  if (known.empty()) {
    return OverloadedError("the llm service serves no model yet; load one there",
                           std::chrono::seconds(1));
  }
  return WithReason(absl::NotFoundError(absl::StrCat(
                        "no model \"", name, "\"; known are: ", absl::StrJoin(known, ", "))),
                    kReasonModelNotFound);
}

}  // namespace

absl::StatusOr<std::vector<v1::ModelInfo>> ModelRouter::LanguageModels() const {
  const ModelTable llm = llm_.table();
  if (!llm.status.ok()) return llm.status;
  return Language(llm.models);
}

std::string ModelRouter::DefaultModel() const {
  const ModelTable llm = llm_.table();
  return llm.status.ok() || !default_model_.empty() ? DefaultModel(llm) : "";
}

std::string ModelRouter::DefaultModel(const ModelTable& llm) const {
  if (!default_model_.empty()) return default_model_;
  std::set<std::string> names;
  for (const v1::ModelInfo& model : Language(llm.models)) names.insert(model.model().name());
  for (const v1::ModelInfo& model : llm.away) {
    // A service that is to load a version does not say its kind.
    if (model.kind() != v1::MODEL_KIND_TOWER) names.insert(model.model().name());
  }
  if (names.empty()) return "";
  MutexLock lock(mutex_);
  const bool all_known = llm.unheard.ok();
  if (!names.contains(usual_)) {
    if (!all_known) return *names.begin();  // not to stay: there may be one before it
    usual_ = *names.begin();
  }
  if (names.size() > 1 && all_known && !std::exchange(warned_, true)) {
    LogWarning("several models and no --default-model: who names none gets the default",
               {{"default", usual_}, {"models", absl::StrJoin(names, ", ")}});
  }
  return usual_;
}

absl::StatusOr<Route> ModelRouter::Find(const ModelChoice& choice, bool pictures) const {
  const ModelTable llm = llm_.table();
  if (!llm.status.ok()) return llm.status;
  ModelChoice wanted = choice;
  if (wanted.name.empty()) {
    auto usual = ParseModelChoice(DefaultModel(llm));
    if (!usual.ok()) return usual.status();
    wanted.name = std::move(usual->name);
    if (!wanted.is_fixed()) {
      wanted.version = usual->version;
      wanted.label = std::move(usual->label);
    }
  }
  const auto models = Language(llm.models);
  const auto find =
      [&](const std::vector<v1::ModelInfo>& among) -> absl::StatusOr<std::vector<v1::ModelInfo>> {
    std::vector<v1::ModelInfo> versions;
    for (const v1::ModelInfo& model : among) {
      if (model.model().name() == wanted.name) versions.push_back(model);
    }
    if (versions.empty()) return NoModel(wanted.name, models);
    return Eligible(std::move(versions), wanted, canary_share(wanted.name));
  };
  const auto eligible = find(models);
  if (!eligible.ok() && find(llm.away).ok()) return llm.away_status;
  if (absl::IsNotFound(eligible.status()) && !llm.unheard.ok()) return llm.unheard;
  if (!eligible.ok()) return eligible.status();
  const ModelTable vision = vision_.table();
  for (const v1::ModelInfo& each : *eligible) {
    if (const auto* tower = FindTower(vision, each)) return Route{each, tower->numerics()};
  }
  const v1::ModelInfo& first = eligible->front();
  if (!pictures) return Route{first, ""};
  if (!vision.status.ok()) return vision.status;
  std::vector<std::string> towers;
  for (const v1::ModelInfo& tower : vision.models) {
    towers.push_back(
        absl::StrCat(tower.model().name(), " ", ShortHex(tower.vision_spec().tower_digest())));
  }
  return OverloadedError(
      absl::StrCat("model \"", wanted.name, "\" version ", first.model().version(),
                   " needs the vision tower ", ShortHex(first.vision_spec().tower_digest()),
                   ", the vision service has: ", absl::StrJoin(towers, ", "),
                   "; start llava-vision with that tower"),
      std::chrono::seconds(1));
}

absl::StatusOr<std::shared_ptr<Backend>> ModelRouter::PickLlm(const Route& route,
                                                              std::string_view key,
                                                              const LlmNeeds& needs) const {
  const VersionId wanted = IdOf(route.model.model());
  return llm_.Pick(
      key,
      [&](const v1::ModelInfo& model) {
        return model.kind() == v1::MODEL_KIND_LANGUAGE && IdOf(model.model()) == wanted &&
               (!needs.constraint || model.constrains_output());
      },
      needs.except);
}

absl::StatusOr<std::shared_ptr<Backend>> ModelRouter::PickVision(const Route& route,
                                                                 std::string_view image,
                                                                 const Backend* except) const {
  const std::string& wanted = route.model.vision_spec().tower_digest();
  return vision_.Pick(
      image,
      [&](const v1::ModelInfo& model) {
        return model.kind() == v1::MODEL_KIND_TOWER && model.vision_spec().tower_digest() == wanted;
      },
      except);
}

void ModelRouter::Refresh(std::function<void()> done) {
  auto left = std::make_shared<std::atomic<int>>(2);
  const auto one = [left, done = std::move(done)] {
    if (--*left == 0) done();
  };
  vision_.Refresh(one);
  llm_.Refresh(one);
}

void ModelRouter::Resolve(const ModelChoice& choice, bool pictures,
                          std::function<void(absl::StatusOr<Route>)> done) {
  auto route = Find(choice, pictures);
  if (route.ok()) return done(std::move(route));
  Refresh([=, this, done = std::move(done)] { done(Find(choice, pictures)); });
}

double ModelRouter::canary_share(const std::string& name) const {
  MutexLock lock(mutex_);
  const auto found = shares_.find(name);
  return found == shares_.end() ? usual_share_ : found->second;
}

double ModelRouter::SetCanaryShare(const std::string& name, double share) {
  const double before = canary_share(name);
  MutexLock lock(mutex_);
  shares_[name] = share;
  return before;
}

absl::Status ModelRouter::Ready() const {
  for (const BackendPool* service : {&vision_, &llm_}) {
    if (const auto status = service->table().status; !status.ok()) return status;
  }
  const absl::Status usual = Find({}, /*pictures=*/true).status();
  if (usual.ok() || !default_model_.empty()) return usual;
  // Nobody chose that one: while it is away, for good perhaps, others can be asked.
  const auto models = LanguageModels();
  if (!models.ok()) return models.status();
  const bool any = std::any_of(models->begin(), models->end(), [this](const v1::ModelInfo& each) {
    return Find({.name = each.model().name()}, /*pictures=*/true).ok();
  });
  return any ? absl::OkStatus() : usual;
}

}  // namespace llava
