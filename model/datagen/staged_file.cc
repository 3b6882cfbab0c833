#include "model/datagen/staged_file.h"

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace llava {

StagedFile::StagedFile(std::filesystem::path path)
    : path_(std::move(path)), part_(path_.string() + ".part"), file_(part_, std::ios::binary) {
  if (!file_) Fail("cannot be made");
}

StagedFile::~StagedFile() {
  if (committed_) return;
  file_.close();
  std::error_code ignored;  // nothing more can be done
  std::filesystem::remove(part_, ignored);
}

void StagedFile::Write(std::string_view bytes) {
  file_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file_) Fail("cannot be written");
}

void StagedFile::Commit() {
  file_.close();
  if (!file_) Fail("cannot be written");
  std::error_code error;
  std::filesystem::rename(part_, path_, error);
  if (error) {
    errno = error.value();
    Fail("cannot be put in place");
  }
  committed_ = true;
}

void StagedFile::Fail(const char* what) const {
  throw std::runtime_error(path_.string() + " " + what + ": " + std::strerror(errno));
}

}  // namespace llava
