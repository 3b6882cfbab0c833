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

// Holds keys and values of running sequences and computes their next tokens. Owned and used by one
// thread. Everything may throw.
class ModelRunner {
 public:
  // What one sequence computes in a step.
  struct Part {
    uint64_t sequence = 0;
    int64_t tokens = 0;    // of the prompt; 0: decode `token`
    int32_t token = 0;     // the token sampled last
    bool sampled = false;  // logits of the part's last row are wanted
  };

  virtual ~ModelRunner() = default;
  // Begins a sequence: `ids` with kImageToken for each of `features`; it will never hold more than
  // `longest_tokens`. Computes nothing of the decoder yet. Returns the length of the prompt with
  // its pictures expanded.
  virtual int64_t Begin(uint64_t sequence, std::span<const int32_t> ids,
                        std::span<const std::shared_ptr<const StoredFeatures>> features,
                        int64_t longest_tokens) = 0;
  // Forgets a sequence, also one that was never begun.
  virtual void End(uint64_t sequence) = 0;
  // One forward call over all parts. Returns, in order of the parts that are `sampled`, the logits
  // over the ids that may be sampled. A call that throws may leave its sequences unusable, no
  // others.
  virtual std::vector<std::vector<float>> Step(std::span<const Part> parts) = 0;
  // Bytes of keys and values held.
  virtual int64_t kv_bytes() const = 0;
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
  FeatureConfig features;     // what it wants from the tower
  int64_t feature_rows = 0;   // rows of Z_v of one picture
  int64_t feature_width = 0;  // Dv
  int64_t max_positions = 0;  // of the decoder
  int64_t kv_bytes_per_token = 0;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;
  std::string device, dtype, numerics;
  uint64_t weight_bytes = 0;  // of all workers
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
  int threads = 0;
};

// Reads the checkpoint. NOT_FOUND: no model there, or a broken one. FAILED_PRECONDITION: no such
// device.
absl::StatusOr<LoadedLanguage> OpenLanguageWorkers(const LanguageOptions& options);

}  // namespace llava
