#pragma once

// How large picture files are, without and with decoding them.

#include <filesystem>
#include <mutex>
#include <string>
#include <unordered_map>

#include "model/config/model_config.h"

namespace llava {

// Throws std::runtime_error naming the file if it cannot be read, std::invalid_argument if it is
// larger than any picture.
std::string ReadPictureFile(const std::filesystem::path& path);
// In pixels, of what it holds. Throws std::invalid_argument saying what is wrong with it.
Resolution SizeOfPicture(const std::string& file);

// Looks at each file once, however many records it has. Thread-safe.
class PictureSizes {
 public:
  // `decode`: all of a picture must be good, not only its header.
  explicit PictureSizes(bool decode) : decode_(decode) {}

  // As it is stored: no EXIF turn. Throws std::invalid_argument saying what is wrong with it,
  // std::runtime_error naming the file if it cannot be read.
  Resolution operator()(const std::filesystem::path& picture);

 private:
  struct Known {
    Resolution size;
    std::string fault;  // empty: none
  };

  const bool decode_;
  std::mutex mutex_;  // guards what follows
  std::unordered_map<std::string, Known> known_;
};

}  // namespace llava
