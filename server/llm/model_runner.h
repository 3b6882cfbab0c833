#pragma once

// The language model as a worker of the engine sees it. No LibTorch here.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config/model_config.h"
#include "model/config/picture_shape.h"
#include "model/digest/sha256.h"
#include "model/nn/token_choice.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"
#include "server/device/load_failure.h"
#include "server/llm/feature_store.h"

namespace llava {

// Logits of some rows over the ids that may be sampled, and tokens where the runner drew them.
struct StepLogits {
  static constexpr int32_t kNotFinite = -1, kNotDrawn = -2;
  std::shared_ptr<const void> memory;  // of `data`
  const float* data = nullptr;
  int64_t stride = 0;  // from row to row
  int64_t width = 0;
  // Of each sampled part: the token drawn for it, kNotFinite if its logits are not, or kNotDrawn:
  // the next of the rows is its. Empty: all have rows.
  std::vector<int32_t> ids;

  int32_t Drawn(size_t sampled) const { return ids.empty() ? kNotDrawn : ids[sampled]; }
  std::span<const float> Row(int64_t row) const {
    return {data + row * stride, static_cast<size_t>(width)};
  }
};

// Called around each short piece of work on a device that others may be waiting for.
using DevicePiece = std::function<void(const std::function<void()>& compute)>;
// Rows of a prompt in such a piece: about what a step of a few answers takes.
inline constexpr int64_t kPieceRows = 16;

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
    bool sampled = false;             // the token behind the part's last row is wanted
    std::span<const int32_t> blocks;  // with room for all rows up to here
    // How to choose the token that is wanted, for runners that can; none: the logits are wanted.
    std::optional<TokenChoice> choice = std::nullopt;
  };

  virtual ~ModelRunner() = default;
  // Begins a sequence: `ids` with kImageToken for each of `features`. Computes nothing yet: a
  // picture is projected by the step that computes the first of its rows since then.
  virtual void Begin(uint64_t sequence, std::span<const int32_t> ids,
                     std::span<const std::shared_ptr<const StoredFeatures>> features) = 0;
  // Forgets a sequence, also one that was never begun.
  virtual void End(uint64_t sequence) = 0;
  // One forward call over all parts. Rows of the result: the parts that are `sampled` and have no
  // drawn token, in order. A call that throws may leave the blocks of its sequences unusable, no
  // others.
  virtual StepLogits Step(std::span<const Part> parts) = 0;
  // Makes one block equal to another.
  virtual void CopyBlock(int32_t from, int32_t to) = 0;
  // Tries the example that came with the version. Returns the largest deviation from what was
  // published; negative: there is no example. Throws std::runtime_error if it is too large.
  // Overwrites the first blocks: for a runner without sequences.
  virtual double SelfTest(const DevicePiece& piece) { return -1; }
  // Does ahead what would else delay the first steps of up to `sequences` answers with up to
  // `tokens` rows each. Leaves the blocks as they are. Returns what it measured, for the log.
  virtual std::string Prepare(int64_t sequences, int64_t tokens, const DevicePiece& piece) {
    return "";
  }
  virtual int64_t num_blocks() const = 0;
  virtual uint64_t weight_bytes() const = 0;
};

// Between who reads a model and who waits for it.
struct LoadWatch {
  std::atomic<double> share = 0;   // of the weights, read so far
  std::atomic<bool> stop = false;  // give up
};

// Loads the model for one of the devices, on the thread that will own it. Throws; LoadFailure with
// FAILED_PRECONDITION: the device is of no use to this process.
using RunnerFactory = std::function<std::unique_ptr<ModelRunner>(int device, LoadWatch& watch)>;

// What there is to know about a loaded language model.
struct LanguageInfo {
  std::string name;
  uint64_t version = 0;
  Sha256Digest digest{};
  Sha256Digest tower_digest{};
  FeatureConfig features;      // what it wants from the tower
  PictureShape pictures;       // rows of Z_v and image tokens of each
  int64_t feature_width = 0;   // Dv
  int64_t max_positions = 0;   // of the decoder
  int64_t kv_block_bytes = 0;  // of KvBlocks::kTokens tokens
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;
  std::string device, dtype, numerics;
  int workers = 1;  // one for each device
};

struct LoadedLanguage {
  LanguageInfo info;
  RunnerFactory factory;
  // Share of the files that is checked: what workers wait for while they load. Null: nobody checks.
  std::shared_ptr<const std::atomic<double>> checked = nullptr;
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

// How a checkpoint is read.
struct LoadPace {
  bool in_background = false;   // others are served meanwhile: by threads that stand back
  double bytes_per_second = 0;  // 0: as fast as it goes
  std::function<bool()> stop;   // polled until the first worker has read all: CANCELLED
};

// Opens the checkpoint; the factory reads and checks it, after a look at the device, and throws
// LoadFailure. Errors of
// WhyNotOpened, or FAILED_PRECONDITION: no such device.
absl::StatusOr<LoadedLanguage> OpenLanguageWorkers(const LanguageOptions& options,
                                                   const LoadPace& pace = {});

// Bytes of a worker beside its `kv_bytes`.
struct WorkerSize {
  uint64_t fixed = 0;        // weights, and what a step works in
  uint64_t kv_sequence = 0;  // keys and values of the longest sequence of the model
};
// Of steps of `step_rows` rows with `sampled` answers; from the checkpoint's headers alone. Errors
// as above.
absl::StatusOr<WorkerSize> EstimateWorker(const LanguageOptions& options, int64_t step_rows,
                                          int64_t sampled);

}  // namespace llava
