// Speed of products with packed weights, beside how fast the same memory can be read.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <nlohmann/json.hpp>

#include "model/ops/cpu/multiplier.h"
#include "tests/bench/measure.h"
#include "tests/bench/usage.h"

namespace llava::ops::cpu {
namespace {

using bench::Clock;
using bench::Measure;
using bench::Parts;
using bench::SecondsSince;
using bench::Times;
using nlohmann::json;

struct Settings {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int64_t bytes = 0;
  std::vector<int64_t> rows = {1, 4, 8, 16, 512};
  std::vector<std::pair<int64_t, int64_t>> shapes = {{2048, 2048},  {5632, 2048}, {2048, 5632},
                                                     {32000, 2048}, {4096, 4096}, {11008, 4096}};
  std::vector<std::string> formats = {"bf16", "int8", "int4"};
  double seconds = 0.5;
  bool torch = false, as_json = false;
};

Settings Read(int argc, char** argv) {
  Settings settings;
  bench::ReadOptions(argc, argv, [&](const std::string& name, const auto& value) {
    if (name == "--threads") {
      settings.threads = std::stoi(value());
    } else if (name == "--bytes") {
      settings.bytes = std::stoll(value());
    } else if (name == "--rows") {
      settings.rows.clear();
      for (const std::string& part : Parts(value(), ',')) settings.rows.push_back(std::stoll(part));
    } else if (name == "--shapes") {
      settings.shapes.clear();
      for (const auto& n : bench::Products(value(), 2)) settings.shapes.emplace_back(n[0], n[1]);
    } else if (name == "--formats") {
      settings.formats = Parts(value(), ',');
    } else if (name == "--seconds") {
      settings.seconds = std::stod(value());
    } else if (name == "--torch") {
      settings.torch = true;
    } else if (name == "--json") {
      settings.as_json = true;
    } else {
      return false;
    }
    return true;
  });
  if (settings.bytes == 0) settings.bytes = bench::UncachedBytes(int64_t{2} << 30);
  return settings;
}

PackedMatrix::Options OptionsOf(const std::string& format) {
  if (format == "bf16") return {WeightFormat::kBFloat16, 0, true};
  const auto parts = Parts(format, '/');  // int8/64
  const int64_t group = parts.size() > 1 ? std::stoll(parts[1]) : 0;
  if (parts[0] == "int8") return {WeightFormat::kInt8, group, true};
  if (parts[0] == "int4") return {WeightFormat::kInt4, group, true};
  throw std::invalid_argument("no format " + format);
}

class Bench {
 public:
  explicit Bench(const Settings& settings) : settings_(settings), pool_(settings.threads) {
    at::set_num_threads(settings.threads);
    result_ = {{"instruction_set", Best().name},
               {"threads", settings.threads},
               {"bytes", settings.bytes},
               {"products", json::array()}};
    if (settings.as_json) return;
    std::printf("%s, %d threads, %.2f GB of weights in turn; median (best)\n",
                std::string(Best().name).c_str(), settings.threads,
                static_cast<double>(settings.bytes) * 1e-9);
  }

  void Run() {
    for (const auto& [n, k] : settings_.shapes) {
      for (const std::string& format : settings_.formats) RunShape(n, k, format);
      if (settings_.torch) RunTorch(n, k);
    }
    if (settings_.as_json) std::printf("%s\n", result_.dump(1).c_str());
  }

 private:
  void RunShape(int64_t n, int64_t k, const std::string& format) {
    const std::vector<float> source = Normal(n * k);
    const auto memory = std::make_shared<WeightMemory>();
    std::vector<PackedMatrix> weights;
    const auto begin = Clock::now();
    for (int64_t bytes = 0; bytes < settings_.bytes; bytes += weights.back().bytes()) {
      weights.emplace_back(n, k, OptionsOf(format), memory);
      weights.back().Append(pool_, SourceElement::kFloat, source.data(), n, k);
    }
    const double packing = SecondsSince(begin);
    const double bytes = static_cast<double>(weights[0].bytes());
    const PackedLayout& layout = weights[0].layout();
    const int64_t panels = std::max<int64_t>(1, (256 << 10) / layout.panel_bytes);
    std::vector<uint64_t> sums(settings_.threads * 8);
    const Times reading = Measure(settings_.seconds, [&](int64_t turn) {
      const PackedMatrix& w = weights[turn % weights.size()];
      pool_.Run((layout.panels + panels - 1) / panels, [&](int64_t index, int worker) {
        const int64_t first = index * panels, last = std::min(first + panels, layout.panels);
        sums[worker * 8] += ReadThrough(w.panel(first), (last - first) * layout.panel_bytes);
      });
    });
    const double limit = bytes / reading.median;
    if (!settings_.as_json) {
      std::printf(
          "%s: reading %.1f (%.1f) GB/s; packed %.0f M weights/s\n", weights[0].Describe().c_str(),
          limit * 1e-9, bytes / reading.least * 1e-9,
          static_cast<double>(n * k) * static_cast<double>(weights.size()) / packing * 1e-6);
    }
    Multiplier multiplier(pool_);
    for (const int64_t m : settings_.rows) {
      const std::vector<float> x = Normal(m * k);
      std::vector<float> y(m * n);
      const Times times = Measure(settings_.seconds, [&](int64_t turn) {
        multiplier.Multiply({Element::kFloat, x.data(), m, k, k}, weights[turn % weights.size()],
                            {Element::kFloat, y.data(), m, n, n});
      });
      Report(format, n, k, m, bytes, limit, times);
    }
  }

  void RunTorch(int64_t n, int64_t k) {
    const at::NoGradGuard no_gradients;
    const double bytes = static_cast<double>(n * k) * 2;
    std::vector<at::Tensor> weights;
    while (static_cast<double>(weights.size()) * bytes < static_cast<double>(settings_.bytes)) {
      weights.push_back(at::randn({n, k}, at::kBFloat16));
    }
    for (const int64_t m : settings_.rows) {
      const at::Tensor x = at::randn({m, k}, at::kBFloat16);
      const Times times = Measure(
          settings_.seconds, [&](int64_t turn) { at::linear(x, weights[turn % weights.size()]); });
      Report("torch bf16", n, k, m, bytes, 0, times);
    }
  }

  void Report(const std::string& format, int64_t n, int64_t k, int64_t m, double bytes,
              double limit, const Times& times) {
    const double operations = 2.0 * static_cast<double>(n * k * m);
    const double rate = bytes / times.median;
    result_["products"].push_back({{"format", format},
                                   {"n", n},
                                   {"k", k},
                                   {"m", m},
                                   {"seconds", times.median},
                                   {"least_seconds", times.least},
                                   {"gb_per_s", rate * 1e-9},
                                   {"read_gb_per_s", limit * 1e-9},
                                   {"gop_per_s", operations / times.median * 1e-9}});
    if (settings_.as_json) return;
    std::printf("  %-10s %5ld x %5ld, %4ld rows: %8.3f (%8.3f) ms  %6.1f (%6.1f) GB/s",
                format.c_str(), static_cast<long>(n), static_cast<long>(k), static_cast<long>(m),
                times.median * 1e3, times.least * 1e3, rate * 1e-9, bytes / times.least * 1e-9);
    if (limit > 0) std::printf(" %4.0f %%", 100 * rate / limit);
    std::printf("  %7.0f (%7.0f) GOP/s\n", operations / times.median * 1e-9,
                operations / times.least * 1e-9);
    std::fflush(stdout);
  }

  static std::vector<float> Normal(int64_t size) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> rare(0, 999);
    std::vector<float> values(size);
    for (float& value : values) value = normal(random) * (rare(random) == 0 ? 20.0f : 1.0f);
    return values;
  }

  const Settings settings_;
  ThreadPool pool_;
  json result_;
};

}  // namespace
}  // namespace llava::ops::cpu

namespace {

constexpr char kUsage[] =
    R"(Speed of products with packed weights, beside how fast the same memory can be read.

  llava_gemm_bench [--threads N] [--bytes N] [--rows M,M,..] [--shapes NxK,NxK,..]
                   [--formats bf16,int8,int4] [--seconds S] [--torch] [--json]

--threads  of the pool (default: all cores)
--bytes    weights that are gone through in turn, so that no cache holds them (default: the
           smaller of 2 GB and four times the last cache)
--seconds  of each measurement (default 0.5), at least five calls
--torch    also LibTorch's linear in bfloat16

GB/s count the weights, GOP/s two operations a weight and row. LLAVA_CPU forces an instruction
set.
)";

}  // namespace

int main(int argc, char** argv) {
  if (llava::bench::PrintedUsage(argc, argv, kUsage)) return 0;
  try {
    llava::ops::cpu::Bench(llava::ops::cpu::Read(argc, argv)).Run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llava_gemm_bench: %s\n", error.what());
    return 2;
  }
  return 0;
}
