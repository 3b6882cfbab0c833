#include "server/gateway/log_checkpointer.h"

#include <utility>

namespace llava {
namespace {

// 4 and 32 MB of 4 KiB pages.
constexpr int kWorthwhilePages = 1000, kMostPages = 8000;

}  // namespace

absl::StatusOr<std::unique_ptr<LogCheckpointer>> LogCheckpointer::Open(
    const std::string& database_path, Done done) {
  auto database = SqlDatabase::Open(database_path);
  if (!database.ok()) return database.status();
  return std::unique_ptr<LogCheckpointer>(
      new LogCheckpointer(*std::move(database), std::move(done)));
}

LogCheckpointer::LogCheckpointer(std::unique_ptr<SqlDatabase> database, Done done)
    : database_(std::move(database)), done_(std::move(done)), thread_([this] { Loop(); }) {}

LogCheckpointer::~LogCheckpointer() {
  {
    MutexLock lock(mutex_);
    closing_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

bool LogCheckpointer::OnCommit(int log_pages) {
  if (log_pages < kWorthwhilePages) return false;
  MutexLock lock(mutex_);
  if (working_ || wanted_) return false;
  if (log_pages >= kMostPages) return true;
  wanted_ = true;
  changed_.NotifyAll();
  return false;
}

void LogCheckpointer::Loop() {
  mutex_.lock();
  while (true) {
    while (!wanted_ && !closing_) changed_.Wait(mutex_);
    if (closing_) break;
    wanted_ = false;
    working_ = true;
    mutex_.unlock();
    done_(database_->CheckpointLog());
    mutex_.lock();
    working_ = false;
  }
  mutex_.unlock();
}

}  // namespace llava
