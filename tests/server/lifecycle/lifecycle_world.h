#pragma once

// A world around Lifecycle in which the test decides what happens when, and which checks after
// every step what Lifecycle promises.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/lifecycle/lifecycle.h"

namespace llava {

class LifecycleWorld {
 public:
  using Kind = Lifecycle::Step::Kind;

  explicit LifecycleWorld(Lifecycle::Options options) : options_(options), life_(options) {}

  // What the repository holds; told by Look.
  RepositorySnapshot repository;
  // Bytes of a version on one worker.
  std::map<uint64_t, uint64_t> sizes;
  uint64_t default_size = 100;
  // Of versions that share their memory.
  std::map<uint64_t, std::string> memory_groups;
  bool auto_estimate = true, auto_verify = true, auto_free = true;

  void Publish(uint64_t version, const std::string& name = "m") {
    repository[name].versions[version] = absl::StrCat("mark ", ++marks_);
  }
  void Delete(uint64_t version, const std::string& name = "m") {
    repository[name].versions.erase(version);
  }
  void Look() {
    life_.SetRepository(repository, now_);
    Run();
  }
  void Pass(Lifecycle::Duration time) {
    now_ += time;
    Run();
  }
  void Load(uint64_t version, const std::string& name = "m") {
    unloaded_.erase({name, version});
    life_.WantLoaded({name, version}, now_);
    Run();
  }
  void Unload(uint64_t version, const std::string& name = "m") {
    unloaded_.insert({name, version});
    life_.WantUnloaded({name, version}, now_);
    Run();
  }
  void Break(uint64_t version, const std::string& name = "m") {
    broken_.insert({name, version});
    life_.Broke({name, version}, absl::InternalError("device lost"), now_);
    Run();
  }

  // Ends the job of a version that is under way.
  void EndLoad(uint64_t version, const absl::Status& status = absl::OkStatus(),
               const std::string& name = "m") {
    End(Kind::kLoad, {name, version}, status);
  }
  void End(Kind kind, const VersionId& id, const absl::Status& status) {
    const auto found = jobs_.find(id);
    ASSERT_TRUE(found != jobs_.end() && found->second.kind == kind)
        << "no such job under way: version " << id.version;
    const Lifecycle::Step job = found->second;
    jobs_.erase(found);
    switch (kind) {
      case Kind::kEstimate: {
        absl::StatusOr<Lifecycle::Size> size =
            Lifecycle::Size{BytesOf(id.version), GroupOf(id.version)};
        if (!status.ok()) size = status;
        life_.Estimated(id, size, now_);
        break;
      }
      case Kind::kVerify:
        life_.Verified(id, status, now_);
        break;
      case Kind::kLoad:
        if (status.ok()) {
          workers_[id] = job.workers;
          ++loaded;
        }
        life_.Loaded(id, status, now_);
        break;
      case Kind::kSetWorkers:
        if (status.ok()) workers_[id] = job.workers;
        life_.WorkersSet(id, status, now_);
        break;
      case Kind::kRelease:
        workers_.erase(id);
        ++freed;
        life_.Freed(id, now_);
        break;
      default:
        FAIL();
    }
    Run();
  }
  // The answers of a DRAINING version have ended.
  void EndAnswers(uint64_t version, const std::string& name = "m") {
    life_.Idle({name, version}, now_);
    Run();
  }

  bool Doing(Kind kind, uint64_t version, const std::string& name = "m") const {
    const auto found = jobs_.find({name, version});
    return found != jobs_.end() && found->second.kind == kind;
  }
  bool Loading(uint64_t version, const std::string& name = "m") const {
    return Doing(Kind::kLoad, version, name);
  }
  const std::map<VersionId, Lifecycle::Step>& jobs() const { return jobs_; }
  const std::set<VersionId>& stopped() const { return stopped_; }
  std::vector<uint64_t> Routed(const std::string& name = "m") const {
    std::vector<uint64_t> versions;
    for (const VersionId& id : routed_) {
      if (id.name == name) versions.push_back(id.version);
    }
    return versions;
  }
  int WorkersOf(uint64_t version) const {
    const auto found = workers_.find({"m", version});
    return found == workers_.end() ? 0 : found->second;
  }
  v1::ModelState State(uint64_t version, const std::string& name = "m") const {
    const auto* found = life_.Find({name, version});
    return found == nullptr ? v1::MODEL_STATE_UNSPECIFIED : found->state;
  }
  std::string Message(uint64_t version) const { return life_.Find({"m", version})->message; }
  Lifecycle& life() { return life_; }
  Lifecycle::Time now() const { return now_; }

  // For messages of failures.
  std::string Describe() const {
    std::string text;
    for (const auto& [id, version] : life_.versions()) {
      absl::StrAppend(&text, id.name, " ", id.version, " ", v1::ModelState_Name(version.state),
                      version.present ? "" : ", gone", life_.Wants(id) ? ", wanted" : "",
                      version.held ? ", held" : "", ", failures ", version.failures, ": ",
                      version.message, "\n");
    }
    for (const auto& [id, job] : jobs_) {
      absl::StrAppend(&text, "job ", static_cast<int>(job.kind), " of ", id.version, "\n");
    }
    return text;
  }

  int loaded = 0, freed = 0;

  // Does what Lifecycle wants, until it wants nothing more.
  void Run() {
    for (;;) {
      const auto steps = life_.Next(now_);
      for (size_t i = 0; i < steps.size(); ++i) {
        // Planned, and taken back before anything was done.
        const bool comes_back =
            std::any_of(steps.begin() + static_cast<std::ptrdiff_t>(i), steps.end(),
                        [&](const Lifecycle::Step& later) {
                          return later.kind == Kind::kRoute && later.id == steps[i].id;
                        });
        Do(steps[i], comes_back);
      }
      CheckMemory();
      std::optional<std::pair<Kind, VersionId>> next;
      for (const auto& [id, job] : jobs_) {
        if ((auto_estimate && job.kind == Kind::kEstimate) ||
            (auto_verify && job.kind == Kind::kVerify) ||
            (auto_free && job.kind == Kind::kRelease)) {
          next = {job.kind, id};
          break;
        }
      }
      if (!next) {
        if (steps.empty()) return;
        continue;
      }
      End(next->first, next->second, absl::OkStatus());  // runs, too
      return;
    }
  }

 private:
  WorkerBytes BytesOf(uint64_t version) const {
    const auto found = sizes.find(version);
    const uint64_t each = found == sizes.end() ? default_size : found->second;
    WorkerBytes bytes;
    for (int n = 1; n <= options_.workers; ++n) bytes.push_back(each * static_cast<uint64_t>(n));
    return bytes;
  }

  std::string GroupOf(uint64_t version) const {
    const auto found = memory_groups.find(version);
    return found == memory_groups.end() ? "" : found->second;
  }

  void Do(const Lifecycle::Step& step, bool comes_back) {
    const VersionId& id = step.id;
    switch (step.kind) {
      case Kind::kStop:
        EXPECT_TRUE(jobs_.contains(id)) << "nothing to stop";
        stopped_.insert(id);
        return;
      case Kind::kRoute:
        EXPECT_TRUE(workers_.contains(id)) << "routed, but not loaded: " << id.version;
        EXPECT_TRUE(routed_.insert(id).second) << "routed twice: " << id.version;
        unloaded_.erase(id);
        broken_.erase(id);
        return;
      case Kind::kUnroute: {
        EXPECT_EQ(routed_.erase(id), 1U) << "not routed: " << id.version;
        const bool allowed = comes_back || unloaded_.contains(id) || broken_.contains(id) ||
                             absl::StartsWith(life_.Find(id)->message, "makes way for");
        EXPECT_TRUE(allowed || !Routed(id.name).empty())
            << "nothing is routed after version " << id.version
            << " has gone: " << life_.Find(id)->message;
        return;
      }
      case Kind::kRelease:
        EXPECT_TRUE(workers_.contains(id)) << "released, but not loaded";
        EXPECT_FALSE(routed_.contains(id)) << "released while it is routed";
        break;
      case Kind::kLoad:
        EXPECT_FALSE(workers_.contains(id)) << "loaded twice";
        break;
      case Kind::kSetWorkers:
        EXPECT_TRUE(workers_.contains(id));
        EXPECT_GE(step.workers, 1);
        EXPECT_LE(step.workers, options_.workers);
        break;
      default:
        break;
    }
    stopped_.erase(id);
    EXPECT_TRUE(jobs_.emplace(id, step).second) << "two jobs of version " << id.version;
  }

  void CheckMemory() {
    uint64_t sum = 0;
    std::map<VersionId, int> resident = workers_;
    int loads = 0;
    for (const auto& [id, job] : jobs_) {
      if (job.kind == Kind::kLoad || job.kind == Kind::kSetWorkers) {
        resident[id] = std::max(resident[id], job.workers);
      }
      loads += job.kind == Kind::kLoad ? 1 : 0;
    }
    std::map<std::string, uint64_t> groups;
    for (const auto& [id, workers] : resident) {
      const uint64_t bytes = BytesOf(id.version)[static_cast<size_t>(workers) - 1];
      const std::string group = GroupOf(id.version);
      if (group.empty()) sum += bytes;
      if (!group.empty()) groups[group] = std::max(groups[group], bytes);
    }
    for (const auto& [group, bytes] : groups) sum += bytes;
    if (options_.memory_budget != 0 && !options_.soft_budget) {
      EXPECT_LE(sum, options_.memory_budget);
    }
    EXPECT_EQ(sum, life_.EstimatedBytes());
    EXPECT_LE(loads, options_.load_slots);
  }

  const Lifecycle::Options options_;
  Lifecycle life_;
  Lifecycle::Time now_ = Lifecycle::Time() + std::chrono::hours(1);
  int marks_ = 0;
  std::map<VersionId, Lifecycle::Step> jobs_;  // under way
  std::map<VersionId, int> workers_;           // of what is loaded
  std::set<VersionId> routed_, stopped_, unloaded_, broken_;
};

inline Lifecycle::Options LifecycleWith(const std::string& policy = "latest", uint64_t budget = 0,
                                        int workers = 1) {
  Lifecycle::Options options;
  options.policy = *VersionPolicy::Parse(policy);
  options.memory_budget = budget;
  options.workers = workers;
  return options;
}

// Version 1 is served.
class Served : public LifecycleWorld {
 public:
  explicit Served(Lifecycle::Options options) : LifecycleWorld(options) {
    Publish(1);
    Look();
    EndLoad(1);
    EXPECT_EQ(Routed(), std::vector<uint64_t>{1});
  }
};

inline const absl::Status kBroken =
    absl::InvalidArgumentError("model.safetensors has another SHA-256");

}  // namespace llava
