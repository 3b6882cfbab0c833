// The LLM service with pictures in tiles (LLaVA-1.6): each takes as many image tokens as its size
// asks for.

#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/llava/generate.h"
#include "model/llava/llava.h"
#include "server/runtime/status.h"
#include "server/wire/feature_key.h"
#include "tests/server/llm/llm_test_server.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr uint32_t kPlainTokens = 70, kTallTokens = 52;  // as transformers counts them

class LlmAnyresTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempFolder();
    WriteTinyNext(folder_->path() / "next");
    server_ = new LlmTestServer(Options());
    plain_ = new TestFeatures(See("plain.png"));
    tall_ = new TestFeatures(See("tall_37x200.png"));
  }
  static void TearDownTestSuite() {
    delete tall_;
    delete plain_;
    delete server_;
    delete folder_;
  }

  static LlmOptions Options() {
    LlmOptions options;
    options.language.model = (folder_->path() / "next").string();
    options.engine.prefill_chunk = 7;
    return options;
  }
  static TestFeatures See(const std::string& picture) {
    return ComputeFeatures(folder_->path() / "next", FixturesDir() / "images" / picture,
                           server_->info().vision_spec());
  }
  static v1::GenerateRequest Question(const std::string& text,
                                      const std::vector<v1::FeatureKey>& images) {
    v1::GenerateRequest request = server_->Ask(text, images);
    request.mutable_sampling()->set_max_new_tokens(10);
    request.mutable_sampling()->set_ignore_eos(true);
    return request;
  }
  static grpc::Status Count(const v1::GenerateRequest& request, v1::CountTokensResponse* counted) {
    v1::CountTokensRequest count;
    *count.mutable_model() = request.model();
    *count.mutable_messages() = request.messages();
    grpc::ClientContext context;
    return server_->stub().CountTokens(&context, count, counted);
  }
  // What the model says without a server.
  static std::vector<int32_t> Reference(const std::string& text,
                                        const std::vector<const TestFeatures*>& pictures) {
    const c10::InferenceMode guard;
    const Llava model(OpenLanguage(folder_->path() / "next"), at::kCPU, at::kFloat);
    std::vector<at::Tensor> features;
    std::vector<Resolution> sizes;
    for (const TestFeatures* picture : pictures) {
      const auto& shape = picture->header.tensor().shape();
      features.push_back(at::from_blob(const_cast<char*>(picture->bytes.data()),
                                       {shape[0], shape[1]}, at::kFloat));
      sizes.push_back({static_cast<int>(picture->header.image_width()),
                       static_cast<int>(picture->header.image_height())});
    }
    const std::vector<ChatMessage> chat = {
        {ChatMessage::Role::kUser, text, static_cast<int>(pictures.size()), {}}};
    const std::vector<int32_t> ids =
        model.tokenizer().EncodePrompt(model.chat_template().Render(chat));
    return Generate(model, ids, features, {}, {.max_new_tokens = 10, .ignore_eos = true}, sizes)
        .ids;
  }

  static TempFolder* folder_;
  static LlmTestServer* server_;
  static TestFeatures *plain_, *tall_;
};
TempFolder* LlmAnyresTest::folder_ = nullptr;
LlmTestServer* LlmAnyresTest::server_ = nullptr;
TestFeatures* LlmAnyresTest::plain_ = nullptr;
TestFeatures* LlmAnyresTest::tall_ = nullptr;

TEST_F(LlmAnyresTest, TellsTheGatewayWhatToAskFor) {
  const v1::ModelInfo& info = server_->info();
  EXPECT_EQ(info.vision_spec().image_mode(), v1::IMAGE_MODE_ANYRES);
  ASSERT_EQ(info.vision_spec().grid_size(), 5);
  EXPECT_EQ(info.vision_spec().grid(0).width(), 56u);
  EXPECT_EQ(info.vision_spec().grid(0).height(), 112u);
  EXPECT_TRUE(CheckVisionSpec(info.vision_spec()).ok());
  EXPECT_EQ(info.image_tokens(), 16u + 8 * 9) << "the most";
  EXPECT_EQ(info.feature_rows(), 16u) << "of a tile";
}

TEST_F(LlmAnyresTest, PicturesOfTwoShapesInOnePrompt) {
  ASSERT_TRUE(server_->Put(*plain_).ok());
  ASSERT_TRUE(server_->Put(*tall_).ok());
  const std::string text = "Which one is taller?";
  const std::vector<std::vector<const TestFeatures*>> orders = {{plain_, tall_}, {tall_, plain_}};
  for (const auto& order : orders) {
    const v1::GenerateRequest request =
        Question(text, {order[0]->header.key(), order[1]->header.key()});
    v1::CountTokensResponse counted;
    ASSERT_TRUE(Count(request, &counted).ok());
    const StreamedAnswer answer = Generate(server_->stub(), request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_THAT(answer.token_ids, ElementsAreArray(Reference(text, order)));
    EXPECT_EQ(answer.finished.usage().image_tokens(), kPlainTokens + kTallTokens);
    EXPECT_EQ(answer.started.image_tokens(), kPlainTokens + kTallTokens);
    EXPECT_EQ(counted.image_tokens(), kPlainTokens + kTallTokens);
    EXPECT_EQ(counted.text_tokens(), answer.finished.usage().text_tokens());
  }
  // What was computed of a picture is found again by those who begin with it.
  const StreamedAnswer again =
      Generate(server_->stub(), Question("And now?", {plain_->header.key(), tall_->header.key()}));
  ASSERT_TRUE(again.status.ok());
  EXPECT_GE(again.started.cached_tokens(), kPlainTokens + kTallTokens);
  EXPECT_THAT(again.token_ids, ElementsAreArray(Reference("And now?", {plain_, tall_})));
}

TEST_F(LlmAnyresTest, CountsOnlyWhatItKnows) {
  TestFeatures unseen = See("gray.png");
  unseen.header.mutable_key()->set_numerics("not put yet");
  const v1::GenerateRequest request = Question("What?", {unseen.header.key()});
  v1::CountTokensResponse counted;
  const grpc::Status status = Count(request, &counted);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  v1::MissingFeatures missing;
  ASSERT_TRUE(GetDetail(FromGrpc(status), &missing));
  ASSERT_EQ(missing.keys_size(), 1);
  EXPECT_EQ(missing.keys(0).numerics(), "not put yet");
  ASSERT_TRUE(server_->Put(unseen).ok());
  ASSERT_TRUE(Count(request, &counted).ok());
  EXPECT_EQ(counted.image_tokens(), 88u);
  EXPECT_TRUE(Count(Question("No picture", {}), &counted).ok());
  EXPECT_EQ(counted.image_tokens(), 0u);
}

TEST_F(LlmAnyresTest, RefusesSizesThatDoNotFit) {
  TestFeatures features = *plain_;
  features.header.mutable_key()->set_numerics("bad sizes");
  const auto refused = [&](uint32_t width, uint32_t height) {
    features.header.set_image_width(width);
    features.header.set_image_height(height);
    const grpc::Status status = server_->Put(features);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << width << " x " << height;
    return status.error_message();
  };
  EXPECT_THAT(refused(0, 0), AllOf(HasSubstr("0 x 0"), HasSubstr("image_width")));
  EXPECT_THAT(refused(100, 0), HasSubstr("100 x 0"));
  // Two tiles instead of four.
  EXPECT_THAT(refused(56, 112), AllOf(HasSubstr("[80, 64]"), HasSubstr("[48, 64]"),
                                      HasSubstr("of a picture of 56 x 112")));
  EXPECT_THAT(refused(UINT32_MAX, 5), HasSubstr("cannot be"));
  EXPECT_EQ(server_->store().Get(FeatureKeyToBytes(features.header.key())), nullptr);
}

TEST_F(LlmAnyresTest, ALongPromptIsToldWithItsImageTokens) {
  LlmOptions options = Options();
  options.context_tokens = 160;
  LlmTestServer small(options);
  ASSERT_TRUE(small.Put(*plain_).ok());
  ASSERT_TRUE(small.Put(*tall_).ok());
  v1::GenerateRequest request = small.Ask("Why?", {plain_->header.key(), tall_->header.key()});
  const StreamedAnswer answer = Generate(small.stub(), request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("122 image"));
  request.mutable_messages(0)->mutable_images()->RemoveLast();
  request.mutable_sampling()->set_max_new_tokens(1000);
  request.mutable_sampling()->set_ignore_eos(true);
  const StreamedAnswer full = Generate(small.stub(), request);
  ASSERT_TRUE(full.status.ok()) << full.status.error_message();
  EXPECT_EQ(full.finished.reason(), v1::FINISH_REASON_CONTEXT);
  EXPECT_EQ(full.finished.usage().context_used_tokens(), 160u);
}

}  // namespace
}  // namespace llava
