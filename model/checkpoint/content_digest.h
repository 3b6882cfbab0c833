#pragma once

#include "model/checkpoint/checkpoint.h"

namespace llava {

// SHA-256 over a part of a model: its configuration as JSON, then per tensor in order of the
// canonical names: name, type, shape, bytes. The same whatever files the tensors lie in. They read
// every byte.
Sha256Digest DigestTower(const VisionConfig& config, const TensorSource& tensors);
Sha256Digest DigestProjector(const LanguageConfig& config, const TensorSource& tensors);
Sha256Digest DigestDecoder(const LanguageConfig& config, const TensorSource& tensors);

}  // namespace llava
