#pragma once

// A loader of versions that hold one small file: what it says decides how loading goes.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/lifecycle/servable.h"
#include "server/runtime/mutex.h"
#include "tests/support/temp_folder.h"

namespace llava {

class FakeServable : public Servable {
 public:
  // It takes to be freed as long as `stays`.
  FakeServable(const VersionRef& version, int workers, std::atomic<int>& alive,
               const std::atomic<bool>& stays)
      : workers_(workers), alive_(alive), stays_(stays) {
    info_.mutable_model()->set_name(version.name);
    info_.mutable_model()->set_version(version.version);
    info_.mutable_model()->set_digest("digest");
    ++alive_;
  }
  ~FakeServable() override {
    while (stays_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    --alive_;
  }

  const v1::ModelInfo& info() const override { return info_; }
  ServableLoad load() const override {
    MutexLock lock(mutex_);
    return load_;
  }
  double self_test_drift() const override { return 0.25; }
  int workers() const override { return workers_; }
  absl::Status SetWorkers(int n, const std::function<bool()>& stop) override {
    if (stop()) return absl::CancelledError("stopped");
    workers_ = n;
    return absl::OkStatus();
  }
  void SetInFlight(uint32_t answers) {
    MutexLock lock(mutex_);
    load_.in_flight = answers;
  }
  void Die(const std::string& why) {
    MutexLock lock(mutex_);
    load_.failure = why;
  }

 private:
  v1::ModelInfo info_;
  std::atomic<int> workers_;
  std::atomic<int>& alive_;
  const std::atomic<bool>& stays_;
  mutable Mutex mutex_;
  ServableLoad load_ LLAVA_GUARDED_BY(mutex_) = [] {
    ServableLoad load;
    load.weight_bytes = 1000;
    return load;
  }();
};

// "good" loads, anything else is INVALID_ARGUMENT; "huge" takes 100 times the memory; "late-broken"
// fails although its files are what the manifest says.
class FakeLoader : public ServableLoader {
 public:
  explicit FakeLoader(int workers = 1) : workers_(workers) {}

  absl::StatusOr<uint64_t> EstimateBytes(const VersionRef& version, int workers) override {
    const std::string content = Content(version);
    if (content.empty()) return absl::NotFoundError(absl::StrCat(version.folder.string(), " gone"));
    const int count = workers == 0 ? workers_ : workers;
    return (content == "huge" ? 10'000 : 100) * static_cast<uint64_t>(count);
  }
  int workers() const override { return workers_; }

  absl::StatusOr<std::shared_ptr<Servable>> Load(const VersionRef& version,
                                                 const LoadOptions& options) override {
    {
      MutexLock lock(mutex_);
      EXPECT_TRUE(loading_.insert(version.version).second) << "two loads of one version";
      ++loads_[version.version];
      last_rate_ = options.bytes_per_second;
      last_predecessor_ = options.predecessor ? options.predecessor->info().model().version() : 0;
    }
    options.progress(0.5);
    absl::Status status;
    while ((closed_ || held_ == version.version) && !options.stop())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (options.stop()) status = absl::CancelledError("stopped");
    const std::string content = Content(version);
    options.warming();
    if (status.ok() && content.empty()) status = absl::NotFoundError("the folder is gone");
    if (status.ok() && content != "good" && content != "huge") {
      status = absl::InvalidArgumentError(absl::StrCat(version.folder.string(), " says ", content));
    }
    MutexLock lock(mutex_);
    loading_.erase(version.version);
    if (!status.ok()) return status;
    return std::make_shared<FakeServable>(version, options.workers, alive_, stay_);
  }

  void Route(std::shared_ptr<Servable> servable) override {
    MutexLock lock(mutex_);
    const uint64_t version = servable->info().model().version();
    EXPECT_TRUE(routed_.emplace(version, std::static_pointer_cast<FakeServable>(servable)).second);
  }
  void Unroute(const std::string& name, uint64_t version) override {
    MutexLock lock(mutex_);
    EXPECT_EQ(routed_.erase(version), 1U);
  }

  // As a request does: holds the version. Null: not routed.
  std::shared_ptr<FakeServable> Get(uint64_t version) {
    MutexLock lock(mutex_);
    const auto found = routed_.find(version);
    return found == routed_.end() ? nullptr : found->second;
  }
  std::vector<uint64_t> routed() {
    MutexLock lock(mutex_);
    std::vector<uint64_t> versions;
    for (const auto& [version, servable] : routed_) versions.push_back(version);
    return versions;
  }
  int loads(uint64_t version) {
    MutexLock lock(mutex_);
    return loads_[version];
  }
  uint64_t last_rate() {
    MutexLock lock(mutex_);
    return last_rate_;
  }
  uint64_t last_predecessor() {
    MutexLock lock(mutex_);
    return last_predecessor_;
  }
  int alive() const { return alive_; }
  // Servables that nobody holds any more are not freed yet.
  void LetStay(bool stay) { stay_ = stay; }
  void LoseDevice(const std::string& why) {
    MutexLock lock(mutex_);
    device_lost_ = why;
  }
  std::string device_lost() override {
    MutexLock lock(mutex_);
    return device_lost_;
  }
  // Loads wait as long as the gate is closed.
  void CloseGate() { closed_ = true; }
  void OpenGate() { closed_ = false; }
  // Loads of this version wait; 0: of none.
  void HoldLoadsOf(uint64_t version) { held_ = version; }

 private:
  // Empty when the folder is gone.
  static std::string Content(const VersionRef& version) {
    try {
      return ReadBytes(version.folder / "weights");
    } catch (const std::runtime_error&) {
      return "";
    }
  }

  const int workers_;
  std::atomic<bool> closed_ = false;
  std::atomic<uint64_t> held_ = 0;
  std::atomic<int> alive_ = 0;
  std::atomic<bool> stay_ = false;
  Mutex mutex_;
  std::string device_lost_ LLAVA_GUARDED_BY(mutex_);
  std::map<uint64_t, std::shared_ptr<FakeServable>> routed_ LLAVA_GUARDED_BY(mutex_);
  std::set<uint64_t> loading_ LLAVA_GUARDED_BY(mutex_);
  std::map<uint64_t, int> loads_ LLAVA_GUARDED_BY(mutex_);
  uint64_t last_rate_ LLAVA_GUARDED_BY(mutex_) = 0;
  uint64_t last_predecessor_ LLAVA_GUARDED_BY(mutex_) = 0;
};

}  // namespace llava
