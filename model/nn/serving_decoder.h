#pragma once

// A decoder together with its paged key/value cache on one device: what a worker of the LLM service
// steps. Who owns which block is the engine's business; the decoder only reads and writes them.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/nn/token_choice.h"

namespace llava {

// Tokens whose keys and values one block holds, all layers.
inline constexpr int64_t kKvBlockTokens = 16;

// In what keys and values are kept. kAuto: float32 for float32 weights, else 16 bits.
enum class KvType : uint8_t { kAuto, kFloat, kBFloat16, kInt8 };

// What one sequence computes in a step.
struct StepSequence {
  int64_t tokens = 0;               // rows of the batch, behind those of the sequence before
  int64_t computed = 0;             // tokens of it that its blocks hold already
  std::span<const int32_t> blocks;  // in order, with room for computed + tokens
};

// What a step gives whose tokens are drawn where the logits are.
struct DrawnStep {
  static constexpr int32_t kNotFinite = -1, kNotAsked = -2;
  std::vector<int32_t>
      ids;            // of each row wanted: its next token; the logits are not finite; no choice
  at::Tensor logits;  // float32 [rows without a choice, V] on the CPU, in order
};

// One thread. Shapes: T rows of all sequences, D width, V vocabulary.
class ServingDecoder {
 public:
  virtual ~ServingDecoder() = default;

  // ids -> rows [ids, D] as Step takes them.
  virtual at::Tensor Embed(std::span<const int32_t> ids) const = 0;
  // One forward call over all sequences. Writes keys and values of their new tokens into their
  // blocks and returns the logits of the rows `wanted` (indices into the batch) as float32
  // [wanted, V] on the CPU. `rows` [T, D]: of Embed, or projected pictures of the same dtype and
  // device. The result of a row depends on its own sequence alone, within rounding
  // (CudaLlama) or to the bit (PackedLlama). Throws std::invalid_argument if
  // shapes do not fit.
  virtual at::Tensor Step(const at::Tensor& rows, std::span<const StepSequence> sequences,
                          std::span<const int64_t> wanted) = 0;
  // Whether StepAndDraw is there: it spares the logits their way to the host.
  virtual bool draws() const { return false; }
  // Step, and the next token of each of the rows `wanted` that has a choice, among the ids [0,
  // `known_ids`): the token that DrawToken (model/llava/draw.h) gives for its logits.
  virtual DrawnStep StepAndDraw(const at::Tensor& rows, std::span<const StepSequence> sequences,
                                std::span<const int64_t> wanted,
                                std::span<const std::optional<TokenChoice>> choices,
                                int64_t known_ids) {
    static_cast<void>(rows), static_cast<void>(sequences), static_cast<void>(wanted);
    static_cast<void>(choices), static_cast<void>(known_ids);
    throw std::logic_error("decoder: draws no tokens");
  }
  // Does ahead what would else delay the first steps of up to `sequences` sequences with one token
  // each, none longer than `tokens`: short calls on the device, each within `piece`. Leaves all
  // blocks as they are. Returns what it measured to choose by, for the log; nothing if nothing.
  using DevicePieces = std::function<void(const std::function<void()>&)>;
  virtual std::string Prepare(int64_t sequences, int64_t tokens, const DevicePieces& piece) {
    static_cast<void>(sequences), static_cast<void>(tokens), static_cast<void>(piece);
    return "";
  }
  // Makes block `to` equal to block `from`.
  virtual void CopyBlock(int32_t from, int32_t to) = 0;

  virtual int64_t num_blocks() const = 0;
  virtual uint64_t weight_bytes() const = 0;
  virtual const DecoderConfig& config() const = 0;
};

}  // namespace llava
