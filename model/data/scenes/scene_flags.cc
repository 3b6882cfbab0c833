#include "model/data/scenes/scene_flags.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

namespace llava {
namespace {

// "1-3" or "2".
std::string CheckRange(const std::string& text) {
  const bool one = text.size() == 1 && text[0] >= '1' && text[0] <= '4';
  const bool two =
      text.size() == 3 && text[1] == '-' && text[0] >= '1' && text[2] <= '4' && text[0] <= text[2];
  return one || two ? "" : "expected a number or a range within 1-4, as 1-3; found " + text;
}

}  // namespace

void SceneFlags::Add(CLI::App& command) {
  command.add_option("--categories", num_categories_, "Kinds of things: 48 or 96")
      ->check(CLI::IsMember({kSmallCategorySet, kLargeCategorySet}))
      ->capture_default_str()
      ->group("Scenes");
  command.add_option("--objects", objects_, "Things in a picture: 1 to 4, or a range as 1-3")
      ->check(CheckRange)
      ->capture_default_str()
      ->group("Scenes");
  command
      .add_option("--repeats", repeats_,
                  "Share of the pictures in which several things may be of one kind")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group("Scenes");
  command.add_option("--positions", positions_, "Near the centres of cells, or anywhere")
      ->check(CLI::IsMember({"snapped", "free"}))
      ->capture_default_str()
      ->group("Scenes");
  command
      .add_option("--held-out", held_out_,
                  "No held-out pair of kinds, at least one in each picture, or any")
      ->check(CLI::IsMember({"train", "pairs", "any"}))
      ->capture_default_str()
      ->group("Scenes");
}

SceneOptions SceneFlags::Options() const {
  using Positions = SceneOptions::Positions;
  using HeldOut = SceneOptions::HeldOut;
  SceneOptions options;
  options.num_categories = num_categories_;
  options.min_objects = objects_.front() - '0';
  options.max_objects = objects_.back() - '0';
  options.repeats = repeats_;
  options.positions = positions_ == "free" ? Positions::kFree : Positions::kSnapped;
  options.held_out = held_out_ == "pairs" ? HeldOut::kPairs
                     : held_out_ == "any" ? HeldOut::kAny
                                          : HeldOut::kTrain;
  return options;
}

}  // namespace llava
