#pragma once

// From the arguments of a kernel to its instantiation and grid: the same for CUDA (kernels.cu) and
// for the tests' emulation. A Launcher takes a kernel and a Grid, and knows how many
// Multiprocessors there are.

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/packed.h"
#include "model/ops/cuda/packed_stream.h"
#include "model/ops/cuda/packed_tiles.h"
#include "model/ops/cuda/paged_attention.h"
#include "model/ops/cuda/row_product.h"
#include "model/ops/cuda/rows.h"
#include "model/ops/cuda/sampling.h"

namespace llava::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

struct NoShared {};

// Blocks of a kernel that each multiprocessor has to have room for, if it says so.
template <class Kernel>
constexpr int BlocksOf() {
  if constexpr (requires { Kernel::kBlocks; }) return Kernel::kBlocks;
  return 1;
}

// Whether a kernel of steps is to run beside its neighbours, in those of few rows beside products
// that read ahead, which takes one division of shared memory and cache for all of them
// (launcher.h); and whether it is such a product. Not for what lives on the cache.
template <class Kernel>
constexpr bool kBesideStreams = requires {
  Kernel::kInStep;
};
template <class Kernel>
constexpr bool kStreams = requires {
  Kernel::kReadsAhead;
};

template <class T, int V>
struct AddRmsNormKernel {
  static constexpr int kThreads = 512;
  static constexpr bool kInStep = true;
  using Shared = RmsNormShared<kThreads>;
  AddRmsNormArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    AddRmsNormBody<T, V>(block, shared, args);
  }
};

template <class T, int V>
struct RopeToCacheKernel {
  static constexpr int kThreads = 256;
  static constexpr bool kInStep = true;
  using Shared = NoShared;
  RopeToCacheArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared&) const {
    RopeToCacheBody<T, V>(block, args);
  }
};

template <class T, int V>
struct SwiGluKernel {
  static constexpr int kThreads = 256;
  static constexpr bool kInStep = true;
  using Shared = NoShared;
  SwiGluArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared&) const {
    SwiGluBody<T, V>(block, args);
  }
};

template <class T, int V>
struct QuickGeluKernel {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  QuickGeluArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared&) const {
    QuickGeluBody<T, V>(block, args);
  }
};

template <class T, int V, int kLanes, int kGroup, int kNumThreads>
struct AttendSplitKernel {
  static constexpr int kThreads = kNumThreads;
  static constexpr bool kInStep = true;
  // Beside a full one there is room for the kernel behind it.
  static constexpr int kBlocks = kGroup == 1 && sizeof(T) == 2 ? 512 / kThreads : 1;
  using Shared = SplitShared<V, kLanes, kGroup>;
  PagedAttentionArgs args;
  bool fetches;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    AttendSplitBody<T, V, kLanes, kGroup>(block, shared, args, fetches);
  }
};

template <class T>
struct MergeSplitsKernel {
  static constexpr int kThreads = 128;
  static constexpr bool kInStep = true;
  using Shared = NoShared;
  PagedAttentionArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared&) const {
    MergeSplitsBody<T>(block, args);
  }
};

struct RowProductKernel {
  static constexpr int kThreads = kRowThreads;
  static constexpr bool kInStep = true, kReadsAhead = true;
  // This one and the next, and of attention and merging of what lies between them (registers).
  static constexpr int kBlocks = 5;
  using Shared = RowProductShared;
  RowProductArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    RowProductBody(block, shared, args);
  }
};

template <bool kInt4, bool kGated>
struct PackedStreamKernel {
  static constexpr int kThreads = kPackedStreamThreads;
  static constexpr bool kInStep = true, kReadsAhead = true;
  static constexpr int kBlocks = 4;  // for 64 registers
  using Shared = PackedStreamShared<kInt4>;
  PackedProductArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    PackedStreamBody<kInt4, kGated>(block, shared, args);
  }
};

template <bool kInt4, int kUnit, int kTiles, int kPanels, int kNumThreads = 256>
struct PackedProductKernel {
  static constexpr int kThreads = kNumThreads;
  static constexpr int kBlocks = kThreads == 256 ? 2 : 1;
  using Shared = PackedShared<kTiles, kPanels, kThreads>;
  PackedProductArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    PackedProductBody<kInt4, kUnit, kTiles, kPanels>(block, shared, args);
  }
};

template <bool kInt4, int kTiles>
struct PackedTilesKernel {
  static constexpr int kThreads = kTileThreads;
  static constexpr bool kInStep = true;
  static constexpr int kBlocks = 2;
  using Shared = PackedTilesShared<kInt4, kTiles>;
  PackedProductArgs args;
  float* partial;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    PackedTilesBody<kInt4, kTiles>(block, shared, args, partial);
  }
};

struct MergeTilesKernel {
  static constexpr int kThreads = 256;
  static constexpr bool kInStep = true;
  using Shared = NoShared;
  PackedProductArgs args;
  const float* partial;
  int slices;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared&) const {
    MergeTilesBody(block, args, partial, slices);
  }
};

template <class T, bool kInt4>
struct UnpackKernel {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  PackedWeights weight;
  void* out;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared&) const {
    UnpackBody<T, kInt4>(block, weight, out);
  }
};

struct SampleKernel {
  static constexpr int kThreads = kSampleThreads;
  using Shared = SampleShared;
  SampleArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    SampleBody(block, shared, args);
  }
};

inline int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls `go` with a zero of the element's type.
template <class Go>
void WithElement(Element element, const Go& go) {
  if (element == Element::kFloat) {
    go(float{});
  } else {
    go(BFloat16{});
  }
}

template <class Launcher>
void DispatchAddRmsNorm(const Launcher& launch, Element element, const AddRmsNormArgs& args,
                        int64_t rows) {
  WithElement(element, [&](auto zero) {
    using T = decltype(zero);
    if (args.width % 8 == 0) {
      launch(AddRmsNormKernel<T, 8>{args}, Grid{rows});
    } else {
      launch(AddRmsNormKernel<T, 1>{args}, Grid{rows});
    }
  });
}

template <class Launcher>
void DispatchRopeToCache(const Launcher& launch, Element element, const RopeToCacheArgs& args,
                         int64_t rows) {
  if (args.head_dim % 2 != 0) throw std::invalid_argument("RoPE turns pairs: odd head size");
  WithElement(element, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kThreads = RopeToCacheKernel<T, 8>::kThreads;
    const int64_t pairs = (args.num_heads + 2 * args.num_kv_heads) * args.head_dim / 2;
    if (args.head_dim % 16 == 0) {
      launch(RopeToCacheKernel<T, 8>{args}, Grid{rows, CeilDivide(pairs / 8, kThreads)});
    } else {
      launch(RopeToCacheKernel<T, 1>{args}, Grid{rows, CeilDivide(pairs, kThreads)});
    }
  });
}

template <class Launcher>
void DispatchSwiGlu(const Launcher& launch, Element element, const SwiGluArgs& args, int64_t rows) {
  WithElement(element, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kThreads = SwiGluKernel<T, 8>::kThreads;
    if (args.width % 8 == 0) {
      launch(SwiGluKernel<T, 8>{args}, Grid{rows, CeilDivide(args.width / 8, kThreads)});
    } else {
      launch(SwiGluKernel<T, 1>{args}, Grid{rows, CeilDivide(args.width, kThreads)});
    }
  });
}

template <class Launcher>
void DispatchQuickGelu(const Launcher& launch, Element element, const QuickGeluArgs& args) {
  WithElement(element, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kThreads = QuickGeluKernel<T, 8>::kThreads;
    if (args.count % 8 == 0) {
      launch(QuickGeluKernel<T, 8>{args}, Grid{CeilDivide(args.count, 8 * kThreads)});
    } else {
      launch(QuickGeluKernel<T, 1>{args}, Grid{CeilDivide(args.count, kThreads)});
    }
  });
}

inline bool CanAttend(int64_t head_dim) {
  return head_dim > 0 &&
         ((head_dim % 8 == 0 && head_dim <= 256) || (head_dim % 2 == 0 && head_dim <= 64));
}

template <class Launcher>
void DispatchPagedAttention(const Launcher& launch, Element element, const PagedAttentionArgs& args,
                            int64_t sequences) {
  if (!CanAttend(args.head_dim) || args.num_heads % args.num_kv_heads != 0) {
    throw std::invalid_argument("no paged attention for " + std::to_string(args.num_heads) +
                                " heads of " + std::to_string(args.head_dim) + " over " +
                                std::to_string(args.num_kv_heads));
  }
  const int64_t group = args.num_heads / args.num_kv_heads;
  const auto split = [&]<class T, int V, int kLanes>() {
    const int64_t most = group == 1 ? 1 : 4;
    const Grid grid{args.num_kv_heads * CeilDivide(group, most), args.splits, sequences};
    const int64_t blocks = grid.x * grid.y * grid.z, few = 512;
    const auto with_threads = [&]<int kThreads>() {
      if (group == 1) {
        launch(AttendSplitKernel<T, V, kLanes, 1, kThreads>{args, blocks <= few}, grid);
      } else {
        launch(AttendSplitKernel<T, V, kLanes, 4, kThreads>{args, blocks <= few}, grid);
      }
    };
    // Few blocks have to be fast each; many have to be small. Two full ones on a multiprocessor
    // leave no registers to a product that reads ahead (those of grouped heads never do).
    const bool leave_room = args.beside_streams && group == 1;
    if (blocks <= (leave_room ? launch.Multiprocessors() : few)) {
      with_threads.template operator()<kSplitThreads>();
    } else {
      with_threads.template operator()<kSplitThreads / 2>();
    }
  };
  WithElement(element, [&](auto zero) {
    using T = decltype(zero);
    if (args.head_dim % 8 != 0) {
      split.template operator()<T, 2, 32>();
    } else if (args.head_dim <= 64) {
      split.template operator()<T, 8, 8>();
    } else if (args.head_dim <= 128) {
      split.template operator()<T, 8, 16>();
    } else {
      split.template operator()<T, 8, 32>();
    }
    launch(MergeSplitsKernel<T>{args}, Grid{args.num_heads, sequences});
  });
}

template <class Launcher>
void DispatchRowProduct(const Launcher& launch, const RowProductArgs& args) {
  if (args.rows < 1 || args.depth < 1 || args.depth > kRowMostDepth || args.depth % 8 != 0 ||
      (args.gated && args.rows % 2 != 0)) {
    throw std::invalid_argument("no product of a row with " + std::to_string(args.rows) + " of " +
                                std::to_string(args.depth));
  }
  const int64_t blocks = CeilDivide(args.rows, kRowPair * (kRowThreads / kWarpLanes));
  launch(RowProductKernel{args}, Grid{std::min<int64_t>(blocks, launch.Multiprocessors())});
}

inline void CheckPacked(const PackedWeights& weight) {
  if (weight.rows < 1 || weight.depth < 1 ||
      (weight.group != 32 && weight.group != 64 && weight.group != 128)) {
    throw std::invalid_argument("no packed weights of " + std::to_string(weight.rows) + " x " +
                                std::to_string(weight.depth) + " in groups of " +
                                std::to_string(weight.group));
  }
}

inline void CheckProduct(const PackedProductArgs& args) {
  const PackedWeights& weight = args.weight;
  CheckPacked(weight);
  if (args.rows < 1 || args.rows > kPackedRows || weight.depth % 8 != 0 ||
      (args.gated && weight.rows % (2 * kPanelRows) != 0)) {
    throw std::invalid_argument("no product of " + std::to_string(args.rows) + " rows of " +
                                std::to_string(weight.depth) + " with " +
                                std::to_string(weight.rows) + " packed ones");
  }
}

// Into how many slices the depth is cut: such that blocks come in full waves of what a large GPU
// holds, but neither short slices nor many sums are left to merge.
inline int TileSlices(const PackedWeights& weight) {
  constexpr int64_t kWave = 2 * 132, kMostBlocks = 2 * kWave, kLeastStages = 4, kMostSlices = 8;
  const int64_t tiles = CeilDivide(weight.rows, kTilePanels * kPanelRows);
  const int64_t stages = CeilDivide(weight.depth, kStageDepth);
  const auto waves = [&](int64_t slices) { return CeilDivide(tiles * slices, kWave); };
  int64_t best = 1;
  for (int64_t slices = 2; slices <= kMostSlices; ++slices) {
    if (tiles * slices > kMostBlocks || stages < kLeastStages * slices) break;
    if (waves(slices) * best < waves(best) * slices) best = slices;
  }
  return static_cast<int>(best);
}

template <class Launcher>
void DispatchPackedTiles(const Launcher& launch, const PackedProductArgs& args, float* partial) {
  CheckProduct(args);
  const int slices = TileSlices(args.weight);
  const Grid grid{CeilDivide(args.weight.rows, kTilePanels * kPanelRows), slices};
  const auto multiply = [&]<bool kInt4>() {
    if (args.rows <= 32) {
      launch(PackedTilesKernel<kInt4, 4>{args, partial}, grid);
    } else {
      launch(PackedTilesKernel<kInt4, 8>{args, partial}, grid);
    }
  };
  if (args.weight.int4) {
    multiply.template operator()<true>();
  } else {
    multiply.template operator()<false>();
  }
  const int64_t width = args.gated ? args.weight.rows / 2 : args.weight.rows;
  launch(MergeTilesKernel{args, partial, slices},
         Grid{args.rows, CeilDivide(width, MergeTilesKernel::kThreads)});
}

template <class Launcher>
void DispatchPackedProduct(const Launcher& launch, const PackedProductArgs& args) {
  const PackedWeights& weight = args.weight;
  CheckProduct(args);
  const int64_t panels = CeilDivide(weight.rows, kPanelRows);
  const auto multiply = [&]<bool kInt4, int kUnit, int kTiles>() {
    const int64_t parts = CeilDivide(args.rows, 8 * kTiles);
    // Two panels a block read the rows of x once for both: where these are many, and there are
    // blocks enough.
    if (args.gated || (kTiles >= 4 && panels >= 256)) {
      launch(PackedProductKernel<kInt4, kUnit, kTiles, 2>{args},
             Grid{CeilDivide(panels, 2) * parts});
      return;
    }
    if constexpr (kTiles <= 2) {
      // Few blocks with much to do: each takes the room of two.
      if (panels <= kFewPanels && weight.depth >= 8192) {
        launch(PackedProductKernel<kInt4, kUnit, kTiles, 1, 512>{args}, Grid{panels});
        return;
      }
    }
    launch(PackedProductKernel<kInt4, kUnit, kTiles, 1>{args}, Grid{panels * parts});
  };
  const auto of_few = [&]<bool kInt4, int kUnit>() {
    if (args.rows <= 8) {
      multiply.template operator()<kInt4, kUnit, 1>();
    } else {
      multiply.template operator()<kInt4, kUnit, 2>();
    }
  };
  const auto of_many = [&]<bool kInt4>() {
    multiply.template operator()<kInt4, kInt4 ? 1 : 2, 4>();
  };
  const bool few = args.rows <= 16;
  if (weight.int4) {
    if (!few) return of_many.template operator()<true>();
    if (weight.group > 32) return of_few.template operator()<true, 2>();
    of_few.template operator()<true, 1>();
  } else {
    if (!few) return of_many.template operator()<false>();
    of_few.template operator()<false, 2>();
  }
}

inline bool CanStream(const PackedProductArgs& args) {
  return args.rows <= kPackedStreamRows && (!args.weight.int4 || args.weight.group > 32);
}

// Whether the panels of a product that has some for all multiprocessors, but not the same number,
// leave few of them idle in the end.
inline bool StreamsEvenly(const PackedProductArgs& args, int64_t multiprocessors) {
  const int64_t panels = CeilDivide(args.weight.rows, kPanelRows) / (args.gated ? 2 : 1);
  const int64_t turns = CeilDivide(panels, multiprocessors);
  return turns == 1 || 4 * panels >= 3 * turns * multiprocessors;
}

template <class Launcher>
void DispatchPackedStream(const Launcher& launch, const PackedProductArgs& args) {
  CheckProduct(args);
  if (!CanStream(args)) {
    throw std::invalid_argument("no streamed product of " + std::to_string(args.rows) +
                                " rows with groups of " + std::to_string(args.weight.group));
  }
  const int64_t panels = CeilDivide(args.weight.rows, kPanelRows);
  const Grid grid{std::min<int64_t>(args.gated ? panels / 2 : panels, launch.Multiprocessors())};
  const auto multiply = [&]<bool kInt4>() {
    if (args.gated) {
      launch(PackedStreamKernel<kInt4, true>{args}, grid);
    } else {
      launch(PackedStreamKernel<kInt4, false>{args}, grid);
    }
  };
  if (args.weight.int4) {
    multiply.template operator()<true>();
  } else {
    multiply.template operator()<false>();
  }
}

template <class Launcher>
void DispatchUnpack(const Launcher& launch, Element element, const PackedWeights& weight,
                    void* out) {
  CheckPacked(weight);
  const Grid grid{CeilDivide(weight.rows, kPanelRows), CeilDivide(weight.depth, kUnpackDepth)};
  WithElement(element, [&](auto zero) {
    using T = decltype(zero);
    if (weight.int4) {
      launch(UnpackKernel<T, true>{weight, out}, grid);
    } else {
      launch(UnpackKernel<T, false>{weight, out}, grid);
    }
  });
}

template <class Launcher>
void DispatchSample(const Launcher& launch, const SampleArgs& args, int64_t count) {
  if (args.width < 1) throw std::invalid_argument("no token to choose among none");
  launch(SampleKernel{args}, Grid{count});
}

}  // namespace llava::cuda
