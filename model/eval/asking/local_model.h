#pragma once

// A checkpoint with its tower that answers questions, without a server.

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/eval/asking/visual_question.h"
#include "model/llava/sampler.h"
#include "model/text/tokenizer.h"

namespace llava {

// What stands in an answer before its choice: the reasons and, in a line of its own, the cue.
// Without reasons the cue alone, as records of instruction data have it that have none.
std::string BeforeChoice(const std::string& reasons, const std::string& cue);

// Thread-safe; answers do not depend on each other.
class LocalModel {
 public:
  // `chat_template`: as OpenOptions. Throws as OpenLanguage and OpenTower, and
  // std::invalid_argument if the tower is not the one that the model was trained with.
  LocalModel(const std::filesystem::path& model, const std::filesystem::path& tower,
             const std::string& chat_template);
  ~LocalModel();

  struct Answered {
    std::string text;
    bool cut_off = false;  // by the number of tokens
  };
  // Throws std::runtime_error naming the picture if it cannot be read or decoded,
  // std::invalid_argument if the prompt does not fit into the model's context.
  Answered Answer(const VisualQuestion& question, uint32_t max_tokens,
                  const SamplingOptions& sampling) const;
  // Differs between answers that may differ: a digest of model, tower, template, prompt, picture
  // and of how the answer is drawn. Throws as Answer for a picture.
  std::string KeyOf(const VisualQuestion& question, uint32_t max_tokens,
                    const SamplingOptions& sampling) const;

 private:
  struct Parts;
  std::vector<PromptSpan> PromptOf(const VisualQuestion& question) const;

  std::unique_ptr<const Parts> parts_;
};

}  // namespace llava
