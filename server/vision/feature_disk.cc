#include "server/vision/feature_disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <random>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "server/runtime/crc32c.h"
#include "server/runtime/logging.h"
#include "server/vision/feature_file.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

constexpr char kTemporary[] = ".tmp-";
constexpr uint64_t kLargestFile = 256ull << 20;
// Temporary files this old belong to nobody any more.
constexpr auto kAbandoned = std::chrono::hours(1);

// How much of the budget, at most, each process writes before it looks what others have written.
constexpr uint64_t kScansPerBudget = 8;

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
  MakeFolder();
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

void FeatureDisk::MakeFolder() {
  std::error_code error;
  const bool made = fs::create_directories(options_.folder, error);
  // What can be told about pictures is nobody else's business.
  if (made) fs::permissions(options_.folder, fs::perms::owner_all, error);
  if (error) return;  // Scan will tell
  constexpr fs::perms kOthers = fs::perms::group_read | fs::perms::others_read |
                                fs::perms::group_exec | fs::perms::others_exec;
  const fs::perms now = fs::status(options_.folder, error).permissions();
  if (!made && !error && (now & kOthers) != fs::perms::none) {
    LogWarning("others may look into the folder of features, which tell about pictures: chmod 700",
               {{"folder", options_.folder.string()}});
  }
}

// By what is there: other processes may write into the folder too.
void FeatureDisk::Scan() {
  std::error_code error;
  struct Found {
    fs::file_time_type used;
    std::string name;
    uint64_t bytes;
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
    } else if (IsFeatureFile(name)) {
      found.push_back({used, name, bytes});
    }
  }
  if (error) CountError(series_.read_errors, error.message());
  std::sort(found.begin(), found.end(),
            [](const Found& a, const Found& b) { return a.used < b.used; });
  MutexLock lock(mutex_);
  recent_ = {};
  for (const Found& file : found) recent_.Put(file.name, file.bytes);
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
  const std::string name = FeatureFileName(key);
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
      if (written_since_scan_ >= options_.budget_bytes / kScansPerBudget) {
        written_since_scan_ = 0;
        Scan();
      }
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
  for (const std::string& picture : pictures) prefixes.insert(FeatureFilePrefix(picture));
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator it(options_.folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    const std::string finished = name.starts_with(kTemporary)
                                     ? name.substr(name.find('-', std::strlen(kTemporary)) + 1)
                                     : name;
    if (IsFeatureFile(finished) && prefixes.contains(FeatureFilePrefixOf(finished))) {
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
  const std::string name = FeatureFileName(features.key);
  const fs::path path = options_.folder / name;
  struct stat about {};
  if (stat(path.c_str(), &about) == 0) return Touch(name, static_cast<uint64_t>(about.st_size));
  const std::string bytes = FeatureFile(features);
  if (bytes.size() > options_.budget_bytes) return;
  int fault = WriteNew(path, bytes);
  if (fault == ENOSPC || fault == EDQUOT) {  // less than the budget fits here
    Scan();
    EvictTo(size_bytes() - std::min(size_bytes(), 2 * bytes.size()));
    fault = WriteNew(path, bytes);
  }
  if (fault != 0) {
    return CountError(series_.write_errors, std::generic_category().message(fault));
  }
  written_since_scan_ += bytes.size();
  complained_ = false;
  series_.writes.Increment();
  Touch(name, bytes.size());
}

int FeatureDisk::WriteNew(const fs::path& path, std::string_view bytes) {
  std::random_device random;  // process numbers repeat from container to container
  const fs::path draft =
      options_.folder / absl::StrCat(kTemporary, absl::Hex(random()), absl::Hex(random()), "-",
                                     path.filename().string());
  int fault = 0;
  {
    const Descriptor file(
        open(draft.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR));
    if (file.get() < 0) return errno;
    if (!WriteAll(file.get(), bytes)) fault = errno != 0 ? errno : EIO;
  }
  if (fault == 0 && rename(draft.c_str(), path.c_str()) != 0) fault = errno;
  if (fault != 0) unlink(draft.c_str());
  return fault;
}

void FeatureDisk::EvictTo(uint64_t bytes) {
  while (true) {
    std::string name;
    {
      MutexLock lock(mutex_);
      if (recent_.bytes() <= bytes || recent_.size() == 0) return;
      name = recent_.entries().front().key;
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
  recent_.Put(name, bytes);
  Show();
}

void FeatureDisk::Forget(const std::string& name) {
  MutexLock lock(mutex_);
  recent_.Remove(name);
  Show();
}

void FeatureDisk::Show() {
  series_.bytes.Set(static_cast<double>(recent_.bytes()));
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
  return recent_.bytes();
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
