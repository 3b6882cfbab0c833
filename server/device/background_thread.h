#pragma once

#include <functional>

namespace llava {

// Runs `work` on a thread of the lowest priority and waits for it: it gets what processors those of
// ordinary priority leave. Threads that it starts inherit that. Rethrows what it throws.
void RunInBackground(const std::function<void()>& work);

}  // namespace llava
