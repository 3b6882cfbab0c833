#include "server/vision/feature_disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "server/runtime/crc32c.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "LLVFEAT1";
constexpr char kSuffix[] = ".feature";
constexpr char kTemporary[] = ".tmp-";
constexpr uint64_t kLargestFile = 256ull << 20;
// Temporary files this old belong to nobody any more.
constexpr auto kAbandoned = std::chrono::hours(1);

// Little-endian, as the machines this runs on.
struct Fixed {
  char magic[8];
  uint32_t key_bytes;
  uint32_t image_width, image_height;
  uint32_t data_crc32c;
  int64_t rows, width;
  uint64_t data_bytes;
};
static_assert(sizeof(Fixed) == 48);

constexpr size_t kNameDigits = 32;  // of each digest

// What the files of a picture begin with: not its own digest, which would tell who has it.
std::string PrefixOf(std::string_view picture) {
  return ToHex(HashBytes(std::string(picture))).substr(0, kNameDigits) + "-";
}

std::string NameOf(const std::string& key) {
  return absl::StrCat(PrefixOf(PictureOfKey(key)), ToHex(HashBytes(key)).substr(0, kNameDigits),
                      kSuffix);
}

bool IsName(const std::string& name) {
  return name.ends_with(kSuffix) && name.find('-') == kNameDigits &&
         name.size() == 2 * kNameDigits + std::strlen(kSuffix) + 1;
}

// Of a version whose names did not tell the picture.
bool IsOldName(const std::string& name) {
  const size_t digits = name.find_first_not_of("0123456789abcdef");
  return digits == 2 * sizeof(Sha256Digest) && name.substr(digits) == kSuffix;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

std::string Reason() { return std::generic_category().message(errno); }

bool WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t done = write(fd, bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(done));
  }
  return true;
}

bool ReadAll(int fd, std::string& bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t done = read(fd, bytes.data() + at, bytes.size() - at);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return false;
    if (done == 0) break;  // cut off meanwhile: the checksum will tell
    at += static_cast<size_t>(done);
  }
  bytes.resize(at);
  return true;
}

}  // namespace

std::string FeatureFile(const Features& features) {
  Fixed fixed{};
  std::memcpy(fixed.magic, kMagic.data(), sizeof(fixed.magic));
  fixed.key_bytes = static_cast<uint32_t>(features.key.size());
  fixed.image_width = features.image_width;
  fixed.image_height = features.image_height;
  fixed.data_crc32c = features.crc32c;
  fixed.rows = features.rows;
  fixed.width = features.width;
  fixed.data_bytes = features.bytes.size();
  std::string file(reinterpret_cast<const char*>(&fixed), sizeof(fixed));
  file += features.key;
  const uint32_t crc = Crc32c(file);
  file.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  file += features.bytes;
  return file;
}

std::shared_ptr<const Features> ParseFeatureFile(std::string_view file, const std::string& key) {
  Fixed fixed{};
  const size_t head = sizeof(fixed) + key.size();
  if (file.size() < head + sizeof(uint32_t)) return nullptr;
  std::memcpy(&fixed, file.data(), sizeof(fixed));
  uint32_t crc = 0;
  std::memcpy(&crc, file.data() + head, sizeof(crc));
  const std::string_view data = file.substr(head + sizeof(crc));
  if (std::string_view(fixed.magic, sizeof(fixed.magic)) != kMagic ||
      fixed.key_bytes != key.size() || file.substr(sizeof(fixed), key.size()) != key ||
      crc != Crc32c(file.substr(0, head)) || fixed.data_bytes != data.size() || fixed.rows < 1 ||
      fixed.width < 1 ||
      static_cast<uint64_t>(fixed.rows) > data.size() / static_cast<uint64_t>(fixed.width) ||
      static_cast<uint64_t>(fixed.rows * fixed.width) * 2 != data.size() ||
      fixed.data_crc32c != Crc32c(data)) {
    return nullptr;
  }
  auto features = std::make_shared<Features>();
  features->key = key;
  features->bytes = data;
  features->rows = fixed.rows;
  features->width = fixed.width;
  features->crc32c = fixed.data_crc32c;
  features->image_width = fixed.image_width;
  features->image_height = fixed.image_height;
  return features;
}

FeatureDisk::Series::Series(Metrics& m)
    : bytes(m.Gauge("llava_vision_feature_disk_bytes", "Bytes of features kept on disk")),
      entries(
          m.Gauge("llava_vision_feature_disk_entries", "Pictures whose features are kept on disk")),
      hits(m.Counter("llava_vision_feature_disk_hits_total", "Features that came from the disk")),
      misses(m.Counter("llava_vision_feature_disk_misses_total",
                       "Features looked for on the disk and not found")),
      writes(m.Counter("llava_vision_feature_disk_writes_total", "Features written to the disk")),
      evictions(m.Counter("llava_vision_feature_disk_evictions_total",
                          "Files removed to keep the byte budget")),
      read_errors(m.Counter("llava_vision_feature_disk_errors_total",
                            "Faults of the disk tier; the features were computed instead",
                            {{"kind", "read"}})),
      write_errors(m.Counter("llava_vision_feature_disk_errors_total",
                             "Faults of the disk tier; the features were computed instead",
                             {{"kind", "write"}})),
      damaged(m.Counter("llava_vision_feature_disk_errors_total",
                        "Faults of the disk tier; the features were computed instead",
                        {{"kind", "damaged"}})),
      skipped(m.Counter("llava_vision_feature_disk_skipped_total",
                        "Features not written because too many waited already")) {}

FeatureDisk::FeatureDisk(Options options, Metrics& metrics)
    : options_(std::move(options)), series_(metrics) {
  metrics
      .Gauge("llava_vision_feature_disk_budget_bytes", "Bytes of features that may be kept on disk")
      .Set(static_cast<double>(options_.budget_bytes));
  Scan();
  Evict();
  writer_ = std::thread([this] { WriteLoop(); });
}

FeatureDisk::~FeatureDisk() {
  {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }
  writer_.join();
}

void FeatureDisk::Scan() {
  std::error_code error;
  fs::create_directories(options_.folder, error);
  // What can be told about pictures is nobody else's business.
  if (!error) fs::permissions(options_.folder, fs::perms::owner_all, error);
  struct Found {
    fs::file_time_type used;
    Entry entry;
  };
  std::vector<Found> found;
  fs::directory_iterator it(options_.folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::error_code gone;  // by another process meanwhile
    const std::string name = it->path().filename().string();
    const auto used = it->last_write_time(gone);
    const uint64_t bytes = gone ? 0 : it->file_size(gone);
    if (gone) continue;
    if (name.starts_with(kTemporary)) {
      if (fs::file_time_type::clock::now() - used > kAbandoned) fs::remove(it->path(), gone);
    } else if (IsName(name)) {
      found.push_back({used, {name, bytes}});
    } else if (IsOldName(name)) {
      fs::remove(it->path(), gone);
    }
  }
  if (error) CountError(series_.read_errors, error.message());
  std::sort(found.begin(), found.end(),
            [](const Found& a, const Found& b) { return a.used > b.used; });
  MutexLock lock(mutex_);
  for (Found& file : found) {
    bytes_ += file.entry.bytes;
    recent_.push_back(std::move(file.entry));
    index_[recent_.back().name] = std::prev(recent_.end());
  }
  Show();
}

std::shared_ptr<const Features> FeatureDisk::Read(const std::string& key) {
  try {
    return ReadFile(key);
  } catch (const std::exception& error) {  // no memory
    CountError(series_.read_errors, error.what());
    return nullptr;
  }
}

std::shared_ptr<const Features> FeatureDisk::ReadFile(const std::string& key) {
  if (IsDropped(key)) {
    series_.misses.Increment();
    return nullptr;
  }
  const std::string name = NameOf(key);
  const fs::path path = options_.folder / name;
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) {
    if (errno != ENOENT) CountError(series_.read_errors, Reason());
    series_.misses.Increment();
    Forget(name);
    return nullptr;
  }
  struct stat about {};
  std::string bytes;
  bool read = fstat(file.get(), &about) == 0 && S_ISREG(about.st_mode) &&
              static_cast<uint64_t>(about.st_size) <= kLargestFile;
  if (read) {
    bytes.resize(static_cast<size_t>(about.st_size));
    read = ReadAll(file.get(), bytes);
  }
  if (!read) {
    CountError(series_.read_errors, Reason());
    series_.misses.Increment();
    return nullptr;
  }
  auto features = ParseFeatureFile(bytes, key);
  if (!features) {
    CountError(series_.damaged, absl::StrCat(path.string(), " is damaged and removed"));
    series_.misses.Increment();
    unlink(path.c_str());
    Forget(name);
    return nullptr;
  }
  series_.hits.Increment();
  futimens(file.get(), nullptr);  // the order of use outlives the process
  Touch(name, bytes.size());
  return features;
}

void FeatureDisk::Write(std::shared_ptr<const Features> features) {
  MutexLock lock(mutex_);
  if (closed_) return;
  if (waiting_.size() >= options_.queue) {
    series_.skipped.Increment();
    return;
  }
  waiting_.push_back({.features = std::move(features)});
  changed_.NotifyAll();
}

void FeatureDisk::Drop(const PictureSet& pictures, Dropped done) {
  MutexLock lock(mutex_);
  if (waiting_.empty() || waiting_.back().features) waiting_.emplace_back();
  Task& task = waiting_.back();
  for (const std::string& picture : pictures) {
    if (task.pictures.insert(picture).second) dropped_.insert(picture);
  }
  task.done.push_back(std::move(done));
  changed_.NotifyAll();
}

bool FeatureDisk::IsDropped(const std::string& key) const {
  MutexLock lock(mutex_);
  return dropped_.contains(PictureOfKey(key));
}

void FeatureDisk::Flush() {
  MutexLock lock(mutex_);
  while (!waiting_.empty() || writing_) changed_.Wait(mutex_);
}

void FeatureDisk::WriteLoop() {
  while (true) {
    Task next;
    {
      MutexLock lock(mutex_);
      writing_ = false;
      changed_.NotifyAll();
      while (waiting_.empty() && !closed_) changed_.Wait(mutex_);
      if (waiting_.empty()) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
      writing_ = true;
    }
    Run(next);
  }
}

void FeatureDisk::Run(const Task& task) {
  absl::StatusOr<size_t> removed = 0;
  try {
    if (task.features) {
      WriteFile(*task.features);
      return Evict();
    }
    removed = RemoveFiles(task.pictures);
  } catch (const std::exception& error) {  // no memory
    CountError(series_.write_errors, error.what());
    removed = absl::UnavailableError(error.what());
  }
  {
    MutexLock lock(mutex_);
    for (const std::string& picture : task.pictures) dropped_.erase(dropped_.find(picture));
  }
  for (const Dropped& done : task.done) done(removed);
}

// Looks into the folder: other processes write there too, or did until they were killed.
absl::StatusOr<size_t> FeatureDisk::RemoveFiles(const PictureSet& pictures) {
  std::set<std::string, std::less<>> prefixes;
  for (const std::string& picture : pictures) prefixes.insert(PrefixOf(picture));
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator it(options_.folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    const std::string finished = name.starts_with(kTemporary)
                                     ? name.substr(name.find('-', std::strlen(kTemporary)) + 1)
                                     : name;
    if (IsName(finished) && prefixes.contains(finished.substr(0, kNameDigits + 1))) {
      names.push_back(std::move(name));
    }
  }
  std::string fault = error ? error.message() : "";
  size_t removed = 0;
  for (const std::string& name : names) {
    if (unlink((options_.folder / name).c_str()) == 0) {
      ++removed;
    } else if (errno != ENOENT) {
      fault = Reason();
      continue;
    }
    Forget(name);
  }
  if (fault.empty()) return removed;
  CountError(series_.write_errors, fault);
  return absl::UnavailableError(absl::StrCat("vision: files of features cannot be removed from ",
                                             options_.folder.string(), ": ", fault));
}

// No fsync: the kernel keeps the file if the process is killed, and after a power loss the
// checksums tell what was lost.
void FeatureDisk::WriteFile(const Features& features) {
  const std::string name = NameOf(features.key);
  const fs::path path = options_.folder / name;
  struct stat about {};
  if (stat(path.c_str(), &about) == 0) return Touch(name, static_cast<uint64_t>(about.st_size));
  const std::string bytes = FeatureFile(features);
  if (bytes.size() > options_.budget_bytes) return;
  const fs::path temporary = options_.folder / absl::StrCat(kTemporary, getpid(), "-", name);
  bool written = false;
  {
    const Descriptor file(
        open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR));
    written = file.get() >= 0 && WriteAll(file.get(), bytes);
  }
  if (!written || rename(temporary.c_str(), path.c_str()) != 0) {
    CountError(series_.write_errors, Reason());
    unlink(temporary.c_str());
    return;
  }
  complained_ = false;
  series_.writes.Increment();
  Touch(name, bytes.size());
}

void FeatureDisk::Evict() {
  while (true) {
    std::string name;
    {
      MutexLock lock(mutex_);
      if (bytes_ <= options_.budget_bytes || recent_.empty()) return;
      name = recent_.back().name;
    }
    if (unlink((options_.folder / name).c_str()) != 0 && errno != ENOENT) {
      CountError(series_.write_errors, Reason());
    }
    Forget(name);  // if it cannot be removed, it is at least no longer ours
    series_.evictions.Increment();
  }
}

void FeatureDisk::Touch(const std::string& name, uint64_t bytes) {
  MutexLock lock(mutex_);
  const auto found = index_.find(name);
  if (found != index_.end()) {
    bytes_ -= found->second->bytes;
    found->second->bytes = bytes;
    recent_.splice(recent_.begin(), recent_, found->second);
  } else {
    recent_.push_front({name, bytes});
    index_[name] = recent_.begin();
  }
  bytes_ += bytes;
  Show();
}

void FeatureDisk::Forget(const std::string& name) {
  MutexLock lock(mutex_);
  const auto found = index_.find(name);
  if (found == index_.end()) return;
  bytes_ -= found->second->bytes;
  recent_.erase(found->second);
  index_.erase(found);
  Show();
}

void FeatureDisk::Show() {
  series_.bytes.Set(static_cast<double>(bytes_));
  series_.entries.Set(static_cast<double>(recent_.size()));
}

void FeatureDisk::CountError(prometheus::Counter& counter, const std::string& what) {
  counter.Increment();
  if (complained_.exchange(true)) return;
  LogWarning("the disk tier of the feature cache has a fault",
             {{"folder", options_.folder.string()}, {"error", what}});
}

uint64_t FeatureDisk::size_bytes() const {
  MutexLock lock(mutex_);
  return bytes_;
}

v1::FeatureDiskStatus FeatureDisk::status() const {
  v1::FeatureDiskStatus status;
  status.set_entries(entries());
  status.set_bytes(size_bytes());
  status.set_budget_bytes(options_.budget_bytes);
  status.set_hits(static_cast<uint64_t>(series_.hits.Value()));
  status.set_misses(static_cast<uint64_t>(series_.misses.Value()));
  const double errors =
      series_.read_errors.Value() + series_.write_errors.Value() + series_.damaged.Value();
  status.set_errors(static_cast<uint64_t>(errors));
  return status;
}

size_t FeatureDisk::entries() const {
  MutexLock lock(mutex_);
  return recent_.size();
}

}  // namespace llava
