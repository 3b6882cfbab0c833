#include "model/text/chat_template.h"

#include <algorithm>
#include <stdexcept>

#include "model/text/utf8.h"

namespace llava {
namespace {

using Role = ChatMessage::Role;
using Kind = PromptSpan::Kind;

[[noreturn]] void Fail(size_t message, const std::string& what) {
  throw std::invalid_argument("message " + std::to_string(message + 1) + ": " + what);
}

// Users speak first, and then by turns; nobody says nothing.
void CheckMessages(std::span<const ChatMessage> messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& m = messages[i];
    const bool user = m.role == Role::kUser;
    if (user != (i % 2 == 0)) {
      Fail(i, std::string("messages must alternate, user first; expected ") +
                  (user ? "an assistant" : "a user") + " message");
    }
    if (m.num_images < 0) Fail(i, "a negative number of pictures");
    if (user && m.text.empty() && m.num_images == 0) {
      Fail(i, "a user message needs a text or a picture");
    }
    if (!user && m.num_images > 0) Fail(i, "an assistant message cannot have pictures");
  }
}

bool HasMark(const std::string& text) { return text.find(kImageMark) != text.npos; }

std::string WithoutMarks(std::string text) {
  for (size_t mark; (mark = text.find(kImageMark)) != text.npos;) {
    text.erase(mark, kImageMark.size());
  }
  return text;
}

// Where a text with marks has them: kAsWritten for anything but all in front or all behind.
ChatTemplate::MarkPlace PlaceOfMarks(std::string_view text) {
  using Place = ChatTemplate::MarkPlace;
  const size_t first = text.find(kImageMark), last = text.rfind(kImageMark);
  const auto blank = [](std::string_view part) { return StripUtf8(part).empty(); };
  const std::string between(text.substr(first, last - first));
  if (!blank(WithoutMarks(between))) return Place::kAsWritten;
  if (blank(text.substr(0, first))) return Place::kFront;
  return blank(text.substr(last + kImageMark.size())) ? Place::kEnd : Place::kAsWritten;
}

// Spans of a prompt, empty ones left out.
class Prompt {
 public:
  void Template(std::string_view text) { Add(Kind::kTemplate, text); }
  void User(std::string_view text) { Add(Kind::kUser, text); }
  void Image() { Add(Kind::kImage, kImageMark); }
  void Tokens(const std::vector<int32_t>& ids) { spans_.push_back({Kind::kTokens, "", ids}); }
  std::vector<PromptSpan> Take() { return std::move(spans_); }

 private:
  void Add(Kind kind, std::string_view text) {
    if (!text.empty()) spans_.push_back({kind, std::string(text), {}});
  }
  std::vector<PromptSpan> spans_;
};

}  // namespace

std::vector<PromptSpan> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                             const std::optional<std::string>& system) const {
  CheckMessages(messages);
  if (messages.size() % 2 == 0) {
    throw std::invalid_argument("a prompt must end with a user message, but has " +
                                std::to_string(messages.size()) + " messages");
  }
  Prompt prompt;
  const auto add_system = [&] {
    if (system.value_or(system_).empty()) return;
    prompt.Template(prompt_.system_prefix);
    if (system) {
      prompt.User(*system);
    } else {
      prompt.Template(system_);
    }
    prompt.Template(prompt_.system_suffix);
  };
  if (!system_in_question_) add_system();
  for (size_t m = 0; m < messages.size(); ++m) {
    const ChatMessage& message = messages[m];
    if (message.role == Role::kUser) {
      if (m > 0) prompt.Template(prompt_.user_separator);
      prompt.Template(prompt_.user_prefix);
      if (m == 0 && system_in_question_) add_system();
      for (int i = 0; i < message.num_images; ++i) {
        prompt.Template(prompt_.image_prefix);
        prompt.Image();
        // A picture alone ends without a line break, as in training.
        const bool last = message.text.empty() && i + 1 == message.num_images;
        prompt.Template(last ? StripUtf8Right(prompt_.image_suffix) : prompt_.image_suffix);
      }
      prompt.User(message.text);
      prompt.Template(prompt_.user_suffix);
    } else {
      prompt.Template(prompt_.assistant_prefix);
      if (!message.token_ids.empty()) {
        prompt.Tokens(message.token_ids);
      } else if (!message.text.empty()) {
        prompt.Template(prompt_.before_answer);
        prompt.User(message.text);
      }
      prompt.Template(prompt_.assistant_suffix);
    }
  }
  prompt.Template(prompt_.assistant_prefix);
  return prompt.Take();
}

void ChatTemplate::BeginAnswer(std::vector<PromptSpan>& prompt, const std::string& text) const {
  if (!prompt_.before_answer.empty())
    prompt.push_back({Kind::kTemplate, prompt_.before_answer, {}});
  prompt.push_back({Kind::kUser, text, {}});
}

std::string ChatTemplate::QuestionText(const ChatMessage& message, bool has_image,
                                       MarkPlace place) const {
  const bool has_mark = HasMark(message.text);
  const int marks = has_image ? std::max<int>(message.num_images, has_mark) : 0;
  if (marks == 0) return message.text;
  // What follows a mark is what belongs to it (as "<im_end>") and a gap to the next text.
  const std::string_view closing = StripUtf8Right(training_.image_suffix);
  const std::string gap = training_.image_suffix.substr(closing.size());
  const std::string mark = training_.image_prefix + std::string(kImageMark) + std::string(closing);
  std::string words;
  if (!drop_questions_) words = StripUtf8(WithoutMarks(message.text));
  if (place == MarkPlace::kAsWritten) {
    place = has_mark ? PlaceOfMarks(message.text) : MarkPlace::kFront;
  }
  if (place == MarkPlace::kAsWritten && !drop_questions_) {
    std::string text(StripUtf8(message.text));
    for (size_t at = 0; (at = text.find(kImageMark, at)) != text.npos; at += mark.size()) {
      text.replace(at, kImageMark.size(), mark);
    }
    return text;
  }
  std::string text = place == MarkPlace::kEnd ? words : "";
  for (int i = 0; i < marks; ++i) text += place == MarkPlace::kEnd ? gap + mark : mark + gap;
  if (place != MarkPlace::kEnd) text += words;
  return std::string(StripUtf8(text));
}

ChatTemplate::TrainingText ChatTemplate::RenderTraining(std::span<const ChatMessage> messages,
                                                        bool has_image, MarkPlace place) const {
  CheckMessages(messages);
  if (messages.empty() || messages.size() % 2 != 0) {
    throw std::invalid_argument("a training sample must end with an answer, but has " +
                                std::to_string(messages.size()) + " messages");
  }
  if (drop_questions_ && messages.size() != 2) {
    throw std::invalid_argument("template \"" + name_ +
                                "\" trains one question and one answer, not " +
                                std::to_string(messages.size()) + " messages");
  }
  TrainingText out;
  std::string system;
  if (!system_.empty()) system = training_.system_prefix + system_ + training_.system_suffix;
  if (!system_in_question_) out.text = system;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == Role::kUser) {
      if (!has_image && message.num_images > 0) Fail(i, "pictures in a sample that has none");
      if (drop_questions_ && !(has_image && (message.num_images > 0 || HasMark(message.text)))) {
        Fail(i, "template \"" + name_ + "\" drops the question and needs a picture");
      }
      if (i > 0) out.text += training_.user_separator;
      out.text += training_.user_prefix;
      if (i == 0 && system_in_question_) out.text += system;
      out.text += QuestionText(message, has_image, place) + training_.user_suffix;
      continue;
    }
    if (message.text.empty()) Fail(i, "an empty answer cannot be trained");
    if (has_image && HasMark(message.text)) Fail(i, "an answer contains \"<image>\"");
    out.text += training_.assistant_prefix;
    const size_t begin = out.text.size();
    out.text += training_.before_answer + message.text + training_.assistant_suffix;
    out.answers.push_back({begin, out.text.size() + trained_after_answer_.size()});
  }
  out.text += training_end_;
  return out;
}

}  // namespace llava
