#pragma once

#include <functional>
#include <thread>
#include <utility>

namespace llava {

// Starts a thread. Throws std::system_error if there is none to be had; so tests can say when.
using ThreadStart = std::function<std::thread(std::function<void()> run)>;

inline std::thread StartStdThread(std::function<void()> run) { return std::thread(std::move(run)); }

}  // namespace llava
