#pragma once

// The shape of a LLaVA model: vision tower, projector, decoder. Plain values, read from the
// config.json of every published layout by model/checkpoint.
//
// Letters used all over model/: B batch, T tokens, P patches, N image tokens, C channels, S image
// side, D width, Dv vision width, H heads, Hkv key/value heads, Dh head size, L layers, V
// vocabulary.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace llava {

// "square", "pad" and "anyres" in published configurations.
enum class ImageMode { kCrop, kPad, kAnyres };
enum class SelectFeature { kPatch, kClsPatch };  // drop or keep the class token
enum class Activation { kQuickGelu, kGelu };     // x*sigmoid(1.702x), or the exact (erf) form

// How pixels become the tower's input (preprocessor_config.json).
struct PreprocessConfig {
  int64_t image_size = 336;  // S
  std::array<float, 3> mean = {0.48145466f, 0.4578275f, 0.40821073f};
  std::array<float, 3> std = {0.26862954f, 0.26130258f, 0.27577711f};
};

// Sides of a picture or canvas in pixels.
struct Resolution {
  int width = 0;
  int height = 0;
  bool operator==(const Resolution&) const = default;
};

// CLIP ViT. Published towers: ViT-L/14 at 224 and 336.
struct VisionConfig {
  int64_t hidden_size = 1024;  // Dv
  int64_t intermediate_size = 4096;
  int64_t num_layers = 24;
  int64_t num_heads = 16;
  int64_t image_size = 336;  // S
  int64_t patch_size = 14;
  int64_t num_channels = 3;
  double layer_norm_eps = 1e-5;
  Activation activation = Activation::kQuickGelu;
  PreprocessConfig preprocess;

  int64_t num_patches() const { return (image_size / patch_size) * (image_size / patch_size); }
};

// H_v = W Z_v: "linear", or "mlpNx_gelu" with N linear layers and exact GELU between them.
struct ProjectorConfig {
  int64_t depth = 2;         // linear layers; 1 = linear
  int64_t in_width = 1024;   // Dv
  int64_t out_width = 4096;  // D
  std::string type() const;  // "linear", "mlp2x_gelu", ...
  // Throws std::invalid_argument for an unknown type.
  static int64_t DepthOf(const std::string& type);
};

// A decoder whose matrices are stored as products on the CPU read them (model/nn/packed_weights.h).
struct Quantization {
  std::string format;            // "bf16", "int8" or "int4"
  int64_t group = 0;             // weights with one scale; 0: bf16
  std::string layout;            // of the stored matrices, with its version
  std::string Describe() const;  // "int4/64", "bf16"
};

// LLaMA decoder.
struct DecoderConfig {
  int64_t hidden_size = 4096;  // D
  int64_t intermediate_size = 11008;
  int64_t num_layers = 32;     // L
  int64_t num_heads = 32;      // H
  int64_t num_kv_heads = 32;   // Hkv
  int64_t head_dim = 128;      // Dh
  int64_t vocab_size = 32000;  // V, rows of the embedding table (padding rows included)
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  bool tie_word_embeddings = false;
  int32_t bos_token_id = 1;
  int32_t eos_token_id = 2;
  std::optional<Quantization> quantization;  // none: plain tensors
};

// Which rows of which hidden state the projector reads, and how pictures are fitted.
struct FeatureConfig {
  ImageMode image_mode = ImageMode::kPad;
  // Index into the hidden states [0 = embeddings after the pre-norm .. num_layers]; negative counts
  // from the end. -2 is the output of the block before the last; no post-norm in any case.
  int64_t select_layer = -2;
  SelectFeature select_feature = SelectFeature::kPatch;
  // Of kAnyres, else none: the canvases that a picture may be laid on (image_grid_pinpoints), and
  // the side of their square tiles, the tower's S.
  std::vector<Resolution> grid = {};
  int64_t tile_size = 0;
};

// Projector and decoder with what they expect from the tower.
struct LanguageConfig {
  DecoderConfig decoder;
  ProjectorConfig projector;
  FeatureConfig features;
};

}  // namespace llava
