// What a format of packed weights does to a decoder's logits: each matrix is packed and unpacked
// again, and all is computed in float32. Beside it llama.cpp's q8_0 and q4_0, treated the same way.
// Errors of activations in 8 bits are not in it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/tensor.h>
#include <nlohmann/json.hpp>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/memory_tensors.h"
#include "model/checkpoint/random_tensors.h"
#include "model/checkpoint/tensor_names.h"
#include "model/nn/llama.h"
#include "model/nn/packed_weights.h"
#include "tests/bench/measure.h"
#include "tests/bench/usage.h"
#include "tests/model/ops/block_formats.h"

namespace llava {
namespace {

using nlohmann::json;
using ops::cpu::PackedMatrix;
using ops::cpu::SourceElement;
using ops::cpu::ThreadPool;
using Convert = std::function<at::Tensor(const at::Tensor&)>;  // float32 [N, K] to the same

struct Settings {
  std::string model, unpacked;
  int64_t layers = 22, tokens = 64;
  uint64_t seed = 1;
  bool as_json = false;
};

Settings Read(int argc, char** argv) {
  Settings settings;
  bench::ReadOptions(argc, argv, [&](const std::string& name, const auto& value) {
    if (name == "--model") {
      settings.model = value();
    } else if (name == "--unpacked") {
      settings.unpacked = value();
    } else if (name == "--layers") {
      settings.layers = std::stoll(value());
    } else if (name == "--tokens") {
      settings.tokens = std::stoll(value());
    } else if (name == "--seed") {
      settings.seed = std::stoull(value());
    } else if (name == "--json") {
      settings.as_json = true;
    } else {
      return false;
    }
    return true;
  });
  if (!settings.unpacked.empty() && settings.model.empty()) {
    throw std::invalid_argument("--unpacked goes with --model");
  }
  return settings;
}

// The tensors of another source, its matrices converted when they are asked for.
class ConvertedFile : public TensorFile {
 public:
  ConvertedFile(TensorSource source, Convert layers, Convert head)
      : source_(std::move(source)), layers_(std::move(layers)), head_(std::move(head)) {}

  const std::map<std::string, TensorInfo>& tensors() const override { return source_.tensors(); }
  at::Tensor Get(const std::string& name) const override {
    const at::Tensor tensor = source_.Get(name).to(at::kFloat);
    if (name == "model.embed_tokens.weight") return tensor.to(at::kBFloat16).to(at::kFloat);
    if (tensor.dim() != 2 || name.starts_with("model.mm_projector.")) return tensor;
    return name == "lm_head.weight" ? head_(tensor) : layers_(tensor);
  }

 private:
  TensorSource source_;
  Convert layers_, head_;
};

Convert InPacked(ThreadPool& pool, const PackOptions& options) {
  return [&pool, options](const at::Tensor& tensor) {
    const int64_t rows = tensor.size(0), depth = tensor.size(1);
    PackedMatrix packed(rows, depth, options);
    packed.Append(pool, SourceElement::kFloat, tensor.const_data_ptr(), rows, depth);
    at::Tensor unpacked = tensor.clone();
    auto* to = unpacked.data_ptr<float>();
    at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) packed.Unpack(row, to + row * depth);
    });
    return unpacked;
  };
}

Convert InBlocks(void (*quantize)(float*)) {
  return [quantize](const at::Tensor& tensor) {
    at::Tensor blocks = tensor.clone();
    auto* to = blocks.data_ptr<float>();
    at::parallel_for(0, blocks.numel() / 32, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) quantize(to + block * 32);
    });
    return blocks;
  };
}

at::Tensor LogitsOf(const DecoderConfig& config, const TensorSource& tensors,
                    const at::Tensor& ids) {
  const LlamaDecoder decoder(config, tensors, at::kCPU, at::kFloat);
  const std::vector<Segment> segments = {{ids.size(0), nullptr}};
  return decoder.Logits(decoder.Forward(decoder.Embed(ids), segments));
}

// As ROOT/<format of layers>-<of lm_head>, with '.' for what no name may hold.
void PublishPlain(LanguageCheckpoint checkpoint, const DecoderConfig& config, TensorSource tensors,
                  const std::string& root, std::string name) {
  checkpoint.config.decoder = config;
  checkpoint.tensors = std::move(tensors);
  checkpoint.self_test.reset();
  for (char& c : name) {
    if (c == '/' || c == ' ' || c == ',') c = '.';
  }
  PublishLanguage(checkpoint, root, name, R"({"made_by": "llava_quantization_error"})");
}

DecoderConfig RandomShape(int64_t layers) {
  DecoderConfig config;
  config.hidden_size = 2048;
  config.intermediate_size = 5632;
  config.num_layers = layers;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  return config;
}

int Run(const Settings& settings) {
  const at::NoGradGuard no_grad;
  ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));
  std::optional<LanguageCheckpoint> checkpoint;
  DecoderConfig config = RandomShape(settings.layers);
  TensorSource source;
  if (settings.model.empty()) {
    RandomTensorOptions random;
    random.seed = settings.seed;
    random.dtype = at::kFloat;
    random.outliers = 0.001;
    source = RandomTensors(DecoderTensors(config), random);
  } else {
    checkpoint = OpenLanguage(settings.model);
    config = checkpoint->config.decoder;
    source = checkpoint->tensors;
  }
  if (config.tie_word_embeddings) {
    // The output matrix is packed, the embedding is not: two tensors.
    std::map<std::string, at::Tensor> head = {
        {"lm_head.weight", source.Get("model.embed_tokens.weight")}};
    ReplaceTensors(source, head);
    config.tie_word_embeddings = false;
  }
  std::mt19937_64 random(settings.seed);
  std::vector<int64_t> list;
  for (int64_t i = 0; i < settings.tokens; ++i) {
    list.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(config.vocab_size)));
  }
  const at::Tensor ids = at::tensor(list, at::kLong);

  const auto packed = [&pool](const std::string& format, int64_t group, bool outliers = true) {
    PackOptions options = ToPackOptions({format, group, ""});
    options.keep_outliers = outliers;
    return InPacked(pool, options);
  };
  struct Case {
    std::string layers, head;
    Convert convert_layers, convert_head;
  };
  const Convert q8_0 = InBlocks(ops::cpu::Q8_0), q4_0 = InBlocks(ops::cpu::Q4_0);
  const std::vector<Case> cases = {
      {"bf16", "bf16", packed("bf16", 0), packed("bf16", 0)},
      {"q8_0", "q8_0", q8_0, q8_0},
      {"int8/128", "int8/128", packed("int8", 128), packed("int8", 128)},
      {"int8/32", "int8/32", packed("int8", 32), packed("int8", 32)},
      {"int8/128, none apart", "same", packed("int8", 128, false), packed("int8", 128, false)},
      {"q4_0", "q4_0", q4_0, q4_0},
      {"q4_0", "q8_0", q4_0, q8_0},
      {"int4/32", "int8/128", packed("int4", 32), packed("int8", 128)},
      {"int4/64", "int8/128", packed("int4", 64), packed("int8", 128)},
      {"int4/64", "int4/64", packed("int4", 64), packed("int4", 64)},
      {"int4/64", "bf16", packed("int4", 64), packed("bf16", 0)},
      {"int4/128", "int8/128", packed("int4", 128), packed("int8", 128)},
      {"int4/64, none apart", "int8/128", packed("int4", 64, false), packed("int8", 128, false)},
      {"bf16", "int4/64", packed("bf16", 0), packed("int4", 64)},
      {"bf16", "int8/128", packed("bf16", 0), packed("int8", 128)},
  };
  const at::Tensor exact = LogitsOf(config, source, ids);
  const at::Tensor log_exact = at::log_softmax(exact, 1);
  json rows = json::array();
  if (!settings.as_json)
    std::printf("| layers | lm_head | error | same | KL |\n| --- | --- | --- | --- | --- |\n");
  for (const Case& c : cases) {
    const auto file =
        std::make_shared<const ConvertedFile>(source, c.convert_layers, c.convert_head);
    TensorSource converted;
    for (const auto& [name, info] : file->tensors()) converted.Add(name, file, name);
    const at::Tensor logits = LogitsOf(config, converted, ids);
    if (!settings.unpacked.empty()) {
      PublishPlain(*checkpoint, config, converted, settings.unpacked, c.layers + "-" + c.head);
    }
    const double error = ((logits - exact).norm() / exact.norm()).item<double>();
    const double same = logits.argmax(1).eq(exact.argmax(1)).to(at::kDouble).mean().item<double>();
    const double divergence =
        (log_exact.exp() * (log_exact - at::log_softmax(logits, 1))).sum(1).mean().item<double>();
    if (settings.as_json) {
      rows.push_back({{"layers", c.layers},
                      {"lm_head", c.head},
                      {"error", error},
                      {"same", same},
                      {"kl", divergence}});
    } else {
      std::printf("| %s | %s | %.5f | %.0f %% | %.2g |\n", c.layers.c_str(), c.head.c_str(), error,
                  100 * same, divergence);
      std::fflush(stdout);
    }
  }
  if (settings.as_json) std::printf("%s\n", rows.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace llava

namespace {

constexpr char kUsage[] =
    R"(What a format of packed weights does to a decoder's logits: each matrix is packed and unpacked
again, and all is computed in float32. Beside it llama.cpp's q8_0 and q4_0, treated the same way.
Errors of activations in 8 bits are not in it.

  llava_quantization_error [--model FOLDER [--unpacked ROOT] | --layers N] [--tokens N] [--seed N]
                           [--json]

--model   a language model in plain tensors (default: random weights in the shape of a LLaMA of
          1.1 billion, normal, one in 1000 of them 20 times as large)
--unpacked  a model repository: gets each of these models in plain float32 tensors, for
            llava-eval
--layers  of the random model (default 22)
--tokens  random ids in one sequence, with logits behind each (default 64)

error: |logits - exact| / |exact| over all tokens; same: share of tokens with the same likeliest
next one; KL: mean divergence of the next token's distribution, in nats.
)";

}  // namespace

int main(int argc, char** argv) {
  if (llava::bench::PrintedUsage(argc, argv, kUsage)) return 0;
  try {
    return llava::Run(llava::Read(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llava_quantization_error: %s\n", error.what());
    return 1;
  }
}
