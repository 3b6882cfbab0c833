// The label arithmetic of LLaVA's published training script (train.py, preprocess_v1,
// preprocess and preprocess_plain), which counts the tokens of parts of a text encoded on their
// own.

#include <algorithm>
#include <stdexcept>

#include "model/text/labels.h"

namespace llava {

class PublishedLabels {
 public:
  PublishedLabels(const Tokenizer& tokenizer, const ChatTemplate& chat_template, bool has_image,
                  size_t model_max_length, ChatTemplate::MarkPlace place)
      : tokenizer_(tokenizer),
        template_(chat_template),
        has_image_(has_image),
        model_max_length_(model_max_length),
        place_(place) {}

  LabelledTokens Make(std::span<const ChatMessage> messages) {
    using Published = ChatTemplate::Published;
    if (template_.published_ == Published::kNone) {
      throw std::invalid_argument("the published training script knows no template like \"" +
                                  template_.name() + "\"");
    }
    sample_.text = template_.RenderTraining(messages, has_image_, place_).text;
    sample_.input_ids = Tokenize(sample_.text);
    sample_.labels.assign(sample_.input_ids.begin(), sample_.input_ids.end());
    switch (template_.published_) {
      case Published::kTwoSeparators:
        TwoSeparators();
        break;
      case Published::kSingleSeparator:
        SingleSeparator(messages);
        break;
      default:
        Plain(messages);
    }
    return std::move(sample_);
  }

 private:
  std::vector<int32_t> Tokenize(std::string_view text) const {
    return has_image_ ? tokenizer_.EncodeWithImageMarks(text) : tokenizer_.Encode(text);
  }
  int64_t Count(std::string_view text) const { return static_cast<int64_t>(Tokenize(text).size()); }
  // labels[begin:end] = ignored, with the bounds of a Python slice.
  void Ignore(int64_t begin, int64_t end) {
    end = std::min(end, static_cast<int64_t>(sample_.labels.size()));
    for (int64_t i = begin; i < end; ++i) sample_.labels[i] = kIgnoreLabel;
  }

  // Rounds end with "</s>", whose token the BOS of a round encoded on its own stands in for.
  void TwoSeparators() {
    const ChatTemplate::Form& form = template_.training_;
    const std::string marker = form.user_suffix + form.assistant_prefix + form.before_answer;
    const auto size = static_cast<int64_t>(sample_.labels.size());
    int64_t current = 1;
    Ignore(0, 1);
    std::string_view rest = sample_.text;
    for (bool first = true; !rest.empty(); first = false) {
      const size_t end = std::min(rest.find(form.assistant_suffix), rest.size());
      const std::string_view round = rest.substr(0, end);
      if (round.empty()) break;
      const size_t at = round.find(marker);
      if (at == round.npos || round.find(marker, at + marker.size()) != round.npos) break;
      int64_t round_tokens = Count(round);
      int64_t asked_tokens = Count(round.substr(0, at + marker.size())) - 2;
      if (!first && !tokenizer_.options().legacy) --round_tokens, --asked_tokens;
      Ignore(current, current + asked_tokens);
      current += round_tokens;
      rest.remove_prefix(std::min(end + form.assistant_suffix.size(), rest.size()));
    }
    Ignore(current, size);
    // The script pads with unk and takes every unk for padding.
    const int64_t total =
        size - std::count(sample_.input_ids.begin(), sample_.input_ids.end(), tokenizer_.unk_id());
    if (current < static_cast<int64_t>(model_max_length_) && current != total) Ignore(0, size);
  }

  void SingleSeparator(std::span<const ChatMessage> messages) {
    const ChatTemplate::Form& form = template_.training_;
    int64_t current = Count(template_.system() + form.system_suffix);
    Ignore(0, current);
    for (const ChatMessage& message : messages) {
      const bool user = message.role == ChatMessage::Role::kUser;
      const int64_t tokens = Count(
          user ? form.user_prefix + template_.QuestionText(message, has_image_, place_) +
                     form.user_suffix
               : form.assistant_prefix + form.before_answer + message.text + form.assistant_suffix);
      if (user) Ignore(current + 2, current + tokens);
      current += tokens;
    }
  }

  void Plain(std::span<const ChatMessage> messages) {
    Ignore(0, Count(template_.QuestionText(messages.front(), has_image_, place_)));
  }

  const Tokenizer& tokenizer_;
  const ChatTemplate& template_;
  const bool has_image_;
  const size_t model_max_length_;
  const ChatTemplate::MarkPlace place_;
  LabelledTokens sample_;
};

LabelledTokens MakePublishedLabels(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                   std::span<const ChatMessage> messages, bool has_image,
                                   size_t model_max_length, ChatTemplate::MarkPlace place) {
  return PublishedLabels(tokenizer, chat_template, has_image, model_max_length, place)
      .Make(messages);
}

}  // namespace llava
