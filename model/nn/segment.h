#pragma once

#include <cstdint>
#include <vector>

#include "model/nn/kv_cache.h"

namespace llava {

// One sequence's part of a ragged batch.
struct Segment {
  int64_t tokens = 0;  // rows of this sequence in the batch, at least 1
  // Earlier tokens, extended by this call; null: none (training, scoring). A cache stands in at
  // most one segment of a batch.
  KvCache* cache = nullptr;
  // Without a cache: independent continuations of a shared beginning, as many dialogues about one
  // picture. The first `shared` tokens, then branches of these lengths (in all `tokens`); each sees
  // the shared tokens and itself, and its positions go on from the shared ones: the same as so many
  // sequences, without computing the beginning anew. No branches: one plain sequence.
  int64_t shared = 0;
  std::vector<int64_t> branches = {};
};

}  // namespace llava
