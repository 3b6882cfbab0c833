#pragma once

#include <CLI/App.hpp>
#include <string>

#include "model/data/scenes/scene.h"

namespace llava {

// SceneOptions at the command line: --categories, --objects, --repeats, --positions,
// --held-out.
class SceneFlags {
 public:
  // Must outlive the parsing of `command`.
  void Add(CLI::App& command);
  // After the parsing.
  SceneOptions Options() const;

  // As they were given.
  const std::string& positions() const { return positions_; }
  const std::string& held_out() const { return held_out_; }

 private:
  int num_categories_ = kSmallCategorySet;
  double repeats_ = SceneOptions().repeats;
  std::string objects_ = "1-3", positions_ = "snapped", held_out_ = "train";
};

}  // namespace llava
