#include "model/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/core/grad_mode.h>

#include "model/progress/progress.h"
#include "model/progress/stop_request.h"
#include "model/train/gradient_step.h"
#include "model/train/group_optimizer.h"
#include "model/train/optimizer.h"
#include "model/train/run_folder.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

Json ToJson(const Figures& figures) {
  Json json = Json::object();
  for (const auto& [name, value] : figures) json[name] = value;
  return json;
}

std::string Short(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

// One run in its folder.
class Run {
 public:
  Run(TrainingTask& task, const Recipe& recipe, const TrainerSettings& settings,
      const TrainerOptions& options)
      : task_(task),
        settings_(settings),
        options_(options),
        folder_(options.run_folder, recipe.Resolved(), recipe.Defaults()),
        optimizer_(task.groups(), settings),
        passes_(task, settings.accumulation),
        total_(BeginTask()),
        warmup_(WarmupSteps(total_, settings.warmup_ratio)) {}

  TrainingOutcome Work() {
    optimizer_.ZeroGradients();  // of a run that a fault has ended
    Restore();
    Progress progress(options_.progress, task_.kind(), total_, step_);
    const StopRequest stop;
    // The run that saved this step may have ended before its evaluation did.
    if (IsDue(settings_.evaluate_every) && !folder_.HasEvaluation(step_)) {
      StepReport report;
      if (!Evaluate(report)) return Stop(progress);
    }
    while (step_ < total_) {
      StepReport report;
      if (!Step(report)) return Stop(progress);
      progress.set_note(note_);
      progress.Update(step_);
      if (IsDue(settings_.save_every)) Save();
      if (IsDue(settings_.evaluate_every) && !Evaluate(report)) return Stop(progress);
      if (options_.on_step) options_.on_step(report);
    }
    Save();
    progress.Finish(step_);
    return TrainingOutcome::kFinished;
  }

 private:
  // Returns the steps of the whole run.
  int64_t BeginTask() {
    task_.Begin(folder_.path(), folder_.NewestState().has_value(), options_.progress);
    return task_.total_steps();
  }

  // Whether what is done every so many steps (0: at the end only) is to be done now.
  bool IsDue(int64_t every) const {
    return step_ > 0 && (step_ == total_ || (every > 0 && step_ % every == 0));
  }

  TrainingOutcome Stop(Progress& progress) {
    if (step_ > 0) Save();  // else there is nothing to keep
    progress.Finish(step_);
    return TrainingOutcome::kStopped;
  }

  // What the task does may fail for the data's sake, or for want of memory: then what has been
  // trained is kept. Gradients are left alone: where a backward pass has failed on one device,
  // autograd's threads of others may still be adding to them.
  template <typename Work>
  auto OrSave(const Work& work) {
    try {
      return work();
    } catch (...) {
      if (step_ == 0) throw;  // nothing to keep
      try {
        Save();
        std::fprintf(options_.progress,
                     "\nllava-train: the state of step %lld is saved; the same command goes on "
                     "from it\n",
                     static_cast<long long>(step_));
      } catch (const std::exception& error) {  // the first fault is the one to tell
        std::fprintf(options_.progress, "\nllava-train: nor can the state be saved: %s\n",
                     error.what());
      }
      throw;
    }
  }

  // One optimizer step. False: a stop was requested; nothing has changed since the last step.
  bool Step(StepReport& report) {
    const Clock::time_point begin = Clock::now();
    StepSums sums;
    for (int64_t turn = 0; turn < passes_.num_turns(); ++turn) {
      if (StopRequest::Requested()) {
        optimizer_.ZeroGradients();
        return false;
      }
      OrSave([&] { passes_.Turn(step_, turn, sums); });
    }
    report.loss = sums.loss;
    report.samples = sums.samples;
    report.tokens = sums.tokens;
    report.trained_tokens = sums.trained_tokens;
    report.waited_seconds = sums.waited_seconds;
    report.gradient_norm = optimizer_.Clip();
    report.skipped = !std::isfinite(report.loss) || !std::isfinite(report.gradient_norm);
    const double factor = RateFactor(step_, total_, warmup_, settings_.final_rate);
    const std::vector<ParameterGroup>& groups = optimizer_.groups();
    report.learning_rate = groups.empty() ? 0 : groups.front().learning_rate * factor;
    if (!report.skipped) optimizer_.Step(factor);
    optimizer_.ZeroGradients();
    NoteBad(report.skipped, sums.origin);
    report.step = ++step_;
    report.total_steps = total_;
    report.figures.assign(sums.figures.begin(), sums.figures.end());
    report.seconds = SecondsSince(begin);
    Tell(report);
    return true;
  }

  // Behind the step's line and state, so that a fault in it costs neither. False: a stop was
  // requested; the run that goes on makes up for it.
  bool Evaluate(StepReport& report) {
    try {
      report.evaluation = OrSave([&] {
        StopRequest::ThrowIfRequested();
        at::NoGradGuard guard;
        return task_.Evaluate();
      });
    } catch (const StopRequest::Came&) {
      return false;
    }
    if (report.evaluation.empty()) return true;
    folder_.LogEvaluation(step_, ToJson(report.evaluation));
    std::string text;
    for (const auto& [name, value] : report.evaluation) text += " " + name + "=" + Short(value);
    std::fprintf(options_.progress, "\nllava-train: step %lld:%s\n", static_cast<long long>(step_),
                 text.c_str());
    return true;
  }

  void NoteBad(bool skipped, const std::string& origin) {
    bad_steps_ = skipped ? bad_steps_ + 1 : 0;
    if (!skipped) return;
    std::fprintf(
        options_.progress,
        "\nllava-train: step %lld: loss or gradient is not finite, the step is skipped%s\n",
        static_cast<long long>(step_), origin.empty() ? "" : (": " + origin).c_str());
    if (bad_steps_ >= settings_.max_bad_steps) {
      throw std::runtime_error(
          "the loss is not finite for " + std::to_string(bad_steps_) +
          " steps in a row; the state of step " + std::to_string(saved_.value_or(0)) +
          " is kept. Lower the learning rate, or look at the samples: " + origin);
    }
  }

  void Tell(const StepReport& report) {
    Json line = {{"step", report.step},
                 {"loss", report.loss},
                 {"gradient_norm", report.gradient_norm},
                 {"learning_rate", report.learning_rate},
                 {"samples", report.samples},
                 {"tokens", report.tokens},
                 {"trained_tokens", report.trained_tokens},
                 {"seconds", report.seconds},
                 {"waited_seconds", report.waited_seconds},
                 {"skipped", report.skipped}};
    if (!report.figures.empty()) line["figures"] = ToJson(report.figures);
    folder_.Log(line);
    const double weight = smooth_loss_ ? 0.05 : 1;
    if (!report.skipped) {
      smooth_loss_ = (1 - weight) * smooth_loss_.value_or(0) + weight * report.loss;
    }
    note_ = "loss " + Short(smooth_loss_.value_or(report.loss)) + ", rate " +
            Short(report.learning_rate) + ", " +
            Short(static_cast<double>(report.tokens) / report.seconds) + " tokens/s";
  }

  // Everything that the next step depends on, by name.
  std::map<std::string, at::Tensor> State() {
    std::map<std::string, at::Tensor> state;
    optimizer_.VisitState(
        [&](const std::string& name, at::Tensor& tensor) { state[name] = tensor; });
    return state;
  }

  void Save() {
    if (saved_ == step_) return;
    at::NoGradGuard guard;
    std::map<std::string, at::Tensor> state = State();
    for (auto& [name, tensor] : state) tensor = tensor.detach();
    folder_.SaveState(step_, state, std::max<int64_t>(1, settings_.keep_states));
    saved_ = step_;
  }

  void Restore() {
    saved_ = folder_.NewestState();
    step_ = saved_.value_or(0);
    folder_.Rewind(step_);
    if (!saved_) return;
    at::NoGradGuard guard;
    std::map<std::string, at::Tensor> stored = folder_.LoadState(step_);
    for (auto& [name, tensor] : State()) {
      const auto found = stored.find(name);
      if (found == stored.end() || found->second.sizes() != tensor.sizes()) {
        throw std::runtime_error(folder_.path().string() + ": the state of step " +
                                 std::to_string(step_) + " does not fit: " + name +
                                 (found == stored.end() ? " is missing" : " has another shape"));
      }
      tensor.detach().copy_(found->second);
    }
    std::fprintf(options_.progress, "llava-train: goes on from step %lld of %lld\n",
                 static_cast<long long>(step_), static_cast<long long>(total_));
  }

  TrainingTask& task_;
  const TrainerSettings& settings_;
  const TrainerOptions& options_;
  RunFolder folder_;
  GroupOptimizer optimizer_;
  GradientStep passes_;
  const int64_t total_, warmup_;
  int64_t step_ = 0;  // steps done
  std::optional<int64_t> saved_;
  int64_t bad_steps_ = 0;
  std::optional<double> smooth_loss_;
  std::string note_;
};

}  // namespace

TrainerSettings TrainerSettings::From(Recipe& recipe) {
  TrainerSettings s;
  s.accumulation = ReadAccumulation(recipe);
  s.clip_norm = recipe.Number("clip_norm", s.clip_norm, "largest norm of a gradient; 0: any");
  s.warmup_ratio = recipe.Number("warmup_ratio", s.warmup_ratio,
                                 "share of the steps in which the rate rises from 0", 0, 1);
  s.final_rate = recipe.Number("final_rate", s.final_rate,
                               "where the cosine ends, as a share of the peak rate", 0, 1);
  s.beta1 = recipe.Number("adam.beta1", s.beta1, "AdamW: decay of the first moment", 0, 0.999999);
  s.beta2 = recipe.Number("adam.beta2", s.beta2, "AdamW: decay of the second moment", 0, 0.999999);
  s.eps = recipe.Number("adam.eps", s.eps, "AdamW: added to the root of the second moment");
  s.save_every = recipe.Int("save_every", s.save_every, "steps between states; 0: at the end only");
  s.keep_states = recipe.Int("keep_states", s.keep_states, "newest states that are kept", 1);
  s.evaluate_every = recipe.Int("evaluate_every", s.evaluate_every,
                                "steps between evaluations; 0: at the end only");
  s.max_bad_steps = recipe.Int("max_bad_steps", s.max_bad_steps,
                               "steps in a row that may be not finite before the run gives up", 1);
  return s;
}

TrainingOutcome Train(TrainingTask& task, const Recipe& recipe, const TrainerSettings& settings,
                      const TrainerOptions& options) {
  return Run(task, recipe, settings, options).Work();
}

}  // namespace llava
