#pragma once

// What the programs here that measure kernels have in common.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace llava::bench {

using Clock = std::chrono::steady_clock;

inline double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Times {
  double median, least;  // seconds
};

// Calls work(0) to warm up, then work(1), work(2), .. for `seconds`, at least five times.
template <typename Work>
Times Measure(double seconds, const Work& work) {
  std::vector<double> times;
  work(0);
  const auto begin = Clock::now();
  for (int64_t turn = 1; times.size() < 5 || SecondsSince(begin) < seconds; ++turn) {
    const auto start = Clock::now();
    work(turn);
    times.push_back(SecondsSince(start));
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

// So many bytes, gone through in turn, lie in no cache; at most `most`.
inline int64_t UncachedBytes(int64_t most) {
  return std::min<int64_t>(4 * std::max<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 16 << 20), most);
}

inline std::vector<std::string> Parts(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// "AxB,AxB" with `count` numbers each. Throws std::invalid_argument.
inline std::vector<std::vector<int64_t>> Products(const std::string& text, size_t count) {
  std::vector<std::vector<int64_t>> products;
  for (const std::string& part : Parts(text, ',')) {
    products.emplace_back();
    for (const std::string& number : Parts(part, 'x')) {
      products.back().push_back(std::stoll(number));
    }
    if (products.back().size() != count) {
      throw std::invalid_argument(part + ": it takes " + std::to_string(count) + " numbers");
    }
  }
  return products;
}

// Calls take(name, value) for each option, where value() is the word behind it. Throws
// std::invalid_argument: an option that `take` does not know (false), or one without its value.
template <typename Take>
void ReadOptions(int argc, char** argv, const Take& take) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) throw std::invalid_argument(name + " needs a value");
      return argv[++i];
    };
    if (!take(name, value)) {
      throw std::invalid_argument("unknown option " + name + "; see the head of the source");
    }
  }
}

}  // namespace llava::bench
