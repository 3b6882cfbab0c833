#include "server/llm/routed_versions.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/llm/busy.h"
#include "server/llm/llm_service.h"

namespace llava {
namespace {

template <typename Map>
std::string Keys(const Map& map, const char* quote) {
  return absl::StrJoin(map, ", ", [quote](std::string* out, const auto& entry) {
    absl::StrAppend(out, quote, entry.first, quote);
  });
}

}  // namespace

void RoutedVersions::Add(std::shared_ptr<const LlmBackend> backend) {
  const v1::ModelVersion model = backend->info.model();
  MutexLock lock(mutex_);
  models_[model.name()][model.version()].swap(backend);  // what was there goes without the lock
}

void RoutedVersions::Remove(const std::string& name, uint64_t version) {
  std::shared_ptr<const LlmBackend> removed;  // goes without the lock
  MutexLock lock(mutex_);
  const auto model = models_.find(name);
  if (model == models_.end()) return;
  const auto found = model->second.find(version);
  if (found == model->second.end()) return;
  removed = std::move(found->second);
  model->second.erase(found);
}

absl::StatusOr<std::shared_ptr<const LlmBackend>> RoutedVersions::Find(
    const v1::ModelVersion& model) const {
  MutexLock lock(mutex_);
  if (models_.empty()) return LlmBusyError("the model is still loading");
  const auto found = models_.find(model.name());
  if (found == models_.end()) {
    return absl::NotFoundError(absl::StrCat("model \"", model.name(),
                                            "\" is not served here; this process serves ",
                                            Keys(models_, "\"")));
  }
  if (model.version() == 0) {
    return absl::InvalidArgumentError("model.version is 0: say which version shall answer");
  }
  const Versions& versions = found->second;
  if (versions.empty()) {
    return LlmBusyError(absl::StrCat("no version of ", model.name(), " is here just now"));
  }
  const auto version = versions.find(model.version());
  if (version != versions.end()) return version->second;
  return absl::FailedPreconditionError(
      absl::StrCat("version ", model.version(), " of ", model.name(),
                   " is not served here; this process has version ", Keys(versions, "")));
}

std::vector<std::shared_ptr<const LlmBackend>> RoutedVersions::All() const {
  std::vector<std::shared_ptr<const LlmBackend>> all;
  MutexLock lock(mutex_);
  for (const auto& [name, versions] : models_) {
    for (const auto& [version, backend] : versions) all.push_back(backend);
  }
  return all;
}

}  // namespace llava
