#include "server/wire/constraint.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/grammar/grammar.h"

namespace llava {

absl::StatusOr<std::shared_ptr<const grammar::Automaton>> CompileConstraint(
    const v1::OutputConstraint& constraint) {
  const char* field = "";
  try {
    switch (constraint.kind_case()) {
      case v1::OutputConstraint::KIND_NOT_SET:
      case v1::OutputConstraint::kText:
        return nullptr;
      case v1::OutputConstraint::kJsonObject:
        return grammar::JsonObject();
      case v1::OutputConstraint::kJsonSchema:
        field = "json_schema";
        return grammar::JsonSchema(constraint.json_schema());
      case v1::OutputConstraint::kRegex:
        field = "regex";
        return grammar::Regex(constraint.regex());
      case v1::OutputConstraint::kChoices: {
        field = "choices";
        const auto& texts = constraint.choices().texts();
        return grammar::Choices(std::vector<std::string>(texts.begin(), texts.end()));
      }
    }
  } catch (const grammar::GrammarError& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("SamplingParams.constraint.", field, " ", error.what()));
  }
  return absl::InvalidArgumentError("SamplingParams.constraint is of an unknown kind");
}

absl::Status CheckConstraint(const v1::SamplingParams& params) {
  return CompileConstraint(params.constraint()).status();
}

}  // namespace llava
