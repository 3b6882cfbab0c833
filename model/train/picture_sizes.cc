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

// Of most files the header is in these; a JPEG may have a preview before it.
constexpr std::streamsize kBeginning = 64 << 10;

std::span<const uint8_t> BytesOf(const std::string& file) {
  return {reinterpret_cast<const uint8_t*>(file.data()), file.size()};
}

// By decoding all of it.
Resolution DecodedSize(const std::filesystem::path& picture) {
  const Image image = DecodeImage(BytesOf(ReadPictureFile(picture)));
  return {image.width, image.height};
}

Resolution ReadSize(const std::filesystem::path& picture) {
  std::ifstream file(picture, std::ios::binary);
  std::string bytes(kBeginning, '\0');
  file.read(bytes.data(), kBeginning);
  const bool whole = file.gcount() < kBeginning;
  bytes.resize(file.gcount());
  if (file.bad() || (bytes.empty() && !file.eof())) {
    throw std::runtime_error(picture.string() + ": cannot be read: " + std::strerror(errno));
  }
  if (whole) return SizeOfPicture(bytes);
  try {
    return SizeOfPicture(bytes);
  } catch (const std::invalid_argument&) {
    bytes.append(std::istreambuf_iterator<char>(file), {});
  }
  return SizeOfPicture(bytes);
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
