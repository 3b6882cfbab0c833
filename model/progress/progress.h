#pragma once

// How far a long job is, for people: a bar that is drawn over itself on a terminal, else a line now
// and then for logs.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace llava {

// The text of a bar or line: pure, so that it can be tested. `seconds` since the beginning.
std::string ProgressText(const std::string& what, uint64_t done, uint64_t total, double seconds,
                         bool bar);

// Shows one job on a stream, or nothing where that is null. One thread.
class Progress {
 public:
  // `skipped` of `total` steps were done before: they do not count for the rate.
  Progress(std::FILE* stream, std::string what, uint64_t total, uint64_t skipped = 0);
  // Ends the line of a bar that nothing has finished: what is said next stands below it.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // Draws if it is time to: 10 times a second on a terminal, else every 10 seconds.
  void Update(uint64_t done);
  // What else to show behind the bar, from the next drawing on: "loss 1.234".
  void set_note(std::string note) { note_ = std::move(note); }
  // Where only the work itself shows what was done before.
  void set_skipped(uint64_t skipped) { skipped_ = std::min(skipped, total_); }
  // Draws the last state and ends the line.
  void Finish(uint64_t done);

 private:
  using Clock = std::chrono::steady_clock;

  void Draw(uint64_t done);
  void EndLine();

  std::FILE* stream_;
  std::string what_, note_;
  uint64_t total_, skipped_;
  bool terminal_, open_ = false;  // open_: a bar without the end of its line
  Clock::time_point begin_, drawn_;
};

}  // namespace llava
