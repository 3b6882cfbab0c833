// Recordings of CudaLlama's steps: which there are, how one is made and run.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <ranges>
#include <set>
#include <span>
#include <string>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include "model/nn/cuda_llama.h"
#include "model/nn/cuda_llama_parts.h"
#include "model/nn/step_rows.h"
#include "model/ops/cuda/runtime.h"

namespace llava {

double RelativeDistance(const at::Tensor& expected, const at::Tensor& found) {
  const auto norm = [](const at::Tensor& x) {
    return at::linalg_vector_norm(x.to(at::kDouble)).item<double>();
  };
  const double size = norm(expected), distance = norm(found - expected);
  if (!std::isfinite(size)) return 0;
  if (!std::isfinite(distance)) return HUGE_VAL;
  return distance == 0 ? 0 : distance / size;
}

CudaLlama::DecodeGraph* CudaLlama::GraphFor(int64_t sequences, int64_t splits) {
  const int64_t size = GraphSequences(sequences), rounded = GraphSplits(splits);
  const auto [found, added] = graphs_.try_emplace({size, rounded});
  if (added) {
    try {
      found->second = Record(size, rounded, first_graph_);
      if (first_graph_ == nullptr) first_graph_ = found->second->graph.get();
    } catch (const c10::OutOfMemoryError&) {
      // Such steps go without, rather than try and fail again each time.
    } catch (...) {
      graphs_.erase(found);
      throw;
    }
  }
  return found->second.get();
}

std::unique_ptr<CudaLlama::DecodeGraph> CudaLlama::Record(int64_t size, int64_t splits,
                                                          const cuda::Graph* beside) {
  auto made = std::make_unique<DecodeGraph>();
  made->blocks = splits * cuda::kSplitTokens / kKvBlockTokens;
  made->rows = at::zeros({size, config_.hidden_size}, weights_.embed_tokens.options());
  made->inputs =
      at::zeros({size * (3 + made->blocks)}, weights_.embed_tokens.options().dtype(at::kInt));
  // Until its first use, all rows are padding: one token in the spare block.
  made->inputs.narrow(0, size, size).fill_(num_blocks_ * kKvBlockTokens);
  made->inputs.narrow(0, 2 * size, size).fill_(1);
  made->inputs.narrow(0, 3 * size, size * made->blocks).fill_(num_blocks_);
  made->logits = at::zeros({size, config_.vocab_size}, made->rows.options().dtype(at::kFloat));
  Batch batch;
  batch.positions = made->inputs.narrow(0, 0, size);
  batch.slots = made->inputs.narrow(0, size, size);
  batch.lengths = made->inputs.narrow(0, 2 * size, size);
  batch.tables = made->inputs.narrow(0, 3 * size, size * made->blocks).view({size, made->blocks});
  batch.decode_rows = at::arange(size, made->inputs.options());
  batch.splits = splits;
  made->graph = std::make_unique<cuda::Graph>(
      [this, batch, rows = made->rows, logits = made->logits] {
        c10::InferenceMode guard;
        logits.copy_(Forward(rows, batch));
      },
      device_, beside);
  return made;
}

at::Tensor CudaLlama::Decode(DecodeGraph& graph, const at::Tensor& rows,
                             std::span<const StepSequence> sequences,
                             at::ArrayRef<int32_t> positions, at::ArrayRef<int32_t> slots) {
  const auto count = static_cast<int64_t>(sequences.size());
  const int64_t size = graph.rows.size(0);
  const at::Tensor host = cuda::HostBuffer({graph.inputs.size(0)}, at::kInt, device_);
  int32_t* const to = host.data_ptr<int32_t>();
  const auto spare = static_cast<int32_t>(num_blocks_);
  for (int64_t i = 0; i < size; ++i) {
    int32_t* const table = to + 3 * size + i * graph.blocks;
    std::fill_n(table, graph.blocks, spare);
    if (i < count) {
      std::copy_n(sequences[i].blocks.data(), BlocksOf(positions[i] + 1), table);
    }
    to[i] = i < count ? positions[i] : 0;
    to[size + i] = i < count ? slots[i] : spare * cuda::kBlockTokens;
    to[2 * size + i] = to[i] + 1;
  }
  graph.inputs.copy_(host, /*non_blocking=*/true);
  graph.rows.narrow(0, 0, count).copy_(rows);
  graph.graph->Run();
  return graph.logits.narrow(0, 0, count);
}

std::string CudaLlama::ChooseProducts(int64_t size, const DevicePieces& piece) {
  constexpr int kRounds = 5, kSteps = 3;
  // Rounding in another order comes to a percent or two behind the layers of a large model; what is
  // computed wrongly, on a GPU of a kind that nobody tried, to far more.
  constexpr double kMostApart = 0.1;
  // Streams read ahead while attention runs: behind as many tokens as a dialogue about a picture
  // has.
  const int64_t splits = std::min<int64_t>(8, SplitsOf(config_.max_position_embeddings));
  std::array<std::unique_ptr<DecodeGraph>, 2> graphs;
  std::array<double, 2> best = {HUGE_VAL, HUGE_VAL};  // seconds of kSteps
  try {
    for (const bool stream : {false, true}) {
      piece([&] {
        if (!stream) streamed_.erase(size);
        if (stream) streamed_.insert(size);
        graphs[stream] = Record(size, splits, stream ? graphs[false]->graph.get() : nullptr);
        // A slot for each row, as in serving: rows that share one store there in any order, and
        // what they read back would differ from graph to graph.
        at::Tensor& inputs = graphs[stream]->inputs;
        inputs.narrow(0, size, size).add_(at::arange(size, inputs.options()));
        inputs.narrow(0, 2 * size, size).fill_(splits * cuda::kSplitTokens);
        graphs[stream]->rows.copy_(weights_.embed_tokens.narrow(0, 0, size));
      });
    }
  } catch (const c10::OutOfMemoryError&) {
    streamed_.insert(size);  // unmeasured, as at first
    return "";
  }
  double apart = 0;
  // In turns, as other work may be on the device, too.
  for (int round = 0; round < kRounds; ++round) {
    for (const bool stream : {false, true}) {
      piece([&] {
        DecodeGraph& graph = *graphs[stream];
        const auto wait = [&] { cuda::Download(graph.logits.narrow(1, 0, 1)); };
        graph.graph->Run();
        wait();
        const auto begin = std::chrono::steady_clock::now();
        for (int step = 0; step < kSteps; ++step) graph.graph->Run();
        wait();
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
        best[stream] = std::min(best[stream], taken.count());
        if (!stream) return;
        apart = std::max(apart, RelativeDistance(cuda::Download(graphs[false]->logits),
                                                 cuda::Download(graph.logits)));
      });
    }
  }
  piece([&] {
    graphs[true].reset();  // uses the other's memory
    graphs[false].reset();
  });
  // Where both are as fast all processes are to choose the same.
  constexpr double kClearly = 1.03;
  const bool agree = apart <= kMostApart;
  if (best[true] > kClearly * best[false] || !agree) streamed_.erase(size);
  std::array<char, 160> text;
  std::snprintf(text.data(), text.size(), "%d: %.3f ms streamed, %.3f ms not, %.1f %% apart%s",
                static_cast<int>(size), best[true] / kSteps * 1e3, best[false] / kSteps * 1e3,
                100 * apart, agree ? "" : ": streams are wrong on this device, and left out");
  return text.data();
}

std::string CudaLlama::Prepare(int64_t sequences, int64_t tokens, const DevicePieces& piece) {
  if (!options_.graphs) return "";
  c10::InferenceMode guard;
  sequences = std::clamp<int64_t>(sequences, 1, kGraphSequences.back());
  tokens = std::clamp<int64_t>(
      tokens, 1, std::min(config_.max_position_embeddings, num_blocks_ * kKvBlockTokens));
  // What is recorded by now holds the products chosen so far.
  const std::set<int64_t> before = streamed_;
  std::string measured;
  for (const int64_t size : before) {
    if (size > GraphSequences(sequences)) continue;
    const std::string one = ChooseProducts(size, piece);
    if (!one.empty()) measured += (measured.empty() ? "steps of " : "; ") + one;
  }
  if (streamed_ != before) {
    graphs_.clear();
    first_graph_ = nullptr;
  }
  // The largest first: what they work in has room for all others.
  for (int64_t splits = GraphSplits(SplitsOf(tokens)); splits > 0; splits /= 2) {
    for (const int64_t size : std::views::reverse(kGraphSequences)) {
      if (size <= GraphSequences(sequences)) piece([&] { GraphFor(size, splits); });
    }
  }
  return measured;
}

uint64_t CudaLlama::GraphBytes(const DecoderConfig& config, int64_t sequences, bool packed) {
  constexpr uint64_t kWorkSpace = 2 * (uint64_t{32} << 20);  // of two streams
  const int64_t most = GraphSequences(std::clamp<int64_t>(sequences, 1, kGraphSequences.back()));
  const int64_t splits = GraphSplits(SplitsOf(config.max_position_embeddings));
  // What a graph works in is shared, but each has logits of its own.
  const int64_t partial = most * config.num_heads * splits * (config.head_dim + 2);
  const int64_t logits =
      2 * most * config.vocab_size * std::bit_width(static_cast<uint64_t>(splits));
  const int64_t largest = std::max(config.vocab_size, 2 * config.intermediate_size);
  const int64_t unpacked = packed ? largest * config.hidden_size : 0;
  return static_cast<uint64_t>(4 * (partial + logits) + 2 * unpacked) + kWorkSpace;
}

int64_t CudaLlama::num_graphs() const {
  return std::ranges::count_if(graphs_, [](const auto& entry) { return entry.second != nullptr; });
}

}  // namespace llava
