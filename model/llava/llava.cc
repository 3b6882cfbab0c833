#include "model/llava/llava.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include <ATen/ops/argmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tensor.h>

#include "model/text/labels.h"

namespace llava {
namespace {

constexpr const char* kFeatures = "features of ";

}  // namespace

Llava::Llava(const LanguageCheckpoint& checkpoint, at::Device device, at::ScalarType dtype)
    : config_(checkpoint.config),
      tokenizer_(checkpoint.tokenizer),
      chat_template_(checkpoint.chat_template),
      pictures_(checkpoint, device, dtype),
      decoder_(std::make_unique<LlamaDecoder>(config_.decoder, checkpoint.tensors, device, dtype)) {
}

int64_t Llava::num_known_ids() const {
  return std::min<int64_t>(config_.decoder.vocab_size, tokenizer_->vocab_size());
}

at::Tensor Llava::Embed(std::span<const int32_t> ids, std::span<const at::Tensor> features,
                        std::span<const Resolution> sizes) const {
  CheckMarks(ids, features.size(), kFeatures);
  return Splice(ids, Project(features, sizes));
}

std::vector<at::Tensor> Llava::Project(std::span<const at::Tensor> features,
                                       std::span<const Resolution> sizes) const {
  return pictures_.Forward(features, sizes);
}

at::Tensor Llava::Splice(std::span<const int32_t> ids,
                         std::span<const at::Tensor> image_tokens) const {
  CheckMarks(ids, image_tokens.size(), "image tokens of ");
  std::vector<int64_t> text;
  text.reserve(ids.size());
  for (const int32_t id : ids) {
    if (id == kImageToken) continue;
    if (id < 0 || id >= config_.decoder.vocab_size) {
      throw std::invalid_argument("token id " + std::to_string(id) +
                                  " is not in the model's vocabulary of " +
                                  std::to_string(config_.decoder.vocab_size));
    }
    text.push_back(id);
  }
  const int64_t any = -1, rows = picture_shape().is_fixed() ? num_image_tokens() : any;
  for (const at::Tensor& picture : image_tokens) {
    if (picture.dim() != 2 || (rows != any && picture.size(0) != rows) ||
        picture.size(1) != config_.decoder.hidden_size) {
      std::ostringstream message;
      message << "image tokens of shape " << picture.sizes() << ", expected ["
              << (rows == any ? "any" : std::to_string(rows)) << ", " << config_.decoder.hidden_size
              << "]";
      throw std::invalid_argument(message.str());
    }
  }
  const at::Tensor words = decoder_->Embed(at::tensor(text, at::kLong));
  if (image_tokens.empty()) return words;

  // Stretches of words before, between and behind the pictures, all by one split: the gradient of
  // each narrow view would be a table of all words.
  std::vector<int64_t> lengths = {0};
  for (const int32_t id : ids) {
    if (id == kImageToken) {
      lengths.push_back(0);
    } else {
      ++lengths.back();
    }
  }
  const std::vector<at::Tensor> stretches = words.split_with_sizes(lengths);
  std::vector<at::Tensor> parts = {stretches[0]};
  for (size_t i = 0; i < image_tokens.size(); ++i) {
    parts.push_back(image_tokens[i]);
    parts.push_back(stretches[i + 1]);
  }
  return at::cat(parts);
}

void Llava::VisitParameters(const ParameterVisitor& visit) {
  pictures_.VisitParameters(visit);
  decoder_->VisitParameters(visit);
}

namespace {

// The rows of one sample in the batch: its segment, and which hidden state predicts which token.
class SampleRows {
 public:
  SampleRows(const Llava& model, const LabelledSample& sample)
      : model_(model),
        sample_(sample),
        labels_(model.Expand(sample.input_ids, sample.labels, kIgnoreLabel, sample.sizes)) {
    segment_.tokens = static_cast<int64_t>(labels_.size());
    if (sample.branches.empty() && sample.shared == 0) return;
    segment_.branches = sample.branches;
    const int64_t branched =
        std::accumulate(sample.branches.begin(), sample.branches.end(), int64_t{0});
    const auto ids = static_cast<int64_t>(sample.input_ids.size());
    const bool empty = std::ranges::any_of(sample.branches, [](int64_t n) { return n < 1; });
    if (sample.shared < 1 || empty || sample.shared + branched != ids) {
      throw std::invalid_argument("a sample of " + std::to_string(ids) + " ids cannot have " +
                                  std::to_string(sample.shared) + " shared ones and " +
                                  std::to_string(sample.branches.size()) + " branches of " +
                                  std::to_string(branched) + ", none of them empty");
    }
    const auto tail = sample.input_ids.subspan(sample.shared);
    if (std::ranges::find(tail, kImageToken) != tail.end()) {
      throw std::invalid_argument("a branch of a sample has an image mark; marks are shared");
    }
    segment_.shared = segment_.tokens - branched;
  }

  const Segment& segment() const { return segment_; }

  // Appends (row that predicts, token) pairs; `begin`: first row of the sample in the batch.
  void AddTargets(int64_t begin, std::vector<int64_t>& rows, std::vector<int64_t>& targets) const {
    const int64_t plain = segment_.branches.empty() ? segment_.tokens : segment_.shared;
    for (int64_t i = 1; i < plain; ++i) Add(begin + i - 1, labels_[i], rows, targets);
    int64_t first = plain;
    for (const int64_t length : segment_.branches) {
      // The last shared token predicts the first one of every branch.
      Add(begin + plain - 1, labels_[first], rows, targets);
      for (int64_t i = first + 1; i < first + length; ++i) {
        Add(begin + i - 1, labels_[i], rows, targets);
      }
      first += length;
    }
  }

 private:
  void Add(int64_t row, int64_t label, std::vector<int64_t>& rows,
           std::vector<int64_t>& targets) const {
    if (label == kIgnoreLabel) return;
    if (label < 0 || label >= model_.config().decoder.vocab_size) {
      throw std::invalid_argument("label " + std::to_string(label) +
                                  " is not in the model's vocabulary of " +
                                  std::to_string(model_.config().decoder.vocab_size));
    }
    rows.push_back(row);
    targets.push_back(label);
  }

  const Llava& model_;
  const LabelledSample& sample_;
  std::vector<int64_t> labels_;
  Segment segment_;
};

}  // namespace

Predictions Predict(const Llava& model, std::span<const LabelledSample> batch) {
  // Pictures and words of all samples go through projector and embedding at once: their gradients
  // are as large as the weights, so that each further call costs more than the work itself.
  std::vector<int32_t> ids;
  std::vector<at::Tensor> features;
  std::vector<Resolution> sizes;
  std::vector<Segment> segments;
  std::vector<int64_t> rows, targets;
  int64_t begin = 0;
  for (const LabelledSample& sample : batch) {
    const SampleRows sample_rows(model, sample);
    sample_rows.AddTargets(begin, rows, targets);
    CheckMarks(sample.input_ids, sample.features.size(), kFeatures);
    ids.insert(ids.end(), sample.input_ids.begin(), sample.input_ids.end());
    features.insert(features.end(), sample.features.begin(), sample.features.end());
    sizes.insert(sizes.end(), sample.sizes.begin(), sample.sizes.end());
    segments.push_back(sample_rows.segment());
    begin += segments.back().tokens;
  }
  if (targets.empty()) {
    throw std::invalid_argument("none of the " + std::to_string(begin) + " tokens of the " +
                                std::to_string(batch.size()) +
                                " samples in the batch has a label: there is nothing to learn");
  }
  const at::Device device = model.decoder().device();
  const at::Tensor hidden = model.decoder().Forward(model.Embed(ids, features, sizes), segments);
  // Only labelled rows go through the head: most of a prompt has none.
  return {model.decoder().Logits(hidden.index_select(0, at::tensor(rows, at::kLong).to(device))),
          at::tensor(targets, at::kLong).to(device)};
}

at::Tensor Predictions::Loss() const { return at::cross_entropy_loss(logits, targets); }

double Predictions::NumRight() const { return logits.argmax(1).eq(targets).sum().item<double>(); }

}  // namespace llava
