#include "server/llm/llava_runner.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "model/llava/self_test.h"
#include "server/device/device.h"
#include "server/llm/kv_blocks.h"

namespace llava {
namespace {

at::ScalarType ScalarTypeOf(FeatureType type) {
  switch (type) {
    case FeatureType::kFloat32:
      return at::kFloat;
    case FeatureType::kFloat16:
      return at::kHalf;
    case FeatureType::kBFloat16:
      return at::kBFloat16;
  }
  return at::kFloat;
}

static_assert(KvBlocks::kTokens == kKvBlockTokens);

static_assert(StepLogits::kNotFinite == DrawnStep::kNotFinite &&
              StepLogits::kNotDrawn == DrawnStep::kNotAsked);

class LlavaRunner : public ModelRunner {
 public:
  LlavaRunner(std::unique_ptr<ServingModel> model, std::optional<llava::SelfTest> self_test)
      : memory_(model->device()), model_(std::move(model)), self_test_(std::move(self_test)) {
    GiveBackMemory(model_->device());  // what was needed while it was read
  }

  double SelfTest(const DevicePiece& piece) override {
    return self_test_ ? CheckSelfTest(*model_, *self_test_, kPieceRows, piece) : -1;
  }

  void Begin(uint64_t sequence, std::span<const int32_t> ids,
             std::span<const std::shared_ptr<const StoredFeatures>> features) override {
    std::vector<at::Tensor> tensors;
    std::vector<Resolution> sizes;
    for (const auto& stored : features) {
      sizes.push_back(stored->picture);
      tensors.push_back(at::from_blob(
          const_cast<char*>(stored->bytes.data()),  // only read
          {stored->rows, stored->width}, [stored](void*) {},
          at::TensorOptions(ScalarTypeOf(stored->type))));
    }
    prompts_.insert_or_assign(sequence, PromptRows(*model_, {ids.begin(), ids.end()},
                                                   std::move(tensors), std::move(sizes)));
  }

  void End(uint64_t sequence) override { prompts_.erase(sequence); }

  StepLogits Step(std::span<const Part> parts) override {
    std::vector<at::Tensor> rows;
    std::vector<int32_t> tokens;  // that follow each other, one of each part
    std::vector<StepSequence> sequences;
    std::vector<int64_t> wanted;
    std::vector<std::optional<TokenChoice>> choices;
    bool draws = false;
    const auto embed = [&] {
      if (!tokens.empty()) rows.push_back(model_->decoder().Embed(tokens));
      tokens.clear();
    };
    int64_t end = 0;
    for (const Part& part : parts) {
      const auto prompt = prompts_.find(part.sequence);
      if (prompt != prompts_.end() && part.first < prompt->second.size()) {
        embed();
        rows.push_back(prompt->second.Slice(part.first, part.rows));
        if (part.first + part.rows == prompt->second.size()) prompts_.erase(prompt);
      } else {
        tokens.push_back(part.token);
      }
      sequences.push_back({part.rows, part.first, part.blocks});
      end += part.rows;
      if (!part.sampled) continue;
      wanted.push_back(end - 1);
      choices.push_back(part.choice);
      draws |= part.choice.has_value();
    }
    embed();
    const at::Tensor all = rows.size() == 1 ? rows[0] : at::cat(rows);
    ServingDecoder& decoder = model_->decoder();
    DrawnStep step;
    if (draws && decoder.draws()) {
      step = decoder.StepAndDraw(all, sequences, wanted, choices, model_->num_known_ids());
      if (!step.logits.defined()) {
        StepLogits drawn;
        drawn.ids = std::move(step.ids);
        return drawn;
      }
    } else {
      step.logits = decoder.Step(all, sequences, wanted);
    }
    const at::Tensor& logits = step.logits;
    return {std::make_shared<at::Tensor>(logits), logits.const_data_ptr<float>(), logits.stride(0),
            model_->num_known_ids(), std::move(step.ids)};
  }

  std::string Prepare(int64_t sequences, int64_t tokens, const DevicePiece& piece) override {
    return model_->decoder().Prepare(sequences, tokens, piece);
  }
  void CopyBlock(int32_t from, int32_t to) override { model_->decoder().CopyBlock(from, to); }
  int64_t num_blocks() const override { return model_->decoder().num_blocks(); }
  uint64_t weight_bytes() const override { return model_->decoder().weight_bytes(); }

 private:
  c10::InferenceMode inference_;  // of the worker's thread, as long as the runner lives
  const GivesBackMemory memory_;
  const std::unique_ptr<ServingModel> model_;
  const std::optional<llava::SelfTest> self_test_;
  std::map<uint64_t, PromptRows> prompts_;  // not computed to their ends yet
};

}  // namespace

std::unique_ptr<ModelRunner> MakeLlavaRunner(std::unique_ptr<ServingModel> model,
                                             std::optional<SelfTest> self_test) {
  return std::make_unique<LlavaRunner>(std::move(model), std::move(self_test));
}

}  // namespace llava
