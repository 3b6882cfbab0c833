#pragma once

// Conversations <-> prompts. A template is data (JSON): the same file serves training and serving,
// so they cannot differ. Built-in: plain, v0, v1, llava_v0, llava_v1, llava_llama_2,
// mistral_instruct, chatml_direct, emoji; sources of the formats: LLaVA's conversation.py,
// described in docs/formats.md.
//
// The JSON of a template (* = must be there, else empty):
//   name*                     how it is called in settings
//   system                    text in front of everything
//   system_prefix, system_suffix   around it, if it is not empty
//   system_in_question        true: it stands behind the first user prefix instead
//   image: prefix, suffix     around the mark of a picture (suffix "\n" unless told). Marks
//                             stand in front of the message that they belong to
//   user*: prefix, suffix     around the text of the user
//     separator               in front of each prefix but the first
//   assistant*: prefix        asks for an answer; a prompt ends with it
//     before_answer           between prefix and answer; its first token is part of what a model
//                             generates, so ids of earlier answers stand without it
//     suffix                  ends an answer
//   stop                      texts that end an answer beside the tokenizer's end token
//   special_pieces            pieces of the tokenizer to be treated as special tokens
//   training                  where the text of a training sample differs from a prompt:
//     system_prefix, system_suffix, image, user, assistant    as above, instead of those
//     end                     text after the last message
//     trained_after_answer    what follows every answer's suffix and is trained with it as its stop
//                             mark: "end" and what "user" begins with must begin with it
//     drop_questions          true: picture and answer alone (one question, one answer)
//     published_labels        whose arithmetic MakePublishedLabels repeats: "two_separators",
//                             "single_separator" or "plain"
// A built-in "v0" carries no example exchange in front, unlike conversation.py's.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/text/tokenizer.h"

namespace llava {

// One user or assistant message.
struct ChatMessage {
  enum class Role { kUser, kAssistant };
  Role role = Role::kUser;
  std::string text;
  int num_images = 0;              // pictures of a user message
  std::vector<int32_t> token_ids;  // of an assistant message: used instead of `text` if not empty
};

// Const after construction, thread-safe.
class ChatTemplate {
 public:
  // Throws std::invalid_argument naming the offending key.
  static ChatTemplate Parse(std::string_view json);
  // Throws std::invalid_argument listing the known names.
  static ChatTemplate Builtin(std::string_view name);

  const std::string& name() const { return name_; }
  const std::string& system() const { return system_; }
  // Texts that end an answer beside the end token.
  const std::vector<std::string>& stop() const { return stop_; }
  // Special tokens of this template beyond the tokenizer's own ("USER:" of the emoji model), to be
  // added to TokenizerOptions::added_tokens by their piece id.
  const std::vector<std::string>& special_pieces() const { return special_pieces_; }
  std::string ToJson() const;
  // Renders the same prompts in transformers, of `messages` whose contents are texts or lists of
  // parts, without the BOS that its tokenizer puts in front. A message of the role "system" in
  // front replaces the text.
  std::string ToJinja() const;

  // The prompt that asks for the next answer. `messages` alternate, begin and end with a user.
  // `system`: replaces the template's own text. Throws std::invalid_argument on a wrong order of
  // roles and on an empty user message without a picture. Whatever people wrote (questions, answers
  // as text, `system`) comes as kUser.
  std::vector<PromptSpan> Render(std::span<const ChatMessage> messages,
                                 const std::optional<std::string>& system = std::nullopt) const;
  // Lets the answer that `prompt` asks for begin with `text`, as in training.
  void BeginAnswer(std::vector<PromptSpan>& prompt, const std::string& text) const;

  // Where a question's marks stand in a training sample. White space between a mark and the text
  // beside it is the template's, so that a mark in front reads as in a prompt.
  enum class MarkPlace {
    kFront,      // as the published trainer since July 2023, and as prompts
    kEnd,        // behind the text
    kAsWritten,  // in front, behind or inside, as the text has it
  };
  // The text of a training sample and which bytes of it are trained (answers with their stop mark).
  // "<image>" marks are part of the text; texts that have marks are stripped of white space. The
  // plain template throws the question away and keeps the marks.
  struct TrainingText {
    std::string text;
    struct Range {
      size_t begin, end;
    };  // bytes, end excluded
    std::vector<Range> answers;
  };
  // Pictures of a message: num_images, but at least one where its text has a mark. `has_image`
  // false: the sample has no picture and "<image>" is text like any other. Throws
  // std::invalid_argument if roles do not alternate from user to assistant, on empty messages, and
  // on marks in answers.
  TrainingText RenderTraining(std::span<const ChatMessage> messages, bool has_image = true,
                              MarkPlace place = MarkPlace::kFront) const;
  // Whether questions are thrown away: good for aligning a projector, not for conversations.
  bool drops_questions() const { return drop_questions_; }

 private:
  friend class PublishedLabels;
  friend class TemplateReader;

  // The fixed texts around the parts of a conversation.
  struct Form {
    std::string system_prefix, system_suffix, image_prefix, image_suffix = "\n";
    std::string user_separator, user_prefix, user_suffix;
    std::string assistant_prefix, before_answer, assistant_suffix;
  };
  enum class Published { kNone, kTwoSeparators, kSingleSeparator, kPlain };

  std::string QuestionText(const ChatMessage& message, bool has_image, MarkPlace place) const;

  std::string name_, system_;
  std::vector<std::string> stop_, special_pieces_;
  Form prompt_, training_;
  std::string training_end_, trained_after_answer_;
  bool system_in_question_ = false, drop_questions_ = false;
  Published published_ = Published::kNone;
};

}  // namespace llava
