// llava_gpu_train DEVICE SHAPE MODELS
//
// Training on DEVICE: a run of the small language model (tokenizer and tower of MODELS, the folder
// deploy/models) beside the same run on the CPU, and one that goes on from a state; then steps of a
// decoder of SHAPE, 1b or tiny, in bfloat16 with float32 masters: time and memory, with and without
// recomputed layers, of all weights and of adapters of low rank. Prints a JSON object a line, each
// when its part is finished.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
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
#include <nlohmann/json.hpp>

#include "model/checkpoint/memory_tensors.h"
#include "model/nn/llama.h"
#include "model/nn/low_rank.h"
#include "model/ops/feature.h"
#include "model/train/fresh_weights.h"
#include "model/train/group_optimizer.h"
#include "model/train/language_task.h"
#include "model/train/master_weights.h"
#include "model/train/recipe.h"
#include "model/train/trainer.h"
#include "tests/gpu/bench.h"

namespace llava::bench {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int64_t kRunSteps = 10;
// Of losses in float32 on two kinds of device, after so many steps of sums in other orders.
constexpr double kMostDifference = 2e-3;

// A folder that goes with this.
class Scratch {
 public:
  Scratch() {
    std::string name = (fs::temp_directory_path() / "llava-train-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Scratch() { fs::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

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

// Throws if a curve is not the CPU's, or a run that goes on not the run in one piece.
json MeasureCurve(const std::string& device, const fs::path& models) {
  const Scratch scratch;
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
  add("lm_head.weight", {c.vocab_size, c.hidden_size});
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

class DecoderInTraining {
 public:
  // `lora`: adapters alone.
  DecoderInTraining(at::Device device, const TrainShape& shape,
                    const std::optional<LowRankOptions>& lora = std::nullopt)
      : device_(device),
        shape_(shape),
        source_(MemoryTensors(Blank(shape.decoder, lora, device))),
        decoder_(Made(shape.decoder, source_, lora, device)),
        weights_([this](const ParameterVisitor& visit) { decoder_.VisitParameters(visit); },
                 source_,
                 [&](const std::string& name) { return !lora || name.find(".lora_") != name.npos; },
                 at::kBFloat16),
        optimizer_({Group()}, {}) {
    const at::NoGradGuard guard;
    const auto draw = [](at::Tensor parameter) {
      if (parameter.dim() > 1) {
        parameter.normal_(0, 0.02);
      } else {
        parameter.fill_(1);
      }
    };
    for (const auto& [name, master] : weights_.masters()) draw(master);
    if (lora) {  // products with zeros take less power, and so less time
      decoder_.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
        if (name.find(".lora_") == name.npos) draw(parameter);
      });
      decoder_.adapters().set_dropout_draw(1);
    }
    for (const int64_t length : shape.lengths) {
      segments_.push_back({.tokens = length});
      tokens_ += length;
    }
    ids_ =
        at::remainder(at::arange(tokens_, at::TensorOptions(device).dtype(at::kLong)) * 7919 + 13,
                      shape.decoder.vocab_size);
  }

  json Measure(bool checkpointing) {
    decoder_.set_gradient_checkpointing(checkpointing);
    Step();
    Wait(device_);
    if (!device_.is_cpu()) {
      c10::getDeviceAllocator(device_.type())->resetPeakStats(device_.index());
    }
    double loss = 0;
    const double seconds = Seconds(device_, shape_.steps, 1, [&](int) { loss = Step(); });
    json found = {{"steps_per_second", 1 / seconds},
                  {"tokens_per_second", static_cast<double>(tokens_) / seconds},
                  {"loss", loss}};
    if (all_learn()) found["tflop_per_second"] = Work() / seconds / 1e12;
    if (!device_.is_cpu()) {
      const auto stats = c10::getDeviceAllocator(device_.type())->getDeviceStats(device_.index());
      constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
      found["peak_gb"] = static_cast<double>(stats.allocated_bytes[kAll].peak) / 1e9;
    }
    return found;
  }

  int64_t parameters() const {
    int64_t count = 0;
    for (const auto& [name, master] : weights_.masters()) count += master.numel();
    return count;
  }
  int64_t tokens() const { return tokens_; }

 private:
  static LlamaDecoder Made(const DecoderConfig& config, const TensorSource& source,
                           const std::optional<LowRankOptions>& lora, at::Device device) {
    LlamaDecoder decoder(config, source, device, at::kBFloat16);
    if (lora) decoder.Adapt(*lora, source);
    return decoder;
  }
  bool all_learn() const {
    return weights_.masters().front().first.find(".lora_") == std::string::npos;
  }
  ParameterGroup Group() const { return {"decoder", weights_.masters(), 1e-5, 0}; }

  // Forwards and backwards through the matrices, and through attention; nothing twice.
  double Work() const {
    const DecoderConfig& c = shape_.decoder;
    double pairs = 0;
    for (const int64_t length : shape_.lengths) pairs += static_cast<double>(length * length) / 2;
    const auto matrices = static_cast<double>(parameters() - c.vocab_size * c.hidden_size);
    return 6 * matrices * static_cast<double>(tokens_) +
           12 * pairs * static_cast<double>(c.num_layers * c.num_heads * c.head_dim);
  }

  double Step() {
    weights_.Bind();
    const at::Tensor hidden = decoder_.Forward(decoder_.Embed(ids_), segments_);
    const at::Tensor loss = at::cross_entropy_loss(decoder_.Logits(hidden), ids_);
    loss.backward();
    optimizer_.Clip();
    optimizer_.Step(1);
    optimizer_.ZeroGradients();
    return loss.item<double>();
  }

  const at::Device device_;
  const TrainShape& shape_;
  const TensorSource source_;
  LlamaDecoder decoder_;
  MasterWeights weights_;
  GroupOptimizer optimizer_;
  std::vector<Segment> segments_;
  at::Tensor ids_;
  int64_t tokens_ = 0;
};

json MeasureAdapters(at::Device device, const TrainShape& shape) {
  const LowRankOptions options{.rank = 128, .alpha = 256, .dropout = 0.05};
  DecoderInTraining training(device, shape, options);
  return {{"parameters", training.parameters()},
          {"recomputed", training.Measure(/*checkpointing=*/true)},
          {"plain", training.Measure(/*checkpointing=*/false)}};
}

json MeasureSteps(at::Device device, const TrainShape& shape) {
  DecoderInTraining training(device, shape);
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

int Main(const std::vector<std::string>& arguments) {
  if (arguments.size() != 3) {
    std::cerr << "usage: llava_gpu_train DEVICE SHAPE MODELS\n";
    return 2;
  }
  const TrainShape shape = TrainShapeOf(arguments[1]);
  PartPrinter part;
  part("curve", [&] { return MeasureCurve(arguments[0], arguments[2]); });
  part("steps", [&] { return MeasureSteps(at::Device(arguments[0]), shape); });
  part("adapters", [&] { return MeasureAdapters(at::Device(arguments[0]), shape); });
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
