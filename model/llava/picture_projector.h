#pragma once

// The way from the features of pictures to their image tokens: the projector, and in the anyres
// mode the map that the tiles make together.

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/picture_shape.h"
#include "model/nn/projector.h"

namespace llava {

// A picture of the anyres mode as a language model reads it: the overview's rows, then those of the
// map without its margin, `newline` behind each of them. rows [(1 + tiles) P, D], newline [D] ->
// [P + map.num_tokens(), D].
at::Tensor LayOutTiles(const at::Tensor& rows, const PatchMap& map, const at::Tensor& newline);

// Const functions: thread-safe.
class PictureProjector {
 public:
  PictureProjector(const LanguageCheckpoint& checkpoint, at::Device device, at::ScalarType dtype);

  const PictureShape& shape() const { return shape_; }
  // Image tokens [N, D] of each picture. features: [shape().NumRows(size), Dv] of each, of any
  // dtype and device; sizes: of each in pixels, may be left out where shape().is_fixed(). Throws
  // std::invalid_argument if numbers or shapes do not fit (both are told).
  std::vector<at::Tensor> Forward(std::span<const at::Tensor> features,
                                  std::span<const Resolution> sizes) const;

  const Projector& projector() const { return projector_; }
  Projector& projector() { return projector_; }
  // The projector's, then the newline.
  void VisitParameters(const ParameterVisitor& visit);

 private:
  PictureShape shape_;
  int64_t feature_width_;
  at::TensorOptions options_;
  Projector projector_;
  at::Tensor newline_;  // [D]; undefined unless pictures come in tiles
};

}  // namespace llava
