#include "model/train/instruction_task.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <utility>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <c10/core/DeviceGuard.h>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/tensor_names.h"
#include "model/llava/llava.h"
#include "model/llava/philox.h"
#include "model/llava/self_test.h"
#include "model/progress/stop_request.h"
#include "model/train/frozen_tower.h"
#include "model/train/gradient_step.h"
#include "model/train/instruction_loader.h"
#include "model/train/instruction_model.h"
#include "model/train/instruction_set.h"
#include "model/train/master_weights.h"
#include "model/train/prefetcher.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;
using Batches = Prefetcher<InstructionBatch>;

constexpr auto kReplace = Json::error_handler_t::replace;  // complaints tell what files hold
constexpr int kPrepared = 4;                               // micro-batches ahead of the one in use
constexpr uint64_t kHeldOutSeed = 0;  // evaluations of different runs see the same questions
constexpr std::string_view kProjector = "model.mm_projector.";

bool IsOfProjector(const std::string& name) { return name.starts_with(kProjector); }

// Lies between tower and decoder: trained in either stage.
bool IsOfPictures(const std::string& name) { return IsOfProjector(name) || name == kImageNewline; }

bool IsOfAdapter(const std::string& name) { return name.find(".lora_") != name.npos; }

// The language model's tensors, and the adapters that are to be trained.
TensorSource WithAdapters(const LanguageCheckpoint& language, const InstructionSettings& settings,
                          uint64_t seed) {
  TensorSource tensors = language.tensors;
  if (!settings.lora) return tensors;
  const TensorSource adapters = FreshAdapters(language, settings.lora->rank, seed);
  for (const auto& [name, info] : adapters.tensors()) tensors.Adopt(name, adapters);
  return tensors;
}

// Each device computes whole micro-batches.
void CheckDevices(const TaskSettings& task, std::FILE* progress) {
  const auto devices = static_cast<int64_t>(task.devices.size());
  if (task.accumulation < devices) {
    throw std::invalid_argument(
        "setting \"accumulation\" is " + std::to_string(task.accumulation) +
        ", but \"device\" names " + std::to_string(devices) +
        ": each computes whole micro-batches, so a step needs at least as many. Raise it, and "
        "lower batch_size by as much: their product is what a step learns from");
  }
  if (progress != nullptr && task.accumulation % devices != 0) {
    std::fprintf(progress,
                 "llava-train: %lld micro-batches a step on %lld devices: some idle in the last "
                 "turn\n",
                 static_cast<long long>(task.accumulation), static_cast<long long>(devices));
  }
}

// Stage 1 is taught without one, and nobody may have thought of it before the model is served.
void TellTemplate(const InstructionModel& start, const InstructionSettings& settings,
                  std::FILE* progress) {
  const bool named = !settings.chat_template.empty() && !start.chat_template->drops_questions();
  if (progress == nullptr || !start.language.template_assumed || named) return;
  std::fprintf(progress,
               "llava-train: %s tells no chat template: \"%s\" is assumed, and published; "
               "chat_template=...%s names another\n",
               settings.model.c_str(), start.language.chat_template->name().c_str(),
               settings.stage == InstructionStage::kAlign ? " in stage 2" : "");
}

// One on each device.
std::vector<std::unique_ptr<Llava>> ModelsOf(const LanguageCheckpoint& language,
                                             const TensorSource& tensors,
                                             const InstructionSettings& settings,
                                             const TaskSettings& task) {
  std::vector<std::unique_ptr<Llava>> models;
  for (const at::Device device : task.devices) {
    const c10::DeviceGuard guard(device);
    Llava& model =
        *models.emplace_back(std::make_unique<Llava>(language, device, task.compute_dtype));
    if (settings.lora) model.decoder().Adapt(*settings.lora, tensors);
    model.decoder().set_gradient_checkpointing(task.gradient_checkpointing);
  }
  return models;
}

std::vector<MasterWeights::Visit> VisitsOf(const std::vector<std::unique_ptr<Llava>>& models) {
  std::vector<MasterWeights::Visit> visits;
  for (const auto& model : models) {
    visits.push_back(
        [&model = *model](const ParameterVisitor& visit) { model.VisitParameters(visit); });
  }
  return visits;
}

SampleRules RulesOf(const InstructionSettings& settings, const Llava& model, uint64_t seed) {
  const int64_t positions = model.config().decoder.max_position_embeddings;
  if (settings.max_tokens > positions) {
    throw std::invalid_argument("setting \"max_tokens\" is " + std::to_string(settings.max_tokens) +
                                ", the model has " + std::to_string(positions) + " positions");
  }
  return {.image_order = settings.image_order,
          .labels = settings.labels,
          .max_tokens = settings.max_tokens > 0 ? settings.max_tokens : positions,
          .pictures = model.picture_shape(),
          .seed = seed};
}

RowPlanOptions PlanOf(const InstructionSettings& settings, int64_t accumulation,
                      const SampleRules& rules) {
  return {.pack = settings.pack,
          .row_tokens = settings.row_tokens > 0 ? settings.row_tokens : rules.max_tokens,
          .order = settings.order,
          .by_tokens = !rules.pictures.is_fixed(),
          .batch = settings.batch_size,
          .accumulation = accumulation,
          .seed = rules.seed};
}

class InstructionTask : public TrainingTask {
 public:
  InstructionTask(const InstructionSettings& settings, const TaskSettings& task,
                  std::FILE* progress)
      : settings_(settings),
        task_(task),
        start_(OpenInstructionModel(settings, task.seed, ReadRunStart(task.run_folder))),
        tensors_(WithAdapters(start_.language, settings, task.seed)),
        models_(ModelsOf(start_.language, tensors_, settings, task)),
        weights_(
            VisitsOf(models_), tensors_,
            [&](const std::string& name) {
              if (settings.lora) return IsOfPictures(name) || IsOfAdapter(name);
              return settings.stage == InstructionStage::kFinetune || IsOfPictures(name);
            },
            task.compute_dtype, task.homes()),
        tower_(start_.tower, {.features = start_.language.config.features,
                              .devices = task.devices,
                              .dtype = task.compute_dtype,
                              .memory_bytes = settings.cache_bytes,
                              .cache_file = settings.cache_file}),
        encoder_(start_.tokenizer, start_.chat_template, RulesOf(settings, *models_[0], task.seed)),
        held_out_encoder_(start_.tokenizer, start_.chat_template,
                          RulesOf(settings, *models_[0], kHeldOutSeed)),
        set_(SetOptions("data", settings.data, settings.images), encoder_, progress) {
    TellTemplate(start_, settings, progress);
    if (!settings.held_out_data.empty()) {
      auto options = SetOptions("held-out data", settings.held_out_data, settings.held_out_images);
      options.most_records = settings.held_out_records;
      options.plan.order = RowOrder::kAsData;
      options.decode = true;  // else it would fail behind hundreds of steps
      held_out_ = std::make_unique<InstructionSet>(options, held_out_encoder_, progress);
    }
    // Settled here, before loader threads ask for one each: this thread's, and those of autograd,
    // which the first pass starts.
    at::get_num_threads();
    const at::AutoGradMode a_pass(true);
    at::ones({}, at::TensorOptions(task.device())).requires_grad_().mul(1).backward();
    FollowPlan();
  }

  std::string kind() const override {
    return settings_.stage == InstructionStage::kAlign ? "align" : "finetune";
  }
  int64_t total_steps() const override { return total_steps_; }
  int64_t num_replicas() const override { return static_cast<int64_t>(models_.size()); }
  std::vector<ParameterGroup> groups() override;
  void Begin(const std::filesystem::path& run_folder, bool resumes, std::FILE* progress) override;
  MicroBatch Forward(int64_t step, int64_t micro) override;
  int64_t HeaviestStep() override;
  Json Check(std::FILE* progress) override;
  Figures Evaluate() override;
  std::filesystem::path Publish(const std::filesystem::path& root, const std::string& name,
                                const Json& recipe) override;

 private:
  InstructionSet::Options SetOptions(const std::string& name,
                                     const std::vector<std::filesystem::path>& files,
                                     const std::filesystem::path& images) const {
    if (files.empty()) {
      throw std::invalid_argument("setting \"data\" is missing: a file of instruction data");
    }
    return {.name = name,
            .files = files,
            .images = images,
            .plan = PlanOf(settings_, task_.accumulation, encoder_.rules()),
            .threads = static_cast<int>(task_.loader_threads),
            .skip_bad = task_.skip_bad};
  }
  void FollowPlan() {
    const int64_t rows = set_.plan().rows(), step = settings_.batch_size * task_.accumulation;
    total_steps_ = settings_.steps > 0
                       ? settings_.steps
                       : static_cast<int64_t>(std::ceil(settings_.epochs * rows / step));
    loader_ = std::make_unique<InstructionLoader>(set_, encoder_, tower_, settings_.batch_size,
                                                  total_steps_ * step, task_.skip_bad);
    const auto threads = static_cast<int>((task_.loader_threads - 1) / num_replicas() + 1);
    for (int64_t replica = 0; replica < num_replicas(); ++replica) {
      batches_.push_back(std::make_unique<Batches>(
          [this, replica](int64_t number) {
            return loader_->MakeFull(shares().MicroBatch(replica, number));
          },
          threads, kPrepared));
    }
  }
  uint64_t DropoutDraw(int64_t step, int64_t micro) const {
    const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
    const auto at = static_cast<uint64_t>(step);
    const auto words = Philox4x32({low(at), low(at >> 32), static_cast<uint32_t>(micro), 0},
                                  {low(task_.seed), low(task_.seed >> 32)});
    return static_cast<uint64_t>(words[0]) << 32 | words[1];
  }
  ReplicaShares shares() const { return {task_.accumulation, num_replicas()}; }
  static Predictions PredictionsOf(const Llava& model, const InstructionBatch& batch) {
    std::vector<LabelledSample> samples;
    for (const TrainingRow& row : batch.rows) samples.push_back(row.View());
    return Predict(model, samples);
  }

  const InstructionSettings settings_;
  const TaskSettings task_;
  InstructionModel start_;
  TensorSource tensors_;                        // of the model in training
  std::vector<std::unique_ptr<Llava>> models_;  // replicas
  MasterWeights weights_;
  FrozenTower tower_;
  SampleEncoder encoder_, held_out_encoder_;
  InstructionSet set_;
  std::unique_ptr<InstructionSet> held_out_;
  int64_t total_steps_ = 0;
  std::unique_ptr<InstructionLoader> loader_;
  std::vector<std::unique_ptr<Batches>> batches_;  // by replica. Last: threads use the others
};

std::vector<ParameterGroup> InstructionTask::groups() {
  const double decay = settings_.weight_decay;
  ParameterGroup projector{"projector", {}, settings_.projector_learning_rate, decay};
  ParameterGroup biases{"projector biases", {}, settings_.projector_learning_rate, 0};
  ParameterGroup newline{"image newline", {}, settings_.projector_learning_rate, 0};
  ParameterGroup decoder{
      settings_.lora ? "adapters" : "decoder", {}, settings_.learning_rate, decay};
  ParameterGroup norms{"decoder norms", {}, settings_.learning_rate, 0};
  for (const auto& parameter : weights_.masters()) {
    const bool matrix = parameter.second.dim() > 1;
    ParameterGroup& group = parameter.first == kImageNewline ? newline
                            : IsOfProjector(parameter.first) ? (matrix ? projector : biases)
                                                             : (matrix ? decoder : norms);
    group.parameters.push_back(parameter);
  }
  std::vector<ParameterGroup> groups = {projector, biases, newline, decoder, norms};
  std::erase_if(groups, [](const ParameterGroup& group) { return group.parameters.empty(); });
  return groups;
}

void InstructionTask::Begin(const std::filesystem::path& run_folder, bool resumes,
                            std::FILE* progress) {
  KeepRunStart(run_folder, start_.start, resumes, progress);
  batches_.clear();  // their threads use plan and loader
  set_.KeepPlan(run_folder / "plan.safetensors", resumes, progress);
  FollowPlan();
  Json report = {{"data", set_.report()}};
  if (held_out_) report["held_out_data"] = held_out_->report();
  WriteDurably(run_folder / "data-report.json", report.dump(2, ' ', false, kReplace) + "\n");
}

MicroBatch InstructionTask::Forward(int64_t step, int64_t micro) {
  const int64_t replica = micro % num_replicas();
  Llava& model = *models_[replica];
  const c10::DeviceGuard guard(task_.devices[replica]);
  MicroBatch result;
  const InstructionBatch batch =
      batches_[replica]->Take(shares().NumberOf(step, micro), &result.waited_seconds);
  weights_.Bind(replica);
  if (settings_.lora) model.decoder().adapters().set_dropout_draw(DropoutDraw(step, micro));
  result.loss = PredictionsOf(model, batch).Loss();
  // Text alone does not meet the projector, which may be all that is trained. The reference gives
  // it a gradient of zero, by none of the rows of an empty picture; here by none of its weights.
  const bool pictures = std::any_of(batch.rows.begin(), batch.rows.end(),
                                    [](const TrainingRow& row) { return !row.features.empty(); });
  for (const auto& [name, master] : weights_.masters()) {
    if (pictures || !IsOfPictures(name)) continue;
    const at::Tensor nothing = master.flatten().slice(/*dim=*/0, /*start=*/0, /*end=*/0);
    result.loss = result.loss.add(nothing.sum().to(result.loss.device()));
  }
  result.samples = batch.samples;
  result.tokens = batch.tokens;
  result.trained_tokens = batch.trained_tokens;
  if (task_.skip_bad) {  // figures are averaged over the step: its sum
    result.figures = {{"left_out", static_cast<double>(batch.left_out * task_.accumulation)}};
  }
  result.origin = batch.origin;
  return result;
}

int64_t InstructionTask::HeaviestStep() {
  constexpr int64_t kMostRows = 1 << 21;  // of a longer run the beginning
  const int64_t batches =
      std::min(total_steps_ * task_.accumulation, kMostRows / settings_.batch_size + 1);
  int64_t heaviest = 0, most = 0, position = 0;
  for (int64_t micro = 0; micro < batches; ++micro) {
    int64_t tokens = 0;
    for (int64_t row = 0; row < settings_.batch_size; ++row) {
      tokens += set_.plan().Tokens(set_.plan().At(position++).row);
    }
    if (tokens <= most) continue;
    most = tokens;
    heaviest = micro / task_.accumulation;
  }
  return heaviest;
}

Json InstructionTask::Check(std::FILE* progress) {
  int64_t parameters = 0;
  models_[0]->VisitParameters(
      [&](const std::string&, at::Tensor& parameter) { parameters += parameter.numel(); });
  Json report = {
      {"kind", kind()},
      {"steps", total_steps_},
      {"rows_per_step", settings_.batch_size * task_.accumulation},
      {"epochs", static_cast<double>(total_steps_ * settings_.batch_size * task_.accumulation) /
                     static_cast<double>(set_.plan().rows())},
      {"parameters", parameters},
      {"data", set_.Check(progress)}};
  if (held_out_) report["held_out_data"] = held_out_->Check(progress);
  return report;
}

Figures InstructionTask::Evaluate() {
  if (!held_out_) return {};
  const InstructionLoader loader(*held_out_, held_out_encoder_, tower_, settings_.batch_size,
                                 held_out_->plan().rows(), task_.skip_bad);
  const at::NoGradGuard no_graph;
  weights_.Bind();
  Llava& model = *models_[0];
  if (settings_.lora) model.decoder().adapters().set_dropout_draw(std::nullopt);
  Batches batches([&](int64_t number) { return loader.Make(number); },
                  static_cast<int>(task_.loader_threads), kPrepared);
  double loss = 0, right = 0, tokens = 0;
  for (int64_t number = 0; number < loader.num_batches(); ++number) {
    StopRequest::ThrowIfRequested();
    const InstructionBatch batch = batches.Take(number);
    if (batch.samples == 0) continue;
    const Predictions predictions = PredictionsOf(model, batch);
    loss += predictions.Loss().item<double>() * static_cast<double>(batch.trained_tokens);
    right += predictions.NumRight();
    tokens += static_cast<double>(batch.trained_tokens);
  }
  return {{"held_out_loss", loss / tokens}, {"held_out_accuracy", right / tokens}};
}

std::filesystem::path InstructionTask::Publish(const std::filesystem::path& root,
                                               const std::string& name, const Json& recipe) {
  LanguageCheckpoint checkpoint =
      WithTrained(start_.language, weights_.masters(), settings_.lora, settings_.published_dtype);
  // The first sample of the data, up to the end of a first branch.
  const InstructionBatch batch = loader_->MakeFull(0);
  const TrainingRow& row = batch.rows.at(0);
  const auto end = row.branches.empty() ? static_cast<int64_t>(row.input_ids.size())
                                        : row.shared + row.branches[0];
  checkpoint.self_test = MakeSelfTest(checkpoint, std::span(row.input_ids).first(end),
                                      std::span(row.labels).first(end), row.features, at::kCPU,
                                      checkpoint.config.features.image_mode == ImageMode::kAnyres
                                          ? row.sizes
                                          : std::vector<Resolution>());
  return PublishLanguage(checkpoint, root, name, recipe.dump());
}

}  // namespace

std::unique_ptr<TrainingTask> MakeInstructionTask(InstructionStage stage, Recipe& recipe,
                                                  const TaskSettings& settings,
                                                  std::FILE* progress) {
  const InstructionSettings own = InstructionSettings::From(recipe, stage);
  CheckDevices(settings, progress);
  return std::make_unique<InstructionTask>(own, settings, progress);
}

}  // namespace llava
