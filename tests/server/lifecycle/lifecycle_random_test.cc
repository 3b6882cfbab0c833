#include <gtest/gtest.h>

#include <iterator>
#include <random>

#include "tests/server/lifecycle/lifecycle_world.h"

namespace llava {
namespace {

using Kind = Lifecycle::Step::Kind;

// Anything happens in any order; LifecycleWorld checks every step. In the end everything is
// repaired and everything goes well: then what is wanted must be there, and nothing else.
class RandomLife {
 public:
  explicit RandomLife(uint64_t seed) : random_(seed), options_(MakeOptions()), world_(options_) {
    world_.auto_estimate = world_.auto_verify = world_.auto_free = false;
    for (uint64_t version = 1; version < 60; ++version) {
      world_.sizes[version] = 50 + Pick(100);
      if (Chance(30)) world_.memory_groups[version] = Chance(50) ? "a" : "b";
    }
    for (const std::string name : {"m", "n"}) world_.repository[name];
  }

  void Live(int events) {
    for (int i = 0; i < events && !::testing::Test::HasFailure(); ++i) Happen();
    Recover();
  }

 private:
  size_t Pick(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }
  bool Chance(int percent) { return Pick(100) < static_cast<size_t>(percent); }

  Lifecycle::Options MakeOptions() {
    Lifecycle::Options options;
    const char* policies[] = {"auto", "latest", "latest:2", "labels", "2,3,5"};
    options.policy = *VersionPolicy::Parse(policies[Pick(5)]);
    options.workers = static_cast<int>(1 + Pick(3));
    const uint64_t most = 150 * static_cast<uint64_t>(options.workers);
    const uint64_t budgets[] = {0, most, most * 3 / 2, most * 2, most * 5};
    options.memory_budget = budgets[Pick(5)];
    options.soft_budget = Chance(20);
    if (Chance(30)) {
      const SwapMode modes[] = {SwapMode::kSideBySide, SwapMode::kRolling, SwapMode::kInPlace};
      options.swap_mode = modes[Pick(3)];
    }
    options.load_slots = static_cast<int>(1 + Pick(2));
    options.hung_after = std::chrono::seconds(1 + Pick(20));
    options.seed = random_();
    return options;
  }

  VersionId Known() {
    const auto& versions = world_.life().versions();
    if (versions.empty()) return {};
    return std::next(versions.begin(), static_cast<std::ptrdiff_t>(Pick(versions.size())))->first;
  }

  void EndSomeJob(int failing_percent) {
    if (world_.jobs().empty()) return;
    const auto job =
        *std::next(world_.jobs().begin(), static_cast<std::ptrdiff_t>(Pick(world_.jobs().size())));
    absl::Status status;
    if (world_.stopped().contains(job.first) && Chance(80)) {
      status = absl::CancelledError("stopped");
    } else if (job.second.kind != Kind::kRelease && Chance(failing_percent)) {
      status = absl::InvalidArgumentError("broken");
    }
    world_.End(job.second.kind, job.first, status);
  }

  void EndSomeAnswers() {
    for (const auto& [id, version] : world_.life().versions()) {
      if (version.state == v1::MODEL_STATE_DRAINING && version.held && Chance(50)) {
        return world_.EndAnswers(id.version, id.name);
      }
    }
  }

  void Happen() {
    const std::string name = Chance(80) ? "m" : "n";
    RepositoryModel& model = world_.repository[name];
    switch (Pick(13)) {
      case 0:
        if (next_ < 60) world_.Publish(next_++, name);
        return world_.Look();
      case 1:
        if (model.versions.empty()) return;
        world_.Delete(std::next(model.versions.begin(),
                                static_cast<std::ptrdiff_t>(Pick(model.versions.size())))
                          ->first,
                      name);
        return world_.Look();
      case 2:
        if (model.versions.empty()) return;
        world_.Publish(model.versions.rbegin()->first, name);  // its files change
        return world_.Look();
      case 3: {
        const char* labels[] = {"stable", "canary", "other"};
        const std::string label = labels[Pick(3)];
        if (model.versions.empty() || Chance(20)) {
          model.marks.labels.erase(label);
        } else {
          uint64_t& version = model.marks.labels[label];
          if (version != 0) model.marks.history[label].push_back(version);
          version = std::next(model.versions.begin(),
                              static_cast<std::ptrdiff_t>(Pick(model.versions.size())))
                        ->first;
        }
        return world_.Look();
      }
      case 4: {
        const VersionId id = Known();
        if (id.version != 0 && Chance(50)) world_.Load(id.version, id.name);
        return;
      }
      case 5: {
        const VersionId id = Known();
        if (id.version != 0 && Chance(30)) world_.Unload(id.version, id.name);
        return;
      }
      case 6: {
        const VersionId id = Known();
        if (world_.State(id.version, id.name) == v1::MODEL_STATE_READY && Chance(30)) {
          world_.Break(id.version, id.name);
        }
        return;
      }
      case 7:
        return world_.Pass(std::chrono::milliseconds(Pick(5000)));
      case 8:
      case 9:
        return EndSomeAnswers();
      default:
        return EndSomeJob(30);
    }
  }

  void ComeToRest() {
    for (int i = 0; i < 3000 && !AtRest(); ++i) {
      EndSomeJob(0);
      EndSomeAnswers();
    }
    ASSERT_TRUE(AtRest()) << "it never comes to rest:\n" << world_.Describe();
  }
  bool AtRest() { return world_.life().Settled() && world_.jobs().empty(); }

  void Recover() {
    for (auto& [name, model] : world_.repository) {
      world_.Publish(next_++, name);  // the policy moves on: no wish is left
      for (const auto& [version, mark] : std::map(model.versions)) world_.Publish(version, name);
    }
    world_.Look();
    for (int round = 0; round < 3; ++round) {
      ComeToRest();
      world_.Pass(std::chrono::minutes(10));  // retries
    }
    ComeToRest();
    for (const auto& [id, version] : world_.life().versions()) {
      if (world_.life().Wants(id)) {
        EXPECT_TRUE(version.state == v1::MODEL_STATE_READY ||
                    version.error.code() == absl::StatusCode::kResourceExhausted ||
                    version.waits_for_change)
            << id.name << " " << id.version << " is wanted, and is in state " << version.state
            << ": " << version.message;
      }
      EXPECT_EQ(version.held, version.state == v1::MODEL_STATE_READY);
      EXPECT_LT(version.message.size(), 1000U);
      if (version.present && version.state != v1::MODEL_STATE_FAILED &&
          version.message.find("it failed") == std::string::npos) {
        EXPECT_EQ(version.failures, 0) << "its files have changed since; state " << version.state;
      }
    }
    // And all of it can go.
    for (const auto& [id, version] : std::map(world_.life().versions())) {
      if (world_.life().Find(id) != nullptr) world_.Unload(id.version, id.name);
    }
    ComeToRest();
    EXPECT_EQ(world_.loaded, world_.freed);
    EXPECT_EQ(world_.life().EstimatedBytes(), 0U);
  }

  std::mt19937_64 random_;
  const Lifecycle::Options options_;
  LifecycleWorld world_;
  uint64_t next_ = 1;
};

TEST(LifecycleRandom, KeepsItsPromisesInAnyOrderOfEvents) {
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(seed);
    RandomLife(seed).Live(150);
    if (::testing::Test::HasFailure()) break;
  }
}

}  // namespace
}  // namespace llava
