// Time from a decoded picture to the tower's input size, one thread.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "model/image/image.h"
#include "tests/bench/usage.h"

namespace {

double ProcessorSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

namespace {

constexpr char kUsage[] = R"(Time from a decoded picture to the tower's input size, one thread.

  llava_picture_bench [WIDTH HEIGHT SIZE [SECONDS]]      (default 1920 1080 336 1)

Prints JSON: milliseconds by the wall and by the processor, medians.
)";

}  // namespace

int main(int argc, char** argv) {
  if (llava::bench::PrintedUsage(argc, argv, kUsage)) return 0;
  using Clock = std::chrono::steady_clock;
  const auto number = [&](int index, double fallback) {
    return index < argc ? std::strtod(argv[index], nullptr) : fallback;
  };
  llava::Image image{static_cast<int>(number(1, 1920)), static_cast<int>(number(2, 1080)), {}};
  image.rgb.resize(static_cast<size_t>(image.width) * image.height * 3);
  uint32_t state = 1;
  for (uint8_t& value : image.rgb) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<uint8_t>(state >> 24);
  }
  llava::PreprocessConfig config;
  config.image_size = static_cast<int>(number(3, 336));
  std::vector<double> wall, processor;
  const auto end = Clock::now() + std::chrono::duration<double>(number(4, 1));
  unsigned sum = 0;
  while (wall.size() < 5 || Clock::now() < end) {
    const auto begin = Clock::now();
    const double used = ProcessorSeconds();
    sum += llava::FitToTower(image, llava::ImageMode::kCrop, config).rgb[0];
    wall.push_back(std::chrono::duration<double>(Clock::now() - begin).count() * 1e3);
    processor.push_back((ProcessorSeconds() - used) * 1e3);
  }
  std::printf("{\"ms\": %.4f, \"processor_ms\": %.4f, \"times\": %zu, \"sum\": %u}\n", Median(wall),
              Median(processor), wall.size(), sum);
  return 0;
}
