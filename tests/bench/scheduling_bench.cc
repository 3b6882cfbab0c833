// What a step of the language service costs beside the model: learning what steps take, planning,
// blocks of keys and values.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "server/llm/kv_blocks.h"
#include "server/llm/scheduler.h"
#include "tests/bench/usage.h"

namespace {

constexpr char kUsage[] =
    R"(What a step of the language service costs beside the model: learning what steps take, planning,
blocks of keys and values.

  llava_scheduling_bench [SEQUENCES [TOKENS]]     default 64 answers of 256 tokens behind
                                                  prompts of 1000
)";

}  // namespace

int main(int argc, char** argv) {
  if (llava::bench::PrintedUsage(argc, argv, kUsage)) return 0;
  using llava::KvBlocks;
  const int64_t count = argc > 1 ? std::atoll(argv[1]) : 64;
  const int64_t tokens = argc > 2 ? std::atoll(argv[2]) : 256;
  constexpr int64_t kPrompt = 1000;
  KvBlocks blocks(count * KvBlocks::BlocksFor(kPrompt + tokens + 1));
  std::vector<llava::KvTable> tables(static_cast<size_t>(count));
  int32_t id = 0;
  for (llava::KvTable& table : tables) {
    for (int64_t i = 0; i < kPrompt; ++i) table.rows.push_back(llava::RowKey::Token(id++));
    blocks.Begin(table);
    if (!blocks.Grow(table, kPrompt)) return 1;
    blocks.Advance(table, kPrompt);
  }
  llava::StepCost cost;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t step = 0; step < tokens; ++step) {
    std::vector<llava::SequenceView> views;
    llava::StepWork work;
    for (llava::KvTable& table : tables) {
      table.rows.push_back(llava::RowKey::Token(id++));
      const auto held = static_cast<int64_t>(table.blocks.size()) * KvBlocks::kTokens;
      ++work.decode_rows;
      work.keys += llava::KeysOf(table.computed, 1);
      views.push_back({.left = 1,
                       .decodes = true,
                       .room = held - table.computed,
                       .priority = 0,
                       .computed = table.computed});
    }
    llava::StepLimits limits = llava::LimitPrompts(cost, work, 512, 2.9);
    limits.available_blocks = blocks.available();
    const llava::StepPlan plan =
        llava::PlanStep(views, limits, [&](size_t i) { return blocks.Regained(tables[i]); });
    cost.Observe(work, 0.050);
    for (size_t i = 0; i < tables.size(); ++i) {
      if (!blocks.Grow(tables[i], plan.rows[i])) return 1;
      blocks.Advance(tables[i], plan.rows[i]);
    }
  }
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
  std::printf("%lld sequences: %.2f us a step\n", static_cast<long long>(count),
              took.count() / static_cast<double>(tokens));
  return 0;
}
