#include "model/data/scenes/category.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "model/data/scenes/embedded_files.h"

namespace llava {
namespace {

// CRC-32 as zlib's (reflected polynomial 0xEDB88320).
uint32_t Crc32(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
  }
  return ~crc;
}

std::vector<Category> ReadCategories() {
  std::vector<Category> categories;
  for (const auto& one : nlohmann::json::parse(CategoriesJson())) {
    const auto& sprite = one.at("sprite");
    categories.push_back({one.at("name"),
                          one.at("plural"),
                          one.at("article"),
                          one.at("group"),
                          one.at("colour"),
                          one.at("edible"),
                          one.at("flies"),
                          one.at("alive"),
                          {sprite.at(0), sprite.at(1), sprite.at(2), sprite.at(3)}});
  }
  return categories;
}

}  // namespace

const std::vector<Category>& Categories() {
  static const std::vector<Category> categories = ReadCategories();
  return categories;
}

std::optional<int> FindCategory(std::string_view name) {
  static const auto index = [] {
    std::unordered_map<std::string_view, int> result;
    for (const Category& category : Categories()) {
      result.emplace(category.name, static_cast<int>(result.size()));
    }
    return result;
  }();
  const auto found = index.find(name);
  return found == index.end() ? std::nullopt : std::optional(found->second);
}

std::string WithArticle(const Category& category) { return category.article + " " + category.name; }

bool IsHeldOutPair(int a, int b) {
  static const auto held_out = [] {
    const auto& all = Categories();
    std::vector<bool> result(all.size() * all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      for (size_t j = i + 1; j < all.size(); ++j) {
        result[i * all.size() + j] = Crc32(all[i].name + "|" + all[j].name) % 12 == 0;
      }
    }
    return result;
  }();
  const auto [first, second] = std::minmax(a, b);
  return held_out[static_cast<size_t>(first) * Categories().size() + static_cast<size_t>(second)];
}

}  // namespace llava
