#include "model/nn/packed_weights.h"

#include <span>
#include <stdexcept>
#include <utility>

#include <ATen/ops/empty.h>

#include "model/checkpoint/tensor_names.h"

namespace llava {
namespace {

using ops::cpu::PackedMatrix;
using ops::cpu::SourceElement;
using ops::cpu::ThreadPool;
using ops::cpu::WeightFormat;
using ops::cpu::WeightMemory;

std::string LayerName(int64_t index) { return "model.layers." + std::to_string(index) + "."; }

SourceElement ElementOf(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return SourceElement::kFloat;
    case at::kBFloat16:
      return SourceElement::kBFloat16;
    case at::kHalf:
      return SourceElement::kHalf;
    default:
      throw std::runtime_error(std::string("weights of type ") + at::toString(dtype));
  }
}

// The rows of all tensors `names` behind each other.
PackedMatrix Pack(const TensorSource& tensors, const std::vector<std::string>& names,
                  const PackOptions& options, ThreadPool& pool,
                  const std::shared_ptr<WeightMemory>& memory) {
  int64_t rows = 0, depth = 0;
  for (const std::string& name : names) {
    const std::vector<int64_t>& shape = tensors.tensors().at(name).shape;
    rows += shape.at(0);
    depth = shape.at(1);
  }
  PackedMatrix matrix(rows, depth, options, memory);
  for (const std::string& name : names) {
    {
      const at::Tensor tensor = tensors.Get(name).contiguous();
      matrix.Append(pool, ElementOf(tensor.scalar_type()), tensor.const_data_ptr(), tensor.size(0),
                    depth);
    }
    tensors.Release(name);
  }
  return matrix;
}

std::vector<float> ReadNorm(const TensorSource& tensors, const std::string& name) {
  const at::Tensor norm = tensors.Get(name).to(at::kFloat).contiguous();
  const float* values = norm.const_data_ptr<float>();
  std::vector<float> copy(values, values + norm.numel());
  tensors.Release(name);
  return copy;
}

at::Tensor ReadEmbedding(const TensorSource& tensors, WeightFormat format) {
  const std::string name = "model.embed_tokens.weight";
  // Always a copy: the source may be a mapped file that ends with the checkpoint.
  const at::ScalarType dtype = format == WeightFormat::kFloat ? at::kFloat : at::kBFloat16;
  at::Tensor embedding = tensors.Get(name).to(dtype, /*non_blocking=*/false, /*copy=*/true);
  tensors.Release(name);
  return embedding.contiguous();
}

PackOptions HeadOptions(const PackOptions& options) {
  if (options.format != WeightFormat::kInt4) return options;
  return {WeightFormat::kInt8, 128, options.keep_outliers};
}

// A packed matrix of a checkpoint; `format`: what it has to be in, if that is fixed.
PackedMatrix Load(const TensorSource& tensors, const std::string& name, int64_t rows, int64_t depth,
                  const std::optional<PackOptions>& options,
                  const std::shared_ptr<WeightMemory>& memory) {
  const auto fail = [&name](const std::string& what) {
    throw std::runtime_error(name + ": " + what);
  };
  const at::Tensor stored = tensors.Get(name);
  std::optional<PackedMatrix> matrix;
  try {
    matrix = PackedMatrix::Load(
        std::span(stored.const_data_ptr<uint8_t>(), static_cast<size_t>(stored.numel())), memory);
  } catch (const std::runtime_error& error) {
    fail(error.what());
  }
  tensors.Release(name);
  const bool as_stated = !options || (matrix->format() == options->format &&
                                      (options->group == 0 || matrix->group() == options->group));
  if (matrix->rows() != rows || matrix->depth() != depth || !as_stated) {
    fail("is " + matrix->Describe() + ", expected [" + std::to_string(rows) + ", " +
         std::to_string(depth) + "]" +
         (options ? " in " + ToQuantization(*options).Describe() : std::string()));
  }
  return *std::move(matrix);
}

PackedLayer LoadLayer(const DecoderConfig& config, const TensorSource& tensors, int64_t index,
                      const PackOptions& options, const std::shared_ptr<WeightMemory>& memory) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const int64_t q = config.num_heads * config.head_dim, kv = config.num_kv_heads * config.head_dim;
  const std::string layer = LayerName(index);
  const auto load = [&](const char* name, int64_t rows, int64_t depth) {
    return Load(tensors, layer + name + ".packed", rows, depth, options, memory);
  };
  // In the order in which a step reads them; so they lie in memory.
  PackedMatrix qkv = load("self_attn.qkv_proj", q + 2 * kv, width);
  PackedMatrix o = load("self_attn.o_proj", width, q);
  PackedMatrix gate_up = load("mlp.gate_up_proj", 2 * inner, width);
  PackedMatrix down = load("mlp.down_proj", width, inner);
  return {ReadNorm(tensors, layer + "input_layernorm.weight"),
          ReadNorm(tensors, layer + "post_attention_layernorm.weight"),
          std::move(qkv),
          std::move(o),
          std::move(gate_up),
          std::move(down)};
}

// What the stored decoder is packed as; refuses what is not wanted.
PackOptions StoredOptions(const Quantization& stored, const std::optional<PackOptions>& wanted) {
  if (stored.layout != PackedMatrix::kStoredLayout) {
    throw std::runtime_error("the checkpoint's packed layout is " + stored.layout +
                             ", this program reads " + PackedMatrix::kStoredLayout +
                             ": quantise the checkpoint that it was made from again");
  }
  const PackOptions options = ToPackOptions(stored);
  const auto refuse = [&](const std::string& what) {
    throw std::invalid_argument("the checkpoint is packed as " + stored.Describe() + ": " + what);
  };
  if (wanted && wanted->format != options.format) {
    refuse("ask for " + DtypeWord(stored));
  }
  if (wanted && wanted->group != 0 && wanted->group != options.group) {
    refuse("leave --group out");
  }
  return options;
}

}  // namespace

uint64_t PackedDecoderWeights::bytes() const {
  uint64_t sum =
      embedding.nbytes() + norm.size() * sizeof(float) + static_cast<uint64_t>(lm_head.bytes());
  for (const PackedLayer& layer : layers) {
    for (const PackedMatrix* matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      sum += static_cast<uint64_t>(matrix->bytes());
    }
    sum += (layer.input_norm.size() + layer.post_attention_norm.size()) * sizeof(float);
  }
  return sum;
}

PackedDecoderWeights PackDecoder(const DecoderConfig& config, const TensorSource& tensors,
                                 const std::optional<PackOptions>& wanted, ThreadPool& pool) {
  const bool stored = config.quantization.has_value();
  const PackOptions options = stored
                                  ? StoredOptions(*config.quantization, wanted)
                                  : wanted.value_or(PackOptions{WeightFormat::kBFloat16, 0, true});
  CheckDecoderTensors(config, tensors);
  const auto memory = std::make_shared<WeightMemory>();
  // The layers first, as they come: the two large tables take as long to arrive as all of them.
  std::vector<PackedLayer> layers;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    layers.push_back(stored ? LoadLayer(config, tensors, i, options, memory)
                            : PackLayer(config, tensors, i, options, pool, memory));
  }
  at::Tensor embedding = ReadEmbedding(tensors, options.format);
  PackedMatrix lm_head = stored ? Load(tensors, "lm_head.packed", config.vocab_size,
                                       config.hidden_size, std::nullopt, memory)
                                : PackHead(config, tensors, options, pool, memory);
  return {options, std::move(embedding), std::move(layers), ReadNorm(tensors, "model.norm.weight"),
          std::move(lm_head)};
}

PackedLayer PackLayer(const DecoderConfig& config, const TensorSource& tensors, int64_t index,
                      const PackOptions& options, ThreadPool& pool,
                      std::shared_ptr<WeightMemory> memory) {
  const std::string layer = LayerName(index);
  const auto pack = [&](std::vector<std::string> names) {
    for (std::string& name : names) name = layer + name + ".weight";
    return Pack(tensors, names, options, pool, memory);
  };
  PackedMatrix qkv = pack({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"});
  PackedMatrix o = pack({"self_attn.o_proj"});
  PackedMatrix gate_up = pack({"mlp.gate_proj", "mlp.up_proj"});
  PackedMatrix down = pack({"mlp.down_proj"});
  return {ReadNorm(tensors, layer + "input_layernorm.weight"),
          ReadNorm(tensors, layer + "post_attention_layernorm.weight"),
          std::move(qkv),
          std::move(o),
          std::move(gate_up),
          std::move(down)};
}

PackedMatrix PackHead(const DecoderConfig& config, const TensorSource& tensors,
                      const PackOptions& options, ThreadPool& pool,
                      std::shared_ptr<WeightMemory> memory) {
  const char* name = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  return Pack(tensors, {name}, HeadOptions(options), pool, memory);
}

void CheckDecoderTensors(const DecoderConfig& config, const TensorSource& tensors) {
  const TensorShapes required = DecoderTensors(config);
  std::map<std::string, TensorInfo> present;  // without the projector's
  for (const auto& [name, info] : tensors.tensors()) {
    if (required.contains(name)) present.emplace(name, info);
  }
  CheckTensors(present, required, {}, "decoder");
}

at::Tensor StoredTensor(const PackedMatrix& matrix) {
  at::Tensor tensor = at::empty({matrix.stored_bytes()}, at::kByte);
  matrix.Store(std::span(tensor.data_ptr<uint8_t>(), static_cast<size_t>(tensor.numel())));
  return tensor;
}

Quantization ToQuantization(const PackOptions& options) {
  Quantization quantization{"bf16", 0, PackedMatrix::kStoredLayout};
  if (options.format == WeightFormat::kFloat) {
    throw std::invalid_argument("float32 weights are stored as they are, not packed");
  }
  if (IsInteger(options.format)) {
    const bool int8 = options.format == WeightFormat::kInt8;
    quantization.format = int8 ? "int8" : "int4";
    quantization.group = options.group != 0 ? options.group : int8 ? 128 : 64;
  }
  return quantization;
}

std::string DtypeWord(const Quantization& quantization) {
  return quantization.format == "bf16" ? "bfloat16" : quantization.format;
}

PackOptions ToPackOptions(const Quantization& quantization) {
  const std::string& format = quantization.format;
  if (format == "bf16" && quantization.group == 0) return {WeightFormat::kBFloat16, 0, true};
  const int64_t group = quantization.group;
  const bool grouped = group == 0 || group == 32 || group == 64 || group == 128;
  if (format == "int8" && grouped) return {WeightFormat::kInt8, group, true};
  if (format == "int4" && grouped) return {WeightFormat::kInt4, group, true};
  throw std::invalid_argument("there are no weights in " + quantization.Describe() +
                              ": bf16, int8 and int4 in groups of 32, 64 or 128 are known");
}

}  // namespace llava
