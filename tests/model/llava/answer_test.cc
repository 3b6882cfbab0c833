#include "model/llava/answer.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

#include <algorithm>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using State = Answer::State;

const Tokenizer& TestTokenizer() {
  static const Tokenizer tokenizer = [] {
    return Tokenizer(ReadBytes(FixturesDir() / "tiny-llava/tokenizer.model"), TokenizerOptions{});
  }();
  return tokenizer;
}

// One byte piece per byte of `text`: the finest way to write it.
std::vector<int32_t> ByteIds(const std::string& text) {
  std::vector<int32_t> ids;
  for (const unsigned char byte : text) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", byte);
    ids.push_back(TestTokenizer().IdOf(piece));
    EXPECT_GE(ids.back(), 0) << piece;
  }
  return ids;
}

struct Outcome {
  std::string text;
  State state = State::kRunning;
  std::vector<std::string> deltas;
};

Outcome Play(Answer& answer, const std::vector<int32_t>& ids, size_t begin = 0) {
  Outcome outcome;
  for (size_t i = begin; i < ids.size() && answer.state() == State::kRunning; ++i) {
    outcome.deltas.push_back(answer.Push(ids[i]));
    outcome.text += outcome.deltas.back();
  }
  outcome.deltas.push_back(answer.Finish());
  outcome.text += outcome.deltas.back();
  outcome.state = answer.state();
  return outcome;
}

bool IsWholeUtf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const unsigned char lead = text[i];
    const size_t size = lead < 0x80       ? 1
                        : lead >> 5 == 6  ? 2
                        : lead >> 4 == 14 ? 3
                        : lead >> 3 == 30 ? 4
                                          : 0;
    if (size == 0 || i + size > text.size()) return false;
    for (size_t k = 1; k < size; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return false;
    }
    i += size;
  }
  return true;
}

// What must come out: decode all tokens so far after every token, look for stops in the whole text.
Outcome Reference(const std::vector<int32_t>& ids, const StopOptions& options) {
  const auto cut = [&](const std::string& text) -> std::optional<std::string> {
    for (size_t end = 1; end <= text.size(); ++end) {
      size_t longest = 0;
      for (const std::string& stop : options.stop) {
        if (stop.size() <= end && stop.size() > longest &&
            text.compare(end - stop.size(), stop.size(), stop) == 0) {
          longest = stop.size();
        }
      }
      if (longest > 0) return text.substr(0, end - longest);
    }
    return std::nullopt;
  };
  StreamDecoder decoder(TestTokenizer());
  Outcome outcome;
  uint32_t generated = 0;
  for (const int32_t id : ids) {
    if (generated == options.max_new_tokens) break;
    ++generated;
    const bool eos = id == TestTokenizer().eos_id() && !options.ignore_eos;
    if (eos || std::count(options.stop_token_ids.begin(), options.stop_token_ids.end(), id) > 0) {
      outcome.state = State::kStopped;
      break;
    }
    outcome.text += decoder.Push(id);
    if (const auto stopped = cut(outcome.text)) return {*stopped, State::kStopped, {}};
  }
  if (outcome.state == State::kRunning && generated == options.max_new_tokens) {
    outcome.state = State::kLength;
  }
  outcome.text += decoder.Flush();
  if (const auto stopped = cut(outcome.text)) return {*stopped, State::kStopped, {}};
  return outcome;
}

struct Case {
  std::string name;
  std::vector<std::string> stop;
  std::string input;  // fed byte by byte
  std::string text;   // what must come out
  State state;
};

class StopTextTest : public testing::TestWithParam<Case> {};

TEST_P(StopTextTest, EndsWhereItShouldByBytesAndByPieces) {
  const Case& c = GetParam();
  const StopOptions options{.max_new_tokens = 1000, .stop = c.stop};
  const std::vector<int32_t> pieces = TestTokenizer().EncodePieces(c.input);
  for (const std::vector<int32_t>& ids : {ByteIds(c.input), pieces}) {
    Answer answer(TestTokenizer(), options);
    const Outcome outcome = Play(answer, ids);
    EXPECT_EQ(outcome.text, c.text);
    EXPECT_EQ(outcome.state, c.state);
    EXPECT_EQ(answer.text_bytes(), c.text.size());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, StopTextTest,
    testing::Values(
        Case{"none", {}, "plain text", "plain text", State::kRunning},
        Case{"at_the_end", {"###"}, "answer\n###", "answer\n", State::kStopped},
        Case{"nothing_before", {"###"}, "###Human", "", State::kStopped},
        Case{"begun_but_not_ended", {"###"}, "a ## b", "a ## b", State::kRunning},
        Case{"begun_at_the_end", {"###"}, "a ##", "a ##", State::kRunning},
        Case{"one_too_many", {"###"}, "a####b", "a", State::kStopped},
        Case{"false_start_then_real", {"aab"}, "xaaab", "xa", State::kStopped},
        Case{"self_overlap", {"abab"}, "ababab", "", State::kStopped},
        Case{"first_complete_wins", {"abcd", "b"}, "abcd", "a", State::kStopped},
        Case{"longest_of_equal_end", {"c", "abc"}, "xabc", "x", State::kStopped},
        Case{"longest_of_equal_end_turned", {"abc", "c"}, "xabc", "x", State::kStopped},
        Case{"longer_never_comes", {"abcX", "bcY"}, "abcZ", "abcZ", State::kRunning},
        Case{"second_after_false_first", {"abcX", "bcY"}, "abcY", "a", State::kStopped},
        Case{"newlines", {"\n\n"}, "one\ntwo\n\nthree", "one\ntwo", State::kStopped},
        Case{"multi_byte_stop", {"🙂"}, "hé🌉 ok 🙂 no", "hé🌉 ok ", State::kStopped},
        Case{"shares_first_bytes", {"🙂"}, "🙁🙃🌉", "🙁🙃🌉", State::kRunning},
        Case{"multi_byte_before", {"."}, "äöü.x", "äöü", State::kStopped},
        Case{"stop_is_a_prefix_of_another", {"ab", "abc"}, "zabc", "z", State::kStopped}),
    [](const auto& info) { return info.param.name; });

TEST(AnswerTest, HoldsBackOnlyWhatCouldBeginAStop) {
  Answer answer(TestTokenizer(), {.stop = {"###"}});
  EXPECT_EQ(answer.Push(ByteIds("a")[0]), "a");
  EXPECT_EQ(answer.Push(ByteIds("#")[0]), "");
  EXPECT_EQ(answer.Push(ByteIds("#")[0]), "");
  EXPECT_EQ(answer.text_bytes(), 1u);
  EXPECT_EQ(answer.Push(ByteIds("x")[0]), "##x");
  EXPECT_EQ(answer.Push(ByteIds("#")[0]), "");
  EXPECT_EQ(answer.Finish(), "#");
  EXPECT_EQ(answer.Finish(), "");
  EXPECT_EQ(answer.text_bytes(), 5u);
}

TEST(AnswerTest, StopTokensEndItAndAreNotPartOfIt) {
  const int32_t eos = TestTokenizer().eos_id();
  const std::vector<int32_t> hi = ByteIds("hi");
  Answer answer(TestTokenizer(), {.stop = {"i!"}});
  answer.Push(hi[0]);
  answer.Push(hi[1]);
  EXPECT_EQ(answer.Push(eos), "");
  EXPECT_EQ(answer.state(), State::kStopped);
  EXPECT_EQ(answer.Finish(), "i") << "what was held back belongs to the answer";
  EXPECT_EQ(answer.ids(), hi);
  EXPECT_EQ(answer.num_generated(), 3u);
  EXPECT_THROW(answer.Push(hi[0]), std::logic_error);

  Answer deaf(TestTokenizer(), {.stop_token_ids = {hi[1]}, .ignore_eos = true});
  deaf.Push(eos);
  EXPECT_EQ(deaf.state(), State::kRunning);
  deaf.Push(hi[1]);
  EXPECT_EQ(deaf.state(), State::kStopped);
  EXPECT_EQ(deaf.ids(), (std::vector<int32_t>{eos}));
}

TEST(AnswerTest, TheTextOfASpecialTokenStandsForTheTokenToo) {
  const int32_t size = TestTokenizer().vocab_size();
  const Tokenizer tokenizer(TestTokenizer().model_bytes(),
                            {.added_tokens = {{"<end>", size}, {"<pad>", size + 1}}});
  const StopOptions options{.stop = {"<end>"}};
  const std::vector<int32_t> hi = ByteIds("hi"), written = ByteIds("<end>");
  Answer token(tokenizer, options);
  EXPECT_EQ(Play(token, {hi[0], size + 1, hi[1], size, hi[0]}).text, "hi");
  EXPECT_EQ(token.state(), State::kStopped);
  EXPECT_EQ(token.ids(), (std::vector<int32_t>{hi[0], size + 1, hi[1]}));
  EXPECT_EQ(token.num_generated(), 4u);
  EXPECT_THAT(token.stop_token_ids(), testing::ElementsAre(size));
  Answer text(tokenizer, options);
  for (const int32_t id : hi) text.Push(id);
  EXPECT_EQ(Play(text, written).text, "");
  EXPECT_EQ(text.state(), State::kStopped);
  // The end token, asked for by name.
  Answer eos(tokenizer, {.stop = {"</s>"}, .ignore_eos = true});
  eos.Push(tokenizer.eos_id());
  EXPECT_EQ(eos.state(), State::kStopped);
  // A piece of text is no special token.
  EXPECT_THAT(Answer(tokenizer, {.stop = {"the"}}).stop_token_ids(), testing::IsEmpty());
}

TEST(AnswerTest, EndsAtTheLengthUnlessTheLastTokenStopsIt) {
  Answer answer(TestTokenizer(), {.max_new_tokens = 2});
  answer.Push(ByteIds("a")[0]);
  EXPECT_EQ(answer.state(), State::kRunning);
  answer.Push(ByteIds("b")[0]);
  EXPECT_EQ(answer.state(), State::kLength);
  Answer stopped(TestTokenizer(), {.max_new_tokens = 2, .stop = {"ab"}});
  stopped.Push(ByteIds("a")[0]);
  stopped.Push(ByteIds("b")[0]);
  EXPECT_EQ(stopped.state(), State::kStopped);
  EXPECT_EQ(Answer(TestTokenizer(), {.max_new_tokens = 0}).state(), State::kLength);
}

TEST(AnswerTest, RefusesStopTextsThatCannotWork) {
  EXPECT_THROW(Answer(TestTokenizer(), {.stop = {""}}), std::invalid_argument);
  EXPECT_THROW(Answer(TestTokenizer(), {.stop = {"\x9F\x99\x82"}}), std::invalid_argument);
}

TEST(AnswerTest, AnUnknownIdIsRefusedAndChangesNothing) {
  Answer answer(TestTokenizer(), {});
  EXPECT_THROW(answer.Push(1 << 20), std::out_of_range);
  EXPECT_EQ(answer.num_generated(), 0u);
  EXPECT_TRUE(answer.ids().empty());
}

TEST(AnswerTest, DeliveredIdsEndWithTheTextGivenOut) {
  const std::vector<int32_t> ids = ByteIds("a##é##");
  Answer answer(TestTokenizer(), {.stop = {"###"}});
  const auto delivered_after = [&](size_t count) {
    while (answer.num_generated() < count) answer.Push(ids[answer.num_generated()]);
    return answer.DeliveredIds().size();
  };
  EXPECT_EQ(delivered_after(1), 1u);
  EXPECT_EQ(delivered_after(2), 1u) << "a # is held back";
  EXPECT_EQ(delivered_after(4), 1u) << "half an é";
  EXPECT_EQ(delivered_after(5), 5u) << "é shows that it was no stop";
  EXPECT_EQ(delivered_after(7), 5u);
  answer.Finish();
  EXPECT_EQ(answer.DeliveredIds().size(), 7u);

  Answer cut(TestTokenizer(), {});
  cut.Push(ids[0]);
  cut.Push(ids[3]);
  EXPECT_EQ(cut.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(cut.DeliveredIds().size(), 1u) << "an unfinished character is no text to go on from";
}

TEST(AnswerTest, DeliveredIdsLeaveOutTheStopText) {
  const std::vector<int32_t> ids = ByteIds("ok###");
  Answer answer(TestTokenizer(), {.stop = {"###"}});
  Play(answer, ids);
  EXPECT_EQ(answer.DeliveredIds(), ByteIds("ok"));
  EXPECT_EQ(answer.ids(), ids);
}

class RandomAnswerTest : public testing::Test {
 protected:
  std::vector<int32_t> RandomIds() {
    static const std::vector<std::string> kTexts = {
        "a",  "b",    "ab",   "#",    "##",  "🙂",     "🙁", "é",
        "\n", " the", "\xF0", "\x9F", "aab", "\xE6\xBC", "漢",   "###"};
    std::vector<int32_t> ids;
    const int count = Pick(40);
    for (int i = 0; i < count; ++i) {
      const int what = Pick(20);
      if (what == 0) {
        ids.push_back(TestTokenizer().eos_id());
      } else if (what == 1) {
        ids.push_back(Pick(TestTokenizer().vocab_size()));
      } else {
        const std::string& text = kTexts[Pick(kTexts.size())];
        const std::vector<int32_t> more =
            what % 2 && IsWholeUtf8(text) ? TestTokenizer().EncodePieces(text) : ByteIds(text);
        ids.insert(ids.end(), more.begin(), more.end());
      }
    }
    return ids;
  }

  StopOptions RandomOptions() {
    static const std::vector<std::string> kStops = {"###",  "##a",     "aab",          "aa",
                                                    "🙂", "é#",      "b\n",          "ab",
                                                    "a#b",  "漢🙂", "\xEF\xBF\xBD", " the"};
    StopOptions options;
    options.max_new_tokens = Pick(4) == 0 ? 1 + Pick(30) : 10000;
    options.ignore_eos = Pick(2);
    for (int i = Pick(4); i > 0; --i) options.stop.push_back(kStops[Pick(kStops.size())]);
    if (Pick(5) == 0) options.stop_token_ids.push_back(ByteIds("b")[0]);
    return options;
  }

  int Pick(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  std::mt19937 random_{20240917};
};

TEST_F(RandomAnswerTest, EqualsDecodingEverythingAndLookingForTheEarliestStop) {
  int stopped_by_text = 0;
  for (int round = 0; round < 4000; ++round) {
    const std::vector<int32_t> ids = RandomIds();
    const StopOptions options = RandomOptions();
    const Outcome expected = Reference(ids, options);
    Answer answer(TestTokenizer(), options);
    const Outcome outcome = Play(answer, ids);
    ASSERT_EQ(outcome.text, expected.text) << "round " << round;
    ASSERT_EQ(outcome.state, expected.state) << "round " << round;
    ASSERT_EQ(answer.text_bytes(), expected.text.size());
    for (const std::string& delta : outcome.deltas) ASSERT_TRUE(IsWholeUtf8(delta));
    for (const std::string& stop : options.stop) {
      ASSERT_EQ(outcome.text.find(stop), std::string::npos) << "a stop text leaked";
    }
    stopped_by_text += outcome.state == State::kStopped && !options.stop.empty();

    const std::vector<int32_t> delivered = answer.DeliveredIds();
    ASSERT_LE(delivered.size(), answer.ids().size());
    StreamDecoder decoder(TestTokenizer());
    std::string text;
    for (size_t i = 0; i < delivered.size(); ++i) {
      ASSERT_EQ(delivered[i], answer.ids()[i]);
      text += decoder.Push(delivered[i]);
    }
    ASSERT_FALSE(decoder.pending());
    ASSERT_EQ(outcome.text.compare(0, text.size(), text), 0) << "delivered ids say something else";
  }
  EXPECT_GT(stopped_by_text, 500) << "the cases are too tame";
}

TEST_F(RandomAnswerTest, ResumeGivesTheRestExactly) {
  for (int round = 0; round < 4000; ++round) {
    const std::vector<int32_t> ids = RandomIds();
    const StopOptions options = RandomOptions();
    Answer whole(TestTokenizer(), options);
    const Outcome expected = Play(whole, ids);

    // The first worker dies after some tokens; the client has all deltas or a few less.
    Answer first(TestTokenizer(), options);
    const size_t cut = Pick(static_cast<int>(ids.size()) + 1);
    std::vector<std::string> deltas;
    for (size_t i = 0; i < cut && first.state() == State::kRunning; ++i) {
      deltas.push_back(first.Push(ids[i]));
    }
    if (Pick(3) == 0) deltas.resize(Pick(static_cast<int>(deltas.size()) + 1));
    std::string text;
    for (const std::string& delta : deltas) text += delta;

    Answer second(TestTokenizer(), options);
    second.Resume(first.ids(), text.size());
    ASSERT_EQ(second.text_bytes(), text.size());
    const Outcome rest = Play(second, ids, first.ids().size());
    ASSERT_EQ(text + rest.text, expected.text) << "round " << round;
    ASSERT_EQ(rest.state, expected.state) << "round " << round;
    ASSERT_EQ(second.ids(), whole.ids());
    ASSERT_EQ(second.num_generated(), whole.num_generated());
    ASSERT_EQ(second.DeliveredIds(), whole.DeliveredIds());
    for (const std::string& delta : rest.deltas) ASSERT_TRUE(IsWholeUtf8(delta));
  }
}

TEST_F(RandomAnswerTest, ResumeTakesAnAnswerThatWasGivenOutToItsEnd) {
  int unfinished = 0;
  for (int round = 0; round < 4000; ++round) {
    const std::vector<int32_t> ids = RandomIds();
    const StopOptions options = RandomOptions();
    Answer first(TestTokenizer(), options);
    const Outcome outcome = Play(first, ids);  // with what Finish gives out
    Answer second(TestTokenizer(), options);
    second.Resume(first.ids(), outcome.text.size());
    ASSERT_EQ(second.Finish(), "") << "round " << round;
    ASSERT_EQ(second.DeliveredIds(), first.DeliveredIds());
    unfinished += outcome.text.ends_with("\xEF\xBF\xBD");
  }
  EXPECT_GT(unfinished, 100) << "few ended within a character";
}

TEST(AnswerTest, ResumeRefusesAPositionThatCannotBe) {
  const std::vector<int32_t> ids = ByteIds("é#");
  Answer too_far(TestTokenizer(), {.stop = {"##"}});
  EXPECT_THROW(too_far.Resume(ids, 4), std::invalid_argument);
  Answer inside(TestTokenizer(), {});
  EXPECT_THROW(inside.Resume(ids, 1), std::invalid_argument);
  Answer held(TestTokenizer(), {.stop = {"##"}});
  Answer behind(TestTokenizer(), {});
  const auto half = std::span(ids).first(1);  // told as a character of three bytes at the end
  EXPECT_THROW(behind.Resume(half, 2), std::invalid_argument);
  Answer beyond(TestTokenizer(), {});
  EXPECT_THROW(beyond.Resume(half, 4), std::invalid_argument);
  held.Resume(ids, 3);  // a flush had shown the held text
  EXPECT_EQ(held.Push(ByteIds("x")[0]), "x");
}

}  // namespace
}  // namespace llava
