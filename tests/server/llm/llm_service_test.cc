// The LLM service over loopback with the fixture model (float32, greedy: exact).

#include "server/llm/llm_service.h"

#include <gmock/gmock.h>

#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "server/runtime/status.h"
#include "server/wire/feature_key.h"
#include "server/wire/tensor_stream.h"
#include "tests/server/llm/llm_test_server.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

LlmOptions FixtureOptions() {
  LlmOptions options;
  options.language.model = (FixturesDir() / "tiny-llava").string();
  options.engine.prefill_chunk = 7;  // an odd one, so that prompts fall into many pieces
  return options;
}

// One server for all tests: they look at differences, not at totals.
class LlmServiceTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new LlmTestServer(FixtureOptions());
    features_ = new TestFeatures(ComputeFeatures(FixturesDir() / "tiny-llava",
                                                 FixturesDir() / "images" / "plain.png",
                                                 server_->info().vision_spec()));
    ASSERT_TRUE(server_->Put(*features_).ok());
  }
  static void TearDownTestSuite() {
    delete features_;
    delete server_;
  }

  // A question with the picture whose answer runs to `tokens` tokens.
  static v1::GenerateRequest Question(uint32_t tokens) {
    v1::GenerateRequest request =
        server_->Ask("What is shown in this image?", {features_->header.key()});
    request.mutable_sampling()->set_max_new_tokens(tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    return request;
  }
  static StreamedAnswer Run(const v1::GenerateRequest& request) {
    return Generate(server_->stub(), request);
  }

  static LlmTestServer* server_;
  static TestFeatures* features_;
};
LlmTestServer* LlmServiceTest::server_ = nullptr;
TestFeatures* LlmServiceTest::features_ = nullptr;

TEST_F(LlmServiceTest, WritesTheTokensOfTheOracle) {
  std::ifstream file(FixturesDir() / "expected" / "generation.json");
  int compared = 0;
  for (const nlohmann::json& sample : nlohmann::json::parse(file)) {
    if (sample["ids_style"] != "hf" || sample["name"] == "two_turn") continue;
    const std::string prompt = sample["prompt"];
    const size_t begin = prompt.find("USER: ") + 6;
    std::string question = prompt.substr(begin, prompt.rfind(" ASSISTANT:") - begin);
    std::vector<v1::FeatureKey> images;
    if (!sample["image"].is_null()) {
      // The sample may fit its pictures otherwise than the checkpoint says; the numbers count here.
      v1::VisionSpec spec = server_->info().vision_spec();
      spec.set_image_mode(sample["image_mode"] == "pad" ? v1::IMAGE_MODE_PAD : v1::IMAGE_MODE_CROP);
      TestFeatures features =
          ComputeFeatures(FixturesDir() / "tiny-llava",
                          FixturesDir() / "images" / std::string(sample["image"]), spec);
      features.header.mutable_key()->set_spec_digest(
          ToBytes(SpecDigest(server_->info().vision_spec())));
      features.header.mutable_key()->set_numerics("oracle");
      ASSERT_TRUE(server_->Put(features).ok());
      images.push_back(features.header.key());
      question = question.substr(question.find('\n') + 1);
    }
    v1::GenerateRequest request = server_->Ask(question, images);
    const std::vector<int32_t> expected = sample["output_ids"];
    request.mutable_sampling()->set_max_new_tokens(expected.size());
    request.mutable_sampling()->set_ignore_eos(true);
    const StreamedAnswer answer = Run(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_THAT(answer.token_ids, ElementsAreArray(expected)) << sample["name"];
    EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(answer.finished.usage().text_tokens() + answer.finished.usage().image_tokens(),
              sample["prompt_len_after_image"]);
    EXPECT_EQ(answer.finished.usage().generated_tokens(), expected.size());
    EXPECT_EQ(answer.started.text_tokens(), answer.finished.usage().text_tokens());
    ++compared;
  }
  EXPECT_GE(compared, 2);
}

TEST_F(LlmServiceTest, ManyAtOnceWriteWhatEachWritesAlone) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 12; ++i) {
    v1::GenerateRequest request = Question(12 + static_cast<uint32_t>(i));
    request.mutable_messages(0)->set_text("Question number " + std::string(1 + i % 5, 'x'));
    if (i % 3 == 0) request.mutable_messages(0)->clear_images();
    requests.push_back(request);
  }
  std::vector<StreamedAnswer> alone;
  for (const auto& request : requests) alone.push_back(Run(request));
  std::vector<std::future<StreamedAnswer>> together;
  for (const auto& request : requests) {
    together.push_back(std::async(std::launch::async, [&request] { return Run(request); }));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const StreamedAnswer answer = together[i].get();
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_THAT(answer.token_ids, ElementsAreArray(alone[i].token_ids)) << i;
    EXPECT_EQ(answer.text, alone[i].text);
  }
}

TEST_F(LlmServiceTest, GoesOnAtEveryTokenWithTheSameText) {
  for (const float temperature : {0.0f, 0.9f}) {
    v1::GenerateRequest request = Question(24);
    request.mutable_sampling()->set_temperature(temperature);
    request.mutable_sampling()->set_seed(77);
    request.mutable_sampling()->set_presence_penalty(0.4f);
    const StreamedAnswer whole = Run(request);
    ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
    std::string emitted;
    std::vector<int32_t> ids;
    for (const v1::GenerateDelta& delta : whole.deltas) {
      emitted += delta.text();
      ids.insert(ids.end(), delta.token_ids().begin(), delta.token_ids().end());
      v1::GenerateRequest again = request;
      v1::ContinueFrom& from = *again.mutable_continue_from();
      from.mutable_tokens()->set_tokenizer_digest(server_->info().tokenizer_digest());
      from.mutable_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
      from.set_text_bytes_emitted(emitted.size());
      const StreamedAnswer rest = Run(again);
      ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
      EXPECT_EQ(emitted + rest.text, whole.text) << "after " << ids.size() << " tokens";
      EXPECT_EQ(rest.finished.reason(), whole.finished.reason());
      EXPECT_EQ(rest.finished.usage().generated_tokens(),
                whole.finished.usage().generated_tokens());
      EXPECT_EQ(rest.finished.tokens().SerializeAsString(),
                whole.finished.tokens().SerializeAsString());
    }
  }
}

TEST_F(LlmServiceTest, StopTextsNeverLeakWhereverTheyBegin) {
  const StreamedAnswer whole = Run(Question(24));
  for (size_t at = 1; at + 6 < whole.text.size(); at += 3) {
    std::string stop = whole.text.substr(at, 5);
    if ((static_cast<uint8_t>(stop[0]) & 0xc0) == 0x80) continue;  // within a character
    if ((static_cast<uint8_t>(whole.text[at + 5]) & 0xc0) == 0x80) continue;
    v1::GenerateRequest request = Question(24);
    request.mutable_sampling()->add_stop(stop);
    const StreamedAnswer answer = Run(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.text, whole.text.substr(0, whole.text.find(stop))) << "stop at byte " << at;
    EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_STOP);
  }
}

TEST_F(LlmServiceTest, StopTokensEndTheAnswerAndAreNotPartOfIt) {
  const StreamedAnswer whole = Run(Question(10));
  v1::GenerateRequest request = Question(10);
  request.mutable_sampling()->add_stop_token_ids(whole.token_ids[6]);
  const StreamedAnswer answer = Run(request);
  EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_THAT(answer.token_ids, ::testing::Not(::testing::Contains(whole.token_ids[6])));
  EXPECT_EQ(answer.finished.usage().generated_tokens(), answer.token_ids.size() + 1);
}

TEST_F(LlmServiceTest, LogprobsComeWithEachToken) {
  v1::GenerateRequest request = Question(6);
  request.mutable_sampling()->set_logprobs(3);
  const StreamedAnswer answer = Run(request);
  size_t tokens = 0;
  for (const v1::GenerateDelta& delta : answer.deltas) {
    ASSERT_EQ(delta.logprobs_size(), delta.token_ids_size());
    for (int i = 0; i < delta.logprobs_size(); ++i, ++tokens) {
      EXPECT_EQ(delta.logprobs(i).token_id(), delta.token_ids(i));
      ASSERT_EQ(delta.logprobs(i).top_size(), 3);
      EXPECT_EQ(delta.logprobs(i).top(0).token_id(), delta.token_ids(i)) << "greedy";
      EXPECT_LE(delta.logprobs(i).top(1).logprob(), delta.logprobs(i).top(0).logprob());
      EXPECT_LT(delta.logprobs(i).logprob(), 0);
    }
  }
  EXPECT_EQ(tokens, 6u);
}

TEST_F(LlmServiceTest, EveryWayOfSamplingReachesTheSampler) {
  const StreamedAnswer greedy = Run(Question(24));
  const auto ids = [](auto change) {
    v1::GenerateRequest request = Question(24);
    change(*request.mutable_sampling());
    const StreamedAnswer answer = Run(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    return answer.token_ids;
  };
  const auto hot = [](auto& s) { s.set_temperature(2), s.set_top_p(1), s.set_seed(3); };
  EXPECT_NE(ids(hot), greedy.token_ids);
  EXPECT_EQ(ids(hot), ids(hot)) << "the same seed";
  EXPECT_NE(ids(hot), ids([&](auto& s) { hot(s), s.set_seed(4); }));
  // What leaves one token to draw from is greedy.
  EXPECT_EQ(ids([&](auto& s) { hot(s), s.set_top_k(1); }), greedy.token_ids);
  EXPECT_EQ(ids([&](auto& s) { hot(s), s.set_min_p(1); }), greedy.token_ids);
  EXPECT_EQ(ids([&](auto& s) { hot(s), s.set_top_p(1e-6f); }), greedy.token_ids);
  // Penalties below nothing make likelier what has been said.
  const auto distinct = [](const std::vector<int32_t>& all) {
    return std::set<int32_t>(all.begin(), all.end()).size();
  };
  const size_t usual = distinct(greedy.token_ids);
  EXPECT_LT(distinct(ids([](auto& s) { s.set_presence_penalty(-2); })), usual);
  EXPECT_LT(distinct(ids([](auto& s) { s.set_frequency_penalty(-2); })), usual);
  EXPECT_LT(distinct(ids([](auto& s) { s.set_repetition_penalty(0.1f); })), usual);
}

TEST_F(LlmServiceTest, TimesAddUp) {
  const StreamedAnswer answer = Run(Question(12));
  const v1::Timings& times = answer.finished.timings();
  EXPECT_GE(times.queue_seconds(), 0);
  EXPECT_GT(times.prefill_seconds(), 0);
  EXPECT_GT(times.decode_seconds(), 0);
  EXPECT_NEAR(times.time_to_first_token_seconds(), times.queue_seconds() + times.prefill_seconds(),
              1e-3);
  EXPECT_LE(times.time_to_first_token_seconds() + times.decode_seconds(), times.total_seconds());
}

TEST_F(LlmServiceTest, WhoDoesNotReadHoldsNobodyUp) {
  grpc::ClientContext context;
  const v1::GenerateRequest slow = Question(1500);
  auto reader = server_->stub().Generate(&context, slow);  // its messages pile up
  for (int i = 0; i < 3; ++i) {
    const StreamedAnswer answer = Run(Question(200));
    EXPECT_TRUE(answer.status.ok());
    EXPECT_EQ(answer.token_ids.size(), 200u);
  }
  const auto deadline = CondVar::Clock::now() + kSlowdown * std::chrono::seconds(240);
  while (server_->engine().running() > 0 && CondVar::Clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_EQ(server_->engine().running(), 0) << "it ended although nobody has read a word";
  v1::GenerateResponse response;
  int tokens = 0;
  while (reader->Read(&response)) tokens += response.delta().token_ids_size();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 1500);
}

TEST_F(LlmServiceTest, CountTokensIsWhatGenerateUses) {
  v1::GenerateRequest request = Question(2);
  v1::PromptMessage& answer = *request.add_messages();
  answer.set_role(v1::ROLE_ASSISTANT);
  answer.set_text("A red square.");
  v1::PromptMessage& next = *request.add_messages();
  next.set_role(v1::ROLE_USER);
  next.set_text("And </s> what else?");
  v1::CountTokensRequest count;
  *count.mutable_model() = request.model();
  *count.mutable_messages() = request.messages();
  v1::CountTokensResponse counted;
  grpc::ClientContext context;
  ASSERT_TRUE(server_->stub().CountTokens(&context, count, &counted).ok());
  const StreamedAnswer generated = Run(request);
  ASSERT_TRUE(generated.status.ok());
  EXPECT_EQ(counted.text_tokens(), generated.finished.usage().text_tokens());
  EXPECT_EQ(counted.image_tokens(), generated.finished.usage().image_tokens());
  EXPECT_EQ(counted.image_tokens(), server_->info().image_tokens());
  EXPECT_EQ(counted.context_tokens(), server_->info().context_tokens());
}

TEST_F(LlmServiceTest, EarlierAnswersAreReadByTheirIdsIfTheDigestFits) {
  const StreamedAnswer first = Run(Question(8));
  v1::GenerateRequest request = Question(8);
  v1::PromptMessage& answer = *request.add_messages();
  answer.set_role(v1::ROLE_ASSISTANT);
  answer.set_text("other words altogether, many more than the ids have");
  *answer.mutable_tokens() = first.finished.tokens();
  v1::PromptMessage& next = *request.add_messages();
  next.set_role(v1::ROLE_USER);
  next.set_text("Why?");
  const StreamedAnswer by_ids = Run(request);
  request.mutable_messages(1)->mutable_tokens()->set_tokenizer_digest(std::string(32, 'x'));
  const StreamedAnswer by_text = Run(request);
  ASSERT_TRUE(by_ids.status.ok() && by_text.status.ok());
  EXPECT_NE(by_ids.started.text_tokens(), by_text.started.text_tokens());
  request.mutable_messages(1)->clear_tokens();
  EXPECT_EQ(Run(request).started.text_tokens(), by_text.started.text_tokens());
}

TEST_F(LlmServiceTest, MissingFeaturesAreListedBeforeAnyWork) {
  v1::FeatureKey missing = features_->header.key();
  missing.set_image_sha256(std::string(32, '\x42'));
  v1::GenerateRequest request = server_->Ask("Both?", {features_->header.key(), missing});
  const StreamedAnswer answer = Run(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  v1::MissingFeatures detail;
  ASSERT_TRUE(GetDetail(FromGrpc(answer.status), &detail));
  ASSERT_EQ(detail.keys_size(), 1);
  EXPECT_EQ(detail.keys(0).SerializeAsString(), missing.SerializeAsString());
}

TEST_F(LlmServiceTest, DroppedFeaturesAreMissing) {
  const auto drop = [&](const v1::LlmServiceDropFeaturesRequest& request,
                        uint32_t* dropped = nullptr) {
    grpc::ClientContext context;
    v1::LlmServiceDropFeaturesResponse response;
    const grpc::Status status = server_->stub().DropFeatures(&context, request, &response);
    if (dropped) *dropped = response.dropped();
    return status;
  };
  v1::LlmServiceDropFeaturesRequest request;
  request.add_image_sha256("short");
  const grpc::Status status = drop(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("image_sha256 has 5 bytes"));
  request.set_image_sha256(0, features_->header.key().image_sha256());
  request.add_image_sha256(std::string(32, 'x'));
  EXPECT_TRUE(drop(request).ok());  // with what other tests may have put of the same picture
  EXPECT_TRUE(server_->Put(*features_).ok());
  uint32_t dropped = 0;
  EXPECT_TRUE(drop(request, &dropped).ok());
  EXPECT_EQ(dropped, 1u);
  EXPECT_TRUE(drop(request, &dropped).ok());
  EXPECT_EQ(dropped, 0u);
  const v1::GenerateRequest question = server_->Ask("And now?", {features_->header.key()});
  EXPECT_EQ(Run(question).status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  v1::PutFeaturesResponse put;
  EXPECT_TRUE(server_->Put(*features_, &put).ok());
  EXPECT_FALSE(put.already_present());
  EXPECT_TRUE(Run(question).status.ok());
}

TEST_F(LlmServiceTest, DroppedSessionsAreForgotten) {
  const auto drop = [&](const v1::LlmServiceDropFeaturesRequest& request) {
    grpc::ClientContext context;
    v1::LlmServiceDropFeaturesResponse response;
    return server_->stub().DropFeatures(&context, request, &response);
  };
  const auto known = [&] {
    std::multiset<std::string> ids;
    for (const auto& session : server_->recent().List()) ids.insert(session.id);
    return ids;
  };
  for (const char* id : {"text", "other text", "picture"}) {
    const bool picture = std::string(id) == "picture";
    v1::GenerateRequest request =
        picture ? server_->Ask("What?", {features_->header.key()}) : server_->Ask("Who?");
    request.set_session_id(id);
    ASSERT_TRUE(Run(request).status.ok());
  }
  using Ids = std::multiset<std::string>;
  EXPECT_EQ(known(), (Ids{"other text", "picture", "text"}));
  v1::LlmServiceDropFeaturesRequest request;
  request.add_session_ids("text");
  request.add_session_ids("unknown");
  EXPECT_TRUE(drop(request).ok());
  EXPECT_EQ(known(), (Ids{"other text", "picture"}));
  request.clear_session_ids();
  request.add_image_sha256(features_->header.key().image_sha256());
  EXPECT_TRUE(drop(request).ok());
  EXPECT_EQ(known(), Ids{"other text"});
  for (int i = 0; i < 257; ++i) request.add_session_ids("a");
  EXPECT_THAT(drop(request).error_message(), HasSubstr("session_ids names 257 sessions"));
  EXPECT_TRUE(server_->Put(*features_).ok());
}

TEST_F(LlmServiceTest, PutFeaturesTakesOnlyWhatTheModelReads) {
  v1::PutFeaturesResponse response;
  EXPECT_TRUE(server_->Put(*features_, &response).ok());
  EXPECT_TRUE(response.already_present());

  TestFeatures damaged = *features_;
  damaged.header.mutable_key()->set_image_sha256(std::string(32, '\x01'));
  damaged.bytes[5] ^= 1;
  EXPECT_EQ(server_->Put(damaged).error_code(), grpc::StatusCode::DATA_LOSS);

  TestFeatures misshapen = damaged;
  const int64_t rows = server_->info().feature_rows();
  misshapen.header.mutable_tensor()->set_shape(0, rows + 1);
  const grpc::Status shape = server_->Put(misshapen);
  EXPECT_EQ(shape.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(shape.error_message(), HasSubstr(std::to_string(rows + 1) + ", "));
  EXPECT_THAT(shape.error_message(), HasSubstr(std::to_string(rows) + ", "));

  TestFeatures foreign = *features_;
  foreign.header.mutable_key()->set_spec_digest(std::string(32, '\x02'));
  EXPECT_EQ(server_->Put(foreign).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(LlmServiceTest, AnAnswerWithBrokenNumbersEndsAndTheOthersLive) {
  TestFeatures broken = *features_;
  broken.header.mutable_key()->set_image_sha256(std::string(32, '\x03'));
  for (size_t i = 0; i < broken.bytes.size(); ++i) broken.bytes[i] = '\xff';  // NaN
  *broken.header.mutable_tensor() =
      DescribeTensor(v1::DATA_TYPE_FLOAT32,
                     std::vector<int64_t>(features_->header.tensor().shape().begin(),
                                          features_->header.tensor().shape().end()),
                     broken.bytes);
  ASSERT_TRUE(server_->Put(broken).ok());
  const StreamedAnswer alone = Run(Question(40));
  auto good = std::async(std::launch::async, [] { return Run(Question(40)); });
  const StreamedAnswer bad = Run(server_->Ask("What is it?", {broken.header.key()}));
  EXPECT_EQ(bad.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(good.get().text, alone.text);
  EXPECT_THAT(server_->MetricsText(), HasSubstr("llava_llm_nan_logits_total 1"));
}

TEST_F(LlmServiceTest, TheContextIsALimitThatIsTold) {
  std::string words;
  for (int i = 0; i < 4000; ++i) words += "many ";
  const StreamedAnswer refused = Run(server_->Ask(words));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.status.error_message(),
              HasSubstr(std::to_string(server_->info().context_tokens())));

  LlmOptions options = FixtureOptions();
  v1::GenerateRequest request = Question(1000);
  request.mutable_messages(0)->clear_images();
  const uint32_t prompt = Run(Question(1)).started.text_tokens() - 1;
  options.context_tokens = static_cast<int>(prompt) + 9;
  LlmTestServer small(options);
  const StreamedAnswer answer = Generate(small.stub(), request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_CONTEXT);
  EXPECT_EQ(answer.finished.usage().context_free_tokens(), 0u);
}

TEST_F(LlmServiceTest, CancellingEndsTheWork) {
  const SlowDevice slow(server_->turn());
  v1::GenerateRequest request = Question(1500);
  grpc::ClientContext context;
  auto reader = server_->stub().Generate(&context, request);
  v1::GenerateResponse response;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(server_->engine().running(), 1);
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(server_->admission().WaitUntilIdle(CondVar::Clock::now() +
                                                 kSlowdown * std::chrono::seconds(60)));
  EXPECT_EQ(server_->engine().running(), 0);
  EXPECT_THAT(server_->MetricsText(),
              HasSubstr("llava_llm_finished_total{reason=\"cancelled\"} 1"));
}

TEST_F(LlmServiceTest, ADeadlineEndsTheWork) {
  const StreamedAnswer answer =
      Generate(server_->stub(), Question(1900), std::chrono::milliseconds(60));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(server_->admission().WaitUntilIdle(CondVar::Clock::now() +
                                                 kSlowdown * std::chrono::seconds(60)));
  EXPECT_EQ(server_->engine().running(), 0);
}

TEST_F(LlmServiceTest, BadRequestsGetTheRightStatusAndTheNextOneIsServed) {
  const auto code = [](auto change) {
    v1::GenerateRequest request = Question(2);
    change(request);
    return Run(request).status.error_code();
  };
  using grpc::StatusCode;
  EXPECT_EQ(code([](auto& r) { r.clear_messages(); }), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(code([](auto& r) { r.mutable_messages(0)->set_role(v1::ROLE_ASSISTANT); }),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(code([](auto& r) { r.mutable_model()->set_name("nobody"); }), StatusCode::NOT_FOUND);
  EXPECT_EQ(code([](auto& r) { r.mutable_model()->set_version(99); }),
            StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(code([](auto& r) { r.mutable_model()->set_version(0); }), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(code([](auto& r) { r.set_adapter_id("lora"); }), StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(code([](auto& r) { r.mutable_sampling()->set_temperature(3); }),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(code([](auto& r) { r.mutable_sampling()->add_stop_token_ids(1 << 30); }),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(code([](auto& r) { r.mutable_continue_from()->mutable_tokens()->add_ids(5); }),
            StatusCode::FAILED_PRECONDITION)
      << "ids of no known tokenizer";
  EXPECT_EQ(code([](auto& r) { r.mutable_continue_from()->set_text_bytes_emitted(50); }),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(code([](auto& r) {}), StatusCode::OK);
}

}  // namespace
}  // namespace llava
