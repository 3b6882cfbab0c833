#pragma once

// How many rows of Z_v a picture has and how many image tokens it takes in a prompt. Pure functions
// of its size: the one place that all who count, check or lay out pictures ask.

#include <cstdint>
#include <span>
#include <vector>

#include "model/config/model_config.h"

namespace llava {

// Most canvases of the anyres mode to choose from, and most tiles of one.
inline constexpr int kMaxGrid = 64;
inline constexpr int64_t kMaxTiles = 36;
// Most image tokens of one picture: their numbers fit into 16 bits.
inline constexpr int64_t kMaxPictureTokens = 65535;

// Of `candidates` (image_grid_pinpoints) the one that keeps most of the picture's pixels; of equals
// the one that wastes least; of those the first. Throws std::invalid_argument if there is none, or
// a side below 1.
Resolution ChooseResolution(Resolution picture, std::span<const Resolution> candidates);

// The canvases of LLaVA-1.6 for tiles of `side` pixels.
std::vector<Resolution> PublishedGrid(int side);

// The patches of a canvas's tiles as one map, and what of it is picture: all columns and the rows
// in the middle, or all rows and the columns in the middle. May be none of one of them, where a
// picture is a sliver. Everything but the tiles is counted in patches.
struct PatchMap {
  int64_t tile_columns = 1, tile_rows = 1;
  int64_t tile_side = 0;  // of a tile: p
  int64_t left = 0, top = 0, width = 0, height = 0;

  int64_t num_tiles() const { return tile_columns * tile_rows; }
  // With the newline behind each row.
  int64_t num_tokens() const { return height * (width + 1); }
};

// Of the pictures of one language model. Const once made, thread-safe.
class PictureShape {
 public:
  // Of a picture without rows.
  PictureShape() = default;
  // `tower_patches`: P, rows of the tower's features without the class token. Throws
  // std::invalid_argument that begins with what is wrong: a grid without the anyres mode or the
  // other way round, too many canvases, canvases not of 1 to kMaxTiles whole tiles, the class token
  // beside tiles, tiles whose patches make no square, more than kMaxPictureTokens.
  PictureShape(const FeatureConfig& features, int64_t tower_patches);

  // All pictures have the same numbers, and sizes are not looked at. Else the functions below throw
  // std::invalid_argument for a picture with a side below 1.
  bool is_fixed() const { return grid_.empty(); }
  // Rows of Z_v: the overview, then the tiles row by row.
  int64_t NumRows(Resolution picture) const;
  // Image tokens: those of the overview, then the map's.
  int64_t NumTokens(Resolution picture) const;
  // Where is_fixed() is false.
  PatchMap MapOf(Resolution picture) const;

  int64_t tile_rows() const { return tile_rows_; }  // of Z_v, of the overview or a tile
  int64_t most_rows() const { return most_rows_; }  // of any picture, as below
  int64_t most_tokens() const { return most_tokens_; }
  // Has the most tokens.
  Resolution largest() const { return largest_; }

 private:
  PatchMap WholeMap(Resolution canvas) const;

  std::vector<Resolution> grid_;
  int64_t tile_size_ = 0;  // pixels
  int64_t tile_side_ = 0;  // patches
  int64_t tile_rows_ = 0, most_rows_ = 0, most_tokens_ = 0;
  Resolution largest_;
};

}  // namespace llava
