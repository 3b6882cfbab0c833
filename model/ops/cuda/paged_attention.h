#pragma once

// Bodies of attention for one query a sequence over paged keys and values. See block.h.
//
// The tokens of a sequence are cut at multiples of kSplitTokens, whatever the batch; a block works
// on one stretch and the heads that share one key/value head, and a second kernel merges the
// stretches in order. So a result depends on its own sequence alone, to the bit.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"

namespace llava::cuda {

inline constexpr int kSplitBlocks = kSplitTokens / kBlockTokens;
inline constexpr float kLowest = -__builtin_huge_valf();

// Threads that share a stretch; a block of half as many takes the parts of all in two passes.
inline constexpr int kSplitThreads = 256;

// kLanes threads make a team, which reads one token at a time, V values a thread.
template <int V, int kLanes, int kGroup>
struct SplitShared {
  static constexpr int kTeams = kSplitThreads / kLanes;
  int32_t blocks[kSplitBlocks];
  float highest[kTeams][kGroup], sum[kTeams][kGroup];
  float weighted[kTeams][kGroup][kLanes * V];
};

// Grid (key/value heads x groups of at most kGroup heads, stretches, sequences). head_dim: a
// multiple of V, at most kLanes * V. The result is the same for either number of threads.
// `fetches`, as every full block does: it asks for the keys and values of its stretch before the
// kernels ahead have ended; those of all tokens but the newest lie there long since.
template <class T, int V, int kLanes, int kGroup, class Block>
LLAVA_DEVICE void AttendSplitBody(Block& block, SplitShared<V, kLanes, kGroup>& shared,
                                  const PagedAttentionArgs& args, bool fetches) {
  constexpr int kTeams = kSplitThreads / kLanes;
  constexpr int kOwnTeams = Block::kThreads / kLanes;  // of a pass
  constexpr int kPasses = kTeams / kOwnTeams;
  constexpr int kUnroll = 4;  // tokens of a team whose loads are under way together
  const int begin = block.y() * kSplitTokens;
  const int length = args.lengths[block.z()];
  if (begin >= length) {  // never of the first stretch
    block.LeaveIdle();
    return;
  }
  const int end = begin + kSplitTokens < length ? begin + kSplitTokens : length;

  const int shared_by = args.num_heads / args.num_kv_heads;
  const int groups = (shared_by + kGroup - 1) / kGroup;
  const int kv_head = block.x() / groups;
  const int in_group = block.x() % groups * kGroup;  // first of ours among those of the kv head
  const int first_head = kv_head * shared_by + in_group;
  const int heads = shared_by - in_group < kGroup ? shared_by - in_group : kGroup;
  const int64_t row = args.rows[block.z()];
  const T* const q = static_cast<const T*>(args.q) + row * args.q_stride +
                     static_cast<int64_t>(first_head) * args.head_dim;
  const T* const k_cache = static_cast<const T*>(args.k_cache) + kv_head * args.head_dim;
  const T* const v_cache = static_cast<const T*>(args.v_cache) + kv_head * args.head_dim;
  const int64_t token_stride = static_cast<int64_t>(args.num_kv_heads) * args.head_dim;

  struct State {
    float q[kGroup][V], weighted[kGroup][V];
    float highest[kGroup], sum[kGroup];
  };
  const auto place = [&](int token) {
    const int64_t slot =
        static_cast<int64_t>(shared.blocks[(token - begin) / kBlockTokens]) * kBlockTokens +
        token % kBlockTokens;
    return slot * token_stride;
  };
  typename Block::template PerThread<State> states;
  block.Each([&](int thread) {
    if (thread < kSplitBlocks && begin + thread * kBlockTokens < end) {
      shared.blocks[thread] = args.tables[static_cast<int64_t>(block.z()) * args.table_stride +
                                          begin / kBlockTokens + thread];
    }
  });
  block.Sync();
  if (kPasses == 1 || fetches) {
    block.Each([&](int thread) {
      constexpr int kLine = static_cast<int>(128 / sizeof(T));
      const int lines = (args.head_dim + kLine - 1) / kLine;
      for (int item = thread; item < (end - begin) * lines; item += Block::kThreads) {
        const int64_t from = place(begin + item / lines) + item % lines * kLine;
        PrefetchLine(k_cache + from);
        PrefetchLine(v_cache + from);
      }
    });
  }
  block.AwaitEarlier();
  block.Each([&](int thread) {
    State& state = states[thread];
    const int i = thread % kLanes * V;
    LLAVA_UNROLL
    for (int g = 0; g < kGroup; ++g) {
      Vector<T, V> from = {};
      if (g < heads && i < args.head_dim) from = Load<V>(q + g * args.head_dim + i);
      // Scores in base 2.
      LLAVA_UNROLL
      for (int j = 0; j < V; ++j) {
        state.q[g][j] = ToFloat(from[j]) * args.scale * 1.44269504088896341f;
      }
    }
  });

  // A step of a pass takes kUnroll tokens for each of its teams, while the next loads.
  constexpr int kSteps = kSplitTokens / (kTeams * kUnroll);
  static_assert(kSteps * kTeams * kUnroll == kSplitTokens);
  const auto team_of = [&](int thread, int step) {
    return step / kSteps * kOwnTeams + thread / kLanes;
  };
  const auto token_of = [&](int thread, int step, int u) {
    return begin + (step % kSteps * kUnroll + u) * kTeams + team_of(thread, step);
  };
  struct Tokens {
    Vector<T, V> keys[kUnroll], values[kUnroll];
  };
  const auto load = [&](int thread, int step, Tokens& tokens) {
    const int i = thread % kLanes * V;
    LLAVA_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int token = token_of(thread, step, u);
      tokens.keys[u] = {};
      tokens.values[u] = {};
      if (token < end && i < args.head_dim) {
        const int64_t from = place(token) + i;
        tokens.keys[u] = LoadOnce<V>(k_cache + from);
        tokens.values[u] = LoadOnce<V>(v_cache + from);
      }
    }
  };
  typename Block::template PerThread<Tokens> now, next;
  block.Each([&](int thread) { load(thread, 0, now[thread]); });
  for (int step = 0; step < kPasses * kSteps; ++step) {
    typename Block::template PerThread<Array<float, kUnroll * kGroup>> scores;
    block.Each([&](int thread) {
      if (step + 1 < kPasses * kSteps) load(thread, step + 1, next[thread]);
      State& state = states[thread];
      LLAVA_UNROLL
      for (int g = 0; g < kGroup; ++g) {
        if (step % kSteps == 0) {
          state.highest[g] = kLowest;
          state.sum[g] = 0;
          LLAVA_UNROLL
          for (int j = 0; j < V; ++j) state.weighted[g][j] = 0;
        }
        LLAVA_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
          float score = 0;
          LLAVA_UNROLL
          for (int j = 0; j < V; ++j) score += state.q[g][j] * ToFloat(now[thread].keys[u][j]);
          scores[thread][u * kGroup + g] = score;
        }
      }
    });
    block.template Sum<kLanes>(scores);
    block.Each([&](int thread) {
      State& state = states[thread];
      // Its first token decides: without one the team has nothing to add, now or later.
      if (token_of(thread, step, 0) < end) {
        LLAVA_UNROLL
        for (int g = 0; g < kGroup; ++g) {
          float highest = state.highest[g];
          LLAVA_UNROLL
          for (int u = 0; u < kUnroll; ++u) {
            const bool seen = token_of(thread, step, u) < end;
            if (seen) highest = fmaxf(highest, scores[thread][u * kGroup + g]);
          }
          const float shrink = Exp2(state.highest[g] - highest);
          state.highest[g] = highest;
          state.sum[g] *= shrink;
          LLAVA_UNROLL
          for (int j = 0; j < V; ++j) state.weighted[g][j] *= shrink;
          LLAVA_UNROLL
          for (int u = 0; u < kUnroll; ++u) {
            const bool seen = token_of(thread, step, u) < end;
            const float weight = seen ? Exp2(scores[thread][u * kGroup + g] - highest) : 0.0f;
            state.sum[g] += weight;
            LLAVA_UNROLL
            for (int j = 0; j < V; ++j) {
              state.weighted[g][j] += weight * ToFloat(now[thread].values[u][j]);
            }
          }
        }
      }
      if (step % kSteps == kSteps - 1) {
        const int team = team_of(thread, step), lane = thread % kLanes;
        LLAVA_UNROLL
        for (int g = 0; g < kGroup; ++g) {
          if (lane == 0) {
            shared.highest[team][g] = state.highest[g];
            shared.sum[team][g] = state.sum[g];
          }
          LLAVA_UNROLL
          for (int j = 0; j < V; ++j) shared.weighted[team][g][lane * V + j] = state.weighted[g][j];
        }
      }
      now[thread] = next[thread];
    });
  }
  block.Sync();
  block.Each([&](int thread) {
    for (int item = thread; item < heads * args.head_dim; item += Block::kThreads) {
      const int g = item / args.head_dim, d = item % args.head_dim;
      float highest = kLowest;
      for (int team = 0; team < kTeams; ++team) highest = fmaxf(highest, shared.highest[team][g]);
      float sum = 0, weighted = 0;
      for (int team = 0; team < kTeams; ++team) {
        const float factor = Exp2(shared.highest[team][g] - highest);
        sum += factor * shared.sum[team][g];
        weighted += factor * shared.weighted[team][g][d];
      }
      const int64_t head = static_cast<int64_t>(block.z()) * args.num_heads + first_head + g;
      float* const to = args.partial + (head * args.splits + block.y()) * (args.head_dim + 2);
      to[d] = weighted;
      if (d == 0) {
        to[args.head_dim] = highest;
        to[args.head_dim + 1] = sum;
      }
    }
  });
}

// Grid (heads, sequences).
template <class T, class Block>
LLAVA_DEVICE void MergeSplitsBody(Block& block, const PagedAttentionArgs& args) {
  const int splits = (args.lengths[block.y()] + kSplitTokens - 1) / kSplitTokens;
  const int64_t head = static_cast<int64_t>(block.y()) * args.num_heads + block.x();
  const int stride = args.head_dim + 2;
  const float* const partial = args.partial + head * args.splits * stride;
  T* const out =
      static_cast<T*>(args.out) +
      (static_cast<int64_t>(args.rows[block.y()]) * args.num_heads + block.x()) * args.head_dim;
  block.AwaitEarlier();
  block.Each([&](int thread) {
    for (int d = thread; d < args.head_dim; d += Block::kThreads) {
      float highest = kLowest;
      for (int s = 0; s < splits; ++s) {
        highest = fmaxf(highest, partial[s * stride + args.head_dim]);
      }
      float sum = 0, weighted = 0;
      for (int s = 0; s < splits; ++s) {
        const float factor = Exp2(partial[s * stride + args.head_dim] - highest);
        sum += factor * partial[s * stride + args.head_dim + 1];
        weighted += factor * partial[s * stride + d];
      }
      out[d] = FromFloat<T>(weighted / sum);
    }
  });
}

}  // namespace llava::cuda
