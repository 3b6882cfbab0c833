#pragma once

// Projector and decoder as one language model that reads pictures: the one door for serving,
// training and evaluation. The tower is apart (model/nn/clip.h): features cross the wire.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/picture_shape.h"
#include "model/llava/expand.h"
#include "model/llava/picture_projector.h"
#include "model/nn/llama.h"
#include "model/nn/projector.h"

namespace llava {

class Llava {
 public:
  Llava(const LanguageCheckpoint& checkpoint, at::Device device, at::ScalarType dtype);

  // Image tokens of one picture in the prompt, where all have the same number.
  int64_t num_image_tokens() const { return pictures_.shape().most_tokens(); }
  const PictureShape& picture_shape() const { return pictures_.shape(); }
  // Ids that may be sampled: [0, this). Rows beyond are padding of the embedding table and have no
  // text.
  int64_t num_known_ids() const;
  // `sizes` below: of the pictures in pixels, in the order of their marks; needed in the anyres
  // mode only, where std::invalid_argument is thrown unless there is one for each.

  // The multimodal splice: embeds the text, puts the projected features where the ids say
  // kImageToken. ids [T'], features one tensor per kImageToken: [P, Dv], in the anyres mode
  // [(1 + tiles) P, Dv] -> [T, D]. Throws std::invalid_argument if the numbers of marks and tensors
  // differ or a shape does not fit (both are told), or an id has no embedding. Features of any
  // dtype and device.
  at::Tensor Embed(std::span<const int32_t> ids, std::span<const at::Tensor> features,
                   std::span<const Resolution> sizes = {}) const;
  // The two halves of Embed, for pictures that several prompts share and for what stands in their
  // place: features -> image tokens [N, D] of each picture; ids and one [N, D] tensor in the
  // decoder's dtype and on its device per kImageToken -> [T, D]. Errors as Embed.
  std::vector<at::Tensor> Project(std::span<const at::Tensor> features,
                                  std::span<const Resolution> sizes = {}) const;
  at::Tensor Splice(std::span<const int32_t> ids, std::span<const at::Tensor> image_tokens) const;
  // As the function of expand.h.
  std::vector<int64_t> Expand(std::span<const int32_t> ids, std::span<const int64_t> values,
                              int64_t fill, std::span<const Resolution> sizes = {}) const {
    return llava::Expand(picture_shape(), ids, values, fill, sizes);
  }

  const LlamaDecoder& decoder() const { return *decoder_; }
  LlamaDecoder& decoder() { return *decoder_; }
  const Projector& projector() const { return pictures_.projector(); }
  Projector& projector() { return pictures_.projector(); }
  const LanguageConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate& chat_template() const { return *chat_template_; }
  // Projector and newline first, then decoder.
  void VisitParameters(const ParameterVisitor& visit);

 private:
  LanguageConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  PictureProjector pictures_;
  std::unique_ptr<LlamaDecoder> decoder_;
};

// One sample of a training or scoring batch.
struct LabelledSample {
  std::span<const int32_t> input_ids;  // kImageToken marks pictures
  std::span<const int64_t> labels;     // kIgnoreLabel where no loss is taken
  std::vector<at::Tensor> features;    // one per mark
  // Several samples that begin alike, in one row (see Segment): the first `shared` ids, which hold
  // all marks, then branches of so many ids each. Empty: one sample.
  int64_t shared = 0;
  std::vector<int64_t> branches = {};
  std::vector<Resolution> sizes = {};  // of the pictures; needed in the anyres mode
};

// What the model says where the batch has labels, shifted by one within each sample.
struct Predictions {
  at::Tensor logits;   // [labelled tokens, V] float32
  at::Tensor targets;  // [labelled tokens] int64, on the same device

  at::Tensor Loss() const;  // mean cross entropy
  double NumRight() const;  // targets that are the likeliest token
};

// Differentiable. Throws std::invalid_argument if no token of the batch is labelled (a mean over
// nothing would be NaN and spoil the weights) or a label is no token of the vocabulary.
Predictions Predict(const Llava& model, std::span<const LabelledSample> batch);

}  // namespace llava
