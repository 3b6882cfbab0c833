#pragma once

// How well a model talks about pictures that nobody has seen, beside what it would reach without
// looking and what it could reach with a perfect eye.

#include <cstdint>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/eval/exam.h"
#include "model/eval/marks.h"
#include "model/llava/llava.h"
#include "model/llava/tower_features.h"
#include "model/nn/clip.h"

namespace llava {

// Z_v of the picture of a scene. Thread-safe.
using Eye = std::function<PictureFeatures(const Scene& scene)>;
// Draws the scene, then preprocessing and tower as in serving. `features`: of the language model
// that is served with it. `tower` must outlive the eye.
Eye TowerEye(const ClipTower& tower, const FeatureConfig& features);

struct QualityOptions {
  ExamOptions exam;
  // Baselines to measure beside the answers about pictures.
  bool blind = true;     // features of zeros
  bool majority = true;  // the commonest answer of each type in the exam of another seed
  // Perfect eyes: what this model answers about these image tokens (TextMap). None without tokens.
  const Llava* oracle_model = nullptr;  // null: the model that is measured
  ImageTokens oracle;
  MistakeListener mistaken;       // wrong answers about pictures, where given
  int threads = 0;                // 0: one a core
  std::FILE* progress = nullptr;  // for a bar or lines, where given
};

// One type of questions, or a group of them.
struct QualityRow {
  std::string name;
  Share picture;
  std::optional<double> blind, majority, oracle;  // shares of right answers
};

struct Quality {
  // naming, counting, left_right, existence, place, reasoning, follow_up and chains; then, for
  // information, detail, bigger and background.
  std::vector<QualityRow> groups;
  std::vector<QualityRow> types;  // by NameOf
};

// Answers are greedy and compared by key words (SameAnswer). Rows of types that the scenes do not
// allow are left out. The result depends on model, eye and exam alone, not on `threads`. Throws as
// MakeExam, and what model and eye throw if they do not fit each other.
Quality MeasureQuality(const Llava& model, const Eye& eye, const QualityOptions& options);

// {"naming": {"accuracy", "low", "high", "n", "blind", "majority", "oracle"}, .., "types": {same by
// type}, "settings": settings}. What was not measured is null; low and high: WilsonInterval.
nlohmann::ordered_json QualityJson(const Quality& quality, nlohmann::ordered_json settings);

// The same for people: a line a row, in per cent.
std::string QualityTable(const Quality& quality);

}  // namespace llava
