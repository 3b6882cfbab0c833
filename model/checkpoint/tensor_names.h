#pragma once

// Which tensors a model has, and what other programs call them.

#include <map>
#include <set>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/tensor_file.h"
#include "model/config/model_config.h"

namespace llava {

using TensorShapes = std::map<std::string, std::vector<int64_t>>;

// Canonical names and shapes of all tensors that the configuration asks for. The tower's post-norm,
// which LLaVA never applies, is not among them (see OptionalTowerTensors).
TensorShapes TowerTensors(const VisionConfig& config);
TensorShapes ProjectorTensors(const ProjectorConfig& config);
TensorShapes DecoderTensors(const DecoderConfig& config);
// Of both, and in the anyres mode the vector behind each row of a picture's map, [D].
TensorShapes LanguageTensors(const LanguageConfig& config);
inline constexpr const char* kImageNewline = "model.image_newline";
// Whether a tensor of a language model belongs to its projector, as what lays out a picture's rows
// does; else it is the decoder's.
bool InProjector(const std::string& name);
// A packed matrix (model/nn/packed_weights.h): one dimension of U8, as many as it takes. The shape
// that DecoderTensors gives for it, if the configuration has a quantization.
inline const std::vector<int64_t> kPackedShape = {-1};
// May be there, and must fit if they are.
TensorShapes OptionalTowerTensors(const VisionConfig& config);

// Throws std::runtime_error that begins with `where` and names every missing, surplus and misshapen
// tensor and every one that is not float32, float16 or bfloat16 (packed ones: U8).
void CheckTensors(const std::map<std::string, TensorInfo>& tensors, const TensorShapes& required,
                  const TensorShapes& optional, const std::string& where);

// Where a stored tensor belongs. Unknown names are kLanguage and stay as they are: CheckTensors
// reports them.
struct TensorName {
  enum class Part { kTower, kLanguage, kIgnored };
  Part part;
  std::string canonical;
};
// Names of llava-hf (every generation: with and without an outer `model.`, with and without
// `vision_model.` in the tower) and of original LLaVA. Ignored: rotary tables and position ids.
TensorName FromLlavaName(const std::string& stored);
// The name in llava-hf's folders of a canonical one of tower or language model.
std::string ToHfName(const std::string& canonical);
// Names of a CLIP folder. Ignored besides: text model, projections, logit scale.
TensorName FromClipName(const std::string& stored);

// "mlp1x_gelu" is one linear layer stored as a sequence of one: gives it the names of "linear".
void NameSingleLayer(const ProjectorConfig& config, TensorSource& tensors);

}  // namespace llava
