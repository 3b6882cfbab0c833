// Speed of attention over keys and values in blocks.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/ops/cpu/paged_attention.h"
#include "model/ops/cpu/weight_memory.h"
#include "tests/bench/measure.h"
#include "tests/bench/usage.h"

namespace llava::ops::cpu {
namespace {

using bench::Measure;
using bench::Parts;
using bench::Products;
using bench::Times;
using bench::UncachedBytes;
using nlohmann::json;

struct Shape {
  int64_t heads, kv_heads, dim;
};
struct Case {
  bool decode;
  int64_t sequences, rows, computed;
};
struct Settings {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int64_t bytes = 0;
  std::vector<std::string> elements = {"float", "bf16", "int8"};
  std::vector<Shape> shapes = {{32, 4, 64}, {32, 32, 128}};
  std::vector<Case> decode = {{true, 1, 1, 127}, {true, 1, 1, 2047}, {true, 16, 1, 1023}};
  std::vector<Case> prefill = {{false, 1, 512, 0}, {false, 1, 2048, 0}, {false, 1, 128, 1920}};
  double seconds = 0.5;
  bool as_json = false;
};

Settings Read(int argc, char** argv) {
  Settings settings;
  bench::ReadOptions(argc, argv, [&](const std::string& name, const auto& value) {
    if (name == "--threads") {
      settings.threads = std::stoi(value());
    } else if (name == "--bytes") {
      settings.bytes = std::stoll(value());
    } else if (name == "--elements") {
      settings.elements = Parts(value(), ',');
    } else if (name == "--shapes") {
      settings.shapes.clear();
      for (const auto& n : Products(value(), 3)) settings.shapes.push_back({n[0], n[1], n[2]});
    } else if (name == "--decode") {
      settings.decode.clear();
      for (const auto& n : Products(value(), 2)) {
        if (n[0] < 1 || n[1] < 1) throw std::invalid_argument("--decode of nothing");
        settings.decode.push_back({true, n[0], 1, n[1] - 1});
      }
    } else if (name == "--prefill") {
      settings.prefill.clear();
      for (const auto& n : Products(value(), 2)) {
        settings.prefill.push_back({false, 1, n[0], n[1]});
      }
    } else if (name == "--seconds") {
      settings.seconds = std::stod(value());
    } else if (name == "--json") {
      settings.as_json = true;
    } else {
      return false;
    }
    return true;
  });
  if (settings.bytes == 0) settings.bytes = UncachedBytes(int64_t{1} << 30);
  return settings;
}

KvElement ElementOf(const std::string& name) {
  if (name == "float") return KvElement::kFloat;
  if (name == "bf16") return KvElement::kBFloat16;
  if (name == "int8") return KvElement::kInt8;
  throw std::invalid_argument("no element " + name);
}

std::vector<float> Normal(int64_t size) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

class Bench {
 public:
  explicit Bench(const Settings& settings) : settings_(settings), pool_(settings.threads) {
    result_ = {{"instruction_set", Best().name},
               {"threads", settings.threads},
               {"bytes", settings.bytes},
               {"steps", json::array()}};
    if (settings.as_json) return;
    std::printf("%s, %d threads, %.2f GB of blocks in turn; median (best)\n",
                std::string(Best().name).c_str(), settings.threads,
                static_cast<double>(settings.bytes) * 1e-9);
  }

  void Run() {
    for (const Shape& shape : settings_.shapes) {
      for (const std::string& element : settings_.elements) {
        if (!settings_.as_json) {
          std::printf("%ld heads, %ld x %ld, %s\n", static_cast<long>(shape.heads),
                      static_cast<long>(shape.kv_heads), static_cast<long>(shape.dim),
                      element.c_str());
        }
        for (const Case& one : settings_.decode) RunCase(shape, element, one);
        for (const Case& one : settings_.prefill) RunCase(shape, element, one);
      }
    }
    if (settings_.as_json) std::printf("%s\n", result_.dump(1).c_str());
  }

 private:
  void RunCase(const Shape& shape, const std::string& element, const Case& one) {
    const KvLayout layout(ElementOf(element), shape.kv_heads, shape.dim);
    const int64_t tokens = one.computed + one.rows;
    const int64_t per_sequence = (tokens + kBlockTokens - 1) / kBlockTokens;
    const int64_t per_step = per_sequence * one.sequences;
    // As many layers as fill the memory, all blocks of a layer behind each other.
    const int64_t layers = std::max<int64_t>(1, settings_.bytes / (per_step * layout.block_bytes));
    const int64_t layer_bytes = per_step * layout.block_bytes;
    WeightMemory memory;
    uint8_t* const blocks = memory.Allocate(layers * layer_bytes);
    std::vector<int32_t> table(per_step);
    for (int64_t i = 0; i < per_step; ++i) table[i] = static_cast<int32_t>(i);
    std::shuffle(table.begin(), table.end(), std::mt19937(1));

    const int64_t columns = (shape.heads + 2 * shape.kv_heads) * shape.dim;
    const int64_t width = shape.heads * shape.dim;
    const int64_t most_rows = std::max(one.sequences * one.rows, tokens);
    const std::vector<float> in = Normal(most_rows * columns);
    std::vector<float> out(most_rows * width);
    std::vector<float> cosine, sine;
    for (int64_t p = 0; p < std::max(tokens, kBlockTokens); ++p) {
      for (int64_t i = 0; i < shape.dim / 2; ++i) {
        const double angle =
            static_cast<double>(p) *
            std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(shape.dim));
        cosine.push_back(static_cast<float>(std::cos(angle)));
        sine.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    PagedAttention::Call call;
    call.layout = &layout;
    call.block_stride = layout.block_bytes;
    call.heads = shape.heads;
    call.q = in.data();
    call.k = call.q + width;
    call.v = call.k + shape.kv_heads * shape.dim;
    call.stride = columns;
    call.cosine = cosine.data();
    call.sine = sine.data();
    call.out = out.data();
    call.out_stride = width;
    // What a step finds: the same keys and values in all blocks, which costs little time.
    WriteBlocks(call, blocks, layers * per_step);

    PagedAttention attention(pool_);
    std::vector<PagedSequence> sequences;
    for (int64_t i = 0; i < one.sequences; ++i) {
      sequences.push_back({one.rows, one.computed, table.data() + i * per_sequence});
    }
    call.sequences = sequences;
    const Times times = Measure(settings_.seconds, [&](int64_t turn) {
      call.layer = blocks + turn % layers * layer_bytes;
      attention.Run(call);
    });
    double seen = 0;
    for (int64_t r = 0; r < one.rows; ++r) seen += static_cast<double>(one.computed + r + 1);
    const double operations =
        4 * seen * static_cast<double>(shape.heads * shape.dim * one.sequences);
    Report(shape, element, one, static_cast<double>(layer_bytes), operations, times);
  }

  void WriteBlocks(const PagedAttention::Call& call, uint8_t* blocks, int64_t count) {
    pool_.Run(count, [&](int64_t index, int) {
      const int32_t first = 0;
      WriteKvTask task;
      task.blocks = {call.layout, blocks + index * call.block_stride, call.block_stride, &first};
      task.tokens = {0, 1, call.cosine, call.sine};
      task.k = call.k;
      task.v = call.v;
      task.stride = call.stride;
      for (; task.tokens.position < kBlockTokens; ++task.tokens.position) {
        Best().write_kv(task);
      }
    });
  }

  void Report(const Shape& shape, const std::string& element, const Case& one, double bytes,
              double operations, const Times& times) {
    result_["steps"].push_back({{"element", element},
                                {"heads", shape.heads},
                                {"kv_heads", shape.kv_heads},
                                {"head_dim", shape.dim},
                                {"sequences", one.sequences},
                                {"rows", one.rows},
                                {"computed", one.computed},
                                {"seconds", times.median},
                                {"least_seconds", times.least},
                                {"gb_per_s", bytes / times.median * 1e-9},
                                {"gflop_per_s", operations / times.median * 1e-9}});
    if (settings_.as_json) return;
    std::printf(
        "  %-7s %3ld x %4ld rows behind %5ld: %9.3f (%9.3f) ms  %6.1f (%6.1f) GB/s"
        "  %6.1f (%6.1f) GFLOP/s\n",
        one.decode ? "decode" : "prefill", static_cast<long>(one.sequences),
        static_cast<long>(one.rows), static_cast<long>(one.computed), times.median * 1e3,
        times.least * 1e3, bytes / times.median * 1e-9, bytes / times.least * 1e-9,
        operations / times.median * 1e-9, operations / times.least * 1e-9);
    std::fflush(stdout);
  }

  const Settings settings_;
  ThreadPool pool_;
  json result_;
};

}  // namespace
}  // namespace llava::ops::cpu

namespace {

constexpr char kUsage[] = R"(Speed of attention over keys and values in blocks.

  llava_attention_bench [--threads N] [--bytes N] [--elements float,bf16,int8]
                        [--shapes HxHkvxDh,..] [--decode SEQUENCESxCONTEXT,..]
                        [--prefill TOKENSxCOMPUTED,..] [--seconds S] [--json]

--threads  of the pool (default: all cores)
--bytes    blocks that are gone through in turn, so that no cache holds them (default: the
           smaller of 1 GB and four times the last cache)
--decode   steps of one new token for each sequence
--prefill  steps of one sequence
--seconds  of each measurement (default 0.5), at least five calls

Times are of one layer. GB/s count keys and values once, GFLOP/s the products that a causal mask
leaves. LLAVA_CPU forces an instruction set.
)";

}  // namespace

int main(int argc, char** argv) {
  if (llava::bench::PrintedUsage(argc, argv, kUsage)) return 0;
  try {
    llava::ops::cpu::Bench(llava::ops::cpu::Read(argc, argv)).Run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llava_attention_bench: %s\n", error.what());
    return 2;
  }
  return 0;
}
