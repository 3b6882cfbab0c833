#include "model/eval/examinee.h"

#include <cstdint>
#include <utility>

#include <c10/core/InferenceMode.h>

namespace llava {
namespace {

// More than any right answer takes, a description of four things included.
constexpr uint32_t kLongestAnswer = 64;

}  // namespace

ModelExaminee::ModelExaminee(const Llava& model, ImageTokens image_tokens)
    : model_(&model), image_tokens_(std::move(image_tokens)) {
  stop_.max_new_tokens = kLongestAnswer;
  stop_.stop = model.chat_template().stop();
}

void ModelExaminee::Show(const Scene& scene) {
  const c10::InferenceMode guard;
  generator_ = std::make_unique<Generator>(*model_, std::vector<at::Tensor>{image_tokens_(scene)});
}

void ModelExaminee::Begin() { messages_.clear(); }

std::string ModelExaminee::Answer(const std::string& question) {
  const int pictures = messages_.empty() ? 1 : 0;
  messages_.push_back({ChatMessage::Role::kUser, question, pictures, {}});
  const std::vector<int32_t> ids =
      model_->tokenizer().EncodePrompt(model_->chat_template().Render(messages_));
  GenerateResult result = generator_->Reply(ids, {}, stop_);
  ChatMessage answer{ChatMessage::Role::kAssistant, result.text, 0, {}};
  // The ids of the answer, as serving repeats them; where a stop text cut it, the text is all there
  // is.
  if (result.ids.back() == model_->tokenizer().eos_id()) {
    result.ids.pop_back();
    answer.token_ids = std::move(result.ids);
  }
  messages_.push_back(std::move(answer));
  return result.text;
}

}  // namespace llava
