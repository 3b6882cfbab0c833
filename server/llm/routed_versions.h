#pragma once

// The versions that requests may name, and who holds them.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "llava/v1/types.pb.h"
#include "server/runtime/mutex.h"

namespace llava {

struct LlmBackend;

// Whoever finds a version holds it: one that is routed no more goes when the last of its requests
// has ended. Thread-safe.
class RoutedVersions {
 public:
  // Takes the place of one of the same name and version.
  void Add(std::shared_ptr<const LlmBackend> backend);
  void Remove(const std::string& name, uint64_t version);

  // UNAVAILABLE with a time to retry after: nothing of this name is routed yet, or at the moment.
  // NOT_FOUND: a name that was never routed, beside others that were. INVALID_ARGUMENT: version 0.
  // FAILED_PRECONDITION: another version.
  absl::StatusOr<std::shared_ptr<const LlmBackend>> Find(const v1::ModelVersion& model) const;

  // In order of names and versions.
  std::vector<std::shared_ptr<const LlmBackend>> All() const;

 private:
  using Versions = std::map<uint64_t, std::shared_ptr<const LlmBackend>>;

  mutable Mutex mutex_;
  std::map<std::string, Versions> models_ LLAVA_GUARDED_BY(mutex_);  // names stay
};

}  // namespace llava
