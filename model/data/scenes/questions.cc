#include "model/data/scenes/questions.h"

#include <stdexcept>

namespace llava {
namespace {

using enum QuestionType;

// Types that few scenes allow have higher weights.
constexpr TypeWeight kNatural[] = {
    {kWhat, 3},     {kThis, 0.7},     {kBrief, 1},        {kDetail, 1},  {kCount, 6},
    {kTotal, 1.5},  {kExist, 2},      {kGroupCount, 3},   {kSide, 3},    {kLeftOf, 4},
    {kSideOf, 4},   {kAbove, 3},      {kWhere, 2.5},      {kBigger, 4},  {kKind, 1.2},
    {kColour, 1.2}, {kEat, 1.5},      {kFly, 2},          {kAlive, 1.2}, {kWhichEat, 2.5},
    {kSame, 2},     {kWhichFly, 2.5}, {kBackground, 0.7},
};
constexpr TypeWeight kReasoning[] = {
    {kKind, 1.2}, {kColour, 1.2}, {kEat, 1},      {kFly, 1},
    {kAlive, 1},  {kWhichEat, 1}, {kWhichFly, 1}, {kSame, 1.2},
};
// Each as often as it stands here.
constexpr QuestionType kFollowUps[] = {kFollowSide,   kFollowSide, kFollowEat,   kFollowKind,
                                       kFollowColour, kFollowFly,  kFollowAlive, kFollowWhere};
constexpr int kDraws = 1000;

}  // namespace

std::span<const TypeWeight> NaturalMixture() { return kNatural; }
std::span<const TypeWeight> ReasoningMixture() { return kReasoning; }

Questioner::Questioner(int num_categories, MoreWordings more, InstructionKinds kinds)
    : num_categories_(num_categories), more_(std::move(more)), kinds_(kinds) {
  SceneOptions options;
  options.num_categories = num_categories;
  options.Check();
  for (int i = 0; i < num_categories; ++i) {
    const Category& category = Categories()[i];
    edible_ += category.edible;
    flying_ += category.flies;
    living_ += category.alive;
  }
  for (double* share : {&edible_, &flying_, &living_}) *share /= num_categories;
  for (const TypeWeight& weight : kNatural) {
    if (kinds.Has(weight.first)) mixture_.push_back(weight);
  }
  for (const QuestionType type : kFollowUps) {
    if (kinds.Has(type)) follow_ups_.push_back(type);
  }
}

std::optional<Turn> Questioner::Ask(const Scene& scene, QuestionType type, Random& random) const {
  if (type <= kBackground) {
    const bool position = type >= kSide && type <= kBigger;
    return position ? AskPosition(scene, type, random) : AskContent(scene, type, random);
  }
  if (type <= kSame) return AskReasoning(scene, type, random);
  throw std::invalid_argument("\"" + std::string(NameOf(type)) + "\" is only asked in chains");
}

std::optional<Turn> Questioner::AskOneOf(const Scene& scene, std::span<const TypeWeight> types,
                                         Random& random) const {
  std::vector<double> weights;
  for (const auto& [type, weight] : types) weights.push_back(weight);
  for (int draw = 0; draw < kDraws; ++draw) {
    auto turn = Ask(scene, types[random.Weighted(weights)].first, random);
    if (turn) return turn;
  }
  return std::nullopt;
}

}  // namespace llava
