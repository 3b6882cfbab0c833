#include "model/train/picture_sizes.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>

#include "model/checkpoint/durable_file.h"
#include "model/image/decode.h"
#include "model/image/header.h"

namespace llava {
namespace {

// Of most files the header is in the first of these, of nearly all in the second; a JPEG may have a
// preview before it.
constexpr std::streamsize kBeginnings[] = {4 << 10, 64 << 10};

std::span<const uint8_t> BytesOf(const std::string& file) {
  return {reinterpret_cast<const uint8_t*>(file.data()), file.size()};
}

// By decoding all of it.
Resolution DecodedSize(const std::filesystem::path& picture) {
  const Image image = DecodeImage(BytesOf(ReadPictureFile(picture)));
  return {image.width, image.height};
}

Resolution ReadSize(const std::filesystem::path& picture) {
  std::ifstream file;
  file.rdbuf()->pubsetbuf(nullptr, 0);  // no more than is asked for
  file.open(picture, std::ios::binary);
  std::string bytes;
  for (const std::streamsize size : kBeginnings) {
    const auto before = std::ssize(bytes);
    bytes.resize(size);
    file.read(bytes.data() + before, size - before);
    bytes.resize(before + file.gcount());
    if (file.bad() || (bytes.empty() && !file.eof())) {
      throw std::runtime_error(picture.string() + ": cannot be read: " + std::strerror(errno));
    }
    if (file.eof()) return SizeOfPicture(bytes);
    try {
      return SizeOfPicture(bytes);
    } catch (const std::invalid_argument&) {  // it may be further back
    }
  }
  return SizeOfPicture(ReadPictureFile(picture));
}

}  // namespace

std::string ReadPictureFile(const std::filesystem::path& path) {
  constexpr uint64_t kMostBytes = 256u << 20;
  try {
    return ReadSmallFile(path, kMostBytes);
  } catch (const std::runtime_error&) {
    std::error_code none;
    const uint64_t bytes = std::filesystem::file_size(path, none);
    if (none || bytes <= kMostBytes) throw;
    throw std::invalid_argument("the picture file has " + std::to_string(bytes) + " bytes");
  }
}

Resolution SizeOfPicture(const std::string& file) {
  const ImageHeader header = ReadImageHeader(BytesOf(file), {});
  return {static_cast<int>(header.width), static_cast<int>(header.height)};
}

Resolution PictureSizes::operator()(const std::filesystem::path& picture) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = known_.find(picture.string()); found != known_.end()) {
      if (!found->second.fault.empty()) throw std::invalid_argument(found->second.fault);
      return found->second.size;
    }
  }
  Known known;
  try {
    known.size = decode_ ? DecodedSize(picture) : ReadSize(picture);
  } catch (const std::invalid_argument& wrong) {
    known.fault = wrong.what();
  }
  const std::lock_guard lock(mutex_);
  const Known& kept = known_.emplace(picture.string(), std::move(known)).first->second;
  if (!kept.fault.empty()) throw std::invalid_argument(kept.fault);
  return kept.size;
}

}  // namespace llava
