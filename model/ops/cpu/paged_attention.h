#pragma once

// Attention of a step of the serving engine, over keys and values that lie in blocks.
//
// Shapes: T new tokens of all sequences, H query heads, Hkv key/value heads, Dh their size.

#include <cstdint>
#include <span>
#include <vector>

#include "model/ops/cpu/paged.h"
#include "model/ops/cpu/scratch.h"
#include "model/ops/cpu/thread_pool.h"

namespace llava::ops::cpu {

// One sequence of a step.
struct PagedSequence {
  int64_t rows = 0;      // new tokens: rows of the batch, behind those of the sequence before
  int64_t computed = 0;  // tokens that its blocks hold already
  const int32_t* blocks = nullptr;  // its block table, room for computed + rows
};

// Causal self-attention with rotary positions over keys and values in blocks.
//
// A row depends on the keys and values of its own sequence and on its position alone, to the bit:
// not on other sequences, nor on how its sequence was cut into steps, nor on threads. Instruction
// sets differ.
//
// Holds scratch between calls. One thread at a time; several may share a pool.
class PagedAttention {
 public:
  explicit PagedAttention(ThreadPool& pool, const Kernels& kernels = Best());
  PagedAttention(const PagedAttention&) = delete;
  PagedAttention& operator=(const PagedAttention&) = delete;

  struct Call {
    const KvLayout* layout = nullptr;
    // Block b of this layer begins at layer + b * block_stride (bytes); both are multiples of 4,
    // of 64 for speed.
    uint8_t* layer = nullptr;
    int64_t block_stride = 0;
    int64_t heads = 0;  // H, a multiple of Hkv
    std::span<const PagedSequence> sequences;
    // [T, H Dh], [T, Hkv Dh] twice, not yet turned; rows `stride` floats apart.
    const float* q = nullptr;
    const float* k = nullptr;
    const float* v = nullptr;
    int64_t stride = 0;
    const float* cosine = nullptr;  // [positions, Dh / 2], by position in the sequence
    const float* sine = nullptr;
    float* out = nullptr;  // [T, H Dh], rows `out_stride` floats apart
    int64_t out_stride = 0;
  };
  // Turns the pairs (i, i + Dh/2) of q and k by their positions, writes k and v of the new tokens
  // into the blocks, attends: row r of a sequence sees its tokens [0, computed + r]. Scale Dh^-0.5,
  // softmax and sums in float32. Nothing may overlap; no two sequences write to the same block.
  // Throws std::invalid_argument when shapes do not fit, before anything is written.
  void Run(const Call& call);

 private:
  // Consecutive new tokens of a sequence.
  struct Piece {
    const PagedSequence* sequence;
    int64_t row;       // of the batch
    int64_t position;  // in the sequence
    int64_t tokens;
    int64_t ranges;    // of keys that it sees
    bool shared;       // each range is a task
    int64_t sums = 0;  // if so, where those of its first head and range begin
  };
  struct Task {
    int64_t piece, first_range, ranges;
  };
  void Plan(const Call& call);
  void Write(const Call& call);
  void Attend(const Call& call);
  void Attend(const Call& call, const Task& task, int64_t kv_head, int worker);

  ThreadPool& pool_;
  const Kernels& kernels_;
  std::vector<Piece> pieces_;
  std::vector<Task> tasks_;    // of each key/value head
  std::vector<int32_t> left_;  // of each piece and head: tasks that are not done
  int64_t operations_ = 0;     // of all tasks
  Scratch sums_;
  std::vector<Scratch> scratch_;  // of each worker
};

}  // namespace llava::ops::cpu
