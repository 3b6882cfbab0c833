// llava_gpu_train DEVICE SHAPE MODELS
//
// Training on DEVICE: a run of the small language model (tokenizer and tower of MODELS, the folder
// deploy/models) beside the same run on the CPU, and one that goes on from a state; then steps of a
// decoder of SHAPE, 1b or tiny, in bfloat16 with float32 masters: time and memory, with and without
// recomputed layers, of all weights and of adapters of low rank, on several devices (two replicas
// where there is one) and with masters on the host. Prints a JSON object a line, each when its part
// is finished.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/remainder.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <nlohmann/json.hpp>

#include "model/checkpoint/memory_tensors.h"
#include "model/nn/llama.h"
#include "model/nn/low_rank.h"
#include "model/ops/feature.h"
#include "model/train/fresh_weights.h"
#include "model/train/gradient_step.h"
#include "model/train/group_optimizer.h"
#include "model/train/language_task.h"
#include "model/train/master_weights.h"
#include "model/train/recipe.h"
#include "model/train/trainer.h"
#include "tests/gpu/bench.h"
#include "tests/support/temp_folder.h"

namespace llava::bench {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int64_t kRunSteps = 10;
// Of losses in float32 on two kinds of device, after so many steps of sums in other orders.
constexpr double kMostDifference = 2e-3;

// Losses of the steps that a run in `folder` does: all, or those behind its newest state.
std::vector<double> RunOf(const std::string& device, const std::string& precision,
                          const fs::path& models, const fs::path& folder) {
  Recipe recipe;
  for (const std::string& setting : std::vector<std::string>{
           "tokenizer=" + (models / "emoji/1").string(),
           "tower=" + (models / "emoji-tower/1").string(), "steps=" + std::to_string(kRunSteps),
           "dense_steps=5", "rows=16", "save_every=5", "evaluate_every=0", "evaluation.scenes=16",
           "evaluation.greedy=1", "device=" + device, "precision=" + precision}) {
    recipe.Set(setting);
  }
  const TrainerSettings trainer = TrainerSettings::From(recipe);
  const TaskSettings settings = TaskSettings::From(recipe);
  const std::unique_ptr<TrainingTask> task = MakeLanguageTask(recipe, settings);
  recipe.CheckAllRead();
  std::vector<double> losses;
  Train(*task, recipe, trainer,
        {.run_folder = folder, .progress = stderr, .on_step = [&](const StepReport& report) {
           losses.push_back(report.loss);
         }});
  return losses;
}

double LargestShare(const std::vector<double>& found, const std::vector<double>& expected) {
  if (found.size() != expected.size()) throw std::runtime_error("not as many steps");
  double largest = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    largest = std::max(largest, std::abs(found[i] - expected[i]) / std::abs(expected[i]));
  }
  return largest;
}

// Throws if a curve is not the CPU's, or a run that goes on not the run in one piece. Leaves the
// process with one thread on the host.
json MeasureCurve(const std::string& device, const fs::path& models) {
  const TempFolder scratch;
  at::set_num_threads(1);  // products this small only lose by more
  const std::vector<double> cpu = RunOf("cpu", "fp32", models, scratch.path() / "cpu");
  const std::vector<double> here = RunOf(device, "fp32", models, scratch.path() / "here");
  const std::vector<double> bf16 = RunOf(device, "bf16", models, scratch.path() / "bf16");
  const double difference = LargestShare(here, cpu), rounded = LargestShare(bf16, cpu);
  fs::remove(scratch.path() / "here/state-00000010.safetensors");
  const std::vector<double> rest = RunOf(device, "fp32", models, scratch.path() / "here");
  const double resumed = LargestShare(rest, {here.begin() + kRunSteps / 2, here.end()});
  json found = {{"losses_cpu", cpu},
                {"losses", here},
                {"losses_bf16", bf16},
                {"largest_difference", difference},
                {"largest_difference_bf16", rounded},
                {"largest_difference_resumed", resumed}};
  if (!(difference < kMostDifference && resumed < kMostDifference && rounded < 0.05)) {
    throw std::runtime_error("another curve: " + found.dump());
  }
  return found;
}

struct TrainShape {
  DecoderConfig decoder;
  std::vector<int64_t> lengths;  // of the sequences of a step
  int steps;
};

TrainShape TrainShapeOf(const std::string& name) {
  TrainShape shape;
  DecoderConfig& c = shape.decoder;
  if (name == "1b") {  // as TinyLlama
    c.hidden_size = 2048;
    c.intermediate_size = 5632;
    c.num_layers = 22;
    c.num_heads = 32;
    c.num_kv_heads = 4;
    c.head_dim = 64;
    // Pictures of 576 tokens with dialogues: 8,192 in all.
    shape.lengths = {2048, 1500, 1100, 900, 800, 700, 600, 544};
    shape.steps = 4;
    return shape;
  }
  if (name != "tiny") throw std::invalid_argument("unknown shape " + name);
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.num_layers = 2;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.vocab_size = 100;
  shape.lengths = {30, 50, 7};
  shape.steps = 1;
  return shape;
}

// Where nothing is drawn yet: every tensor is one number.
NamedTensors Blank(const DecoderConfig& c, const std::optional<LowRankOptions>& lora,
                   at::Device device) {
  NamedTensors tensors;
  const at::Tensor zero = at::zeros({1}, at::TensorOptions(device).dtype(at::kFloat));
  const auto add = [&](const std::string& name, at::IntArrayRef shape) {
    tensors[name] = zero.expand(shape);
  };
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
  if (!c.tie_word_embeddings) add("lm_head.weight", {c.vocab_size, c.hidden_size});
  add("model.norm.weight", {c.hidden_size});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i) + ".";
    add(name + "input_layernorm.weight", {c.hidden_size});
    add(name + "post_attention_layernorm.weight", {c.hidden_size});
    add(name + "self_attn.q_proj.weight", {q, c.hidden_size});
    add(name + "self_attn.k_proj.weight", {kv, c.hidden_size});
    add(name + "self_attn.v_proj.weight", {kv, c.hidden_size});
    add(name + "self_attn.o_proj.weight", {c.hidden_size, q});
    add(name + "mlp.gate_proj.weight", {c.intermediate_size, c.hidden_size});
    add(name + "mlp.up_proj.weight", {c.intermediate_size, c.hidden_size});
    add(name + "mlp.down_proj.weight", {c.hidden_size, c.intermediate_size});
  }
  if (!lora) return tensors;
  for (const auto& [matrix, factors] : LowRankAdapters::Factors(c)) {
    const int64_t out = tensors.at(matrix).size(0), in = tensors.at(matrix).size(1);
    add(factors[0], {lora->rank, in});
    add(factors[1], {out, lora->rank});
  }
  return tensors;
}

// A decoder on one or several devices, which all learn from the same rows.
class DecoderInTraining : public TrainingTask {
 public:
  // `lora`: adapters alone. `homes`: of the masters.
  DecoderInTraining(const std::vector<at::Device>& devices, const TrainShape& shape,
                    const std::optional<LowRankOptions>& lora = std::nullopt,
                    const std::vector<at::Device>& homes = {})
      : devices_(devices),
        shape_(shape),
        source_(MemoryTensors(Blank(shape.decoder, lora, devices[0]))),
        decoders_(Made(shape.decoder, source_, lora, devices)),
        weights_(
            Visits(), source_,
            [&](const std::string& name) { return !lora || name.find(".lora_") != name.npos; },
            at::kBFloat16, homes),
        optimizer_(groups(), {}),
        passes_(*this, num_replicas()) {
    const at::NoGradGuard guard;
    int64_t drawn = 0;
    for (const auto& [name, master] : weights_.masters()) Draw(master, ++drawn);
    for (const auto& decoder : decoders_) {
      if (!lora) break;
      decoder->VisitParameters([&](const std::string& name, at::Tensor& parameter) {
        // Products with zeros would take less power, and so less time.
        if (name.find(".lora_") == name.npos) Draw(parameter, 1);
      });
      decoder->adapters().set_dropout_draw(1);
    }
    for (const int64_t length : shape.lengths) {
      segments_.push_back({.tokens = length});
      tokens_ += length;
    }
    for (const at::Device device : devices) {
      ids_.push_back(
          at::remainder(at::arange(tokens_, at::TensorOptions(device).dtype(at::kLong)) * 7919 + 13,
                        shape.decoder.vocab_size));
    }
  }

  std::string kind() const override { return "bench"; }
  int64_t total_steps() const override { return shape_.steps; }
  int64_t num_replicas() const override { return static_cast<int64_t>(devices_.size()); }
  std::vector<ParameterGroup> groups() override {
    return {{"decoder", weights_.masters(), 1e-5, 0}};
  }
  MicroBatch Forward(int64_t, int64_t micro) override {
    const c10::DeviceGuard guard(devices_[micro]);
    weights_.Bind(micro);
    const LlamaDecoder& decoder = *decoders_[micro];
    const at::Tensor hidden = decoder.Forward(decoder.Embed(ids_[micro]), segments_);
    MicroBatch batch;
    batch.loss = at::cross_entropy_loss(decoder.Logits(hidden), ids_[micro]);
    return batch;
  }
  nlohmann::ordered_json Check(std::FILE*) override { return {}; }
  Figures Evaluate() override { return {}; }
  fs::path Publish(const fs::path& root, const std::string&,
                   const nlohmann::ordered_json&) override {
    return root;
  }

  json Measure(bool checkpointing) {
    for (const auto& decoder : decoders_) decoder->set_gradient_checkpointing(checkpointing);
    const Outcome first = Step();
    Wait();
    ForGpus([](c10::DeviceAllocator& memory, at::Device device) {
      memory.resetPeakStats(device.index());
    });
    Outcome last;
    const double seconds = Seconds(devices_[0], shape_.steps, 1, [&](int) {
      last = Step();
      Wait();
    });
    const auto rows = static_cast<double>(tokens_ * num_replicas());
    json found = {{"steps_per_second", 1 / seconds},
                  {"tokens_per_second", rows / seconds},
                  {"first_loss", first.loss},
                  {"first_norm", first.gradient_norm},
                  {"loss", last.loss},
                  {"norm", last.gradient_norm}};
    if (all_learn()) {
      found["tflop_per_second"] = Work() * static_cast<double>(num_replicas()) / seconds / 1e12;
    }
    double peak = 0;
    ForGpus([&](c10::DeviceAllocator& memory, at::Device device) {
      constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
      const auto stats = memory.getDeviceStats(device.index());
      peak = std::max(peak, static_cast<double>(stats.allocated_bytes[kAll].peak) / 1e9);
    });
    if (peak > 0) found["peak_gb"] = peak;  // of the fullest
    return found;
  }

  int64_t parameters() const {
    int64_t count = 0;
    for (const auto& [name, master] : weights_.masters()) count += master.numel();
    return count;
  }
  int64_t tokens() const { return tokens_; }

 private:
  using Decoders = std::vector<std::unique_ptr<LlamaDecoder>>;

  static Decoders Made(const DecoderConfig& config, const TensorSource& source,
                       const std::optional<LowRankOptions>& lora,
                       const std::vector<at::Device>& devices) {
    Decoders decoders;
    for (const at::Device device : devices) {
      const c10::DeviceGuard guard(device);
      decoders.push_back(std::make_unique<LlamaDecoder>(config, source, device, at::kBFloat16));
      if (lora) decoders.back()->Adapt(*lora, source);
    }
    return decoders;
  }
  std::vector<MasterWeights::Visit> Visits() const {
    std::vector<MasterWeights::Visit> visits;
    for (const auto& decoder : decoders_) {
      visits.push_back(
          [&decoder = *decoder](const ParameterVisitor& visit) { decoder.VisitParameters(visit); });
    }
    return visits;
  }
  // The same numbers on every kind of device: spread evenly within 0.035 of 0.
  static void Draw(at::Tensor parameter, int64_t seed) {
    if (parameter.dim() == 1) {
      parameter.fill_(1);
      return;
    }
    constexpr int64_t kPrime = 1000003;
    const at::Tensor mixed = at::remainder(
        at::arange(parameter.numel(), parameter.options().dtype(at::kLong)) * 7919 + seed * 104729,
        kPrime);
    parameter.copy_(((at::remainder(mixed * mixed, kPrime).to(at::kFloat) / kPrime - 0.5) * 0.07)
                        .view(parameter.sizes()));
  }
  bool all_learn() const {
    return weights_.masters().front().first.find(".lora_") == std::string::npos;
  }

  // Forwards and backwards through the matrices, and through attention; nothing twice.
  double Work() const {
    const DecoderConfig& c = shape_.decoder;
    double pairs = 0;
    for (const int64_t length : shape_.lengths) pairs += static_cast<double>(length * length) / 2;
    const auto matrices = static_cast<double>(parameters() - c.vocab_size * c.hidden_size);
    return 6 * matrices * static_cast<double>(tokens_) +
           12 * pairs * static_cast<double>(c.num_layers * c.num_heads * c.head_dim);
  }

  struct Outcome {
    double loss = 0;
    double gradient_norm = 0;  // what is lost or counted twice on the way home shows here
  };
  Outcome Step() {
    StepSums sums;
    passes_.Turn(0, 0, sums);
    const double norm = optimizer_.Clip();
    optimizer_.Step(1);
    optimizer_.ZeroGradients();
    return {sums.loss, norm};
  }

  void Wait() const {
    for (const at::Device device : devices_) bench::Wait(device);
  }
  void ForGpus(const std::function<void(c10::DeviceAllocator&, at::Device)>& visit) const {
    for (const at::Device device : devices_) {
      if (!device.is_cpu()) visit(*c10::getDeviceAllocator(device.type()), device);
    }
  }

  const std::vector<at::Device> devices_;
  const TrainShape& shape_;
  const TensorSource source_;
  Decoders decoders_;
  MasterWeights weights_;
  GroupOptimizer optimizer_;
  GradientStep passes_;
  std::vector<Segment> segments_;
  std::vector<at::Tensor> ids_;  // by device
  int64_t tokens_ = 0;
};

json MeasureAdapters(at::Device device, const TrainShape& shape) {
  const LowRankOptions options{.rank = 128, .alpha = 256, .dropout = 0.05};
  DecoderInTraining training({device}, shape, options);
  return {{"parameters", training.parameters()},
          {"recomputed", training.Measure(/*checkpointing=*/true)},
          {"plain", training.Measure(/*checkpointing=*/false)}};
}

json MeasureSteps(at::Device device, const TrainShape& shape) {
  DecoderInTraining training({device}, shape);
  json found = {{"parameters", training.parameters()}, {"tokens_a_step", training.tokens()}};
  found["recomputed"] = training.Measure(/*checkpointing=*/true);
  found["plain"] = training.Measure(/*checkpointing=*/false);
  ops::Enable(ops::Feature::kNorm, false);
  found["plain_without_norm"] = training.Measure(/*checkpointing=*/false);
  ops::Enable(ops::Feature::kFlash, false);
  found["plain_without_norm_and_flash"] = training.Measure(/*checkpointing=*/false);
  ops::Enable(ops::Feature::kNorm, true);
  ops::Enable(ops::Feature::kFlash, true);
  return found;
}

// All GPUs there are, or, where there is one, two replicas on it; and masters on the host. Throws
// if they do not learn what one device does.
json MeasureSharing(at::Device device, const TrainShape& shape) {
  std::vector<at::Device> devices = {device, device};
  if (!device.is_cpu()) {
    const c10::impl::VirtualGuardImpl gpus(device.type());
    if (gpus.deviceCount() > 1) devices.clear();
    for (c10::DeviceIndex i = 0; gpus.deviceCount() > 1 && i < gpus.deviceCount(); ++i) {
      devices.emplace_back(device.type(), i);
    }
  }
  json found = {{"devices", devices.size()}};
  for (const char* head : {"own head", "tied"}) {
    TrainShape of_head = shape;
    // A few layers show it: the host draws and steps the masters of all of them more slowly than a
    // borrowed GPU should wait.
    of_head.decoder.num_layers = std::min<int64_t>(shape.decoder.num_layers, 4);
    of_head.decoder.tie_word_embeddings = head == std::string("tied");
    json& kinds = found[head];
    kinds["one"] = DecoderInTraining({device}, of_head).Measure(/*checkpointing=*/true);
    kinds["shared"] = DecoderInTraining(devices, of_head, {}, devices).Measure(true);
    kinds["offloaded"] = DecoderInTraining({device}, of_head, {}, {at::kCPU}).Measure(true);
    if (!(kinds["one"]["loss"] < kinds["one"]["first_loss"])) {
      throw std::runtime_error("nothing is learnt: " + found.dump());
    }
    for (const char* kind : {"shared", "offloaded"}) {
      for (const char* figure : {"first_loss", "first_norm", "loss", "norm"}) {
        const double expected = kinds["one"][figure], is = kinds[kind][figure];
        if (!(std::abs(is - expected) < 0.01 * expected)) {
          throw std::runtime_error(std::string(kind) + " learns something else: " + found.dump());
        }
      }
    }
  }
  return found;
}

int Main(const std::vector<std::string>& arguments) {
  if (arguments.size() != 3) {
    std::cerr << "usage: llava_gpu_train DEVICE SHAPE MODELS\n";
    return 2;
  }
  const TrainShape shape = TrainShapeOf(arguments[1]);
  PartPrinter part;
  part("steps", [&] { return MeasureSteps(at::Device(arguments[0]), shape); });
  part("adapters", [&] { return MeasureAdapters(at::Device(arguments[0]), shape); });
  part("sharing", [&] { return MeasureSharing(at::Device(arguments[0]), shape); });
  part("curve", [&] { return MeasureCurve(arguments[0], arguments[2]); });
  return part.failed() ? 1 : 0;
}

}  // namespace
}  // namespace llava::bench

int main(int argc, char** argv) {
  try {
    return llava::bench::Main({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "llava_gpu_train: " << error.what() << "\n";
    return 1;
  }
}
