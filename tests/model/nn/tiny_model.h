#pragma once

// Random models of any shape, for tests that need a network and not a trained one.

#include <cstdint>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/memory_tensors.h"
#include "model/config/model_config.h"

namespace llava {

// All parameters of the modules, random but the same for equal arguments.
std::map<std::string, at::Tensor> RandomTower(const VisionConfig& config, uint64_t seed = 1);
std::map<std::string, at::Tensor> RandomProjector(const ProjectorConfig& config, uint64_t seed = 2);
std::map<std::string, at::Tensor> RandomDecoder(const DecoderConfig& config, uint64_t seed = 3);

// Small, with odd sizes and grouped key/value heads.
VisionConfig TinyTowerConfig();
DecoderConfig TinyDecoderConfig();

// Largest absolute difference.
double MaxDifference(const at::Tensor& a, const at::Tensor& b);

}  // namespace llava
