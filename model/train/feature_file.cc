#include "model/train/feature_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include <ATen/ops/empty.h>

namespace llava {
namespace {

constexpr std::string_view kMagic = "LLVAFEAT";
constexpr size_t kName = 32, kCheck = 8;

// False at the end of the file.
bool ReadFully(int file, void* into, size_t size, uint64_t offset) {
  for (size_t done = 0; done < size;) {
    const ssize_t got = pread(file, static_cast<char*>(into) + done, size - done,
                              static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += got;
  }
  return true;
}

bool WriteFully(int file, std::string_view bytes, uint64_t offset) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t put =
        pwrite(file, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    done += put;
  }
  return true;
}

std::string CheckOf(std::string_view values) {
  return ToBytes(HashBytes(values)).substr(0, kCheck);
}

std::string Number(uint32_t value) {
  std::string bytes;
  for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(value >> shift));
  return bytes;
}

}  // namespace

FeatureFile::FeatureFile(const std::filesystem::path& path, const std::string& origin,
                         at::IntArrayRef shape, at::ScalarType dtype)
    : path_(path), shape_(shape.vec()), dtype_(dtype), bytes_(c10::elementSize(dtype)) {
  std::ostringstream header;
  header << origin << " " << shape << " " << dtype;
  for (const int64_t size : shape_) bytes_ *= size;
  file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) {
    throw std::runtime_error(path.string() + ": cannot open: " + std::strerror(errno));
  }
  try {
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      throw std::runtime_error(path.string() + ": another run uses this feature cache");
    }
    ReadOrWriteHeader(header.str());
    ReadNames();
  } catch (...) {
    close(file_);
    throw;
  }
}

FeatureFile::~FeatureFile() { close(file_); }

void FeatureFile::ReadOrWriteHeader(const std::string& origin) {
  const std::string expected =
      std::string(kMagic) + Number(static_cast<uint32_t>(origin.size())) + origin;
  end_ = expected.size();
  const off_t size = lseek(file_, 0, SEEK_END);
  std::string found(std::min<size_t>(size, expected.size()), '\0');
  if (!ReadFully(file_, found.data(), found.size(), 0)) {
    throw std::runtime_error(path_.string() + ": cannot read: " + std::strerror(errno));
  }
  if (found == expected) return;
  if (!expected.starts_with(found)) {  // an unfinished header is written anew
    throw std::runtime_error(path_.string() +
                             ": is no cache of the features wanted here (of another tower, layer, "
                             "image mode or dtype); name another file or remove it");
  }
  if (!WriteFully(file_, expected, 0)) {
    throw std::runtime_error(path_.string() + ": cannot write: " + std::strerror(errno));
  }
}

void FeatureFile::ReadNames() {
  const auto size = static_cast<uint64_t>(lseek(file_, 0, SEEK_END));
  const uint64_t stride = kName + kCheck + bytes_;
  for (std::string name(kName, '\0'); end_ + stride <= size; end_ += stride) {
    if (!ReadFully(file_, name.data(), kName, end_)) break;
    offsets_[name] = end_;
  }
}

std::optional<at::Tensor> FeatureFile::Find(const Sha256Digest& picture) const {
  uint64_t offset = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = offsets_.find(ToBytes(picture));
    if (found == offsets_.end()) return std::nullopt;
    offset = found->second;
  }
  std::string check(kCheck, '\0');
  at::Tensor features = at::empty(shape_, dtype_);
  auto* values = static_cast<char*>(features.data_ptr());
  if (!ReadFully(file_, check.data(), kCheck, offset + kName) ||
      !ReadFully(file_, values, bytes_, offset + kName + kCheck) ||
      check != CheckOf({values, bytes_})) {
    return std::nullopt;
  }
  return features;
}

void FeatureFile::Add(const Sha256Digest& picture, const at::Tensor& features) {
  const at::Tensor whole = features.contiguous();
  const std::string_view values(static_cast<const char*>(whole.const_data_ptr()), bytes_);
  const std::string name = ToBytes(picture);
  std::string entry = name + CheckOf(values);
  entry += values;
  const std::lock_guard lock(mutex_);
  if (full_) return;
  full_ = !WriteFully(file_, entry, end_);
  if (full_) return;
  offsets_[name] = end_;
  end_ += entry.size();
}

}  // namespace llava
