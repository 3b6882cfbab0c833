#include "server/lifecycle/repository_watcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

prometheus::Counter& Looks(Metrics& metrics, const std::string& trigger) {
  return metrics.Counter("llava_model_repository_looks_total", "Looks at the model repository",
                         {{"trigger", trigger}});
}

// Names, sizes and times of a version's files: differs when somebody changed them.
std::string MarkOf(const fs::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    struct stat status {};
    if (stat(entry.path().c_str(), &status) != 0) continue;  // just deleted
    files.push_back(absl::StrCat(entry.path().filename().string(), " ", status.st_size, " ",
                                 status.st_ino, " ", status.st_mode, " ", status.st_mtim.tv_sec,
                                 ".", status.st_mtim.tv_nsec));
  }
  std::sort(files.begin(), files.end());
  std::string all;
  for (const std::string& file : files) absl::StrAppend(&all, file, "\n");
  return ToHex(HashBytes(all));
}

// Of the newest version whose manifest can be read; nothing if there is none.
std::optional<Manifest::Kind> KindOf(const ModelRepository& repository, const std::string& name,
                                     const std::vector<uint64_t>& versions) {
  for (auto each = versions.rbegin(); each != versions.rend(); ++each) {
    try {
      return Manifest::Read(repository.Folder(name, *each)).kind;
    } catch (const std::exception&) {
      continue;  // broken: its loading will tell
    }
  }
  return std::nullopt;
}

// Nothing: it is of another kind.
std::optional<RepositoryModel> LookAtModel(const ModelRepository& repository,
                                           const std::string& name,
                                           std::optional<Manifest::Kind> kind) {
  const std::vector<uint64_t> versions = repository.Versions(name);
  if (kind && KindOf(repository, name, versions) != kind) return std::nullopt;
  RepositoryModel model;
  for (const uint64_t version : versions) {
    try {
      model.versions[version] = MarkOf(repository.Folder(name, version));
    } catch (const fs::filesystem_error& error) {
      if (error.code() == std::errc::no_such_file_or_directory) continue;  // just deleted
      model.versions[version] = error.code().message();                    // its loading tells more
    }
  }
  model.marks = repository.Marks(name);
  return model;
}

struct RepositoryLook {
  RepositorySnapshot models;
  std::map<std::string, std::string> unreadable;  // models that are not in `models`, and why
};
// One look. UNAVAILABLE: the root, or everything in it, cannot be read.
absl::StatusOr<RepositoryLook> LookAtRepository(const fs::path& root,
                                                const std::set<std::string>& names,
                                                std::optional<Manifest::Kind> kind) {
  try {
    const ModelRepository repository(root);
    std::vector<std::string> models(names.begin(), names.end());
    if (names.empty()) models = repository.Models();
    RepositoryLook look;
    for (const std::string& name : models) {
      try {
        if (auto model = LookAtModel(repository, name, names.empty() ? kind : std::nullopt)) {
          look.models[name] = *std::move(model);
        }
      } catch (const std::exception& error) {
        look.unreadable[name] = error.what();
      }
    }
    if (look.models.empty() && !look.unreadable.empty()) {
      return absl::UnavailableError(look.unreadable.begin()->second);
    }
    return look;
  } catch (const std::exception& error) {
    return absl::UnavailableError(error.what());
  }
}

}  // namespace

// Watches of the root, its models and their versions. Of each only one thread.
class RepositoryWatcher::Inotify {
 public:
  Inotify() : wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Inotify() {
    if (events_ >= 0) close(events_);
    if (wake_ >= 0) close(wake_);
  }

  void Open() {
    events_ = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (events_ < 0) {
      LogWarning("no inotify, the repository is only polled", {{"error", std::strerror(errno)}});
    }
  }

  // Watches what there is; a folder that is watched already stays so. Called before each look: what
  // comes into a folder before that is seen by the look, what comes later is an event.
  void Watch(const Options& options) {
    if (events_ < 0) return;
    // Without a root its nearest ancestor tells when it comes. What came before that was watched
    // is no event: look again.
    std::error_code error;
    const fs::path root = fs::absolute(options.root, error);
    int above = -1;
    for (fs::path watched, nearest; (nearest = Nearest(root)) != watched; watched = nearest) {
      const bool found = nearest == root;
      const int watch = Add(nearest, found ? kFolders : IN_CREATE | IN_MOVED_TO | IN_ONLYDIR);
      above = found ? -1 : watch;
    }
    // Others write there too, which means nothing here once the root is there.
    if (above_ >= 0 && above_ != above) inotify_rm_watch(events_, above_);
    above_ = above;
    if (!fs::is_directory(root, error)) return;
    for (const fs::path& model : Folders(options.root)) {
      if (!options.names.empty() && !options.names.contains(model.filename().string())) continue;
      Add(model, kFolders);
      for (const fs::path& version : Folders(model)) Add(version, kFolders);
    }
  }

  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
  }

  // Until something happens, Wake, or `timeout` (negative: forever). True: the repository said so.
  bool Wait(std::chrono::milliseconds timeout) {
    std::array<pollfd, 2> files = {{{wake_, POLLIN, 0}, {events_, POLLIN, 0}}};
    const nfds_t count = events_ >= 0 ? 2 : 1;
    poll(files.data(), count, static_cast<int>(std::min<int64_t>(timeout.count(), 1 << 30)));
    uint64_t woken = 0;
    [[maybe_unused]] const ssize_t read_bytes = read(wake_, &woken, sizeof woken);
    return count == 2 && Drain();
  }

 private:
  static constexpr uint32_t kFolders = IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE |
                                       IN_DELETE_SELF | IN_MOVE_SELF | IN_CLOSE_WRITE | IN_ATTRIB |
                                       IN_ONLYDIR;

  // The folder, or the nearest above it that there is.
  static fs::path Nearest(fs::path folder) {
    std::error_code error;
    while (!fs::is_directory(folder, error) && folder.has_relative_path()) {
      folder = folder.parent_path();
    }
    return folder;
  }
  // Half-written versions (names with a dot) change all the time and mean nothing.
  static std::vector<fs::path> Folders(const fs::path& folder) {
    std::vector<fs::path> folders;
    std::error_code error;
    for (fs::directory_iterator each(folder, error), end; !error && each != end;
         each.increment(error)) {
      const fs::path& path = each->path();
      std::error_code ignored;
      if (!path.filename().string().starts_with('.') && fs::is_directory(path, ignored)) {
        folders.push_back(path);
      }
    }
    return folders;
  }

  // The number of the watch; negative: none.
  int Add(const fs::path& folder, uint32_t mask) {
    const int watch = inotify_add_watch(events_, folder.c_str(), mask);
    if (watch < 0 && errno == ENOSPC && !told_) {
      told_ = true;
      LogWarning(
          "no more inotify watches (fs.inotify.max_user_watches): changes of the repository "
          "are only seen by polling");
    }
    return watch;
  }

  bool Drain() {
    std::array<char, 16 * 1024> buffer;
    bool any = false;
    while (read(events_, buffer.data(), buffer.size()) > 0) any = true;
    return any;
  }

  const int wake_;
  int events_ = -1;
  int above_ = -1;  // the watch of an ancestor, while there is no root
  bool told_ = false;
};

RepositoryWatcher::RepositoryWatcher(Options options, Metrics& metrics, OnLook on_look)
    : options_(std::move(options)),
      on_look_(std::move(on_look)),
      looks_event_(Looks(metrics, "event")),
      looks_request_(Looks(metrics, "request")),
      failed_looks_(metrics.Counter("llava_model_repository_failed_looks_total",
                                    "Looks at the model repository that could not read all of it")),
      looks_poll_(options_.poll_interval.count() > 0 ? &Looks(metrics, "poll") : nullptr),
      inotify_(std::make_unique<Inotify>()) {}

RepositoryWatcher::~RepositoryWatcher() { Stop(); }

void RepositoryWatcher::Start() {
  if (options_.inotify) inotify_->Open();
  thread_ = std::thread([this] { Run(); });
}

void RepositoryWatcher::Stop() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
  }
  inotify_->Wake();
  if (thread_.joinable()) thread_.join();
}

uint64_t RepositoryWatcher::LookNow() {
  uint64_t look = 0;
  {
    MutexLock lock(mutex_);
    look_now_ = true;
    look = begun_ + 1;
  }
  inotify_->Wake();
  return look;
}

void RepositoryWatcher::Run() {
  using Clock = std::chrono::steady_clock;
  const auto stopped = [this] {
    MutexLock lock(mutex_);
    return stop_;
  };
  const auto asked = [this] {
    MutexLock lock(mutex_);
    return stop_ || look_now_;
  };
  bool failing = false;
  prometheus::Counter* reason = &looks_request_;
  while (!stopped()) {
    uint64_t look = 0;
    {
      MutexLock lock(mutex_);
      look = ++begun_;
      look_now_ = false;
    }
    reason->Increment();
    reason = &looks_request_;
    inotify_->Watch(options_);
    const absl::StatusOr<RepositorySnapshot> snapshot = Look();
    if (!snapshot.ok() || !unreadable_.empty()) failed_looks_.Increment();
    if (failing != !snapshot.ok()) {
      failing = !snapshot.ok();
      if (failing) {
        LogWarning("cannot look at the model repository; what is loaded stays",
                   {{"root", options_.root.string()},
                    {"error", std::string(snapshot.status().message())}});
      } else {
        LogInfo("the model repository can be read again", {{"root", options_.root.string()}});
      }
    }
    on_look_(look, snapshot);

    const auto poll =
        options_.poll_interval.count() > 0 ? options_.poll_interval : std::chrono::milliseconds(-1);
    if (asked()) continue;
    const auto due = Clock::now() + poll;
    bool event = false;
    while (!event && !asked()) {
      auto left = std::chrono::ceil<std::chrono::milliseconds>(due - Clock::now());
      if (poll.count() < 0) left = poll;
      if (poll.count() > 0 && left.count() <= 0) break;
      event = inotify_->Wait(left);
    }
    if (event) {
      const auto latest = Clock::now() + 10 * options_.quiet;
      while (!asked() && Clock::now() < latest && inotify_->Wait(options_.quiet)) {
      }
    }
    if (!asked()) reason = event ? &looks_event_ : looks_poll_;
  }
}

absl::StatusOr<RepositorySnapshot> RepositoryWatcher::Look() {
  auto look = LookAtRepository(options_.root, options_.names, options_.kind);
  if (!look.ok()) return look.status();
  TellUnreadable(look->unreadable);
  for (const auto& [name, error] : look->unreadable) {
    const auto before = seen_.find(name);
    if (before != seen_.end()) look->models.insert(*before);
  }
  seen_ = look->models;
  return std::move(look->models);
}

void RepositoryWatcher::TellUnreadable(const std::map<std::string, std::string>& now) {
  for (const auto& [name, error] : now) {
    if (unreadable_.contains(name)) continue;
    LogWarning("cannot look at a model; what is loaded of it stays",
               {{"model", name}, {"error", error}});
  }
  for (const auto& [name, error] : unreadable_) {
    if (!now.contains(name)) LogInfo("the model can be read again", {{"model", name}});
  }
  unreadable_ = now;
}

}  // namespace llava
