#include "model/data/scenes/instruction_kinds.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace llava {
namespace {

using enum QuestionType;

constexpr std::array<std::pair<std::string_view, bool InstructionKinds::*>, 3> kKinds = {{
    {"conversation", &InstructionKinds::conversation},
    {"detail", &InstructionKinds::detail},
    {"reasoning", &InstructionKinds::reasoning},
}};

}  // namespace

InstructionKinds InstructionKinds::Named(std::span<const std::string> names) {
  InstructionKinds kinds{.conversation = false, .detail = false, .reasoning = false};
  for (const std::string& name : names) {
    const auto found = std::find_if(kKinds.begin(), kKinds.end(),
                                    [&name](const auto& kind) { return kind.first == name; });
    if (found == kKinds.end()) {
      std::string all;
      for (const auto& [known, member] : kKinds) (all += ' ') += known;
      throw std::invalid_argument("no kind of instruction data is called \"" + name +
                                  "\"; there are" + all);
    }
    kinds.*found->second = true;
  }
  return kinds;
}

std::vector<std::string> InstructionKinds::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, member] : kKinds) {
    if (this->*member) names.emplace_back(name);
  }
  return names;
}

bool InstructionKinds::Has(QuestionType type) const {
  const bool fact =
      (type >= kKind && type <= kSame) || (type >= kFollowKind && type <= kFollowAlive);
  return type == kDetail ? detail : fact ? reasoning : conversation;
}

}  // namespace llava
