#include "server/gateway/prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::ElementsAre;

StoredTurn Turn(const std::string& question, const std::string& answer,
                const std::vector<std::string>& images = {}) {
  StoredTurn stored;
  stored.turn.set_user_text(question);
  stored.turn.set_answer_text(answer);
  for (const std::string& id : images) stored.turn.add_images()->set_id(id);
  if (!answer.empty()) stored.tokens.add_ids(1);
  return stored;
}

TEST(PromptTest, LeavesOutTurnsWithoutAnAnswer) {
  Conversation conversation;
  conversation.turns = {Turn("a", "A", {"x", "y"}), Turn("broken", "", {"z"}),
                        Turn("b", "B", {"x"})};
  Prompt prompt = PromptOfConversation(conversation);
  prompt.AddUser("c", {});
  std::vector<std::string> texts;
  for (const auto& message : prompt.messages) texts.push_back(message.text);
  EXPECT_THAT(texts, ElementsAre("a", "A", "b", "B", "c"));
  EXPECT_THAT(prompt.DistinctImages(), ElementsAre("x", "y"));

  prompt = PromptOfConversation(conversation, /*skip=*/1);
  EXPECT_EQ(prompt.messages.size(), 2U);
}

TEST(PromptTest, AnEmptySystemTextIsAText) {
  Conversation conversation;
  EXPECT_TRUE(PromptOfConversation(conversation).messages.empty());
  conversation.session.set_system_prompt("");
  EXPECT_EQ(PromptOfConversation(conversation).messages.at(0).role, v1::ROLE_SYSTEM);
}

TEST(PromptTest, FillsKeysAndIds) {
  Conversation conversation;
  conversation.turns = {Turn("a", "A", {"x", "x"})};
  std::map<std::string, v1::FeatureKey> keys;
  keys["x"].set_numerics("n");
  v1::GenerateRequest request;
  FillMessages(PromptOfConversation(conversation), keys, request.mutable_messages());
  ASSERT_EQ(request.messages_size(), 2);
  EXPECT_EQ(request.messages(0).images_size(), 2);
  EXPECT_EQ(request.messages(0).images(1).numerics(), "n");
  EXPECT_FALSE(request.messages(0).has_tokens());
  EXPECT_EQ(request.messages(1).tokens().ids_size(), 1);
}

}  // namespace
}  // namespace llava
