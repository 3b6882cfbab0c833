// The main of all tests.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

namespace {

// GoogleTest calls the tests of a suite whose set-up failed skipped, and so would ctest, which
// looks for that word alone: nobody would be told. What crashes has failed.
class FailedSetUps : public testing::EmptyTestEventListener {
  void OnTestSuiteEnd(const testing::TestSuite& suite) override {
    if (!suite.ad_hoc_test_result().Failed()) return;
    std::fprintf(stderr, "what all tests of %s stand on failed\n", suite.name());
    std::fflush(nullptr);
    std::abort();
  }
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new FailedSetUps);  // takes it
  return RUN_ALL_TESTS();
}
