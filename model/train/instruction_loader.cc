#include "model/train/instruction_loader.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace llava {
namespace {

// A few may vanish or be broken; more are a lost disk's.
constexpr int64_t kMostVanished = 64, kMostLostRows = 64, kMostLostBatches = 4;

std::vector<PictureFeatures> FeaturesOf(const InstructionRecord& record,
                                        const InstructionData& data, const FrozenTower& tower) {
  std::vector<PictureFeatures> features;
  for (const std::string& image : record.images) {
    const auto path = data.PicturePath(image);
    try {
      features.push_back(tower.Features(path));
    } catch (const std::invalid_argument& wrong) {
      throw BadRecord(BadRecordKind::kBrokenPicture, path.string() + ": " + wrong.what());
    } catch (const std::runtime_error&) {
      if (data.HasPicture(image)) throw;  // for want of memory, files, threads
      throw BadRecord(BadRecordKind::kMissingPicture, "no picture " + path.string());
    }
  }
  return features;
}

}  // namespace

InstructionLoader::InstructionLoader(const InstructionSet& set, const SampleEncoder& encoder,
                                     const FrozenTower& tower, int64_t batch_size, int64_t num_rows,
                                     bool skip_bad)
    : set_(set),
      encoder_(encoder),
      tower_(tower),
      batch_size_(batch_size),
      num_rows_(num_rows),
      skip_bad_(skip_bad) {}

InstructionBatch InstructionLoader::Make(int64_t number) const {
  InstructionBatch batch;
  std::vector<int64_t> records;
  const int64_t begin = number * batch_size_;
  for (int64_t i = begin; i < std::min(num_rows_, begin + batch_size_); ++i) {
    AddRow(set_.plan().At(i), batch, records);
  }
  batch.origin = set_.data().Names(records);
  return batch;
}

InstructionBatch InstructionLoader::MakeFull(int64_t number) const {
  const int64_t most = std::max(kMostLostRows, kMostLostBatches * batch_size_);
  int64_t left_out = 0, lost_rows = 0;
  std::string complaint;
  for (int64_t i = 0; i < num_batches(); ++i) {
    InstructionBatch batch = Make((number + i) % num_batches());
    left_out = batch.left_out += left_out;
    if (batch.samples > 0) return batch;
    lost_rows += batch.lost_rows;
    if (!batch.complaint.empty()) complaint = std::move(batch.complaint);
    if (lost_rows > most) {
      throw std::runtime_error("more than " + std::to_string(most) +
                               " rows in succession turned out bad, the last: " + complaint +
                               " (--dry-run looks at all pictures)");
    }
  }
  throw std::runtime_error("no record of the data can be used: " + std::to_string(left_out) +
                           " turned out bad" +
                           (complaint.empty() ? "" : ", the last: " + complaint));
}

void InstructionLoader::NoteVanished(const std::string& what) const {
  const std::lock_guard lock(mutex_);
  vanished_.insert(what);
  if (std::ssize(vanished_) <= kMostVanished) return;
  throw std::runtime_error(what + ", and neither are " + std::to_string(kMostVanished) +
                           " others that were there when the run started: is the folder of the "
                           "pictures whole?");
}

void InstructionLoader::AddRow(const RowPlan::Place& place, InstructionBatch& batch,
                               std::vector<int64_t>& records) const {
  const InstructionData& data = set_.data();
  std::vector<EncodedSample> samples;
  std::vector<PictureFeatures> pictures;  // the records of a row have the same ones
  bool lost = false;
  for (const int64_t number : set_.plan().Records(place.row)) {
    if (!set_.CanBeUsed(number)) {  // of a run that goes on
      ++batch.left_out;
      continue;
    }
    try {
      const InstructionRecord record = data.Read(number);
      if (pictures.empty()) pictures = FeaturesOf(record, data, tower_);
      std::vector<Resolution> sizes;
      for (const PictureFeatures& picture : pictures) sizes.push_back(picture.size);
      EncodedSample sample = encoder_.Encode(record, place.epoch, sizes);
      batch.trained_tokens += sample.trained_tokens;
      samples.push_back(std::move(sample));
      records.push_back(number);
    } catch (const BadRecord& bad) {
      const std::string name = data.Name(number);
      std::string what = bad.what();  // Read names the record itself
      if (!what.starts_with(name)) what = name + ": " + what;
      if (!skip_bad_) {
        throw BadRecord(bad.kind(), what + " (--skip-bad leaves such records out)");
      }
      if (bad.kind() == BadRecordKind::kMissingPicture) NoteVanished(bad.what());
      ++batch.left_out;
      batch.complaint = what;
      lost = true;
    }
  }
  batch.lost_rows += lost && samples.empty();
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
