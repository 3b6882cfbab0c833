#pragma once

// What a step of a worker takes, learnt from those that it took. Pure arithmetic: no clock, no
// threads.

#include <array>
#include <cstdint>

namespace llava {

// What a step computes.
struct StepWork {
  int64_t decode_rows = 0;  // one of each answer that runs
  int64_t prompt_rows = 0;
  int64_t keys = 0;      // that its rows attend to, summed over the rows
  int64_t pictures = 0;  // begun: projected as a whole, which is no matter of rows

  int64_t rows() const { return decode_rows + prompt_rows; }
};

// Keys that `rows` rows behind `computed` ones attend to, themselves included.
constexpr int64_t KeysOf(int64_t computed, int64_t rows) {
  return rows * computed + rows * (rows + 1) / 2;
}

// seconds = fixed + row * rows + key * keys, each at least 0: reading the weights, multiplying a
// row with them, attention. Fitted by least squares, of errors in proportion to the work. Steps of
// answers alone, of prompts alone and of both are kept apart, so that many of one kind do not make
// it forget the others; the last twenty of a kind count most. A step that took three times as long
// as expected or longer (somebody else had the processors) counts as one that took three times as
// long. Nothing is learnt from steps that begin pictures.
class StepCost {
 public:
  void Observe(const StepWork& work, double seconds);

  // 0 as long as nothing was observed.
  double Seconds(const StepWork& work) const;
  double row_seconds() const { return row_; }
  double key_seconds() const { return key_; }
  // Rows of the largest step so far: what is said of much larger ones is a guess.
  int64_t most_rows() const { return most_rows_; }

 private:
  static constexpr int kTerms = 3;
  // Sums over steps: products of what the terms are multiplied with, and with the seconds.
  struct Sums {
    std::array<std::array<double, kTerms>, kTerms> products = {};
    std::array<double, kTerms> seconds = {};
  };

  void Fit();

  std::array<Sums, 3> kinds_ = {};
  double fixed_ = 0, row_ = 0, key_ = 0;
  int64_t observed_ = 0;
  int64_t most_rows_ = 0;
};

}  // namespace llava
