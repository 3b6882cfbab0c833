#pragma once

// The records of one or several data files, by number.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/data/instructions/instruction_record.h"
#include "model/data/instructions/record_index.h"

namespace llava {

// Files one behind the other as one list. Const after construction, thread-safe.
class InstructionData {
 public:
  // `pictures`: the folder that "image" is relative to. Throws as RecordIndex, and
  // std::invalid_argument for no file.
  InstructionData(const std::vector<std::filesystem::path>& files,
                  const std::filesystem::path& pictures);

  int64_t size() const { return begins_.back(); }
  // Throws BadRecord beginning with the record's name.
  InstructionRecord Read(int64_t number) const;
  std::filesystem::path PicturePath(const std::string& image) const { return pictures_ / image; }
  // Throws std::runtime_error where that is not this record's matter: the disk does not answer, or
  // the folder of the pictures is lost, as when it is not mounted.
  bool HasPicture(const std::string& image) const;

  // "stage2.json record 17": numbers within a file count from 0.
  std::string Name(int64_t number) const;
  // "stage2.json records 17, 512".
  std::string Names(std::span<const int64_t> numbers) const;

 private:
  // The file of a record and its number there.
  std::pair<const RecordIndex*, int64_t> Find(int64_t number) const;

  std::filesystem::path pictures_;
  std::vector<std::unique_ptr<const RecordIndex>> files_;
  std::vector<int64_t> begins_;  // of each file, and the end
};

}  // namespace llava
