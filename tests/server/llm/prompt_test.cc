#include "server/llm/prompt.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <functional>

#include "server/runtime/error_reason.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

class PromptTest : public ::testing::Test {
 protected:
  PromptTest() {
    key_.set_image_sha256(std::string(32, 'i'));
    key_.set_spec_digest(std::string(32, 's'));
    key_.set_numerics("cpu-f32");
  }

  v1::PromptMessage& Add(v1::Role role, const std::string& text) {
    v1::PromptMessage& message = *request_.add_messages();
    message.set_role(role);
    message.set_text(text);
    return message;
  }
  absl::StatusOr<Prompt> Build() const { return builder_.Build(request_.messages()); }

  const std::shared_ptr<const Tokenizer> tokenizer_ =
      std::make_shared<Tokenizer>(Tokenizer::Load(FixturesDir() / "tiny-llava"));
  const PromptBuilder builder_{tokenizer_,
                               std::make_shared<ChatTemplate>(ChatTemplate::Builtin("v1")),
                               {.pictures = PictureShape(FeatureConfig(), 10),
                                .context_tokens = 100,
                                .spec_digest = std::string(32, 's')}};
  v1::FeatureKey key_;
  v1::GenerateRequest request_;
};

TEST_F(PromptTest, CountsTextAndPicturesApart) {
  Add(v1::ROLE_USER, "Hello");
  const auto without = Build();
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_EQ(without->image_tokens, 0);
  EXPECT_EQ(without->text_tokens, static_cast<int64_t>(without->ids.size()));
  for (int i = 0; i < 2; ++i) *request_.mutable_messages(0)->add_images() = key_;
  const auto with = Build();
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(with->image_tokens, 20);
  EXPECT_EQ(with->picture_tokens, (std::vector<int64_t>{10, 10}));
  EXPECT_EQ(with->images.size(), 2u);
  EXPECT_EQ(std::count(with->ids.begin(), with->ids.end(), kImageToken), 2);
  EXPECT_EQ(with->tokens(), with->text_tokens + 20);
}

TEST_F(PromptTest, ASystemMessageReplacesTheTemplates) {
  Add(v1::ROLE_SYSTEM, "Be short.");
  Add(v1::ROLE_USER, "Hello");
  const auto own = Build();
  ASSERT_TRUE(own.ok());
  request_.mutable_messages()->DeleteSubrange(0, 1);
  EXPECT_LT(own->text_tokens, Build()->text_tokens);
}

TEST_F(PromptTest, IdsOfThisTokenizerAreUsedVerbatim) {
  Add(v1::ROLE_USER, "One?");
  v1::PromptMessage& answer = Add(v1::ROLE_ASSISTANT, "ignored when the ids fit");
  Add(v1::ROLE_USER, "Two?");
  const auto by_text = Build();
  answer.mutable_tokens()->set_tokenizer_digest(ToBytes(tokenizer_->digest()));
  for (const int32_t id : {300, 301, 302}) answer.mutable_tokens()->add_ids(id);
  const auto by_ids = Build();
  ASSERT_TRUE(by_ids.ok()) << by_ids.status();
  const std::vector<int32_t> expected = {300, 301, 302};
  EXPECT_NE(std::search(by_ids->ids.begin(), by_ids->ids.end(), expected.begin(), expected.end()),
            by_ids->ids.end());
  answer.mutable_tokens()->set_tokenizer_digest(std::string(32, 'x'));
  EXPECT_EQ(Build()->ids, by_text->ids);
  answer.mutable_tokens()->set_tokenizer_digest(ToBytes(tokenizer_->digest()));
  answer.mutable_tokens()->add_ids(1 << 20);
  EXPECT_THAT(std::string(Build().status().message()), HasSubstr("1048576"));
}

TEST_F(PromptTest, RefusesWhatIsNoConversation) {
  const auto refused = [this](const std::function<void()>& fill) {
    request_.clear_messages();
    fill();
    return Build().status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([] {}));
  EXPECT_TRUE(refused([this] { Add(v1::ROLE_SYSTEM, "alone"); }));
  EXPECT_TRUE(refused([this] { Add(v1::ROLE_ASSISTANT, "first"); }));
  EXPECT_TRUE(refused([this] { Add(v1::ROLE_UNSPECIFIED, "nobody"); }));
  EXPECT_TRUE(refused([this] { Add(v1::ROLE_USER, ""); }));
  EXPECT_TRUE(refused([this] {
    Add(v1::ROLE_USER, "a");
    Add(v1::ROLE_USER, "b");
  }));
  EXPECT_TRUE(refused([this] {
    Add(v1::ROLE_USER, "a");
    Add(v1::ROLE_ASSISTANT, "b");
  }));
  EXPECT_TRUE(refused([this] {
    Add(v1::ROLE_USER, "a");
    *Add(v1::ROLE_ASSISTANT, "b").add_images() = key_;
    Add(v1::ROLE_USER, "c");
  }));
  EXPECT_TRUE(refused([this] { Add(v1::ROLE_USER, "a").mutable_tokens()->add_ids(5); }));
  EXPECT_TRUE(refused([this] {
    key_.set_spec_digest(std::string(32, 'o'));
    *Add(v1::ROLE_USER, "a").add_images() = key_;
  }));
  EXPECT_TRUE(refused([this] { Add(v1::ROLE_USER, std::string(100 * 64 + 1, 'a')); }));
  EXPECT_FALSE(refused([this] { Add(v1::ROLE_USER, "fine"); }));
}

TEST_F(PromptTest, TellsBothNumbersWhenItDoesNotFit) {
  Prompt prompt;
  prompt.text_tokens = 89;
  prompt.image_tokens = 10;
  EXPECT_TRUE(builder_.CheckFits(prompt).ok());
  prompt.text_tokens = 90;
  const absl::Status refused = builder_.CheckFits(prompt);
  EXPECT_TRUE(HasReason(refused, kReasonContextLength));
  const std::string message(refused.message());
  EXPECT_THAT(message, HasSubstr("the prompt is too long: 100 tokens (90 text, 10 image)"));
  EXPECT_THAT(message, HasSubstr("this model's maximum context length is 100 tokens"));
}

}  // namespace
}  // namespace llava
