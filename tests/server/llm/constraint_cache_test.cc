#include "server/llm/constraint_cache.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "model/grammar/grammar.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

TEST(ConstraintCacheTest, CompilesOnceWhatIsUsedOften) {
  Metrics metrics("llm");
  ConstraintCache cache(Tokenizer::Load(FixturesDir() / "tiny-llava"), metrics);
  ASSERT_TRUE(cache.status().ok()) << cache.status();
  int compiled = 0;
  const auto get = [&](const std::string& name) {
    return *cache.Get(name, [&] {
      ++compiled;
      return grammar::JsonObject();
    });
  };
  const auto first = get("a");
  EXPECT_EQ(get("a"), first);
  EXPECT_EQ(compiled, 1);
  for (int i = 0; i < 40; ++i) {
    get(std::to_string(i));
    EXPECT_EQ(get("a"), first) << "it is used all the time";
  }
  EXPECT_EQ(compiled, 41);
  get("0");
  EXPECT_EQ(compiled, 42) << "not so that one";
}

TEST(ConstraintCacheTest, ErrorsAreNotKept) {
  Metrics metrics("llm");
  ConstraintCache cache(Tokenizer::Load(FixturesDir() / "tiny-llava"), metrics);
  EXPECT_EQ(cache.Get("a", [] { return absl::InvalidArgumentError("no"); }).status(),
            absl::InvalidArgumentError("no"));
  EXPECT_TRUE(cache.Get("a", [] { return grammar::JsonObject(); }).ok());
}

}  // namespace
}  // namespace llava
