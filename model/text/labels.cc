#include "model/text/labels.h"

namespace llava {

LabelledTokens MakeLabels(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                          std::span<const ChatMessage> messages, bool has_image,
                          ChatTemplate::MarkPlace place) {
  ChatTemplate::TrainingText training = chat_template.RenderTraining(messages, has_image, place);
  LabelledTokens sample;
  std::vector<PromptSpan> spans;
  if (has_image) {
    spans = SplitImageMarks(training.text);
  } else {
    spans.push_back({PromptSpan::Kind::kTemplate, training.text, {}});
  }
  auto answer = training.answers.begin();
  bool at_begin = tokenizer.options().add_bos && tokenizer.bos_id() >= 0;
  for (const TokenRange& token : tokenizer.EncodeRanges(spans)) {
    while (answer != training.answers.end() && token.begin >= answer->end) ++answer;
    // A dummy prefix alone has no bytes; where an answer begins with it, it is the model's to say.
    const bool trained = !at_begin && token.id != kImageToken && answer != training.answers.end() &&
                         token.begin >= answer->begin && token.end <= answer->end;
    sample.input_ids.push_back(token.id);
    sample.labels.push_back(trained ? token.id : kIgnoreLabel);
    at_begin = false;
  }
  sample.text = std::move(training.text);
  return sample;
}

}  // namespace llava
