#include "model/ops/cpu/paged_attention.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

namespace llava::ops::cpu {
namespace {

// Rows (tokens times query heads of a key/value head) of a piece: enough to widen keys and values
// for, few enough to stay in the second cache with a range of those.
constexpr int64_t kPieceRows = 256;
// A piece with more than one task's due has its ranges shared out.
constexpr int64_t kTasksPerThread = 4;
// Elements to write, and products to sum, that are not worth waking anybody.
constexpr int64_t kWriteAlone = 16 << 10;
constexpr int64_t kAttendAlone = 256 << 10;

int64_t SumsLine(int64_t head_dim) { return CeilDivide(head_dim, 16) * 16 + 16; }

void Check(const PagedAttention::Call& call) {
  const auto refuse = [](const std::string& why) {
    throw std::invalid_argument("paged attention: " + why);
  };
  if (call.layout == nullptr) refuse("no layout");
  const KvLayout& layout = *call.layout;
  if (call.heads < 1 || call.heads % layout.kv_heads != 0) {
    refuse(std::to_string(call.heads) + " query heads share " + std::to_string(layout.kv_heads) +
           " of keys and values");
  }
  int64_t rows = 0;
  for (const PagedSequence& sequence : call.sequences) {
    if (sequence.rows < 0 || sequence.computed < 0) {
      refuse("a sequence of " + std::to_string(sequence.rows) + " rows behind " +
             std::to_string(sequence.computed));
    }
    if (sequence.rows > 0 && sequence.blocks == nullptr) refuse("a sequence without blocks");
    rows += sequence.rows;
  }
  if (rows == 0) return;
  if (call.block_stride < layout.block_bytes || call.block_stride % alignof(float) != 0) {
    refuse("blocks of " + std::to_string(layout.block_bytes) + " bytes every " +
           std::to_string(call.block_stride));
  }
  if (call.layer == nullptr || call.q == nullptr || call.k == nullptr || call.v == nullptr ||
      call.cosine == nullptr || call.sine == nullptr || call.out == nullptr) {
    refuse("no data");
  }
  const int64_t width = call.heads * layout.head_dim;
  if (rows > 1 && (call.stride < width || call.out_stride < width)) {
    refuse("rows of " + std::to_string(width) + " elements every " + std::to_string(call.stride) +
           " and " + std::to_string(call.out_stride));
  }
}

}  // namespace

KvLayout::KvLayout(KvElement element, int64_t kv_heads, int64_t head_dim)
    : element(element), kv_heads(kv_heads), head_dim(head_dim) {
  constexpr int64_t kLeastHeadDim = 16;
  if (kv_heads < 1) throw std::invalid_argument(std::to_string(kv_heads) + " key/value heads");
  if (head_dim < kLeastHeadDim || head_dim > kMostHeadDim || head_dim % 2 != 0) {
    throw std::invalid_argument("heads of size " + std::to_string(head_dim) +
                                ": it must be even and within 16 and 256");
  }
  const int64_t values = 2 * kBlockTokens * head_dim;
  switch (element) {
    case KvElement::kFloat:
      head_bytes = values * 4;
      break;
    case KvElement::kBFloat16:
      head_bytes = values * 2;
      break;
    case KvElement::kInt8:
      head_bytes = values + 2 * kBlockTokens * static_cast<int64_t>(sizeof(float));
      break;
    default:
      throw std::invalid_argument("unknown element of keys and values");
  }
  block_bytes = kv_heads * head_bytes;
}

PagedAttention::PagedAttention(ThreadPool& pool, const Kernels& kernels)
    : pool_(pool), kernels_(kernels), scratch_(pool.threads()) {}

void PagedAttention::Run(const Call& call) {
  Check(call);
  Plan(call);
  Write(call);
  Attend(call);
}

void PagedAttention::Plan(const Call& call) {
  const int64_t kv_heads = call.layout->kv_heads, group = call.heads / kv_heads;
  const int64_t most = std::max<int64_t>(1, kPieceRows / group);
  pieces_.clear();
  tasks_.clear();
  int64_t row = 0, seen = 0;
  const auto work = [](const Piece& piece) {
    return piece.tokens * (piece.position + piece.tokens);
  };
  for (const PagedSequence& sequence : call.sequences) {
    for (int64_t first = 0; first < sequence.rows; first += most) {
      const int64_t tokens = std::min(most, sequence.rows - first);
      const int64_t position = sequence.computed + first;
      pieces_.push_back({&sequence, row + first, position, tokens,
                         CeilDivide(position + tokens, kRangeTokens), false});
      seen += work(pieces_.back());
    }
    row += sequence.rows;
  }
  operations_ = 2 * call.heads * call.layout->head_dim * seen;

  int64_t floats = 0;
  // The last piece of a sequence sees most: it comes first.
  for (int64_t i = static_cast<int64_t>(pieces_.size()) - 1; i >= 0; --i) {
    Piece& piece = pieces_[i];
    piece.shared = pool_.threads() > 1 && piece.ranges > 1 &&
                   work(piece) * kTasksPerThread * pool_.threads() > seen * kv_heads;
    if (!piece.shared) {
      tasks_.push_back({i, 0, piece.ranges});
      continue;
    }
    for (int64_t range = 0; range < piece.ranges; ++range) tasks_.push_back({i, range, 1});
    piece.sums = floats;
    floats += kv_heads * piece.ranges * piece.tokens * group * SumsLine(call.layout->head_dim);
  }
  sums_.Get(floats * 4);
  left_.clear();
  for (const Piece& piece : pieces_) {
    left_.insert(left_.end(), kv_heads, piece.shared ? static_cast<int32_t>(piece.ranges) : 1);
  }
}

void PagedAttention::Write(const Call& call) {
  const auto write = [&](int64_t index, int) {
    const Piece& piece = pieces_[index];
    WriteKvTask task;
    task.blocks = {call.layout, call.layer, call.block_stride, piece.sequence->blocks};
    task.tokens = {piece.position, piece.tokens, call.cosine, call.sine};
    task.k = call.k + piece.row * call.stride;
    task.v = call.v + piece.row * call.stride;
    task.stride = call.stride;
    kernels_.write_kv(task);
  };
  const int64_t pieces = static_cast<int64_t>(pieces_.size());
  int64_t tokens = 0;
  for (const Piece& piece : pieces_) tokens += piece.tokens;
  if (2 * tokens * call.layout->kv_heads * call.layout->head_dim <= kWriteAlone) {
    for (int64_t i = 0; i < pieces; ++i) write(i, 0);
  } else {
    pool_.Run(pieces, write);
  }
}

void PagedAttention::Attend(const Call& call) {
  const int64_t kv_heads = call.layout->kv_heads;
  const int64_t tasks = static_cast<int64_t>(tasks_.size()) * kv_heads;
  const auto attend = [&](int64_t index, int worker) {
    Attend(call, tasks_[index / kv_heads], index % kv_heads, worker);
  };
  if (operations_ <= kAttendAlone) {
    for (int64_t i = 0; i < tasks; ++i) attend(i, 0);
  } else {
    pool_.Run(tasks, attend);
  }
}

void PagedAttention::Attend(const Call& call, const Task& task, int64_t kv_head, int worker) {
  const KvLayout& layout = *call.layout;
  const Piece& piece = pieces_[task.piece];
  const int64_t group = call.heads / layout.kv_heads, rows = piece.tokens * group;
  const int64_t part = rows * SumsLine(layout.head_dim);  // sums of a range
  const int64_t scratch = kernels_.attend_scratch(layout, rows);
  float* const own =
      reinterpret_cast<float*>(scratch_[worker].Get((scratch + (piece.shared ? 0 : part)) * 4));
  float* const sums = piece.shared ? reinterpret_cast<float*>(sums_.Get(0)) + piece.sums +
                                         kv_head * piece.ranges * part
                                   : own + scratch;
  const int64_t column = kv_head * group * layout.head_dim;

  AttendTask attend;
  attend.blocks = {call.layout, call.layer, call.block_stride, piece.sequence->blocks};
  attend.tokens = {piece.position, piece.tokens, call.cosine, call.sine};
  attend.kv_head = kv_head;
  attend.group = group;
  attend.q = call.q + piece.row * call.stride + column;
  attend.stride = call.stride;
  attend.first_range = task.first_range;
  attend.ranges = task.ranges;
  attend.sums = sums + task.first_range * part;
  attend.scratch = own;
  kernels_.attend(attend);
  // Who is last has all sums.
  std::atomic_ref<int32_t> left(left_[task.piece * layout.kv_heads + kv_head]);
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;

  FinishAttendTask finish;
  finish.head_dim = layout.head_dim;
  finish.position = piece.position;
  finish.tokens = piece.tokens;
  finish.group = group;
  finish.parts = piece.shared ? piece.ranges : 1;
  finish.sums = sums;
  finish.part_stride = part;
  finish.out = call.out + piece.row * call.out_stride + column;
  finish.stride = call.out_stride;
  kernels_.finish_attend(finish);
}

}  // namespace llava::ops::cpu
