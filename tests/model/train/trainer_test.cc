#include "model/train/trainer.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/progress/stop_request.h"
#include "model/train/run_folder.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

// Learns a matrix from noisy products: a loss that depends on every step before it.
class Regression : public TrainingTask {
 public:
  explicit Regression(int64_t steps) : steps_(steps) {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
    truth_ = at::randn({6, 4}, generator, at::kFloat);
    weight_ = at::zeros({6, 4}).requires_grad_();
    bias_ = at::zeros({4}).requires_grad_();
  }

  std::string kind() const override { return "regression"; }
  int64_t total_steps() const override { return steps_; }
  std::vector<ParameterGroup> groups() override {
    return {{.name = "weight",
             .parameters = {{"weight", weight_}},
             .learning_rate = 0.1,
             .weight_decay = 0.01},
            {.name = "bias", .parameters = {{"bias", bias_}}, .learning_rate = 0.05}};
  }
  MicroBatch Forward(int64_t step, int64_t micro) override {
    if (before_forward) before_forward(step, micro);
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(1000 * step + micro);
    const at::Tensor x = at::randn({8, 6}, generator, at::kFloat);
    const at::Tensor noise = at::randn({8, 4}, generator, at::kFloat) * 0.1;
    MicroBatch batch;
    batch.loss = (at::matmul(x, weight_) + bias_ - at::matmul(x, truth_) - noise).square().mean();
    if (step >= spoil_from && step < spoil_to) batch.loss = batch.loss * NAN;
    if (in_backward) {
      batch.loss.register_hook([this, step](const at::Tensor&) { in_backward(step); });
    }
    batch.samples = 8;
    batch.tokens = 48;
    batch.origin = "rows of step " + std::to_string(step);
    batch.figures = {{"micro", static_cast<double>(micro)}};
    return batch;
  }
  nlohmann::ordered_json Check(std::FILE*) override { return {}; }
  Figures Evaluate() override {
    if (before_evaluation) before_evaluation();
    StopRequest::ThrowIfRequested();
    return {{"distance", (weight_ - truth_).norm().item<double>()}};
  }
  std::filesystem::path Publish(const std::filesystem::path& root, const std::string&,
                                const nlohmann::ordered_json&) override {
    return root;
  }

  std::function<void(int64_t, int64_t)> before_forward;
  std::function<void(int64_t)> in_backward;
  std::function<void()> before_evaluation;
  int64_t spoil_from = 0, spoil_to = 0;

 private:
  const int64_t steps_;
  at::Tensor truth_, weight_, bias_;
};

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() {
    sink_ = std::fopen("/dev/null", "w");
    at::set_num_threads(1);  // a fork must not lose OpenMP threads
  }
  ~TrainerTest() override { std::fclose(sink_); }

  TrainingOutcome Run(Regression& task, const std::string& name,
                      const std::string& recipe_json = "{}") {
    Recipe recipe = Recipe::Parse(recipe_json, "test");
    recipe.Set("accumulation=4");
    if (recipe_json.find("save_every") == std::string::npos) recipe.Set("save_every=5");
    recipe.Set("evaluate_every=10");
    recipe.Set("max_bad_steps=3");
    const TrainerSettings settings = TrainerSettings::From(recipe);
    return Train(task, recipe, settings,
                 {.run_folder = folder_ / name, .progress = sink_, .on_step = {}});
  }

  // Each line without what a clock has written.
  std::vector<std::string> Log(const std::string& name) {
    std::ifstream file(folder_ / name / "metrics.jsonl");
    std::vector<std::string> lines;
    for (std::string text; std::getline(file, text);) {
      auto line = nlohmann::ordered_json::parse(text);
      line.erase("seconds");
      line.erase("waited_seconds");
      lines.push_back(line.dump());
    }
    return lines;
  }

  const TempFolder temp_;
  const std::filesystem::path& folder_ = temp_.path();
  std::FILE* sink_;
};

TEST_F(TrainerTest, LearnsAndLogsEveryStep) {
  Regression task(40);
  EXPECT_EQ(Run(task, "run"), TrainingOutcome::kFinished);
  const auto log = Log("run");
  ASSERT_EQ(log.size(), 40u);
  const auto first = nlohmann::json::parse(log.front()), last = nlohmann::json::parse(log.back());
  EXPECT_EQ(first.at("step"), 1);
  EXPECT_EQ(first.at("learning_rate"), 0) << "the rate rises from 0";
  EXPECT_EQ(first.at("samples"), 32);
  EXPECT_EQ(first.at("figures").at("micro"), 1.5);
  EXPECT_LT(last.at("loss").get<double>(), 0.1 * first.at("loss").get<double>());
  EXPECT_TRUE(nlohmann::json::parse(log[9]).contains("evaluation"));
  EXPECT_FALSE(nlohmann::json::parse(log[10]).contains("evaluation"));
  EXPECT_LT(last.at("evaluation").at("distance").get<double>(), 1.0);
}

// kill -9 at a step's third micro-batch, five times over: the log is that of a run in one piece.
TEST_F(TrainerTest, KilledRunsRepeatEveryLossBitForBit) {
  Regression whole(40);
  Run(whole, "whole");
  for (const int64_t at : {3, 11, 12, 26, 38}) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Regression task(40);
      task.before_forward = [at](int64_t step, int64_t micro) {
        if (step == at && micro == 2) raise(SIGKILL);
      };
      Run(task, "killed");
      _exit(1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the run was to die at step " << at;
  }
  Regression task(40);
  EXPECT_EQ(Run(task, "killed"), TrainingOutcome::kFinished);
  EXPECT_EQ(Log("killed"), Log("whole"));
}

TEST_F(TrainerTest, ASignalSavesAndTheNextRunGoesOn) {
  Regression whole(20);
  Run(whole, "whole");
  Regression task(20);
  task.before_forward = [](int64_t step, int64_t micro) {
    if (step == 7 && micro == 1) raise(SIGTERM);
  };
  EXPECT_EQ(Run(task, "stopped"), TrainingOutcome::kStopped);
  EXPECT_EQ(Log("stopped").size(), 7u);
  Regression again(20);
  int64_t first = -1;
  again.before_forward = [&](int64_t step, int64_t) {
    if (first < 0) first = step;
  };
  EXPECT_EQ(Run(again, "stopped"), TrainingOutcome::kFinished);
  EXPECT_EQ(first, 7) << "nothing is done twice";
  EXPECT_EQ(Log("stopped"), Log("whole"));
}

// Of the data, or of memory that the backward pass has not got.
TEST_F(TrainerTest, AFaultOfAPassCostsNoStep) {
  Regression whole(20);
  Run(whole, "whole");
  for (const bool backward : {false, true}) {
    const std::string run = backward ? "backward" : "forward";
    Regression task(20);
    const auto fault = [](int64_t step) {
      if (step == 7) throw std::runtime_error("a broken picture");
    };
    if (backward) {
      task.in_backward = fault;
    } else {
      task.before_forward = [&](int64_t step, int64_t micro) {
        if (micro == 1) fault(step);
      };
    }
    EXPECT_THAT([&] { Run(task, run); },
                ThrowsMessage<std::runtime_error>(HasSubstr("a broken picture")));
    Regression again(20);
    int64_t first = -1;
    again.before_forward = [&](int64_t step, int64_t) {
      if (first < 0) first = step;
    };
    EXPECT_EQ(Run(again, run), TrainingOutcome::kFinished);
    EXPECT_EQ(first, 7) << run;
    EXPECT_EQ(Log(run), Log("whole")) << run;
  }
}

TEST_F(TrainerTest, WhatAFaultHasLeftOfAStepIsForgotten) {
  Regression whole(20);
  Run(whole, "whole");
  Regression task(20);
  task.before_forward = [](int64_t step, int64_t micro) {
    if (step == 7 && micro == 2) throw std::runtime_error("a broken picture");
  };
  EXPECT_THROW(Run(task, "run"), std::runtime_error);
  task.before_forward = nullptr;
  Run(task, "run");
  EXPECT_EQ(Log("run"), Log("whole"));
}

// Of a step that is saved before it, and of one that is not.
TEST_F(TrainerTest, AnEvaluationThatFailsOrIsKilledCostsNoStepAndIsMadeOnce) {
  for (const char* save_every : {"5", "7"}) {
    const std::string recipe = std::string("{\"save_every\": ") + save_every + "}";
    const std::string name = std::string("run-") + save_every, whole = "whole-" + name;
    Regression undisturbed(20);
    Run(undisturbed, whole, recipe);
    Regression failing(20);
    failing.before_evaluation = [] { throw std::runtime_error("a broken picture"); };
    for (int i = 0; i < 2; ++i) {  // it goes on from where it failed, and fails there again
      EXPECT_THAT([&] { Run(failing, name, recipe); },
                  ThrowsMessage<std::runtime_error>(HasSubstr("a broken picture")));
    }
    EXPECT_EQ(Log(name).size(), 10u);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Regression task(20);
      task.before_evaluation = [] { raise(SIGKILL); };
      Run(task, name, recipe);
      _exit(1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    Regression task(20);
    int64_t first = -1;
    int evaluations = 0;
    task.before_forward = [&](int64_t step, int64_t) {
      if (first < 0) first = step;
    };
    task.before_evaluation = [&] { ++evaluations; };
    EXPECT_EQ(Run(task, name, recipe), TrainingOutcome::kFinished);
    EXPECT_EQ(first, 10);
    EXPECT_EQ(evaluations, 2) << "the one that was due, and the last";
    EXPECT_EQ(Log(name), Log(whole));
    EXPECT_EQ(Run(task, name, recipe), TrainingOutcome::kFinished);
    EXPECT_EQ(evaluations, 2) << "all is done";
  }
}

// An evaluation may take longer than a scheduler waits.
TEST_F(TrainerTest, ASignalEndsAnEvaluationAndTheOneBeforeIt) {
  const std::string recipe = R"({"save_every": 7})";
  Regression undisturbed(20);
  Run(undisturbed, "whole", recipe);
  for (const bool before : {true, false}) {
    const std::string name = before ? "before" : "within";
    Regression task(20);
    int evaluations = 0;
    task.before_forward = [&](int64_t step, int64_t micro) {
      if (before && step == 9 && micro == 3) raise(SIGTERM);
    };
    task.before_evaluation = [&] {
      ++evaluations;
      if (!before) raise(SIGTERM);
    };
    EXPECT_EQ(Run(task, name, recipe), TrainingOutcome::kStopped);
    EXPECT_EQ(evaluations, before ? 0 : 1) << name;
    EXPECT_TRUE(std::filesystem::exists(folder_ / name / "state-00000010.safetensors")) << name;
    EXPECT_EQ(Log(name).size(), 10u) << name;
    Regression again(20);
    evaluations = 0;
    again.before_evaluation = [&] { ++evaluations; };
    EXPECT_EQ(Run(again, name, recipe), TrainingOutcome::kFinished);
    EXPECT_EQ(evaluations, 2) << "the one that was due, and the last";
    EXPECT_EQ(Log(name), Log("whole")) << name;
  }
}

TEST_F(TrainerTest, StepsThatAreNotFiniteAreSkipped) {
  Regression task(20);
  task.spoil_from = 6;
  task.spoil_to = 8;
  EXPECT_EQ(Run(task, "run"), TrainingOutcome::kFinished);
  const auto log = Log("run");
  EXPECT_TRUE(nlohmann::json::parse(log[6]).at("skipped").get<bool>());
  EXPECT_FALSE(nlohmann::json::parse(log[8]).at("skipped").get<bool>());
  EXPECT_TRUE(std::isfinite(nlohmann::json::parse(log[19]).at("loss").get<double>()));
}

TEST_F(TrainerTest, GivesUpWhenTheLossStaysNotFiniteAndKeepsTheState) {
  Regression task(20);
  task.spoil_from = 6;
  task.spoil_to = 20;
  EXPECT_THAT([&] { Run(task, "run"); }, ThrowsMessage<std::runtime_error>(testing::AllOf(
                                             HasSubstr("not finite for 3 steps"),
                                             HasSubstr("step 5"), HasSubstr("rows of step 8"))));
  Regression healthy(20);
  EXPECT_EQ(Run(healthy, "run"), TrainingOutcome::kFinished);
}

TEST_F(TrainerTest, RefusesAFolderOfAnotherRecipe) {
  Regression task(5), other(5);
  Run(task, "run");
  EXPECT_THAT([&] { Run(other, "run", R"({"clip_norm": 2.0})"); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("/clip_norm: was 1.0, now 2.0")));
}

TEST_F(TrainerTest, WhatComputesMayChangeInARunThatHasBegun) {
  using Json = nlohmann::ordered_json;
  const std::filesystem::path path = folder_ / "run";
  const Json eight = {{"device", "cuda:all"},
                      {"offload", false},
                      {"threads", 128},
                      {"loader_threads", 8},
                      {"gradient_checkpointing", false},
                      {"save_every", 500},
                      {"keep_states", 2}};
  const Json one = {{"device", "cuda:0"},
                    {"offload", true},
                    {"threads", 2},
                    {"loader_threads", 1},
                    {"gradient_checkpointing", true},
                    {"save_every", 50},
                    {"keep_states", 1}};
  { const RunFolder begun(path, eight); }
  { const RunFolder again(path, one); }
  std::ifstream file(path / "recipe.json");
  EXPECT_EQ(Json::parse(file), one);
}

TEST_F(TrainerTest, BadRecordsMayBeLeftOutOfARunThatHasBegun) {
  using Json = nlohmann::ordered_json;
  const std::filesystem::path path = folder_ / "run";
  { const RunFolder begun(path, {{"batch", 4}, {"skip_bad", false}}); }
  { const RunFolder again(path, {{"batch", 4}, {"skip_bad", true}}); }
  std::ifstream file(path / "recipe.json");
  EXPECT_EQ(Json::parse(file), (Json{{"batch", 4}, {"skip_bad", true}}));
  EXPECT_THAT(([&] {
                RunFolder(path, {{"batch", 5}, {"skip_bad", false}});
              }),
              ThrowsMessage<std::invalid_argument>(testing::AllOf(
                  HasSubstr("/batch: was 4, now 5"), testing::Not(HasSubstr("skip_bad")))));
}

TEST_F(TrainerTest, ModelAndTowerMayBeSpelledOtherwiseBesideAState) {
  using Json = nlohmann::ordered_json;
  const std::filesystem::path path = folder_ / "run";
  const Json begun = {{"model", "models/a"}, {"tower", "models/t"}, {"threads", 1}};
  const Json other = {{"model", "models/b"}, {"tower", "models/t"}, {"threads", 2}};
  { const RunFolder first(path, begun); }
  std::ofstream(path / kRunStartFile) << "{}";
  // Nothing would compare the digests: states may have been deleted behind a published version.
  EXPECT_THAT([&] { RunFolder(path, other); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("/model: was \"models/a\"")));
  std::ofstream(path / "state-00000001.safetensors") << "x";
  { const RunFolder again(path, other); }
  // The run may refuse that model yet.
  std::ifstream file(path / "recipe.json");
  EXPECT_EQ(Json::parse(file),
            (Json{{"model", "models/a"}, {"tower", "models/t"}, {"threads", 2}}));
}

TEST_F(TrainerTest, ALaterProgramWithMoreSettingsGoesOnByTheirDefaults) {
  using Json = nlohmann::ordered_json;
  const std::filesystem::path path = folder_ / "run";
  { const RunFolder begun(path, {{"batch", 4}, {"limit", nullptr}}); }
  const Json later = {{"batch", 4}, {"limit", nullptr}, {"lora", {{"rank", 0}, {"alpha", 1}}}};
  EXPECT_THAT(([&] {
                RunFolder(path, later, {{"lora", {{"alpha", 1}}}});
              }),
              ThrowsMessage<std::invalid_argument>(testing::AllOf(
                  HasSubstr("/lora/rank: was missing, now 0"), testing::Not(HasSubstr("alpha")))));
  {
    const RunFolder again(path, later, {{"limit", nullptr}, {"lora", {{"rank", 0}, {"alpha", 1}}}});
  }
  { const RunFolder known(path, later); }  // it is in the file now
}

TEST_F(TrainerTest, KeepsTheNewestStatesOnly) {
  Regression task(23);
  Run(task, "run");
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "run")) {
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names,
              testing::IsSupersetOf({"state-00000020.safetensors", "state-00000023.safetensors"}));
  EXPECT_THAT(names, testing::Not(testing::Contains("state-00000015.safetensors")));
}

}  // namespace
}  // namespace llava
