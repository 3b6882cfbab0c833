#include "model/progress/for_each.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace llava {
namespace {

TEST(ForEachTest, GivesEachNumberOnceToWorkersOfTheirThreads) {
  for (const int threads : {0, 1, 3, 200}) {
    std::vector<int> given(100);
    std::mutex mutex;
    std::set<std::thread::id> makers;
    ForEach(std::ssize(given), threads, [&] {
      const std::lock_guard lock(mutex);
      EXPECT_TRUE(makers.insert(std::this_thread::get_id()).second);
      return [&given, maker = std::this_thread::get_id()](int64_t i) {
        EXPECT_EQ(std::this_thread::get_id(), maker);
        ++given[i];
      };
    });
    EXPECT_EQ(given, std::vector<int>(100, 1));
    if (threads > 0) {
      EXPECT_LE(std::ssize(makers), threads);
    }
  }
  ForEach(0, 4, []() -> std::function<void(int64_t)> { throw std::logic_error("nothing to do"); });
}

TEST(ForEachTest, ThrowsTheFirstFaultAndEndsTheOthers) {
  std::atomic<int64_t> given = 0;
  const auto worker = [&](int64_t i) {
    ++given;
    if (i == 5) throw std::invalid_argument("five");
  };
  EXPECT_THROW(ForEach(int64_t{1} << 50, 2, [&] { return worker; }), std::invalid_argument);
  EXPECT_LT(given, int64_t{1} << 50);
  EXPECT_THROW(ForEach(4, 2, []() -> std::function<void(int64_t)> { throw std::out_of_range(""); }),
               std::out_of_range);
}

}  // namespace
}  // namespace llava
