#include "model/train/map_rows.h"

#include <memory>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/text/labels.h"
#include "model/train/map_lessons.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

class MapRowsTest : public testing::Test {
 protected:
  // What every other training makes of a dialogue.
  LabelledTokens Expected(const Dialogue& dialogue, bool picture) const {
    std::vector<ChatMessage> messages;
    for (const Turn& turn : dialogue) {
      messages.push_back(
          {ChatMessage::Role::kUser, turn.question, messages.empty() && picture, {}});
      messages.push_back({ChatMessage::Role::kAssistant, turn.answer, 0, {}});
    }
    return MakeLabels(*tokenizer_, *template_, messages, picture);
  }

  // The ids of a row of the batch; -1 - c for cell c.
  static int64_t IdAt(const MapBatch& batch, int64_t row) {
    const int64_t source = batch.sources[row];
    return source < 0 ? source : batch.text_ids[source];
  }

  std::shared_ptr<const ChatTemplate> template_ =
      std::make_shared<ChatTemplate>(ChatTemplate::Builtin("emoji"));
  std::shared_ptr<const Tokenizer> tokenizer_ =
      std::make_shared<Tokenizer>(Tokenizer::Load(SourceDir() + "/deploy/models/emoji/1")
                                      .WithSpecialPieces(template_->special_pieces()));
  const Dialogue two_turns_ = {{QuestionType::kSide, "What is on the left?", "A lion."},
                               {QuestionType::kFollowSide, "And on the right?", "Two apples."}};
  const Dialogue one_turn_ = {{QuestionType::kExist, "Is there a bee?", "No."}};
};

TEST_F(MapRowsTest, BranchesHaveTheIdsOfTheTemplate) {
  const MapRows rows(tokenizer_, template_, 3);
  MapBatch batch;
  const std::vector<Dialogue> dialogues = {two_turns_, one_turn_};
  const Scene scene = SampleScene({}, 1, 0);
  rows.AddScene(scene, {&one_turn_, 1}, 1000, batch);
  rows.AddScene(scene, dialogues, 1000, batch);
  rows.AddFacts({&one_turn_, 1}, 1000, batch);
  ASSERT_EQ(batch.segments.size(), 3);
  EXPECT_EQ(batch.scenes.size(), 2);

  const Segment& row = batch.segments[1];
  EXPECT_EQ(row.shared, 2 + 36);
  ASSERT_EQ(row.branches.size(), 2);
  const int64_t begin = batch.segments[0].tokens;
  for (int64_t cell = 0; cell < 36; ++cell) {
    EXPECT_EQ(IdAt(batch, begin + 2 + cell), -1 - (36 + cell)) << "cells of the second scene";
  }
  int64_t branch = begin + row.shared;
  for (size_t i = 0; i < 2; ++i) {
    const LabelledTokens expected = Expected(dialogues[i], true);
    std::vector<int32_t> ids;
    for (int64_t k = begin; k < begin + 2; ++k) ids.push_back(IdAt(batch, k));
    ids.push_back(kImageToken);
    for (int64_t k = 0; k < row.branches[i]; ++k) ids.push_back(IdAt(batch, branch + k));
    EXPECT_EQ(ids, expected.input_ids);
    branch += row.branches[i];
  }
  EXPECT_EQ(branch, begin + row.tokens);

  // Without a picture.
  const LabelledTokens fact = Expected(one_turn_, false);
  std::vector<int32_t> ids;
  for (int64_t k = begin + row.tokens; k < static_cast<int64_t>(batch.sources.size()); ++k) {
    ids.push_back(IdAt(batch, k));
  }
  EXPECT_EQ(ids, fact.input_ids);
}

TEST_F(MapRowsTest, TheRowBeforePredictsEachTokenOfAnAnswer) {
  const MapRows rows(tokenizer_, template_, 3);
  MapBatch batch;
  const std::vector<Dialogue> dialogues = {two_turns_, one_turn_};
  rows.AddScene(SampleScene({}, 1, 0), dialogues, 1000, batch);
  size_t labelled = 0;
  for (const Dialogue& dialogue : dialogues) {
    for (const int64_t label : Expected(dialogue, true).labels) labelled += label != kIgnoreLabel;
  }
  ASSERT_EQ(batch.targets.size(), labelled);
  for (size_t i = 0; i < labelled; ++i) {
    EXPECT_EQ(IdAt(batch, batch.rows[i] + 1), batch.targets[i]) << i;
  }
  // Which turn they belong to.
  ASSERT_EQ(batch.turns.size(), 3);
  std::vector<std::string> answers(3);
  for (size_t i = 0; i < labelled; ++i) {
    answers[batch.turn_of[i]] += tokenizer_->TokenBytes(static_cast<int32_t>(batch.targets[i]));
  }
  EXPECT_THAT(answers, testing::ElementsAre(" A lion.</s>", " Two apples.</s>", " No.</s>"));
  EXPECT_EQ(batch.turns[1].type, QuestionType::kFollowSide);
}

TEST_F(MapRowsTest, KeyWordsWeighMore) {
  const MapRows rows(tokenizer_, template_, 5);
  MapBatch batch;
  rows.AddScene(SampleScene({}, 1, 0), {&two_turns_, 1}, 1000, batch);
  std::string heavy;
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.weights[i] == 5) {
      heavy += tokenizer_->TokenBytes(static_cast<int32_t>(batch.targets[i]));
    } else {
      EXPECT_EQ(batch.weights[i], 1);
    }
  }
  EXPECT_EQ(heavy, " lion Two apples");
}

TEST_F(MapRowsTest, WhatHasNoRoomIsLeftOut) {
  const MapRows rows(tokenizer_, template_, 3);
  const std::vector<Dialogue> dialogues = {one_turn_, two_turns_, one_turn_};
  MapBatch batch;
  rows.AddScene(SampleScene({}, 1, 0), dialogues, 60, batch);
  EXPECT_EQ(batch.segments[0].branches.size(), 2);
  EXPECT_LE(batch.segments[0].tokens, 60);
  EXPECT_EQ(batch.turns.size(), 2);
  EXPECT_THROW(rows.AddScene(SampleScene({}, 1, 0), dialogues, 40, batch), std::invalid_argument);
}

TEST_F(MapRowsTest, HeldOutLessonsAreNotTrained) {
  Recipe recipe;
  recipe.Set("rows=64");
  const MapLessons lessons(LessonSettings::From(recipe), tokenizer_, template_, 7);
  const MapBatch trained = lessons.Make(0, 0), held_out = lessons.HeldOut(0, 64);
  for (const Scene& scene : held_out.scenes) {
    EXPECT_THAT(trained.scenes, testing::Not(testing::Contains(scene)));
  }
  const auto has_pair = [](const Scene& scene) {
    for (const SceneObject& a : scene.objects) {
      for (const SceneObject& b : scene.objects) {
        if (IsHeldOutPair(a.category, b.category)) return true;
      }
    }
    return false;
  };
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_FALSE(has_pair(trained.scenes[i]));
    EXPECT_EQ(has_pair(held_out.scenes[i]), i % 2 == 1);
  }
}

}  // namespace
}  // namespace llava
