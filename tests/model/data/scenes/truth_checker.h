#pragma once

// A second opinion on answers: reads the question as a person would and works the answer out from
// the record of the scene, sharing no code with the generator but the table of categories.

#include <string>
#include <string_view>
#include <vector>

#include "model/data/scenes/questions.h"

namespace llava {

class TruthChecker {
 public:
  explicit TruthChecker(const Scene& scene) : scene_(scene) {}

  // Says what is wrong with the next turn of a dialogue about the scene; empty if nothing is.
  std::string Fault(const Turn& turn);

 private:
  std::vector<std::string> RightAnswers(const std::string& question);
  std::string PictureAnswer(const std::string& question);
  std::string PositionAnswer(const std::string& question);
  std::string FactAnswer(const std::string& question);
  std::vector<std::string> CaptionAnswers() const;
  std::string Detail() const;
  std::string Things() const;
  int Count(std::string_view name) const;
  const SceneObject* Only(std::string_view name) const;
  const SceneObject* AtSide(std::string_view phrase) const;
  const Category* Subject(const std::string& words);

  const Scene& scene_;
  const SceneObject* it_ = nullptr;
};

}  // namespace llava
