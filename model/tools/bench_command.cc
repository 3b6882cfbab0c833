// llava-model bench: the speed of a decoder as the LLM service steps it.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/random_tensors.h"
#include "model/checkpoint/tensor_names.h"
#include "model/llava/serving_model.h"
#include "model/nn/packed_llama.h"
#include "model/nn/step_rows.h"
#include "model/tools/commands.h"
#include "model/tools/common.h"
#include "model/tools/shapes.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

double SecondsOf(const std::function<void()>& work) {
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// GB/s at which all threads read memory like that of the weights, larger than any cache.
double ReadSpeed(ops::cpu::ThreadPool& pool) {
  constexpr int64_t kBytes = int64_t{1} << 29, kPiece = int64_t{8} << 20;
  ops::cpu::WeightMemory memory;
  uint8_t* bytes = memory.Allocate(kBytes);
  pool.Run(kBytes / kPiece, [&](int64_t i, int) { std::memset(bytes + i * kPiece, 1, kPiece); });
  std::vector<uint64_t> sums(static_cast<size_t>(pool.threads()) * 8);
  std::vector<double> seconds;
  for (int repeat = 0; repeat < 5; ++repeat) {
    seconds.push_back(SecondsOf([&] {
      pool.Run(kBytes / kPiece, [&](int64_t i, int worker) {
        sums[static_cast<size_t>(worker) * 8] += ops::cpu::ReadThrough(bytes + i * kPiece, kPiece);
      });
    }));
  }
  if (std::accumulate(sums.begin(), sums.end(), uint64_t{0}) == 0) throw std::logic_error("no sum");
  return kBytes / 1e9 / *std::min_element(seconds.begin(), seconds.end());
}

// Bytes in memory now: of its own, and of files (programs and libraries, shared with others). Zeros
// where the system does not tell.
struct Resident {
  int64_t own = 0, files = 0;
};

Resident ResidentNow() {
  Resident resident;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t kilobytes = 0;
    if (!(words >> name >> kilobytes)) continue;
    if (name == "RssAnon:") resident.own = kilobytes * 1024;
    if (name == "RssFile:") resident.files = kilobytes * 1024;
  }
  return resident;
}

// A decoder with some sequences of its own.
class Bench {
 public:
  Bench(PackedLlama& decoder, const BenchCommand& command) : decoder_(decoder), command_(command) {}

  // Seconds to compute a prompt of `tokens` in chunks.
  double Prompt(int64_t tokens) {
    const std::vector<int32_t> blocks = Blocks(0, BlocksOf(tokens));
    return SecondsOf([&] {
      for (int64_t done = 0; done < tokens;) {
        const int64_t rows = std::min(command_.chunk, tokens - done);
        const StepSequence part{.tokens = rows, .computed = done, .blocks = blocks};
        done += rows;
        std::vector<int64_t> wanted;
        if (done == tokens) wanted.push_back(rows - 1);
        decoder_.Step(decoder_.Embed(Ids(rows, done)), {&part, 1}, wanted);
      }
    });
  }

  // Seconds in which each of `count` sequences, with a context of its own, gets all its tokens.
  double Generate(int64_t count) {
    const int64_t each = BlocksOf(command_.context + command_.generate);
    Prompt(command_.context);
    std::vector<std::vector<int32_t>> blocks;
    for (int64_t i = 0; i < count; ++i) {
      blocks.push_back(Blocks(i * each, each));
      for (int64_t b = 0; i > 0 && b < BlocksOf(command_.context); ++b) {
        decoder_.CopyBlock(static_cast<int32_t>(b), blocks[i][b]);
      }
    }
    std::vector<int64_t> wanted(static_cast<size_t>(count));
    std::iota(wanted.begin(), wanted.end(), 0);
    return SecondsOf([&] {
      for (int64_t step = 0; step < command_.generate; ++step) {
        std::vector<StepSequence> sequences;
        for (const auto& own : blocks) sequences.push_back({1, command_.context + step, own});
        decoder_.Step(decoder_.Embed(Ids(count, step)), sequences, wanted);
      }
    });
  }

  // Bytes of a step of `count` sequences: weights once, keys and values of the middle step.
  double StepBytes(int64_t count, int64_t kv_block_bytes) const {
    const double embedding = static_cast<double>(decoder_.weights().embedding.nbytes());
    const double kv = static_cast<double>(kv_block_bytes) / kKvBlockTokens *
                      static_cast<double>(command_.context + command_.generate / 2);
    return static_cast<double>(decoder_.weight_bytes()) - embedding +
           static_cast<double>(count) * kv;
  }

 private:
  std::vector<int32_t> Ids(int64_t count, int64_t seed) const {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(
          static_cast<int32_t>((seed * 7919 + i * 104729) % decoder_.config().vocab_size));
    }
    return ids;
  }
  static std::vector<int32_t> Blocks(int64_t first, int64_t count) {
    std::vector<int32_t> blocks(static_cast<size_t>(count));
    std::iota(blocks.begin(), blocks.end(), static_cast<int32_t>(first));
    return blocks;
  }

  PackedLlama& decoder_;
  const BenchCommand& command_;
};

// Relative error of the first layer's output projection on normal inputs.
double ProductError(const PackedLlama& decoder, const TensorSource& tensors,
                    ops::cpu::ThreadPool& pool) {
  const ops::cpu::PackedMatrix& packed = decoder.weights().layers.at(0).o;
  const at::Tensor x = at::randn({16, packed.depth()});
  at::Tensor y = at::empty({16, packed.rows()}, at::kFloat);
  ops::cpu::Multiplier multiplier(pool);
  multiplier.Multiply(
      {ops::cpu::Element::kFloat, x.const_data_ptr(), 16, packed.depth(), packed.depth()}, packed,
      {ops::cpu::Element::kFloat, y.data_ptr(), 16, packed.rows(), packed.rows()});
  const at::Tensor exact =
      at::linear(x, tensors.Get("model.layers.0.self_attn.o_proj.weight").to(at::kFloat));
  return (at::linalg_vector_norm(y - exact) / at::linalg_vector_norm(exact)).item<double>();
}

PackOptions OptionsOf(const BenchCommand& command) {
  if (command.dtype == "float32") {
    if (command.group > 0) throw std::invalid_argument("--group: float32 has no scales");
    return {ops::cpu::WeightFormat::kFloat, 0, true};
  }
  return ToPackOptions({command.dtype, command.group, ""});
}

}  // namespace

void RunBench(const BenchCommand& command) {
  const c10::InferenceMode guard;
  const int threads = ThreadsOr(command.threads);
  at::set_num_threads(threads);
  DecoderConfig config;
  TensorSource tensors;
  const auto names = ShapeNames();
  LanguageCheckpoint checkpoint;  // keeps the files open
  if (std::find(names.begin(), names.end(), command.model) != names.end()) {
    config = DecoderShape(command.model);
    tensors = RandomTensors(DecoderTensors(config), {});
  } else {
    OpenOptions open;
    open.packed = true;
    checkpoint = OpenLanguage(command.model, open);
    config = checkpoint.config.decoder;
    tensors = checkpoint.tensors;
  }
  const PackOptions options = OptionsOf(command);
  const KvType kv = ParseKvType(command.kv_type);
  const int64_t block_bytes = PackedLlama::BlockBytes(config, options.format, kv);
  const int64_t most = *std::max_element(command.parallel.begin(), command.parallel.end());
  const int64_t blocks =
      std::max(BlocksOf(command.prompt), most * BlocksOf(command.context + command.generate));
  const auto pool = std::make_shared<ops::cpu::ThreadPool>(threads);
  const double read_speed = ReadSpeed(*pool);
  PackedLlama decoder(config, PackDecoder(config, tensors, options, *pool), pool, kv,
                      static_cast<uint64_t>(blocks * block_bytes));
  json result = {{"model", command.model},
                 {"dtype", command.dtype},
                 {"kv_type", command.kv_type},
                 {"instruction_set", std::string(ops::cpu::Best().name)},
                 {"threads", threads},
                 {"weight_bytes", decoder.weight_bytes()},
                 {"kv_bytes", blocks * block_bytes},
                 {"read_gb_per_s", read_speed}};
  if (!config.quantization) result["product_error"] = ProductError(decoder, tensors, *pool);

  Bench bench(decoder, command);
  if (command.prompt > 0) {
    bench.Prompt(std::min<int64_t>(command.prompt, 64));
    std::vector<double> seconds;
    for (int i = 0; i < command.repeats; ++i) seconds.push_back(bench.Prompt(command.prompt));
    result["prompt_tokens"] = command.prompt;
    result["prompt_tokens_per_s"] = static_cast<double>(command.prompt) / Median(seconds);
  }
  result["decode"] = json::array();
  for (const int64_t count : command.parallel) {
    std::vector<double> seconds;
    for (int i = 0; i < command.repeats; ++i) seconds.push_back(bench.Generate(count));
    const double step = Median(seconds) / static_cast<double>(command.generate);
    const double speed = bench.StepBytes(count, block_bytes) / 1e9 / step;
    result["decode"].push_back({{"parallel", count},
                                {"decode_tokens_per_s", static_cast<double>(count) / step},
                                {"gb_per_s", speed},
                                {"share_of_limit", speed / read_speed}});
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  result["peak_rss_bytes"] = int64_t{usage.ru_maxrss} * 1024;
  const Resident resident = ResidentNow();
  result["rss_own_bytes"] = resident.own;
  result["rss_file_bytes"] = resident.files;
  if (command.json) {
    std::cout << result.dump(1) << "\n";
    return;
  }
  std::printf("%s in %s on %d threads (%s): %.2f GB of weights, memory is read at %.1f GB/s\n",
              command.model.c_str(), command.dtype.c_str(), threads,
              std::string(ops::cpu::Best().name).c_str(),
              static_cast<double>(decoder.weight_bytes()) / 1e9, read_speed);
  if (result.contains("product_error")) {
    std::printf("relative error of a product: %.4f\n", result["product_error"].get<double>());
  }
  if (command.prompt > 0) {
    std::printf("prompt of %lld tokens: %.1f tokens/s\n", static_cast<long long>(command.prompt),
                result["prompt_tokens_per_s"].get<double>());
  }
  for (const json& row : result["decode"]) {
    std::printf("%3lld sequences: %7.1f tokens/s, %5.1f GB/s, %.0f %% of the limit\n",
                row["parallel"].get<long long>(), row["decode_tokens_per_s"].get<double>(),
                row["gb_per_s"].get<double>(), 100 * row["share_of_limit"].get<double>());
  }
  std::printf("peak memory %.2f GB; now %.2f GB of its own, %.2f GB of programs and libraries\n",
              result["peak_rss_bytes"].get<double>() / 1e9, static_cast<double>(resident.own) / 1e9,
              static_cast<double>(resident.files) / 1e9);
}

}  // namespace llava
