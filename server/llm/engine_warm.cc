// What a worker computes before anybody asks.

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/llm/engine_worker.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr uint64_t kWarmSequence = 0;  // no answer's

}  // namespace

void WarmUp(ModelRunner& runner, const LanguageInfo& info, const DevicePiece& piece) {
  const PictureShape& pictures = info.pictures;
  const std::vector<int32_t> ids = {info.tokenizer->bos_id(), kImageToken,
                                    info.tokenizer->eos_id()};
  const auto words = static_cast<int64_t>(ids.size()) - 1;
  const int64_t longest = pictures.most_tokens() + words;
  std::vector<int32_t> blocks(static_cast<size_t>(KvBlocks::BlocksFor(longest + 1)));
  std::iota(blocks.begin(), blocks.end(), 0);
  if (static_cast<int64_t>(blocks.size()) > runner.num_blocks()) {
    throw std::invalid_argument(
        absl::StrCat("--kv-bytes holds ", runner.num_blocks() * KvBlocks::kTokens,
                     " tokens of keys and values, less than a picture and a word: ", longest + 1));
  }
  const auto begin = [&](Resolution size) {
    StoredFeatures grey{
        FeatureType::kBFloat16, pictures.NumRows(size), info.feature_width, {}, size};
    grey.bytes.assign(static_cast<size_t>(2 * grey.rows * grey.width), '\0');
    const auto features = std::make_shared<const StoredFeatures>(std::move(grey));
    runner.Begin(kWarmSequence, ids, {&features, 1});
  };
  const auto step = [&](int64_t first, int64_t rows, bool sampled) {
    const ModelRunner::Part part = {kWarmSequence, first, rows, info.tokenizer->eos_id(),
                                    sampled,       blocks};
    piece([&] {
      const StepLogits logits = runner.Step({&part, 1});
      if (!sampled) return;
      for (const float logit : logits.Row(0)) {
        if (!std::isfinite(logit)) throw std::runtime_error("warm-up: a logit is not finite");
      }
    });
  };
  if (!pictures.is_fixed()) {  // the memory that the projector takes at most
    begin(pictures.largest());
    step(0, std::min(kPieceRows, longest), false);
    runner.End(kWarmSequence);
  }
  // A prompt as most are: long ones would only take longer.
  const auto side = static_cast<int>(info.features.tile_size);
  const Resolution size = {side, side};
  const int64_t prompt = pictures.NumTokens(size) + words;
  begin(size);
  for (int64_t first = 0; first < prompt; first += kPieceRows) {
    const int64_t rows = std::min(kPieceRows, prompt - first);
    step(first, rows, first + rows == prompt);
  }
  step(prompt, 1, true);
  runner.End(kWarmSequence);
}

void EngineWorker::Prewarm(const WarmPrompt& prompt) {
  KvTable table;
  table.salt = prompt.cache_salt;
  table.rows = RowsOf(prompt.ids, prompt.feature_keys, prompt.picture_tokens);
  const auto size = static_cast<int64_t>(table.rows.size());
  const uint64_t id = engine_.next_sequence_++;
  std::optional<KvBlocks::Copy> copy;
  bool fits = false;
  {
    MutexLock lock(mutex_);
    fits = size > 0 && KvBlocks::BlocksFor(size) <= blocks_.free();  // nothing kept goes for it
    if (fits) copy = blocks_.Begin(table);
    if (fits) blocks_.Grow(table, size - table.computed);
  }
  if (!fits) return engine_.WarmDone();
  bool computed = true;
  warming_ = true;
  try {
    const auto compute = [this](const std::function<void()>& piece) {
      OnDevice(&DeviceTurn::InBackground, 0, piece);
    };
    if (copy) compute([&] { runner_.CopyBlock(copy->from, copy->to); });
    runner_.Begin(id, prompt.ids, prompt.features);
    while (table.computed < size && !engine_.warm_stopped_ && engine_.waiting() == 0) {
      const int64_t rows = std::min(kPieceRows, size - table.computed);
      const ModelRunner::Part part = {id, table.computed, rows, 0, false, table.blocks};
      compute([&] { runner_.Step({&part, 1}); });
      MutexLock lock(mutex_);
      blocks_.Advance(table, rows);
    }
  } catch (const WorkerGivenUp&) {
    throw;
  } catch (...) {
    computed = false;
    LogError("a prompt could not be computed ahead",
             {{"error", std::string(FromException(std::current_exception()).message())}});
  }
  warming_ = false;
  runner_.End(id);
  {
    MutexLock lock(mutex_);
    blocks_.End(table, /*keep=*/computed);
  }
  ShowBlocks();
  engine_.WarmDone();
}

}  // namespace llava
