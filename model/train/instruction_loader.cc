#include "model/train/instruction_loader.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace llava {
namespace {

std::vector<PictureFeatures> FeaturesOf(const InstructionRecord& record,
                                        const InstructionData& data, const FrozenTower& tower) {
  std::vector<PictureFeatures> features;
  for (const std::string& image : record.images) {
    const auto path = data.PicturePath(image);
    try {
      features.push_back(tower.Features(path));
    } catch (const std::invalid_argument& wrong) {
      throw BadRecord(BadRecordKind::kBrokenPicture, path.string() + ": " + wrong.what());
    } catch (const std::runtime_error& missing) {
      throw BadRecord(BadRecordKind::kMissingPicture, missing.what());
    }
  }
  return features;
}

}  // namespace

InstructionLoader::InstructionLoader(const InstructionData& data, const SampleEncoder& encoder,
                                     const RowPlan& plan, const FrozenTower& tower,
                                     int64_t batch_size, int64_t num_rows, bool skip_bad)
    : data_(data),
      encoder_(encoder),
      plan_(plan),
      tower_(tower),
      batch_size_(batch_size),
      num_rows_(num_rows),
      skip_bad_(skip_bad) {}

InstructionBatch InstructionLoader::Make(int64_t number) const {
  InstructionBatch batch;
  std::vector<int64_t> records;
  const int64_t begin = number * batch_size_;
  for (int64_t i = begin; i < std::min(num_rows_, begin + batch_size_); ++i) {
    AddRow(plan_.At(i), batch, records);
  }
  batch.origin = data_.Names(records);
  return batch;
}

InstructionBatch InstructionLoader::MakeFull(int64_t number) const {
  int64_t left_out = 0;
  for (int64_t i = 0; i < num_batches(); ++i) {
    InstructionBatch batch = Make((number + i) % num_batches());
    left_out = batch.left_out += left_out;
    if (batch.samples > 0) return batch;
  }
  throw std::runtime_error("no record of the data can be used: " + std::to_string(left_out) +
                           " turned out bad");
}

void InstructionLoader::AddRow(const RowPlan::Place& place, InstructionBatch& batch,
                               std::vector<int64_t>& records) const {
  std::vector<EncodedSample> samples;
  std::vector<PictureFeatures> pictures;  // the records of a row have the same ones
  for (const int64_t number : plan_.Records(place.row)) {
    try {
      const InstructionRecord record = data_.Read(number);
      if (pictures.empty()) pictures = FeaturesOf(record, data_, tower_);
      std::vector<Resolution> sizes;
      for (const PictureFeatures& picture : pictures) sizes.push_back(picture.size);
      EncodedSample sample = encoder_.Encode(record, place.epoch, sizes);
      batch.trained_tokens += sample.trained_tokens;
      samples.push_back(std::move(sample));
      records.push_back(number);
    } catch (const BadRecord& bad) {
      if (!skip_bad_) {
        const std::string name = data_.Name(number);
        const std::string what = bad.what();  // Read names the record itself
        throw BadRecord(bad.kind(), (what.starts_with(name) ? what : name + ": " + what) +
                                        " (--skip-bad leaves such records out)");
      }
      ++batch.left_out;
    }
  }
  batch.samples += static_cast<int64_t>(samples.size());
  for (TrainingRow& row : MakeRows(std::move(samples), pictures)) {
    batch.tokens += static_cast<int64_t>(row.input_ids.size());
    for (const Resolution size : row.sizes) {
      batch.tokens += encoder_.rules().pictures.NumTokens(size) - 1;
    }
    batch.rows.push_back(std::move(row));
  }
}

}  // namespace llava
