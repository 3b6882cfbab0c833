#pragma once

// Whole answers for one prompt at a time, without a server: evaluation, self-tests, the oracle of
// the serving engine.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/llava/answer.h"
#include "model/llava/llava.h"
#include "model/llava/sampler.h"

namespace llava {

struct GenerateResult {
  std::vector<int32_t> ids;                       // every token generated, a stop token included
  std::string text;                               // without stop text
  Answer::State state = Answer::State::kRunning;  // kStopped, or kLength
  int64_t prompt_tokens = 0;                      // pictures expanded
};

// `ids`: the prompt, kImageToken for each picture; `features` and `sizes` as Llava::Embed. Ends at
// the limits of `stop` or when the model's context is full. Runs without gradients. Throws
// std::invalid_argument if the prompt leaves no room for a token, and what Embed and Sample throw.
GenerateResult Generate(const Llava& model, std::span<const int32_t> ids,
                        std::span<const at::Tensor> features, const SamplingOptions& sampling,
                        const StopOptions& stop, std::span<const Resolution> sizes = {});

// Answers several prompts about the same pictures. What a prompt has in common with the last one
// and its answer, such as the pictures or earlier turns, is not computed anew. One thread.
class Generator {
 public:
  // `image_tokens`: [N, D] for each kImageToken of every prompt (Llava::Project). The model must
  // outlive the generator, its parameters unchanged.
  Generator(const Llava& model, std::vector<at::Tensor> image_tokens);

  // As Generate.
  GenerateResult Reply(std::span<const int32_t> ids, const SamplingOptions& sampling,
                       const StopOptions& stop);

 private:
  // Of the first ids of a prompt: rows of the cache.
  int64_t Length(std::span<const int32_t> ids) const;

  const Llava* model_;
  std::vector<at::Tensor> image_tokens_;
  KvCache cache_;
  std::vector<int32_t> cached_;  // the ids, pictures as marks, whose keys and values are in cache_
};

}  // namespace llava
