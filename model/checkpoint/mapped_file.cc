#include "model/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace llava {
namespace {

[[noreturn]] void Fail(const std::filesystem::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what);
}

int OpenRegular(const std::filesystem::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) Fail(path, std::string("cannot open: ") + std::strerror(errno));
  struct stat status;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) return fd;
  close(fd);
  Fail(path, "is not a regular file");
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const int fd = OpenRegular(path);
  struct stat status;
  size_ = fstat(fd, &status) == 0 ? static_cast<size_t>(status.st_size) : 0;
  void* data = size_ > 0 ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
  const int error = errno;
  close(fd);
  if (data == MAP_FAILED) Fail(path, std::string("cannot map: ") + std::strerror(error));
  data_ = static_cast<const uint8_t*>(data);
  mapping_ = data;
  mapping_size_ = size_;
}

std::shared_ptr<MappedFile> MappedFile::InMemory(const std::filesystem::path& path, size_t size) {
  constexpr size_t kHugePage = size_t{2} << 20, kChunk = size_t{4} << 20;
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->fd_ = OpenRegular(path);
  const size_t whole = (size + kChunk - 1) / kChunk * kChunk;
  void* memory = mmap(nullptr, whole + kHugePage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    Fail(path, "no memory for its " + std::to_string(size) + " bytes: " + std::strerror(errno));
  }
  file->mapping_ = memory;
  file->mapping_size_ = whole + kHugePage;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  auto* data = reinterpret_cast<uint8_t*>((begin + kHugePage - 1) / kHugePage * kHugePage);
  madvise(data, whole, MADV_HUGEPAGE);
  file->data_ = data;
  file->size_ = size;
  return file;
}

MappedFile::~MappedFile() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
  if (fd_ >= 0) close(fd_);
}

void MappedFile::Release(size_t offset, size_t size) const {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page, end = (offset + size) / page * page;
  if (end <= begin || end > size_) return;
  uint8_t* from = const_cast<uint8_t*>(data_) + begin;
  const std::lock_guard lock(mutex_);
  if (fd_ < 0) {
    madvise(from, end - begin, MADV_DONTNEED);
  } else {
    // The file's own pages in place of the memory. If that fails, the memory stays.
    mmap(from, end - begin, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd_, static_cast<off_t>(begin));
  }
}

void MappedFile::ReleaseAll() const {
  if (size_ == 0) return;
  auto* data = const_cast<uint8_t*>(data_);
  const std::lock_guard lock(mutex_);
  if (fd_ < 0) {
    madvise(data, size_, MADV_DONTNEED);
    return;
  }
  if (mmap(data, size_, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd_, 0) == MAP_FAILED) {
    Fail(path_, std::string("cannot map: ") + std::strerror(errno));
  }
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  uint8_t* end = static_cast<uint8_t*>(mapping_) + mapping_size_;
  uint8_t* behind = data + (size_ + page - 1) / page * page;
  madvise(behind, static_cast<size_t>(end - behind), MADV_DONTNEED);
  close(fd_);  // from here on it is a mapping like others
  fd_ = -1;
}

}  // namespace llava
