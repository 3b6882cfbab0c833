// Feeds a fuzz target with broken pictures where there is no libFuzzer.
//
//   llava_fuzz_decode [--runs N] [--seconds S] [--seed N] [--folder PICTURES] [FILE ..]
//
// Runs until N inputs or S seconds are over, whichever is first; or the FILEs alone. An input that
// kills the process is left in ./crash-input.
#include <sys/resource.h>

#include <fcntl.h>
#include <unistd.h>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/support/broken_pictures.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::vector<uint8_t> current;

void KeepInput(int signal) {
  const int file = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file >= 0 && write(file, current.data(), current.size()) < 0) _exit(1);
  std::signal(signal, SIG_DFL);
  raise(signal);
}

double PeakMegabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

}  // namespace

int main(int argc, char** argv) {
  long runs = 1'000'000'000;
  double seconds = 10;
  unsigned seed = 1;
  std::string folder;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] { return std::string(++i < argc ? argv[i] : ""); };
    if (word == "--runs") {
      runs = std::strtol(value().c_str(), nullptr, 10);
    } else if (word == "--seconds") {
      seconds = std::strtod(value().c_str(), nullptr);
    } else if (word == "--seed") {
      seed = static_cast<unsigned>(std::strtoul(value().c_str(), nullptr, 10));
    } else if (word == "--folder") {
      folder = value();
    } else {
      files.push_back(word);
    }
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
    std::signal(signal, KeepInput);
  }
  for (const std::string& path : files) {
    std::ifstream file(path, std::ios::binary);
    current.assign(std::istreambuf_iterator<char>(file), {});
    LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  if (!files.empty()) return 0;

  const auto whole = llava::WholePictures(folder);
  for (const llava::PictureFile& file : whole) {
    current = file.bytes;
    LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  const double before = PeakMegabytes();
  std::mt19937 random(seed);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  long done = 0;
  for (; done < runs && passed() < seconds; ++done) {
    current = llava::Broken(whole, random);
    LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  const double grown = PeakMegabytes() - before;
  std::printf("%ld inputs from %zu files in %.1f s, memory grew by %.0f MB\n", done, whole.size(),
              passed(), grown);
  constexpr double kMost = 512;  // sanitizers keep what was freed for a while
  return done > 0 && grown < kMost ? 0 : 1;
}
