#pragma once

#include <cstdint>
#include <functional>

namespace llava {

// Gives 0 .. count - 1 in turn to workers on `threads` threads (0: one a core), each of which makes
// its own by `make_worker`. Throws the first thing that one of them throws; the others end before
// their next number.
void ForEach(int64_t count, int threads,
             const std::function<std::function<void(int64_t)>()>& make_worker);

}  // namespace llava
