#pragma once

// What the language model gets to see of a conversation.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "llava/v1/llm.pb.h"
#include "server/gateway/store_records.h"

namespace llava {

// A conversation before its features have names. Pictures are told by id: hex of their SHA-256.
struct Prompt {
  struct Message {
    v1::Role role = v1::ROLE_USER;
    std::string text;
    std::vector<std::string> images;
    v1::TokenIds tokens;  // of an answer, opaque
  };
  std::vector<Message> messages;
  // Files that came with this request; all others are read from the store when needed.
  std::map<std::string, std::shared_ptr<const std::string>> files;

  void AddUser(const std::string& text, const std::vector<StoredImage>& images);
  uint64_t TextBytes() const;
  // How many pictures it shows, each as often as it does.
  uint64_t PictureUses() const;
  // Each picture once, in order of appearance.
  std::vector<std::string> DistinctImages() const;
};

// System text, then the turns whose answer has text, but for those dropped from the context and the
// last `skip` ones: a question without any answer would break the order of roles, and its picture
// may be the broken one.
Prompt PromptOfConversation(const Conversation& conversation, size_t skip = 0);

// The conversation in front of `turn`, which may be its last one, and the question of `turn`. The
// newest picture stays when its own turn was dropped: with the first question that is left.
Prompt PromptOf(const Conversation& conversation, const NewTurn& turn);

// The prompt on the wire. `keys` names the features of each picture by id.
void FillMessages(const Prompt& prompt, const std::map<std::string, v1::FeatureKey>& keys,
                  google::protobuf::RepeatedPtrField<v1::PromptMessage>* messages);

}  // namespace llava
