#pragma once

// Curves of training runs from their metrics.jsonl.

#include <filesystem>
#include <string>
#include <vector>

#include "model/chart/chart.h"

namespace llava {

struct PlotOptions {
  // What to draw, one chart each: "loss", "gradient_norm", "tokens_per_second" or the like, or the
  // name of a task's or an evaluation's figure. "a+b" puts both into one chart. Empty: loss with
  // held-out loss, learning rate, gradient norm, and every other figure of evaluations.
  std::vector<std::string> figures;
  bool log = false;  // vertical axes
  int columns = 2;   // charts side by side
};

// Draws metrics of one or more runs (run folders, or files of lines as the trainer writes them)
// over each other into `png`; returns the frames of the charts. The last line of a file may be
// broken off, as after a crash; of lines for the same step the last one counts, as after resuming;
// values that are not finite (null) are left out. Throws std::runtime_error naming file and line of
// what cannot be read, std::invalid_argument for a figure that no run has (the known ones are
// listed).
std::vector<ChartFrame> PlotMetrics(const std::vector<std::filesystem::path>& runs,
                                    const std::filesystem::path& png,
                                    const PlotOptions& options = {});

}  // namespace llava
