#include "model/train/map_answers.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include "model/text/labels.h"

namespace llava {
namespace {

// An answer on its way.
struct Answering {
  KvCache cache;
  std::vector<int32_t> ids;
};

// The prompt as embeddings [T, D].
at::Tensor EmbedPrompt(const LlamaDecoder& decoder, const at::Tensor& map,
                       const std::vector<int32_t>& ids) {
  const auto mark = std::find(ids.begin(), ids.end(), kImageToken);
  const auto words = [&](auto begin, auto end) {
    return decoder.Embed(at::tensor(std::vector<int64_t>(begin, end), at::kLong));
  };
  return at::cat({words(ids.begin(), mark), map, words(mark + 1, ids.end())});
}

}  // namespace

std::vector<std::string> AnswerMaps(const LlamaDecoder& decoder, const TextMap& map,
                                    const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                    std::span<const MapQuestion> questions, int64_t most_tokens) {
  at::NoGradGuard guard;
  std::vector<Answering> all;
  all.reserve(questions.size());
  std::vector<at::Tensor> prompts;
  std::vector<Segment> segments;
  for (const MapQuestion& question : questions) {
    const ChatMessage message{ChatMessage::Role::kUser, question.text, 1, {}};
    const std::vector<int32_t> ids = tokenizer.EncodePrompt(chat_template.Render({&message, 1}));
    prompts.push_back(EmbedPrompt(decoder, map.Embed(decoder, {question.scene, 1})[0], ids));
    all.push_back({KvCache(decoder.config(), decoder.device(), decoder.dtype()), {}});
    segments.push_back({.tokens = prompts.back().size(0), .cache = &all.back().cache});
  }
  std::vector<Answering*> open;
  for (Answering& answering : all) open.push_back(&answering);
  at::Tensor input = prompts.empty() ? at::Tensor() : at::cat(prompts);
  for (int64_t step = 0; step < most_tokens && !open.empty(); ++step) {
    std::vector<int64_t> last;
    int64_t end = 0;
    for (const Segment& segment : segments) last.push_back((end += segment.tokens) - 1);
    const at::Tensor hidden = decoder.Forward(input, segments);
    const at::Tensor next =
        decoder.Logits(hidden.index_select(0, at::tensor(last, at::kLong).to(hidden.device())))
            .narrow(1, 0, std::min<int64_t>(tokenizer.vocab_size(), decoder.config().vocab_size))
            .argmax(-1)
            .cpu();
    std::vector<Answering*> going_on;
    std::vector<int64_t> ids;
    segments.clear();
    for (size_t i = 0; i < open.size(); ++i) {
      const int64_t id = next.const_data_ptr<int64_t>()[i];
      if (id == tokenizer.eos_id()) continue;
      open[i]->ids.push_back(static_cast<int32_t>(id));
      going_on.push_back(open[i]);
      ids.push_back(id);
      segments.push_back({.tokens = 1, .cache = &open[i]->cache});
    }
    open = std::move(going_on);
    if (!open.empty()) input = decoder.Embed(at::tensor(ids, at::kLong));
  }
  std::vector<std::string> answers;
  for (const Answering& answering : all) answers.push_back(tokenizer.Decode(answering.ids));
  return answers;
}

}  // namespace llava
