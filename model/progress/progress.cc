#include "model/progress/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

namespace llava {

std::string ProgressText(const std::string& what, uint64_t done, uint64_t total, double seconds,
                         bool bar) {
  constexpr int kWidth = 24;
  const double share = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  std::string text = what + " ";
  if (bar) {
    const int full = static_cast<int>(share * kWidth);
    text.append("[").append(full, '#').append(kWidth - full, '.').append("] ");
  }
  text += std::to_string(done) + "/" + std::to_string(total);
  char part[80];
  std::snprintf(part, sizeof(part), " (%.0f %%) %.*f/s", 100 * share, rate < 9.95 ? 1 : 0, rate);
  text += part;
  if (done < total && rate > 0) {
    const auto left = static_cast<uint64_t>(static_cast<double>(total - done) / rate + 0.5);
    std::snprintf(part, sizeof(part), ", %llu:%02llu left",
                  static_cast<unsigned long long>(left / 60),
                  static_cast<unsigned long long>(left % 60));
    text += part;
  }
  return text;
}

Progress::Progress(std::FILE* stream, std::string what, uint64_t total, uint64_t skipped)
    : stream_(stream),
      what_(std::move(what)),
      total_(total),
      skipped_(skipped),
      terminal_(stream != nullptr && isatty(fileno(stream)) == 1),
      begin_(Clock::now()),
      drawn_(begin_) {}

Progress::~Progress() { EndLine(); }

void Progress::Update(uint64_t done) {
  const auto pause = terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10);
  if (Clock::now() - drawn_ < pause) return;
  Draw(done);
}

void Progress::Finish(uint64_t done) {
  Draw(done);
  EndLine();
}

void Progress::EndLine() {
  if (open_) std::fputc('\n', stream_);
  open_ = false;
}

void Progress::Draw(uint64_t done) {
  if (stream_ == nullptr) return;
  drawn_ = Clock::now();
  const double seconds = std::chrono::duration<double>(drawn_ - begin_).count();
  std::string text =
      ProgressText(what_, done - std::min(done, skipped_), total_ - skipped_, seconds, terminal_);
  if (!note_.empty()) text += ", " + note_;
  std::fprintf(stream_, terminal_ ? "\r%s\x1b[K" : "%s\n", text.c_str());
  std::fflush(stream_);
  open_ = terminal_;
}

}  // namespace llava
