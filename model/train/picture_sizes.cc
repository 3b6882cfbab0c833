#include "model/train/picture_sizes.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>

#include "model/image/header.h"
#include "model/train/frozen_tower.h"

namespace llava {
namespace {

// Of most files the header is in these; a JPEG may have a preview before it.
constexpr std::streamsize kBeginning = 64 << 10;

Resolution SizeOf(const std::string& file) {
  const ImageHeader header =
      ReadImageHeader({reinterpret_cast<const uint8_t*>(file.data()), file.size()}, {});
  return {static_cast<int>(header.width), static_cast<int>(header.height)};
}

Resolution ReadSize(const std::filesystem::path& picture) {
  std::ifstream file(picture, std::ios::binary);
  std::string bytes(kBeginning, '\0');
  file.read(bytes.data(), kBeginning);
  const bool whole = file.gcount() < kBeginning;
  bytes.resize(file.gcount());
  if (file.bad() || (bytes.empty() && !file.eof())) {
    throw std::invalid_argument(std::string("cannot read: ") + std::strerror(errno));
  }
  if (whole) return SizeOf(bytes);
  try {
    return SizeOf(bytes);
  } catch (const std::invalid_argument&) {
    bytes.append(std::istreambuf_iterator<char>(file), {});
  }
  return SizeOf(bytes);
}

}  // namespace

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
    known.size = decode_ ? FrozenTower::CheckPicture(picture) : ReadSize(picture);
  } catch (const std::exception& wrong) {
    known.fault = wrong.what();
  }
  const std::lock_guard lock(mutex_);
  const Known& kept = known_.emplace(picture.string(), std::move(known)).first->second;
  if (!kept.fault.empty()) throw std::invalid_argument(kept.fault);
  return kept.size;
}

}  // namespace llava
