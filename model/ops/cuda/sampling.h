#pragma once

// Body of the kernel that chooses the next token of a row of logits: what model/llava/sampler.h
// does on the host, without penalties. See block.h.
//
// Weights are exp((logit - largest) / temperature) in fixed point, in which sums are exact: a row
// gets the same token whatever the order of the threads. Ranks are found digit by digit of a key
// that orders logits as integers: counts of a digit's values, or their weights, tell in which of
// them the last of the best lies.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"

namespace llava::cuda {

inline constexpr int kSampleThreads = 512;
inline constexpr int kDigitBits = 11;
inline constexpr int kDigits = 1 << kDigitBits;

// Larger for larger logits; of 0 and -0 the same.
LLAVA_DEVICE uint32_t KeyOf(float logit) {
  const uint32_t bits = BitsOf(logit + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
LLAVA_DEVICE float LogitOf(uint32_t key) { return FloatOf(key >> 31 ? key & 0x7fffffffu : ~key); }

struct SampleShared {
  static constexpr int kTeams = kSampleThreads / kWarpLanes;
  uint32_t low[kDigits], high[kDigits];  // halves of a sum for each value of a digit
  uint64_t parts[kSampleThreads], teams[kTeams];
  // What the first thread tells all.
  struct Selected {
    uint32_t key;
    uint64_t before, wanted;  // sum over larger keys, sum that is to be reached
  } selected;
  uint64_t best;
  int chosen;     // thread
  uint64_t rest;  // that it has to pass over

  LLAVA_DEVICE uint64_t Sum(int value) const {
    return static_cast<uint64_t>(high[value]) << 32 | low[value];
  }
  LLAVA_DEVICE void Add(int value, uint64_t amount) {
    const auto part = static_cast<uint32_t>(amount);
    const uint32_t before = AtomicAdd(low[value], part);
    const uint32_t carry = before + part < before ? 1 : 0;
    const uint32_t upper = static_cast<uint32_t>(amount >> 32) + carry;
    if (upper > 0) AtomicAdd(high[value], upper);
  }
};

// From parts to sums over the parts of each team.
template <class Block>
LLAVA_DEVICE void SumTeams(Block& block, SampleShared& shared) {
  block.Sync();
  block.Each([&](int thread) {
    if (thread >= SampleShared::kTeams) return;
    uint64_t sum = 0;
    for (int i = 0; i < kWarpLanes; ++i) sum += shared.parts[thread * kWarpLanes + i];
    shared.teams[thread] = sum;
  });
  block.Sync();
}

// The smallest key from `least` on whose measures, with those of all larger keys, reach
// wanted_of(sum over all), which must be at most that sum.
template <class Block, class Measure, class Wanted>
LLAVA_DEVICE SampleShared::Selected Select(Block& block, SampleShared& shared, const float* logits,
                                           int width, uint32_t least, const Measure& measure,
                                           const Wanted& wanted_of) {
  constexpr int kEach = kDigits / kSampleThreads;
  for (int level = 0; level < 3; ++level) {
    const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
    const int above = level == 0 ? 32 : level == 1 ? 21 : 10;
    const uint32_t mask = level == 2 ? 1023 : kDigits - 1;
    block.Each([&](int thread) {
      if (level == 0 && thread == 0) shared.selected = {};
      for (int i = 0; i < kEach; ++i) {
        shared.low[i * kSampleThreads + thread] = shared.high[i * kSampleThreads + thread] = 0;
      }
    });
    block.Sync();
    block.Each([&](int thread) {
      const uint32_t prefix = level == 0 ? 0 : shared.selected.key >> above;
      for (int i = thread; i < width; i += kSampleThreads) {
        const uint32_t key = KeyOf(logits[i]);
        if (key < least || (level > 0 && key >> above != prefix)) continue;
        const uint64_t amount = measure(logits[i]);
        if (amount > 0) shared.Add(static_cast<int>(key >> shift & mask), amount);
      }
    });
    block.Sync();
    block.Each([&](int thread) {  // the largest values first
      uint64_t sum = 0;
      for (int i = 0; i < kEach; ++i) sum += shared.Sum(kDigits - 1 - thread * kEach - i);
      shared.parts[thread] = sum;
    });
    SumTeams(block, shared);
    block.Each([&](int thread) {
      if (thread != 0) return;
      SampleShared::Selected& selected = shared.selected;
      if (level == 0) {
        uint64_t total = 0;
        for (int i = 0; i < SampleShared::kTeams; ++i) total += shared.teams[i];
        selected.wanted = wanted_of(total);
      }
      uint64_t before = selected.before;
      int team = 0;
      for (; team < SampleShared::kTeams - 1; ++team) {
        if (before + shared.teams[team] >= selected.wanted) break;
        before += shared.teams[team];
      }
      int part = team * kWarpLanes;
      for (; part < (team + 1) * kWarpLanes - 1; ++part) {
        if (before + shared.parts[part] >= selected.wanted) break;
        before += shared.parts[part];
      }
      int value = kDigits - 1 - part * kEach;
      for (const int last = value - kEach + 1; value > last; --value) {
        if (before + shared.Sum(value) >= selected.wanted) break;
        before += shared.Sum(value);
      }
      selected.before = before;
      selected.key |= static_cast<uint32_t>(value) << shift;
    });
    block.Sync();
  }
  const SampleShared::Selected found = shared.selected;
  block.Sync();
  return found;
}

// Grid (choices).
template <class Block>
LLAVA_DEVICE void SampleBody(Block& block, SampleShared& shared, const SampleArgs& args) {
  static_assert(Block::kThreads == kSampleThreads);
  block.AwaitEarlier();
  const SampleChoice choice = args.choices[block.x()];
  const float* const logits = args.logits + static_cast<int64_t>(choice.row) * args.stride;
  const int width = args.width;

  // The best, the first of equals; all bits set: a logit is not finite.
  constexpr uint64_t kBroken = ~uint64_t{0};
  block.Each([&](int thread) {
    uint64_t best = 0;
    for (int i = thread; i < width; i += kSampleThreads) {
      const bool finite = (BitsOf(logits[i]) & 0x7f800000u) != 0x7f800000u;
      const uint64_t rank =
          static_cast<uint64_t>(KeyOf(logits[i])) << 32 | (0xffffffffu - static_cast<uint32_t>(i));
      if (!finite || rank > best) best = finite ? rank : kBroken;
    }
    shared.parts[thread] = best;
  });
  block.Sync();
  block.Each([&](int thread) {
    if (thread >= SampleShared::kTeams) return;
    uint64_t best = 0;
    for (int i = 0; i < kWarpLanes; ++i) {
      const uint64_t other = shared.parts[thread * kWarpLanes + i];
      best = other > best ? other : best;
    }
    shared.teams[thread] = best;
  });
  block.Sync();
  block.Each([&](int thread) {
    if (thread != 0) return;
    uint64_t best = 0;
    for (int i = 0; i < SampleShared::kTeams; ++i) {
      best = shared.teams[i] > best ? shared.teams[i] : best;
    }
    shared.best = best;
  });
  block.Sync();
  const uint64_t best = shared.best;
  const auto top = static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
  if (best == kBroken || choice.temperature == 0) {
    block.Each([&](int thread) {
      if (thread == 0) args.ids[block.x()] = best == kBroken ? -1 : top;
    });
    return;
  }

  const double largest = LogitOf(static_cast<uint32_t>(best >> 32));
  int bits = 62;
  while (int64_t{1} << (62 - bits) < width) --bits;  // a sum over all has room
  const auto unit = static_cast<double>(uint64_t{1} << bits);
  const auto weight_of = [&](float logit) {
    const double distance = (static_cast<double>(logit) - largest) / choice.temperature;
    return distance < -44 ? 0.0 : Exp(distance);  // below 2^-63: nothing in any unit
  };
  const auto fixed = [&](double weight) { return static_cast<uint64_t>(weight * unit + 0.5); };

  uint32_t least = 0;  // key of the last of the top_k best; its equals stay
  if (choice.top_k > 0 && choice.top_k < static_cast<uint32_t>(width)) {
    const auto one = [](float) { return uint64_t{1}; };
    least = Select(block, shared, logits, width, 0, one, [&](uint64_t) {
              return static_cast<uint64_t>(choice.top_k);
            }).key;
  }
  uint32_t limit = least;          // key of the last of the share top_p,
  uint64_t equals = ~uint64_t{0};  // of whose equals only the first so many stay
  if (choice.top_p < 1) {
    const auto measure = [&](float logit) { return fixed(weight_of(logit)); };
    const SampleShared::Selected last =
        Select(block, shared, logits, width, least, measure, [&](uint64_t total) {
          const double wanted = static_cast<double>(choice.top_p) * static_cast<double>(total);
          const auto whole = static_cast<uint64_t>(wanted);
          const uint64_t up = static_cast<double>(whole) < wanted ? whole + 1 : whole;
          return up > total ? total : up < 1 ? uint64_t{1} : up;
        });
    limit = last.key;
    const uint64_t each = measure(LogitOf(limit));
    if (each > 0) equals = (last.wanted - last.before + each - 1) / each;
  }

  // From here on a thread has neighbouring ids, so that the order of threads is that of ids.
  const int count = (width + kSampleThreads - 1) / kSampleThreads;
  typename Block::template PerThread<Array<uint64_t, 1>> equals_before;
  block.Each([&](int thread) {
    uint64_t same = 0;
    for (int i = thread * count; i < (thread + 1) * count && i < width; ++i) {
      same += KeyOf(logits[i]) == limit ? 1 : 0;
    }
    shared.parts[thread] = same;
  });
  SumTeams(block, shared);
  block.Each([&](int thread) {
    uint64_t before = 0;
    for (int i = 0; i < thread / kWarpLanes; ++i) before += shared.teams[i];
    for (int i = thread / kWarpLanes * kWarpLanes; i < thread; ++i) before += shared.parts[i];
    equals_before[thread][0] = before;
  });
  block.Sync();
  // Calls `visit` with id and weight of what the thread has of those that may be drawn, until that
  // is false.
  const auto for_kept = [&](int thread, const auto& visit) {
    uint64_t same = equals_before[thread][0];
    for (int i = thread * count; i < (thread + 1) * count && i < width; ++i) {
      const uint32_t key = KeyOf(logits[i]);
      if (key < limit || (key == limit && same++ >= equals)) continue;
      const double weight = weight_of(logits[i]);
      if (weight < static_cast<double>(choice.min_p)) continue;
      if (!visit(i, fixed(weight))) return;
    }
  };
  block.Each([&](int thread) {
    uint64_t sum = 0;
    for_kept(thread, [&](int, uint64_t weight) {
      sum += weight;
      return true;
    });
    shared.parts[thread] = sum;
  });
  SumTeams(block, shared);
  block.Each([&](int thread) {
    if (thread != 0) return;
    uint64_t total = 0;
    for (int i = 0; i < SampleShared::kTeams; ++i) total += shared.teams[i];
    auto rest = static_cast<uint64_t>(choice.uniform * static_cast<double>(total));
    if (rest >= total) rest = total - 1;
    int team = 0;
    while (team < SampleShared::kTeams - 1 && rest >= shared.teams[team]) {
      rest -= shared.teams[team++];
    }
    int part = team * kWarpLanes;
    while (part < (team + 1) * kWarpLanes - 1 && rest >= shared.parts[part]) {
      rest -= shared.parts[part++];
    }
    shared.chosen = part;
    shared.rest = rest;
  });
  block.Sync();
  block.Each([&](int thread) {
    if (thread != shared.chosen) return;
    uint64_t rest = shared.rest;
    for_kept(thread, [&](int id, uint64_t weight) {
      if (rest < weight) {
        args.ids[block.x()] = id;
        return false;
      }
      rest -= weight;
      return true;
    });
  });
}

}  // namespace llava::cuda
