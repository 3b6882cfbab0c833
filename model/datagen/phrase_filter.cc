#include "model/datagen/phrase_filter.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "model/data/scenes/random.h"
#include "model/data/scenes/stream_name.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kDraw = 301;  // purpose of random numbers
constexpr size_t kMostFrequent = 20;

}  // namespace

void PhraseIndex::Add(const std::vector<std::string>& phrases) {
  const auto caption = static_cast<uint32_t>(num_captions_++);
  if (phrases.empty()) ++without_phrase_;
  for (const std::string& phrase : phrases) {
    const auto [place, fresh] = numbers_.emplace(phrase, static_cast<uint32_t>(captions_.size()));
    if (fresh) {
      phrases_.push_back(&place->first);
      captions_.emplace_back();
    }
    std::vector<uint32_t>& list = captions_[place->second];
    if (list.empty() || list.back() != caption) list.push_back(caption);
  }
}

std::vector<uint32_t> PhraseIndex::Choose(const Rules& rules) const {
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < captions_.size(); ++i) {
    if (captions_[i].size() >= rules.min_frequency) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    if (captions_[a].size() != captions_[b].size())
      return captions_[a].size() < captions_[b].size();
    return *phrases_[a] < *phrases_[b];
  });
  std::vector<bool> pool(num_captions_);
  for (const uint32_t phrase : order) {
    const std::vector<uint32_t>& captions = captions_[phrase];
    if (captions.size() <= rules.cap) {
      for (const uint32_t caption : captions) pool[caption] = true;
      continue;
    }
    // The first `cap` of a shuffled list.
    std::vector<uint32_t> drawn = captions;
    Random random(rules.seed, StreamNamed(*phrases_[phrase]), kDraw);
    for (uint64_t i = 0; i < rules.cap; ++i) {
      const auto left = static_cast<uint32_t>(drawn.size() - i);
      std::swap(drawn[i], drawn[i + random.Below(left)]);
      pool[drawn[i]] = true;
    }
  }
  std::vector<uint32_t> chosen;
  for (uint32_t i = 0; i < pool.size(); ++i) {
    if (pool[i]) chosen.push_back(i);
  }
  return chosen;
}

Json PhraseIndex::Statistics(const Rules& rules) const {
  std::vector<uint32_t> frequencies;
  for (const auto& captions : captions_) {
    frequencies.push_back(static_cast<uint32_t>(captions.size()));
  }
  return Tell(rules, num_captions_, without_phrase_, frequencies);
}

Json PhraseIndex::Statistics(const Rules& rules, const std::vector<uint32_t>& chosen) const {
  std::vector<bool> pool(num_captions_);
  for (const uint32_t caption : chosen) pool[caption] = true;
  std::vector<uint32_t> frequencies;
  for (const auto& captions : captions_) {
    frequencies.push_back(static_cast<uint32_t>(std::count_if(
        captions.begin(), captions.end(), [&](uint32_t caption) { return pool[caption]; })));
  }
  return Tell(rules, chosen.size(), 0, frequencies);  // a chosen caption has a phrase
}

Json PhraseIndex::Tell(const Rules& rules, uint64_t captions, uint64_t without,
                       const std::vector<uint32_t>& frequencies) const {
  constexpr std::array<std::pair<const char*, uint64_t>, 6> kRanges = {
      {{"1", 2}, {"2", 3}, {"3-9", 10}, {"10-99", 100}, {"100-999", 1000}, {"1000+", UINT64_MAX}}};
  uint64_t unique = 0, frequent = 0, over = 0;
  std::array<uint64_t, kRanges.size()> counts{};
  for (const uint64_t frequency : frequencies) {
    if (frequency == 0) continue;
    ++unique;
    frequent += frequency >= rules.min_frequency;
    over += frequency > rules.cap;
    size_t range = 0;
    while (frequency >= kRanges[range].second) ++range;
    ++counts[range];
  }
  Json by_range = Json::object();
  for (size_t i = 0; i < kRanges.size(); ++i) by_range[kRanges[i].first] = counts[i];
  std::vector<uint32_t> order(frequencies.size());
  std::iota(order.begin(), order.end(), 0u);
  const size_t most = std::min(kMostFrequent, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(most), order.end(),
                    [&](uint32_t a, uint32_t b) {
                      if (frequencies[a] != frequencies[b]) return frequencies[a] > frequencies[b];
                      return *phrases_[a] < *phrases_[b];
                    });
  Json most_frequent = Json::array();
  for (size_t i = 0; i < most; ++i) {
    if (frequencies[order[i]] == 0) break;
    most_frequent.push_back({*phrases_[order[i]], frequencies[order[i]]});
  }
  return {{"captions", captions},
          {"without_phrase", without},
          {"phrases", unique},
          {"frequent_phrases", frequent},
          {"phrases_over_cap", over},
          {"mentions", std::accumulate(frequencies.begin(), frequencies.end(), uint64_t{0})},
          {"frequency", by_range},
          {"most_frequent", most_frequent}};
}

}  // namespace llava
