#include "model/tools/shapes.h"

#include <map>
#include <stdexcept>

namespace llava {
namespace {

std::map<std::string, DecoderConfig> Shapes() {
  DecoderConfig vicuna_7b;  // the defaults
  DecoderConfig llava_7b = vicuna_7b;
  llava_7b.vocab_size = 32064;
  llava_7b.max_position_embeddings = 4096;
  DecoderConfig llava_13b = llava_7b;
  llava_13b.hidden_size = 5120;
  llava_13b.intermediate_size = 13824;
  llava_13b.num_layers = llava_13b.num_heads = llava_13b.num_kv_heads = 40;
  DecoderConfig tiny_llama;  // TinyLlama 1.1B
  tiny_llama.hidden_size = 2048;
  tiny_llama.intermediate_size = 5632;
  tiny_llama.num_layers = 22;
  tiny_llama.num_kv_heads = 4;
  tiny_llama.head_dim = 64;
  DecoderConfig tiny;  // of nobody: takes no time
  tiny.hidden_size = 128;
  tiny.intermediate_size = 352;
  tiny.num_layers = 2;
  tiny.num_heads = 4;
  tiny.num_kv_heads = 2;
  tiny.head_dim = 32;
  return {{"llava-1.5-7b", llava_7b},
          {"llava-1.5-13b", llava_13b},
          {"llama-7b", vicuna_7b},
          {"llama-1.1b", tiny_llama},
          {"tiny", tiny}};
}

std::map<std::string, VisionConfig> VisionShapes() {
  VisionConfig large;  // the defaults
  VisionConfig small = large;
  small.image_size = small.preprocess.image_size = 224;
  VisionConfig tiny;  // of nobody: takes no time
  tiny.hidden_size = 64;
  tiny.intermediate_size = 160;
  tiny.num_layers = 3;
  tiny.num_heads = 2;
  tiny.image_size = tiny.preprocess.image_size = 56;
  return {{"vit-l-14-336", large}, {"vit-l-14", small}, {"vit-tiny", tiny}};
}

template <typename Config>
std::vector<std::string> NamesOf(const std::map<std::string, Config>& shapes) {
  std::vector<std::string> names;
  for (const auto& [name, config] : shapes) names.push_back(name);
  return names;
}

template <typename Config>
Config Find(const std::map<std::string, Config>& shapes, const std::string& name) {
  const auto found = shapes.find(name);
  if (found != shapes.end()) return found->second;
  std::string known;
  for (const auto& [shape, config] : shapes) known += (known.empty() ? "" : ", ") + shape;
  throw std::invalid_argument("there is no shape \"" + name + "\"; known are " + known);
}

}  // namespace

std::vector<std::string> ShapeNames() { return NamesOf(Shapes()); }

DecoderConfig DecoderShape(const std::string& name) { return Find(Shapes(), name); }

std::vector<std::string> VisionShapeNames() { return NamesOf(VisionShapes()); }

VisionConfig VisionShape(const std::string& name) { return Find(VisionShapes(), name); }

}  // namespace llava
