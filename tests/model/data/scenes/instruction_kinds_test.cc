#include "model/data/scenes/instruction_kinds.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace llava {
namespace {

using enum QuestionType;
using Names = std::vector<std::string>;

TEST(InstructionKindsTest, AllAreTheDefault) {
  EXPECT_EQ(InstructionKinds().Names(), (Names{"conversation", "detail", "reasoning"}));
  for (int i = 0; i < kNumQuestionTypes; ++i) {
    EXPECT_TRUE(InstructionKinds().Has(static_cast<QuestionType>(i)));
  }
}

TEST(InstructionKindsTest, NamesReadBackInOneOrder) {
  const InstructionKinds kinds = InstructionKinds::Named(Names{"reasoning", "detail", "detail"});
  EXPECT_EQ(kinds.Names(), (Names{"detail", "reasoning"}));
  EXPECT_FALSE(kinds.conversation);
  EXPECT_EQ(InstructionKinds::Named(Names{}).Names(), Names{});
  try {
    InstructionKinds::Named(Names{"detail", "poems"});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()),
              "no kind of instruction data is called \"poems\"; there are conversation detail "
              "reasoning");
  }
}

TEST(InstructionKindsTest, EveryTypeIsOfOneKind) {
  const auto only = [](const char* name) { return InstructionKinds::Named(Names{name}); };
  for (int i = 0; i < kNumQuestionTypes; ++i) {
    const auto type = static_cast<QuestionType>(i);
    EXPECT_EQ(
        only("conversation").Has(type) + only("detail").Has(type) + only("reasoning").Has(type), 1)
        << NameOf(type);
  }
  for (const QuestionType type : {kWhat, kThis, kBrief, kCount, kExist, kSide, kWhere, kBigger,
                                  kBackground, kFollowSide, kFollowWhere, kFollowCount}) {
    EXPECT_TRUE(only("conversation").Has(type)) << NameOf(type);
  }
  EXPECT_TRUE(only("detail").Has(kDetail));
  for (const QuestionType type : {kKind, kColour, kEat, kSame, kFollowKind, kFollowColour,
                                  kFollowEat, kFollowFly, kFollowAlive}) {
    EXPECT_TRUE(only("reasoning").Has(type)) << NameOf(type);
  }
}

}  // namespace
}  // namespace llava
