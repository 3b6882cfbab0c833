#pragma once

// The language model as a worker of the engine sees it. No LibTorch here.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config/model_config.h"
#include "model/digest/sha256.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"
#include "server/llm/feature_store.h"

namespace llava {

// Logits of some rows over the ids that may be sampled.
struct StepLogits {
  std::shared_ptr<const void> memory;  // of `data`
  const float* data = nullptr;
  int64_t stride = 0;  // from row to row
  int64_t width = 0;

  std::span<const float> Row(int64_t row) const {
    return {data + row * stride, static_cast<size_t>(width)};
  }
};

// Computes the next tokens of sequences whose keys and values lie in blocks that the engine gives
// them (KvBlocks). Owned and used by one thread. Everything may throw.
class ModelRunner {
 public:
  // What one sequence computes in a step.
  struct Part {
    uint64_t sequence = 0;
    int64_t first = 0;                // row of the sequence: pictures expanded, answer included
    int64_t rows = 0;                 // of the prompt as begun, or 1 behind it: `token`
    int32_t token = 0;                // the token sampled last
    bool sampled = false;             // logits of the part's last row are wanted
    std::span<const int32_t> blocks;  // with room for all rows up to here
  };

  virtual ~ModelRunner() = default;
  // Begins a sequence: `ids` with kImageToken for each of `features`. Computes nothing yet.
  virtual void Begin(uint64_t sequence, std::span<const int32_t> ids,
                     std::span<const std::shared_ptr<const StoredFeatures>> features) = 0;
  // Forgets a sequence, also one that was never begun.
  virtual void End(uint64_t sequence) = 0;
  // One forward call over all parts. Rows of the result: the parts that are `sampled`, in order. A
  // call that throws may leave the blocks of its sequences unusable, no others.
  virtual StepLogits Step(std::span<const Part> parts) = 0;
  // Makes one block equal to another.
  virtual void CopyBlock(int32_t from, int32_t to) = 0;
  virtual int64_t num_blocks() const = 0;
  virtual uint64_t weight_bytes() const = 0;
  // Image tokens one picture takes in a prompt.
  virtual int64_t image_tokens() const = 0;
};

using RunnerFactory = std::function<std::unique_ptr<ModelRunner>(int worker)>;

// What there is to know about a loaded language model.
struct LanguageInfo {
  std::string name;
  uint64_t version = 0;
  Sha256Digest digest{};
  Sha256Digest tower_digest{};
  FeatureConfig features;      // what it wants from the tower
  int64_t feature_rows = 0;    // rows of Z_v of one picture
  int64_t feature_width = 0;   // Dv
  int64_t max_positions = 0;   // of the decoder
  int64_t kv_block_bytes = 0;  // of KvBlocks::kTokens tokens
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;
  std::string device, dtype, numerics;
  int workers = 1;
};

struct LoadedLanguage {
  LanguageInfo info;
  RunnerFactory factory;
};

struct LanguageOptions {
  std::string model;           // path
  std::string tower;           // folder of the tower, where the checkpoint names none that is there
  std::string chat_template;   // name or file, empty: the checkpoint's own
  std::string device = "cpu";  // one worker for each
  std::string dtype = "auto";
  int group = 0;  // of int8 and int4 weights
  std::string kv_type = "auto";
  uint64_t kv_bytes = uint64_t{4} << 30;  // keys and values per worker
  int threads = 0;
};

// Reads the checkpoint. NOT_FOUND: no model there, or a broken one. FAILED_PRECONDITION: no such
// device.
absl::StatusOr<LoadedLanguage> OpenLanguageWorkers(const LanguageOptions& options);

}  // namespace llava
