#pragma once

// What each part of a recipe is worth: measurements of models that were trained with one thing
// changed, a few seeds each, side by side.

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "model/chart/chart.h"
#include "model/eval/share.h"

namespace llava {

// One way to train.
struct AblationVariant {
  std::string name;
  std::vector<std::filesystem::path> results;  // of chat-quality --json, one a seed
};

struct Ablation {
  struct Column {
    std::string variant;
    size_t seeds = 0;
    std::vector<Spread> shares;  // of right answers, one per group
  };
  // Of questions, as the files have them; last "average", in which all groups of a file weigh the
  // same.
  std::vector<std::string> groups;
  std::vector<Column> columns;
};

// Reads all results. Throws std::runtime_error naming a file that cannot be read or is no result,
// std::invalid_argument for no variants, a variant without results, a file given twice, and, naming
// both files, for results of different exams or groups.
Ablation ReadAblation(const std::vector<AblationVariant>& variants);

// A table in per cent: "94.1 ± 0.3". With `reference`, the name of a variant, the others say how
// far their mean is from its: "91.0 ± 0.5 (-3.1)"; empty: none. Throws std::invalid_argument
// listing the variants if there is no such one.
std::string AblationMarkdown(const Ablation& ablation, const std::string& reference);

// Bars in per cent by group, with whiskers a standard deviation long where there are several seeds.
BarChart AblationChart(const Ablation& ablation);

}  // namespace llava
