#pragma once

// Opens checkpoints of every layout by content (never by folder name) under one set of tensor
// names:
//   - model repository version (manifest.json): tower or language model
//   - llava-hf, three generations of key names
//   - original LLaVA (liuhaotian), tower inside or named by mm_vision_tower
//   - a CLIP folder (tower only)
//   - LLaMA, Vicuna or Mistral as they are (decoder only), to be trained
//   - a LoRA adapter of any of these but the first and CLIP, merged into its base
// Canonical names: `vision_model.*` for the tower, `model.mm_projector.*`, `model.layers.*`,
// `model.embed_tokens.weight`, `model.norm.weight`, `lm_head.weight` for the language model.

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/manifest.h"
#include "model/checkpoint/tensor_source.h"
#include "model/config/model_config.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"

namespace llava {

// One example with what the model makes of it, so that a version can be tried before it is served.
// What the tensors are and how far results may be off, by arithmetic ("float32", "bfloat16",
// "float16", "int8", "int4"), says model/llava/self_test.h.
struct SelfTest {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, double> tolerances;
};

struct TowerCheckpoint {
  std::string name;  // repository name, or the folder's
  uint64_t version = 1;
  bool in_repository = false;
  VisionConfig config;
  TensorSource tensors;  // vision_model.*
  // SHA-256 over configuration and tensors: equal for equal towers, whatever the layout.
  Sha256Digest digest{};
  std::optional<SelfTest> self_test;
};

struct LanguageCheckpoint {
  std::string name;
  uint64_t version = 1;
  bool in_repository = false;
  LanguageConfig config;
  TensorSource tensors;
  Sha256Digest tower_digest{};  // the tower it was trained with
  int64_t tower_patches = 0;    // rows of Z_v without the class token
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;
  bool template_assumed = false;  // from the family, nobody named it: a foreign folder tells none
  std::optional<SelfTest> self_test;
  // In the repository: SHA-256 of the manifest. Elsewhere: over configuration, tokenizer, template,
  // tower digest, the tensors' names, types, shapes and first 4 KiB, and of the folder's files the
  // sizes and (up to 1 MiB) the content: a name for this checkpoint, not a proof of its bytes. Of a
  // LoRA adapter: the same of its base, and all of its own files.
  Sha256Digest digest{};
};

struct OpenOptions {
  // For the original layout, where mm_vision_tower is a hub name or nothing: the folder of the
  // tower. Tensors that the checkpoint has itself win; then only the settings are read from here.
  std::filesystem::path tower;
  // Built-in template or JSON file; empty: the checkpoint's own, else "v1", of Mistral without a
  // window "mistral_instruct", with the pieces of ChatML "chatml_direct".
  std::string chat_template;
  // Check size and SHA-256 of every file listed in the manifest, and that no weight is NaN or
  // infinite.
  bool verify = true;
  // Open a version whose decoder is packed for serving (DecoderConfig::quantization) too; else it
  // is refused, because nothing but packed_weights.h reads it.
  bool packed = false;
  // Open a language model alone, too, with the features of LLaVA-1.5 from `tower`; the projector
  // that its configuration names is not among its tensors. Else it is refused.
  bool without_projector = false;
  // Of a LoRA adapter: the folder of its base, where that is not the one that it names.
  std::filesystem::path base = {};
  // Threads that check, each a file at a time (half as many, each many files at a time, where the
  // processor hashes those faster); 0: one for each processor, at most 16.
  int threads = 0;
  // Of the checking, for callers that do it beside other work; called from threads of its own, one
  // call at a time, at least every 16 MiB. Share of the bytes that are checked, ascending to 1:
  std::function<void(double)> progress = {};
  // True: give up, OpenStopped is thrown.
  std::function<bool()> stop = {};
  double bytes_per_second = 0;  // read at most so many; 0: as fast as it goes
  // With `verify`, for those who load at once all that they open: return before the weights are
  // checked, and keep what is read for that in memory, past the page cache, so that it is read
  // once. Get waits for the file that a tensor is in; some files are read ahead of it, more when
  // tensors are given back by Release (read again, they come from the disk). Nothing may be used
  // before TensorSource::Finish has returned: only then all bytes are known to be right.
  bool in_memory = false;
  // With `in_memory`: many files may be there at a time, where they are read faster side by side.
  // Not for those who make much less of the weights than they are.
  bool side_by_side = true;
};

// OpenOptions::stop said so.
struct OpenStopped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `path`: a checkpoint folder, or <root>/<name> whose newest integer version is taken. All throw
// std::runtime_error naming the path and all missing, surplus and misshapen tensors at once, or the
// setting that is not supported; std::invalid_argument for an unknown chat template. `tower`
// becomes the one that comes with the language model: of a repository, where it is on its own,
// none.
TowerCheckpoint OpenTower(const std::filesystem::path& path, const OpenOptions& options = {});
LanguageCheckpoint OpenLanguage(const std::filesystem::path& path, const OpenOptions& options = {},
                                std::optional<TowerCheckpoint>* tower = nullptr);

// Replaces the projector of `checkpoint` by that of a stage-1 `mm_projector.bin` folder or file
// (names with any prefix before "mm_projector."; the type is read off the tensors). The digest
// changes with it. Throws std::runtime_error if it does not fit tower or decoder.
void OverlayProjector(LanguageCheckpoint& checkpoint, const std::filesystem::path& path);

// Writes a checkpoint into the repository: <root>/<name>/<next version>/, atomically (temporary
// folder, fsync, rename); a large language model in shards, in the order in which it is loaded.
// Returns the new folder. `recipe`: free JSON that tells how it was made. A
// checkpoint that was read from <root>/<name>/N becomes the parent version of what is published.
// Throws std::invalid_argument for a bad name or recipe, std::runtime_error if writing fails.
std::filesystem::path PublishTower(const TowerCheckpoint& checkpoint,
                                   const std::filesystem::path& root, const std::string& name,
                                   const std::string& recipe = "{}");
std::filesystem::path PublishLanguage(const LanguageCheckpoint& checkpoint,
                                      const std::filesystem::path& root, const std::string& name,
                                      const std::string& recipe = "{}");

}  // namespace llava
