#include "model/data/instructions/instruction_data.h"

#include <algorithm>
#include <stdexcept>

namespace llava {

InstructionData::InstructionData(const std::vector<std::filesystem::path>& files,
                                 const std::filesystem::path& pictures)
    : pictures_(pictures), begins_{0} {
  if (files.empty()) throw std::invalid_argument("no file of instruction data is named");
  for (const auto& file : files) {
    files_.push_back(std::make_unique<const RecordIndex>(file));
    begins_.push_back(begins_.back() + files_.back()->size());
  }
}

std::pair<const RecordIndex*, int64_t> InstructionData::Find(int64_t number) const {
  const auto after = std::upper_bound(begins_.begin(), begins_.end(), number);
  const size_t file = after - begins_.begin() - 1;
  return {files_.at(file).get(), number - begins_[file]};
}

InstructionRecord InstructionData::Read(int64_t number) const {
  const auto [file, place] = Find(number);
  const std::string name = file->path().string() + " record " + std::to_string(place);
  if (const std::string fault = file->FaultOf(place); !fault.empty()) {
    throw BadRecord(BadRecordKind::kSyntax, name + ": " + fault);
  }
  try {
    return ParseInstructionRecord(file->Read(place));
  } catch (const BadRecord& bad) {
    throw BadRecord(bad.kind(), name + ": " + bad.what());
  }
}

bool InstructionData::HasPicture(const std::string& image) const {
  namespace fs = std::filesystem;
  const fs::path path = PicturePath(image);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_regular_file(status)) return true;
  const bool no_name =
      error == std::errc::filename_too_long || error == std::errc::too_many_symbolic_link_levels;
  if (!fs::status_known(status) && !no_name) {
    throw std::runtime_error(path.string() + ": cannot be looked for: " + error.message());
  }
  if (fs::path(image).is_absolute()) return false;
  const fs::path folder = pictures_.empty() ? "." : pictures_;
  // One that may be entered and not listed is not empty.
  if (!fs::is_directory(folder) || (fs::is_empty(folder, error) && !error)) {
    throw std::runtime_error(folder.string() + ": the folder of the pictures (images=...) is " +
                             (fs::exists(folder) ? "empty" : "not there"));
  }
  return false;
}

std::string InstructionData::Name(int64_t number) const {
  const auto [file, place] = Find(number);
  return file->path().string() + " record " + std::to_string(place);
}

std::string InstructionData::Names(std::span<const int64_t> numbers) const {
  std::string names;
  const RecordIndex* last = nullptr;
  for (const int64_t number : numbers) {
    const auto [file, place] = Find(number);
    if (file != last) names += (last ? "; " : "") + file->path().string() + " records ";
    names += (file == last ? ", " : "") + std::to_string(place);
    last = file;
  }
  return names;
}

}  // namespace llava
