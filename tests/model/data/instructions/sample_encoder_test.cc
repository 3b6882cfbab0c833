#include "model/data/instructions/sample_encoder.h"
#include "tests/support/fixtures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

namespace llava {
namespace {

using Kind = BadRecordKind;

class SampleEncoderTest : public testing::Test {
 protected:
  static InstructionRecord Record(const std::string& id, std::vector<std::string> texts,
                                  int pictures = 1) {
    InstructionRecord record;
    record.id = id;
    for (int i = 0; i < pictures; ++i) record.images.push_back("a.png");
    for (std::string& text : texts) {
      ChatMessage message;
      const bool user = record.messages.size() % 2 == 0;
      message.role = user ? ChatMessage::Role::kUser : ChatMessage::Role::kAssistant;
      message.num_images = user && text.find("<image>") != text.npos ? 1 : 0;
      message.text = std::move(text);
      record.messages.push_back(std::move(message));
    }
    return record;
  }

  EncodedSample Encode(const InstructionRecord& record, uint64_t epoch = 0) {
    return SampleEncoder(tokenizer_, template_, rules_).Encode(record, epoch);
  }
  std::string TextOf(const std::vector<int32_t>& ids) const {
    std::string text;
    for (const int32_t id : ids) {
      text += id == kImageToken ? "<image>" : tokenizer_->TokenBytes(id);
    }
    return text;
  }
  std::string TrainedText(const EncodedSample& sample) const {
    std::vector<int32_t> ids;
    for (const int64_t label : sample.labels) {
      if (label != kIgnoreLabel) ids.push_back(static_cast<int32_t>(label));
    }
    return TextOf(ids);
  }
  Kind KindOf(const InstructionRecord& record) {
    try {
      Encode(record);
    } catch (const BadRecord& bad) {
      message_ = bad.what();
      return bad.kind();
    }
    ADD_FAILURE() << "not refused";
    return Kind::kSyntax;
  }

  std::shared_ptr<const Tokenizer> tokenizer_ =
      std::make_shared<Tokenizer>(Tokenizer::Load(FixturesDir() / "tiny-llava"));
  std::shared_ptr<const ChatTemplate> template_ =
      std::make_shared<ChatTemplate>(ChatTemplate::Parse(
          R"({"name": "t", "user": {"prefix": "U:", "suffix": " "},
          "assistant": {"prefix": "A:", "before_answer": " ", "suffix": "</s>"}})"));
  SampleRules rules_{
      .image_order = ImageOrder::kFront, .max_tokens = 1000, .pictures = PictureShape({}, 16)};
  std::string message_;
};

TEST_F(SampleEncoderTest, WithoutPicturesAMarkIsText) {
  const EncodedSample sample = Encode(ParseInstructionRecord(
      R"({"id": "x", "conversations": [{"from": "human", "value": "What is <image>?"},
          {"from": "gpt", "value": "No <image>."}]})"));
  EXPECT_EQ(sample.num_images, 0);
  EXPECT_EQ(sample.tokens, static_cast<int64_t>(sample.input_ids.size()));
  EXPECT_EQ(std::count(sample.input_ids.begin(), sample.input_ids.end(), kImageToken), 0);
  EXPECT_THAT(TrainedText(sample), testing::HasSubstr("No <image>."));
}

TEST_F(SampleEncoderTest, CountsImageTokensAndTrainedOnes) {
  const EncodedSample sample = Encode(Record("a", {"<image>\nWhat?", "A cat.", "Sure?", "Yes."}));
  EXPECT_EQ(sample.tokens, static_cast<int64_t>(sample.input_ids.size()) + 15);
  EXPECT_EQ(sample.trained_tokens, std::count_if(sample.labels.begin(), sample.labels.end(),
                                                 [](int64_t l) { return l != kIgnoreLabel; }));
  EXPECT_EQ(sample.num_images, 1);
  EXPECT_EQ(sample.turns, 2);
  EXPECT_EQ(sample.dropped_turns, 0);
  EXPECT_EQ(TrainedText(sample), " A cat.</s> Yes.</s>");
  EXPECT_EQ(Encode(Record("a", {"What?", "A cat."}, 0)).num_images, 0);
}

TEST_F(SampleEncoderTest, PutsPicturesWhereTheOrderSays) {
  const InstructionRecord record = Record("a", {"What is it?\n<image>", "A cat."});
  const auto is_front = [&](ImageOrder order) {
    rules_.image_order = order;
    const std::string text = TextOf(Encode(record).input_ids);
    return text.find("<image>") < text.find("What");
  };
  EXPECT_TRUE(is_front(ImageOrder::kFront));
  EXPECT_FALSE(is_front(ImageOrder::kAsData));
}

TEST_F(SampleEncoderTest, DrawsThePlaceFromSeedEpochAndId) {
  rules_.image_order = ImageOrder::kRandom;
  const auto is_front = [&](const std::string& id, uint64_t epoch) {
    const auto ids = Encode(Record(id, {"<image>\nWhat is it?", "A cat."}), epoch).input_ids;
    return std::find(ids.begin(), ids.end(), kImageToken) - ids.begin() < 5;
  };
  const auto drawn = [&](uint64_t epoch) {
    std::vector<bool> places;
    for (int i = 0; i < 400; ++i) places.push_back(is_front("sample-" + std::to_string(i), epoch));
    return places;
  };
  const auto first = drawn(0);
  EXPECT_NEAR(std::count(first.begin(), first.end(), true), 200, 50);
  EXPECT_EQ(drawn(0), first);
  const auto differ = [&](const std::vector<bool>& other) {
    int different = 0;
    for (size_t i = 0; i < other.size(); ++i) different += other[i] != first[i];
    return different;
  };
  EXPECT_NEAR(differ(drawn(1)), 200, 50);
  rules_.seed = 43;
  EXPECT_NEAR(differ(drawn(0)), 200, 50);
}

TEST_F(SampleEncoderTest, LeavesOutWholeTurnsThatDoNotFit) {
  std::vector<std::string> texts = {"<image>\nWhat?", "A cat on a mat."};
  std::vector<int64_t> lengths = {Encode(Record("a", texts)).tokens};
  for (int i = 0; i < 6; ++i) {
    texts.insert(texts.end(), {"And number " + std::to_string(i) + "?", "A dog and a tree."});
    lengths.push_back(Encode(Record("a", texts)).tokens);
  }
  for (size_t turns = 1; turns < lengths.size(); ++turns) {
    for (const int64_t limit : {lengths[turns - 1], lengths[turns] - 1}) {
      rules_.max_tokens = limit;
      const EncodedSample sample = Encode(Record("a", texts));
      EXPECT_EQ(sample.tokens, lengths[turns - 1]) << limit;
      EXPECT_EQ(sample.turns, static_cast<int>(turns));
      EXPECT_EQ(sample.dropped_turns, static_cast<int>(lengths.size() - turns));
      EXPECT_TRUE(TrainedText(sample).ends_with("</s>")) << "the last answer is whole";
    }
  }
  rules_.max_tokens = lengths.back();
  EXPECT_EQ(Encode(Record("a", texts)).dropped_turns, 0);
  rules_.max_tokens = lengths.front() - 1;
  EXPECT_EQ(KindOf(Record("a", texts)), Kind::kTooLong);
  EXPECT_THAT(message_, testing::HasSubstr(std::to_string(lengths.front()) + " tokens, at most " +
                                           std::to_string(lengths.front() - 1)));
  EXPECT_EQ(KindOf(Record("a", {texts[0], texts[1]})), Kind::kTooLong);
}

TEST_F(SampleEncoderTest, APictureOfALeftOutTurnGoesToo) {
  const InstructionRecord record =
      Record("a", {"<image>\nWhat?", "A cat.", "And <image> this?", "A dog."}, 2);
  EXPECT_EQ(Encode(record).num_images, 2);
  rules_.max_tokens = Encode(record).tokens - 1;
  EXPECT_EQ(Encode(record).num_images, 1);
}

// Canvases of one or two tiles of 4 x 4 patches.
TEST_F(SampleEncoderTest, APictureTakesAsManyTokensAsItsShapeAsksFor) {
  const std::vector<Resolution> grid = {{56, 56}, {56, 112}};
  rules_.pictures =
      PictureShape({.image_mode = ImageMode::kAnyres, .grid = grid, .tile_size = 56}, 16);
  const InstructionRecord record =
      Record("a", {"<image>\nWhat?", "A cat.", "<image>\nAnd?", "No."}, 2);
  const std::vector<Resolution> sizes = {{50, 100}, {50, 50}};
  const auto encode = [&] {
    return SampleEncoder(tokenizer_, template_, rules_).Encode(record, /*epoch=*/0, sizes);
  };
  const int64_t high = 16 + 8 * 5, square = 16 + 4 * 5;
  const EncodedSample sample = encode();
  EXPECT_EQ(sample.image_tokens, high + square);
  EXPECT_EQ(sample.tokens, static_cast<int64_t>(sample.input_ids.size()) - 2 + high + square);
  // What is left out is a whole turn with its picture.
  rules_.max_tokens = sample.tokens - 1;
  const EncodedSample shorter = encode();
  EXPECT_EQ(shorter.dropped_turns, 1);
  EXPECT_EQ(shorter.image_tokens, high);
  rules_.max_tokens = high;
  EXPECT_THAT(encode, testing::ThrowsMessage<BadRecord>(
                          testing::HasSubstr("at most 56 fit (max_tokens); 56 of them stand for")));
  EXPECT_THROW(SampleEncoder(tokenizer_, template_, rules_).Encode(record, 0),
               std::invalid_argument)
      << "without sizes";
}

// Text behind a picture may have fewer tokens than text before it.
TEST_F(SampleEncoderTest, ChanceCostsNoTurn) {
  template_ = std::make_shared<ChatTemplate>(
      ChatTemplate::Parse(R"({"name": "t", "image": {"suffix": ""}, "user": {"prefix": "U:"},
                              "assistant": {"prefix": "e:", "suffix": "</s>"}})"));
  const std::vector<std::string> texts = {"What is th<image>", "A cat.", "Sure?", "Yes."};
  const int64_t front = Encode(Record("a", texts)).tokens;
  rules_.image_order = ImageOrder::kAsData;
  ASSERT_GT(Encode(Record("a", texts)).tokens, front) << "otherwise this test shows nothing";
  rules_.image_order = ImageOrder::kRandom;
  for (const int64_t limit : {front, front - 1}) {
    rules_.max_tokens = limit;
    for (int i = 0; i < 20; ++i) {
      const EncodedSample sample = Encode(Record("s" + std::to_string(i), texts));
      EXPECT_EQ(sample.dropped_turns, limit == front ? 0 : 1);
    }
  }
}

// Nor the record: text before a picture may have fewer tokens than text behind it.
TEST_F(SampleEncoderTest, ARecordFitsInEveryEpochOrInNone) {
  template_ = std::make_shared<ChatTemplate>(
      ChatTemplate::Parse(R"({"name": "t", "image": {"suffix": ""}, "user": {"prefix": "U: th"},
                              "assistant": {"prefix": " A:", "suffix": "</s>"}})"));
  const std::vector<std::string> one = {"e cat?<image>", "Yes."},
                                 two = {"e cat?<image>", "Yes.", "Sure?", "No."};
  for (const auto& texts : {one, two}) {
    rules_ = {
        .image_order = ImageOrder::kAsData, .max_tokens = 1000, .pictures = PictureShape({}, 16)};
    const int64_t end = Encode(Record("a", texts)).tokens;
    rules_.image_order = ImageOrder::kFront;
    ASSERT_GT(Encode(Record("a", texts)).tokens, end) << "otherwise this test shows nothing";
    rules_.image_order = ImageOrder::kRandom;
    rules_.max_tokens = end;
    for (uint64_t epoch = 0; epoch < 20; ++epoch) {
      EXPECT_EQ(Encode(Record("a", texts), epoch).dropped_turns, 0) << epoch;
    }
    rules_.max_tokens = end - 1;
    for (uint64_t epoch = 0; epoch < 20; ++epoch) {
      if (texts.size() == 4) {
        EXPECT_EQ(Encode(Record("a", texts), epoch).dropped_turns, 1) << epoch;
      } else {
        EXPECT_THROW(Encode(Record("a", texts), epoch), BadRecord) << epoch;
      }
    }
  }
}

TEST_F(SampleEncoderTest, RefusesWhatHasNothingToTrain) {
  template_ = std::make_shared<ChatTemplate>(ChatTemplate::Builtin("v1"));
  rules_.labels = LabelRule::kPublished;
  // The published arithmetic drops a sample whose text holds its own end mark.
  EXPECT_EQ(KindOf(Record("a", {"<image>\nWhat is </s>?", "A cat."})), Kind::kNothingToTrain);
  EXPECT_THAT(message_, testing::HasSubstr("labels=ours"));
  rules_.labels = LabelRule::kAnswers;
  EXPECT_GT(Encode(Record("a", {"<image>\nWhat is </s>?", "A cat."})).trained_tokens, 0);
}

TEST_F(SampleEncoderTest, RefusesWhatTheTemplateCannotTell) {
  template_ = std::make_shared<ChatTemplate>(ChatTemplate::Builtin("plain"));
  EXPECT_EQ(TrainedText(Encode(Record("a", {"<image>\nWhat?", "A cat."}))), "A cat.\n");
  EXPECT_EQ(KindOf(Record("a", {"<image>\nWhat?", "A cat.", "Sure?", "Yes."})), Kind::kTemplate);
  EXPECT_EQ(KindOf(Record("a", {"What?", "A cat."}, 0)), Kind::kTemplate);
}

}  // namespace
}  // namespace llava
