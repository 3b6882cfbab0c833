#include "model/train/train_command.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>

#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>

#include "model/progress/stop_request.h"
#include "model/train/gradient_step.h"
#include "model/train/group_optimizer.h"
#include "model/train/instruction_task.h"
#include "model/train/language_task.h"
#include "model/train/metrics_endpoint.h"
#include "model/train/publish_once.h"
#include "model/train/trainer.h"
#include "model/train/vision_task.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;
using TaskMaker =
    std::function<std::unique_ptr<TrainingTask>(Recipe&, const TaskSettings&, std::FILE*)>;

const std::map<std::string, TaskMaker>& Makers() {
  static const std::map<std::string, TaskMaker> makers = {
      {"pretrain-lm", [](Recipe& recipe, const TaskSettings& settings,
                         std::FILE*) { return MakeLanguageTask(recipe, settings); }},
      {"pretrain-vision", [](Recipe& recipe, const TaskSettings& settings,
                             std::FILE*) { return MakeVisionTask(recipe, settings); }},
      {"align",
       [](Recipe& recipe, const TaskSettings& settings, std::FILE* progress) {
         return MakeInstructionTask(InstructionStage::kAlign, recipe, settings, progress);
       }},
      {"finetune",
       [](Recipe& recipe, const TaskSettings& settings, std::FILE* progress) {
         return MakeInstructionTask(InstructionStage::kFinetune, recipe, settings, progress);
       }},
  };
  return makers;
}

// Recipe, settings of all kinds, and the task itself.
struct Opened {
  Recipe recipe;
  TrainerSettings trainer;
  std::unique_ptr<TrainingTask> task;

  // Reads the settings that all kinds have.
  explicit Opened(const TrainCommand& command) {
    if (!command.recipe.empty()) recipe = Recipe::Read(command.recipe);
    for (const std::string& setting : command.settings) recipe.Set(setting);
    // Written by a run: says what kind of task the recipe is for.
    const std::string kind = recipe.Text("kind", command.kind, "of training");
    if (kind != command.kind) {
      throw std::invalid_argument("the recipe is for `llava-train " + kind + "`");
    }
    const auto cores = static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()));
    const int64_t threads = recipe.Int(
        "threads", cores, "that compute; the same number repeats a run bit for bit", 1, 1024);
    at::set_num_threads(static_cast<int>(threads));
    trainer = TrainerSettings::From(recipe);
    settings_ = TaskSettings::From(recipe);
    settings_.run_folder = command.run_folder;
  }

  void Open(const std::string& kind, std::FILE* progress) {
    task = Makers().at(kind)(recipe, settings_, progress);
    recipe.CheckAllRead();
  }

  const std::vector<at::Device>& devices() const { return settings_.devices; }

 private:
  TaskSettings settings_;
};

int64_t Count(const ParameterGroup& group) {
  int64_t count = 0;
  for (const auto& [name, parameter] : group.parameters) count += parameter.numel();
  return count;
}

int64_t PeakMemory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// The most that LibTorch has taken of one of these GPUs.
int64_t PeakDeviceMemory(const std::vector<at::Device>& devices) {
  int64_t peak = 0;
  for (const at::Device device : devices) {
    const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    peak = std::max(peak, stats.reserved_bytes[kAll].peak);
  }
  return peak;
}

struct DryFigures {
  int64_t tokens_per_step = 0;
  double seconds_per_step = 0;
};

// Does the first steps as they will be, but with a rate of 0. Then, for the memory, the heaviest
// one and some from all over the run, as far as time allows: in 16 bits LibTorch keeps memory for
// every number of rows that it meets.
DryFigures TrySteps(TrainingTask& task, const TrainerSettings& settings) {
  constexpr int64_t kTries = 4, kMore = 24;
  constexpr double kMostSeconds = 20;  // for those
  GroupOptimizer optimizer(task.groups(), settings);
  GradientStep passes(task, settings.accumulation);
  int64_t tokens = 0;
  const auto try_step = [&](int64_t step) {
    const auto begin = std::chrono::steady_clock::now();
    StepSums sums;
    for (int64_t turn = 0; turn < passes.num_turns(); ++turn) passes.Turn(step, turn, sums);
    tokens += sums.tokens;
    optimizer.Clip();
    optimizer.Step(/*factor=*/0);
    optimizer.ZeroGradients();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  std::vector<double> seconds;
  for (int64_t step = 0; step < std::min(kTries, task.total_steps()); ++step) {
    seconds.push_back(try_step(step));
  }
  if (seconds.empty()) return {};
  const auto tries = static_cast<int64_t>(seconds.size());
  const int64_t tokens_per_step = tokens / tries;
  std::sort(seconds.begin(), seconds.end());
  if (const int64_t heaviest = task.HeaviestStep(); heaviest >= tries) try_step(heaviest);
  const int64_t rest = task.total_steps() - tries, more = std::min(kMore, rest);
  double spent = 0;
  for (int64_t i = 0; i < more && spent < kMostSeconds; ++i) {
    spent += try_step(tries + i * rest / more);
  }
  return {tokens_per_step, seconds[tries / 2]};
}

// False if it was stopped.
bool TrainAndPublish(const TrainCommand& command, std::FILE* progress) {
  Opened opened(command);
  opened.Open(command.kind, progress);
  const auto endpoint = command.metrics_address.empty()
                            ? nullptr
                            : MetricsEndpoint::Start(command.metrics_address, command.kind);
  TrainerOptions options{.run_folder = command.run_folder, .progress = progress, .on_step = {}};
  if (endpoint) {
    std::fprintf(progress, "llava-train: metrics at http://%s/metrics\n",
                 endpoint->address().c_str());
    options.on_step = [&](const StepReport& report) { endpoint->Update(report); };
  }
  if (Train(*opened.task, opened.recipe, opened.trainer, options) == TrainingOutcome::kStopped) {
    return false;
  }
  if (command.repository.empty()) return true;
  if (StopRequest::Requested()) return false;  // once begun it comes to its end
  const Json recipe = opened.recipe.Resolved();
  const std::filesystem::path folder =
      PublishOnce(command.run_folder, command.repository, command.name, recipe,
                  [&] { return opened.task->Publish(command.repository, command.name, recipe); });
  std::printf("%s\n", folder.string().c_str());
  return true;
}

}  // namespace

std::vector<std::string> TrainingKinds() {
  std::vector<std::string> kinds;
  for (const auto& [kind, maker] : Makers()) kinds.push_back(kind);
  return kinds;
}

int RunTraining(const TrainCommand& command, std::FILE* progress) {
  const StopRequest stop;  // opening takes minutes, too
  const auto stopped = [progress] {
    std::fprintf(progress, "llava-train: stopped; the same command goes on from here\n");
    return kExitResume;
  };
  try {
    return TrainAndPublish(command, progress) ? 0 : stopped();
  } catch (const StopRequest::Came&) {
    return stopped();
  }
}

void RunDry(const TrainCommand& command, std::FILE* progress) {
  Opened opened(command);
  opened.Open(command.kind, progress);
  TrainingTask& task = *opened.task;
  Json report = task.Check(progress);
  int64_t trained = 0;
  for (const ParameterGroup& group : task.groups()) {
    report["trained_parameters"][group.name] = Count(group);
    trained += Count(group);
  }
  const DryFigures figures = TrySteps(task, opened.trainer);
  report["steps"] = task.total_steps();
  report["tokens_per_step"] = figures.tokens_per_step;
  report["seconds_per_step"] = figures.seconds_per_step;
  report["estimated_seconds"] = figures.seconds_per_step * static_cast<double>(task.total_steps());
  constexpr int64_t kStateBytes = 12;  // a parameter and its moments, in float32
  report["state_bytes"] = kStateBytes * trained;
  // The oldest goes when the newest is whole.
  report["states_bytes"] = kStateBytes * trained * (opened.trainer.keep_states + 1);
  report["estimated_memory_bytes"] = PeakMemory();
  if (!opened.devices().front().is_cpu()) {
    report["estimated_device_memory_bytes"] = PeakDeviceMemory(opened.devices());
  }
  std::printf("%s\n", report.dump(2).c_str());
}

void RunDescribe(const TrainCommand& command) {
  Opened opened(command);
  std::string fault;
  try {
    opened.Open(command.kind, nullptr);
  } catch (const std::exception& error) {
    fault = error.what();
  }
  std::printf("%-28s %-24s %s\n", "SETTING", "VALUE", "MEANING");
  for (const Recipe::Setting& setting : opened.recipe.settings()) {
    const std::string value = setting.value.dump() + (setting.is_default ? "" : " *");
    std::printf("%-28s %-24s %s\n", setting.key.c_str(), value.c_str(), setting.meaning.c_str());
  }
  std::printf("(* given by the recipe or --set)\n");
  if (opened.task) {
    std::printf("\nsteps: %lld\n", static_cast<long long>(opened.task->total_steps()));
    for (const ParameterGroup& group : opened.task->groups()) {
      std::printf("trains %s: %lld parameters, peak rate %g, weight decay %g\n", group.name.c_str(),
                  static_cast<long long>(Count(group)), group.learning_rate, group.weight_decay);
    }
  } else {
    std::printf("\nnot opened: %s\n", fault.c_str());
  }
}

}  // namespace llava
