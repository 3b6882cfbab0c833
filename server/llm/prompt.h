#pragma once

// From the messages of a request to the token ids of a prompt.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "llava/v1/llm.pb.h"
#include "model/config/picture_shape.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"
#include "server/llm/feature_store.h"

namespace llava {

struct Prompt {
  std::vector<int32_t> ids;            // kImageToken for each picture
  std::vector<v1::FeatureKey> images;  // in the order of the marks
  int64_t text_tokens = 0;
  std::vector<int64_t> picture_tokens;  // image tokens of each picture, once they are counted
  int64_t image_tokens = 0;             // of all
  int64_t tokens() const { return text_tokens + image_tokens; }
};

// Const after construction, thread-safe.
class PromptBuilder {
 public:
  struct Options {
    PictureShape pictures;       // image tokens of each
    int64_t context_tokens = 0;  // longest prompt plus answer
    std::string spec_digest;     // the only one whose features fit, 32 bytes
  };

  PromptBuilder(std::shared_ptr<const Tokenizer> tokenizer,
                std::shared_ptr<const ChatTemplate> chat_template, Options options);

  // Renders by the checkpoint's template and tokenizes. INVALID_ARGUMENT: no messages, wrong order
  // of roles, pictures or ids where they do not belong, a feature key of another VisionSpec, an
  // empty user message, ids out of range, more text than any prompt that fits could have. Counts
  // the image tokens unless sizes_matter().
  absl::StatusOr<Prompt> Build(
      const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages) const;

  // How many image tokens a picture takes depends on its size, which comes with its features.
  bool sizes_matter() const { return !options_.pictures.is_fixed(); }
  // Counts them. `features`: of each of prompt.images, as PutFeatures lets them in.
  void CountPictures(std::span<const std::shared_ptr<const StoredFeatures>> features,
                     Prompt& prompt) const;

  // INVALID_ARGUMENT with both numbers unless the prompt, as far as it is counted, leaves room for
  // one token.
  absl::Status CheckFits(const Prompt& prompt) const;

  // The ids if their digest is that of the tokenizer; empty if they are of another one.
  // INVALID_ARGUMENT naming `field` for an id out of range.
  absl::StatusOr<std::vector<int32_t>> OwnIds(const v1::TokenIds& tokens,
                                              const std::string& field) const;

 private:
  absl::Status CheckMessages(
      const google::protobuf::RepeatedPtrField<v1::PromptMessage>& messages) const;

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::shared_ptr<const ChatTemplate> chat_template_;
  const Options options_;
  const std::string tokenizer_digest_;  // 32 bytes
};

}  // namespace llava
