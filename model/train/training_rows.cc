#include "model/train/training_rows.h"

#include <algorithm>
#include <utility>

namespace llava {
namespace {

// Ids up to just behind the last picture, if a sample can share them: its end must be trained apart
// from them. 0 if it cannot.
size_t SharedIds(const EncodedSample& sample) {
  const auto last = std::find(sample.input_ids.rbegin(), sample.input_ids.rend(), kImageToken);
  const size_t size = sample.input_ids.rend() - last;
  const bool labelled = std::any_of(sample.labels.begin(), sample.labels.begin() + size,
                                    [](int64_t label) { return label != kIgnoreLabel; });
  return labelled || size == sample.input_ids.size() ? 0 : size;
}

// A row under construction, and the samples in it.
struct OpenRow {
  TrainingRow row;
  size_t shared;
};

}  // namespace

std::vector<TrainingRow> MakeRows(std::vector<EncodedSample> samples,
                                  const std::vector<PictureFeatures>& pictures) {
  std::vector<OpenRow> open;
  for (EncodedSample& sample : samples) {
    const size_t shared = SharedIds(sample);
    const auto fits = [&](const OpenRow& other) {
      return shared > 0 && other.shared == shared &&
             std::equal(sample.input_ids.begin(), sample.input_ids.begin() + shared,
                        other.row.input_ids.begin());
    };
    const auto found = std::find_if(open.begin(), open.end(), fits);
    if (found == open.end()) {
      OpenRow& fresh = open.emplace_back();
      fresh.shared = shared;
      for (int i = 0; i < sample.num_images; ++i) {
        fresh.row.features.push_back(pictures[i].rows);
        fresh.row.sizes.push_back(pictures[i].size);
      }
      fresh.row.branches = {static_cast<int64_t>(sample.input_ids.size() - shared)};
      fresh.row.input_ids = std::move(sample.input_ids);
      fresh.row.labels = std::move(sample.labels);
      continue;
    }
    TrainingRow& row = found->row;
    row.shared = static_cast<int64_t>(shared);
    row.branches.push_back(static_cast<int64_t>(sample.input_ids.size() - shared));
    row.input_ids.insert(row.input_ids.end(), sample.input_ids.begin() + shared,
                         sample.input_ids.end());
    row.labels.insert(row.labels.end(), sample.labels.begin() + shared, sample.labels.end());
  }
  std::vector<TrainingRow> rows;
  for (OpenRow& made : open) {
    if (made.row.branches.size() == 1) made.row.branches.clear();  // a sample by itself
    rows.push_back(std::move(made.row));
  }
  return rows;
}

}  // namespace llava
