#include "server/wire/constraint.h"

#include <gmock/gmock.h>

#include <string>

namespace llava {
namespace {

using ::testing::HasSubstr;

TEST(ConstraintTest, EveryKindHasItsMeaning) {
  v1::OutputConstraint constraint;
  EXPECT_EQ(*CompileConstraint(constraint), nullptr);
  constraint.mutable_text();
  EXPECT_EQ(*CompileConstraint(constraint), nullptr);
  constraint.mutable_json_object();
  EXPECT_NE(*CompileConstraint(constraint), nullptr);
  constraint.set_json_schema(R"({"type":"integer"})");
  EXPECT_NE(*CompileConstraint(constraint), nullptr);
  constraint.set_regex("[a-z]+");
  EXPECT_NE(*CompileConstraint(constraint), nullptr);
  constraint.mutable_choices()->add_texts("yes");
  EXPECT_NE(*CompileConstraint(constraint), nullptr);
}

TEST(ConstraintTest, RefusalsNameTheFieldAndThePlace) {
  v1::SamplingParams params;
  EXPECT_TRUE(CheckConstraint(params).ok());
  params.mutable_constraint()->set_json_schema(R"({"type":"string","format":"date"})");
  absl::Status status = CheckConstraint(params);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("SamplingParams.constraint.json_schema at #/format"));
  params.mutable_constraint()->set_regex("a(?=b)");
  status = CheckConstraint(params);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("SamplingParams.constraint.regex byte 2"));
  params.mutable_constraint()->mutable_choices();
  status = CheckConstraint(params);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("SamplingParams.constraint.choices"));
}

}  // namespace
}  // namespace llava
