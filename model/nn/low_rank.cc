#include "model/nn/low_rank.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/empty_like.h>

#include "model/checkpoint/tensor_names.h"
#include "model/nn/parameter_reader.h"
#include "model/ops/ops.h"

namespace llava {
namespace {

constexpr std::array<const char*, LowRankAdapters::kMatrices> kNames = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

std::string NameOf(int64_t layer, size_t matrix, const char* what) {
  return "model.layers." + std::to_string(layer) + "." + kNames[matrix] + what + ".weight";
}

constexpr const char* kFactorA = ".lora_A";
constexpr const char* kFactorB = ".lora_B";

// Zero where it is left out. The same numbers on every call, also when a layer is computed again
// for its gradients, for which a byte an element is kept.
at::Tensor Dropped(const at::Tensor& x, double share, uint64_t seed) {
  at::Generator generator = at::globalContext().defaultGenerator(x.device()).clone();
  generator.set_current_seed(seed);
  return x * at::empty_like(x, at::kBool).bernoulli_(1 - share, generator);
}

}  // namespace

std::map<std::string, std::array<std::string, 2>> LowRankAdapters::Factors(
    const DecoderConfig& config) {
  std::map<std::string, std::array<std::string, 2>> factors;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (size_t matrix = 0; matrix < kMatrices; ++matrix) {
      factors[NameOf(layer, matrix, "")] = {NameOf(layer, matrix, kFactorA),
                                            NameOf(layer, matrix, kFactorB)};
    }
  }
  return factors;
}

LowRankAdapters::LowRankAdapters(const DecoderConfig& config, const LowRankOptions& options,
                                 const TensorSource& tensors, at::Device device,
                                 at::ScalarType dtype)
    : options_(options) {
  const TensorShapes shapes = DecoderTensors(config);
  ParameterReader reader(tensors, device, dtype);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    auto& pairs = layers_.emplace_back();
    for (size_t matrix = 0; matrix < kMatrices; ++matrix) {
      const std::vector<int64_t>& shape = shapes.at(NameOf(layer, matrix, ""));
      pairs[matrix].a = reader.Read(NameOf(layer, matrix, kFactorA), {options.rank, shape[1]});
      pairs[matrix].b = reader.Read(NameOf(layer, matrix, kFactorB), {shape[0], options.rank});
    }
  }
  reader.Finish("adapters");
}

at::Tensor LowRankAdapters::Difference(int64_t layer, Matrix matrix, const at::Tensor& x) const {
  const Pair& pair = layers_[static_cast<size_t>(layer)][matrix];
  at::Tensor in = x.to(pair.a.scalar_type());
  double scale = options_.scale();
  if (draw_ && options_.dropout > 0) {
    in = Dropped(in, options_.dropout,
                 *draw_ + static_cast<uint64_t>(layer) * kMatrices + static_cast<uint64_t>(matrix));
    scale /= 1 - options_.dropout;
  }
  return ops::Linear(ops::Linear(in, pair.a), pair.b) * scale;
}

void LowRankAdapters::VisitParameters(int64_t layer, const ParameterVisitor& visit) {
  auto& pairs = layers_[static_cast<size_t>(layer)];
  for (size_t matrix = 0; matrix < kMatrices; ++matrix) {
    visit(NameOf(layer, matrix, kFactorA), pairs[matrix].a);
    visit(NameOf(layer, matrix, kFactorB), pairs[matrix].b);
  }
}

}  // namespace llava
