#include "model/checkpoint/tensor_names.h"

#include <charconv>
#include <stdexcept>
#include <string_view>

#include "model/checkpoint/mapped_tensor.h"

namespace llava {
namespace {

using Part = TensorName::Part;

constexpr std::string_view kTower = "vision_model.";

void AddNorm(TensorShapes& shapes, const std::string& name, int64_t width) {
  shapes[name + ".weight"] = {width};
  shapes[name + ".bias"] = {width};
}

void AddLinear(TensorShapes& shapes, const std::string& name, int64_t in, int64_t out) {
  shapes[name + ".weight"] = {out, in};
  shapes[name + ".bias"] = {out};
}

bool TakePrefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

std::string Join(std::string_view a, std::string_view b) { return std::string(a) += b; }

bool Ignored(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("embeddings.position_ids");
}

// multi_modal_projector.linear_N counts linear layers from 1, mm_projector.K all modules from 0.
std::string ProjectorName(std::string_view rest) {
  constexpr std::string_view kCanonical = "model.mm_projector.";
  std::string_view tail = rest;
  int layer = 0;
  if (TakePrefix(tail, "linear_")) {
    const auto number = std::from_chars(tail.data(), tail.data() + tail.size(), layer);
    tail.remove_prefix(static_cast<size_t>(number.ptr - tail.data()));
    if (number.ec == std::errc() && layer >= 1 && layer < 100) {
      return Join(kCanonical, std::to_string(2 * (layer - 1))) + std::string(tail);
    }
  }
  return Join("multi_modal_projector.", rest);
}

}  // namespace

TensorShapes TowerTensors(const VisionConfig& config) {
  const int64_t width = config.hidden_size;
  TensorShapes shapes;
  const std::string model = "vision_model.";
  shapes[model + "embeddings.class_embedding"] = {width};
  shapes[model + "embeddings.patch_embedding.weight"] = {width, config.num_channels,
                                                         config.patch_size, config.patch_size};
  shapes[model + "embeddings.position_embedding.weight"] = {config.num_patches() + 1, width};
  AddNorm(shapes, model + "pre_layrnorm", width);  // misspelled by its inventors
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = model + "encoder.layers." + std::to_string(i) + ".";
    AddNorm(shapes, layer + "layer_norm1", width);
    AddNorm(shapes, layer + "layer_norm2", width);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      AddLinear(shapes, layer + "self_attn." + name, width, width);
    }
    AddLinear(shapes, layer + "mlp.fc1", width, config.intermediate_size);
    AddLinear(shapes, layer + "mlp.fc2", config.intermediate_size, width);
  }
  return shapes;
}

TensorShapes OptionalTowerTensors(const VisionConfig& config) {
  TensorShapes shapes;
  AddNorm(shapes, "vision_model.post_layernorm", config.hidden_size);
  return shapes;
}

TensorShapes ProjectorTensors(const ProjectorConfig& config) {
  TensorShapes shapes;
  if (config.depth == 1) {
    AddLinear(shapes, "model.mm_projector", config.in_width, config.out_width);
    return shapes;
  }
  for (int64_t i = 0; i < config.depth; ++i) {
    AddLinear(shapes, "model.mm_projector." + std::to_string(2 * i),
              i == 0 ? config.in_width : config.out_width, config.out_width);
  }
  return shapes;
}

TensorShapes DecoderTensors(const DecoderConfig& config) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const int64_t q = config.num_heads * config.head_dim, kv = config.num_kv_heads * config.head_dim;
  TensorShapes shapes;
  shapes["model.embed_tokens.weight"] = {config.vocab_size, width};
  shapes["model.norm.weight"] = {width};
  if (config.quantization) {
    shapes["lm_head.packed"] = kPackedShape;  // of the embedding if they are tied
  } else if (!config.tie_word_embeddings) {
    shapes["lm_head.weight"] = {config.vocab_size, width};
  }
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    shapes[layer + "input_layernorm.weight"] = {width};
    shapes[layer + "post_attention_layernorm.weight"] = {width};
    if (config.quantization) {
      for (const char* name :
           {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}) {
        shapes[layer + name + ".packed"] = kPackedShape;
      }
      continue;
    }
    shapes[layer + "self_attn.q_proj.weight"] = {q, width};
    shapes[layer + "self_attn.k_proj.weight"] = {kv, width};
    shapes[layer + "self_attn.v_proj.weight"] = {kv, width};
    shapes[layer + "self_attn.o_proj.weight"] = {width, q};
    shapes[layer + "mlp.gate_proj.weight"] = {inner, width};
    shapes[layer + "mlp.up_proj.weight"] = {inner, width};
    shapes[layer + "mlp.down_proj.weight"] = {width, inner};
  }
  return shapes;
}

TensorShapes LanguageTensors(const LanguageConfig& config) {
  TensorShapes shapes = DecoderTensors(config.decoder);
  shapes.merge(ProjectorTensors(config.projector));
  if (config.features.image_mode == ImageMode::kAnyres) {
    shapes[kImageNewline] = {config.decoder.hidden_size};
  }
  return shapes;
}

bool InProjector(const std::string& name) {
  return name.starts_with("model.mm_projector.") || name == kImageNewline;
}

void CheckTensors(const std::map<std::string, TensorInfo>& tensors, const TensorShapes& required,
                  const TensorShapes& optional, const std::string& where) {
  std::string missing, surplus, misshapen, mistyped;
  const auto add = [](std::string& list, const std::string& item) {
    list += (list.empty() ? "" : ", ") + item;
  };
  for (const auto& [name, shape] : required) {
    if (!tensors.contains(name)) {
      add(missing, shape == kPackedShape ? name : name + " " + ShapeText(shape));
    }
  }
  for (const auto& [name, info] : tensors) {
    auto expected = required.find(name);
    if (expected == required.end()) {
      expected = optional.find(name);
      if (expected == optional.end()) {
        add(surplus, name);
        continue;
      }
    }
    if (expected->second == kPackedShape) {
      if (info.shape.size() != 1 || info.dtype != at::kByte) {
        add(misshapen, name + " is " + ShapeText(info.shape) + " of " + DtypeName(info.dtype) +
                           ", expected one dimension of U8");
      }
      continue;
    }
    if (info.shape != expected->second) {
      add(misshapen,
          name + " is " + ShapeText(info.shape) + ", expected " + ShapeText(expected->second));
    }
    if (info.dtype != at::kFloat && info.dtype != at::kHalf && info.dtype != at::kBFloat16) {
      add(mistyped, name + " is " + DtypeName(info.dtype));
    }
  }
  std::string all;
  for (const auto& [title, list] :
       {std::pair("missing: ", &missing), std::pair("misshapen: ", &misshapen),
        std::pair("not F32, F16 or BF16: ", &mistyped), std::pair("surplus: ", &surplus)}) {
    if (!list->empty()) all += (all.empty() ? "" : "; ") + (title + *list);
  }
  if (!all.empty()) {
    throw std::runtime_error(where + ": the tensors do not fit the configuration; " + all);
  }
}

TensorName FromLlavaName(const std::string& stored) {
  if (Ignored(stored)) return {Part::kIgnored, stored};
  std::string_view name = stored;
  if (name.starts_with("model.language_model.") || name.starts_with("model.vision_tower.") ||
      name.starts_with("model.multi_modal_projector.")) {
    TakePrefix(name, "model.");
  }
  if (TakePrefix(name, "language_model.")) {
    const bool whole = name.starts_with("model.") || name.starts_with("lm_head.");
    return {Part::kLanguage, whole ? std::string(name) : Join("model.", name)};
  }
  if (TakePrefix(name, "multi_modal_projector.")) return {Part::kLanguage, ProjectorName(name)};
  if (name == "image_newline") return {Part::kLanguage, kImageNewline};
  bool tower = false;
  while (TakePrefix(name, "vision_tower.")) tower = true;
  TakePrefix(name, tower ? kTower : "");
  if (tower) return {Part::kTower, Join(kTower, name)};
  return {Part::kLanguage, stored};
}

std::string ToHfName(const std::string& canonical) {
  constexpr std::string_view kProjector = "model.mm_projector.";
  std::string_view name = canonical;
  if (name.starts_with(kTower)) return Join("vision_tower.", name);
  if (name == kImageNewline) return "image_newline";
  if (!TakePrefix(name, kProjector)) return Join("language_model.", name);
  int module = 0;  // a GELU stands between two linear layers
  const auto number = std::from_chars(name.data(), name.data() + name.size(), module);
  name.remove_prefix(static_cast<size_t>(number.ptr - name.data()));
  return Join("multi_modal_projector.linear_" + std::to_string(module / 2 + 1), name);
}

void NameSingleLayer(const ProjectorConfig& config, TensorSource& tensors) {
  if (config.depth != 1) return;
  for (const char* kind : {"weight", "bias"}) {
    tensors.Rename(Join("model.mm_projector.0.", kind), Join("model.mm_projector.", kind));
  }
}

TensorName FromClipName(const std::string& stored) {
  if (Ignored(stored)) return {Part::kIgnored, stored};
  for (const char* prefix : {"text_model.", "text_projection.", "visual_projection."}) {
    if (stored.starts_with(prefix)) return {Part::kIgnored, stored};
  }
  if (stored == "logit_scale") return {Part::kIgnored, stored};
  const bool prefixed = stored.starts_with(kTower);
  return {Part::kTower, prefixed ? stored : Join(kTower, stored)};
}

}  // namespace llava
