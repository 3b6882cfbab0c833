#pragma once

// What can stand in a scene: 96 categories with their names and facts, and the backgrounds.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

struct Category {
  std::string name;  // one lower-case word
  std::string plural;
  std::string article;  // "a" or "an"
  std::string group;    // animal, fruit, food, vehicle, plant or object
  std::string colour;
  bool edible = false;
  bool flies = false;
  bool alive = false;
  struct {
    int x = 0, y = 0, width = 0, height = 0;
  } sprite;  // its place in the atlas, pixels
};

struct Background {
  std::string_view name;
  std::array<uint8_t, 3> rgb;
};

// All 96 in their fixed order; the first 48 are a set of their own. Constant, thread-safe.
const std::vector<Category>& Categories();
inline constexpr int kSmallCategorySet = 48;
inline constexpr int kLargeCategorySet = 96;

inline constexpr std::array<Background, 6> kBackgrounds = {{
    {"white", {244, 244, 242}},
    {"gray", {135, 137, 141}},
    {"blue", {140, 190, 240}},
    {"green", {150, 205, 130}},
    {"pink", {245, 190, 205}},
    {"black", {28, 28, 34}},
}};

// Index of the category called `name`, nothing if there is none.
std::optional<int> FindCategory(std::string_view name);

// "a lion", "an owl".
std::string WithArticle(const Category& category);

// Whether two categories never stand together in a training scene: CRC-32 of "first|second" (in the
// order of the categories) divisible by 12. A category and itself are no pair.
bool IsHeldOutPair(int a, int b);

}  // namespace llava
