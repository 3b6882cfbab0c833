#include "tests/model/ops/warps.h"

#include <ucontext.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace llava::cuda {
namespace {

constexpr size_t kStackBytes = 256 << 10;

struct Warp {
  std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  ucontext_t context;
  std::exception_ptr thrown;
  bool ended = false;
};

struct Block {
  std::vector<Warp> warps;  // kept for the next block
  ucontext_t launcher;
  const std::function<void(int)>* body = nullptr;
  int now = -1;  // the warp that runs
};

Block& ThisBlock() {
  static thread_local Block block;
  return block;
}

void RunWarp() {
  Block& block = ThisBlock();
  Warp& warp = block.warps[static_cast<size_t>(block.now)];
  try {
    (*block.body)(block.now);
  } catch (...) {
    warp.thrown = std::current_exception();
  }
  warp.ended = true;
  swapcontext(&warp.context, &block.launcher);
}

}  // namespace

void Warps::Run(int count, bool backwards, const std::function<void(int)>& body) {
  Block& block = ThisBlock();
  if (block.warps.size() < static_cast<size_t>(count)) {
    block.warps = std::vector<Warp>(static_cast<size_t>(count));
  }
  block.body = &body;
  for (int i = 0; i < count; ++i) {
    Warp& warp = block.warps[static_cast<size_t>(i)];
    warp.ended = false;
    warp.thrown = nullptr;
    getcontext(&warp.context);
    warp.context.uc_stack.ss_sp = warp.stack.get();
    warp.context.uc_stack.ss_size = kStackBytes;
    warp.context.uc_link = nullptr;
    makecontext(&warp.context, RunWarp, 0);
  }
  for (bool open = true; open;) {
    open = false;
    for (int i = 0; i < count; ++i) {
      block.now = backwards ? count - 1 - i : i;
      Warp& warp = block.warps[static_cast<size_t>(block.now)];
      if (warp.ended) continue;
      swapcontext(&block.launcher, &warp.context);
      open = open || !warp.ended;
    }
  }
  block.now = -1;
  for (int i = 0; i < count; ++i) {
    if (auto& thrown = block.warps[static_cast<size_t>(i)].thrown) std::rethrow_exception(thrown);
  }
}

void Warps::Sync() {
  Block& block = ThisBlock();
  if (block.now < 0) return;
  swapcontext(&block.warps[static_cast<size_t>(block.now)].context, &block.launcher);
}

}  // namespace llava::cuda
