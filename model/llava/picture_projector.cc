#include "model/llava/picture_projector.h"

#include <sstream>
#include <stdexcept>
#include <string>

#include <ATen/ops/cat.h>

#include "model/checkpoint/tensor_names.h"
#include "model/nn/parameter_reader.h"

namespace llava {

at::Tensor LayOutTiles(const at::Tensor& rows, const PatchMap& map, const at::Tensor& newline) {
  const int64_t side = map.tile_side, patches = side * side, width = rows.size(1);
  const at::Tensor kept = rows.narrow(0, patches, map.num_tiles() * patches)
                              .view({map.tile_rows, map.tile_columns, side, side, width})
                              .permute({0, 2, 1, 3, 4})  // patches of one height beside each other
                              .reshape({map.tile_rows * side, map.tile_columns * side, width})
                              .narrow(0, map.top, map.height)
                              .narrow(1, map.left, map.width);
  const at::Tensor lines = at::cat({kept, newline.expand({map.height, 1, width})}, 1);
  return at::cat({rows.narrow(0, 0, patches), lines.reshape({map.num_tokens(), width})});
}

PictureProjector::PictureProjector(const LanguageCheckpoint& checkpoint, at::Device device,
                                   at::ScalarType dtype)
    : shape_(checkpoint.config.features, checkpoint.tower_patches),
      feature_width_(checkpoint.config.projector.in_width),
      options_(at::TensorOptions(device).dtype(dtype)),
      projector_(checkpoint.config.projector, checkpoint.tensors, device, dtype) {
  if (shape_.is_fixed()) return;
  ParameterReader reader(checkpoint.tensors, device, dtype);
  newline_ = reader.Read(kImageNewline, {checkpoint.config.projector.out_width});
  reader.Finish("image newline");
}

std::vector<at::Tensor> PictureProjector::Forward(std::span<const at::Tensor> features,
                                                  std::span<const Resolution> sizes) const {
  if (features.empty()) return {};
  if (!shape_.is_fixed() && sizes.size() != features.size()) {
    throw std::invalid_argument("features of " + std::to_string(features.size()) +
                                " pictures, but sizes of " + std::to_string(sizes.size()) +
                                ": how tiles are laid out depends on it (anyres)");
  }
  std::vector<at::Tensor> pictures;
  std::vector<int64_t> rows;
  for (size_t i = 0; i < features.size(); ++i) {
    rows.push_back(shape_.NumRows(shape_.is_fixed() ? Resolution() : sizes[i]));
    if (features[i].dim() != 2 || features[i].size(0) != rows[i] ||
        features[i].size(1) != feature_width_) {
      std::ostringstream message;
      message << "features of shape " << features[i].sizes() << ", expected [" << rows[i] << ", "
              << feature_width_ << "]";
      throw std::invalid_argument(message.str());
    }
    pictures.push_back(features[i].to(options_));
  }
  std::vector<at::Tensor> tokens =
      projector_.Forward(pictures.size() == 1 ? pictures[0] : at::cat(pictures))
          .split_with_sizes(rows);
  if (shape_.is_fixed()) return tokens;
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = LayOutTiles(tokens[i], shape_.MapOf(sizes[i]), newline_);
  }
  return tokens;
}

void PictureProjector::VisitParameters(const ParameterVisitor& visit) {
  projector_.VisitParameters(visit);
  if (newline_.defined()) visit(kImageNewline, newline_);
}

}  // namespace llava
