#include "server/gateway/answer_journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <iterator>
#include <map>
#include <thread>

#include "server/runtime/crc32c.h"
#include "tests/support/full_disk.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class AnswerJournalTest : public testing::Test {
 protected:
  void Open(uint64_t segment_bytes = 8u << 20) {
    journal_.reset();
    auto journal = AnswerJournal::Open(folder(), metrics_, segment_bytes);
    ASSERT_TRUE(journal.ok()) << journal.status();
    journal_ = *std::move(journal);
  }
  // As a process that was killed finds it; closes the journal.
  std::vector<JournalledAnswer> Recovered() {
    Open();
    return journal_->TakeRecovered();
  }
  std::string folder() const { return folder_.At("journal"); }
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder())) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
  }

  static JournalledAnswer NewAnswer(const std::string& turn) {
    JournalledAnswer answer;
    answer.session_id = "session";
    answer.turn_id = turn;
    answer.asked += std::chrono::microseconds(1'790'000'000'123'456);
    answer.seed = 0xffff'ffff'ffff'fff0;
    answer.model.set_name("emoji");
    answer.model.set_version(3);
    answer.tokens.set_tokenizer_digest(std::string("\0d", 2));
    return answer;
  }
  uint64_t Begin(const std::string& turn) {
    std::promise<absl::Status> done;
    const uint64_t id = journal_->Begin(
        NewAnswer(turn), [&](const absl::Status& status) { done.set_value(status); });
    EXPECT_TRUE(done.get_future().get().ok());
    return id;
  }
  absl::Status Append(uint64_t id, uint64_t offset, const std::string& text,
                      const std::vector<int32_t>& ids) {
    google::protobuf::RepeatedField<int32_t> token_ids(ids.begin(), ids.end());
    std::promise<absl::Status> done;
    journal_->Append(
        id, {.offset = offset, .token_offset = ids_[id], .text = text, .token_ids = token_ids},
        [&](const absl::Status& status) { done.set_value(status); });
    ids_[id] += token_ids.size();
    return done.get_future().get();
  }
  // Text without ids.
  void Write(uint64_t id, uint64_t offset, const std::string& text, AnswerJournal::Done done = {}) {
    journal_->Append(id, {.offset = offset, .text = text, .token_ids = {}}, std::move(done));
  }
  void Flush() {
    std::promise<void> done;
    journal_->Flush([&](const absl::Status&) { done.set_value(); });
    done.get_future().wait();
  }

  TempFolder folder_;
  Metrics process_metrics_{"gateway"};
  GatewayMetrics metrics_{process_metrics_};
  std::unique_ptr<AnswerJournal> journal_;
  std::map<uint64_t, int> ids_;  // of each answer, so far
};

std::string Bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void Put(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

TEST_F(AnswerJournalTest, AnswersComeBackWithAllThatWasAppended) {
  Open();
  const uint64_t a = Begin("a");
  const uint64_t b = Begin("b");
  EXPECT_TRUE(Append(a, 0, "", {7, -8}).ok());
  EXPECT_TRUE(Append(b, 0, "other", {1}).ok());
  EXPECT_TRUE(Append(a, 0, std::string("h\0i", 3), {}).ok());
  EXPECT_TRUE(Append(a, 3, " \xe2\x82\xac", {70'000}).ok());
  journal_->NoteDeath(a);
  journal_->End(b);
  const auto answers = Recovered();
  ASSERT_EQ(answers.size(), 1U);
  const JournalledAnswer& answer = answers[0];
  EXPECT_EQ(answer.session_id, "session");
  EXPECT_EQ(answer.turn_id, "a");
  EXPECT_EQ(answer.asked, NewAnswer("a").asked);
  EXPECT_EQ(answer.seed, 0xffff'ffff'ffff'fff0);
  EXPECT_EQ(answer.model.version(), 3U);
  EXPECT_EQ(answer.text, std::string("h\0i \xe2\x82\xac", 7));
  EXPECT_THAT(answer.tokens.ids(), ElementsAre(7, -8, 70'000));
  EXPECT_EQ(answer.tokens.tokenizer_digest(), std::string("\0d", 2));
  EXPECT_EQ(answer.deaths, 1U);
  EXPECT_THAT(answer.taken_up, ElementsAre(7));
}

TEST_F(AnswerJournalTest, ARecoveredAnswerGrowsOn) {
  Open();
  ASSERT_TRUE(Append(Begin("a"), 0, "one", {1}).ok());
  for (int i = 0; i < 3; ++i) {
    const auto answers = Recovered();
    ASSERT_EQ(answers.size(), 1U);
    EXPECT_EQ(answers[0].text.size(), 3U + i);
    EXPECT_EQ(answers[0].taken_up.size(), 1U + i);
    ids_[answers[0].id] = answers[0].tokens.ids_size();
    ASSERT_TRUE(Append(answers[0].id, answers[0].text.size(), "+", {2}).ok());
  }
  EXPECT_EQ(Files().size(), 1U);
  const auto answers = Recovered();
  EXPECT_EQ(answers.at(0).text, "one+++");
  EXPECT_THAT(answers.at(0).tokens.ids(), ElementsAre(1, 2, 2, 2));
  journal_->End(answers[0].id);
  EXPECT_THAT(Recovered(), IsEmpty());
}

TEST_F(AnswerJournalTest, AnAnswerMadeAnewReplacesTheOldOne) {
  Open();
  ASSERT_TRUE(Append(Begin("a"), 0, "old", {1}).ok());
  ASSERT_TRUE(Append(Begin("a"), 0, "new", {2}).ok());
  const auto answers = Recovered();
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].text, "new");
}

// A crash may leave any part of the last write; a bad disk may change any byte.
TEST_F(AnswerJournalTest, ATornOrDamagedFileGivesABeginningOfTheText) {
  Open();
  const uint64_t a = Begin("a");
  std::vector<uint64_t> sizes;  // of the file after each append
  const std::vector<std::string> words = {"one", " two", " three", " four"};
  std::string text;
  const fs::path file = Files().at(0);
  sizes.push_back(fs::file_size(file));
  for (const std::string& word : words) {
    ASSERT_TRUE(Append(a, text.size(), word, {static_cast<int32_t>(word.size())}).ok());
    text += word;
    sizes.push_back(fs::file_size(file));
  }
  const std::string whole = Bytes(file);
  ASSERT_EQ(whole.size(), sizes.back());
  journal_.reset();

  // `good`: bytes in front of the damage.
  const auto check = [&](const std::string& bytes, size_t good) {
    for (const auto& each : Files()) fs::remove(each);
    Put(folder() + "/0000000000000007.log", bytes);
    const auto answers = Recovered();
    std::string expected;
    size_t count = 0;
    for (; count < words.size() && sizes[count + 1] <= good; ++count) expected += words[count];
    if (good < sizes[0] && answers.empty()) return;  // not even its begin
    ASSERT_EQ(answers.size(), 1U) << good;
    EXPECT_EQ(answers[0].text, expected) << good;
    EXPECT_EQ(answers[0].tokens.ids_size(), count) << good;
    ids_[answers[0].id] = answers[0].tokens.ids_size();
    ASSERT_TRUE(Append(answers[0].id, expected.size(), " on", {9}).ok());
    EXPECT_EQ(Recovered().at(0).text, expected + " on") << good;
  };
  // Odd steps, so that all parts of a record are met.
  for (size_t size = 0; size < whole.size(); size += 3) check(whole.substr(0, size), size);
  check(whole, whole.size());
  for (size_t at = kJournalMagic.size(); at < whole.size(); at += 5) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x40);
    check(damaged, at);
  }
}

TEST_F(AnswerJournalTest, WhatIsBehindAGapIsNotUsed) {
  Open(/*segment_bytes=*/1);  // a file for each write
  const uint64_t a = Begin("a");
  ASSERT_TRUE(Append(a, 0, "one", {1}).ok());
  ASSERT_TRUE(Append(a, 3, " two", {2}).ok());
  ASSERT_TRUE(Append(a, 7, " three", {3}).ok());
  const auto files = Files();
  ASSERT_GE(files.size(), 4U);
  journal_.reset();
  Put(files[files.size() - 2], std::string(kJournalMagic) + "garbage");
  const auto answers = Recovered();
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].text, "one");
  EXPECT_THAT(answers[0].tokens.ids(), ElementsAre(1));
}

TEST_F(AnswerJournalTest, FilesGoWhenNothingInThemLives) {
  Open(/*segment_bytes=*/1);
  const uint64_t a = Begin("a");
  ASSERT_TRUE(Append(a, 0, "x", {1}).ok());
  const uint64_t b = Begin("b");
  ASSERT_TRUE(Append(b, 0, "y", {1}).ok());
  const size_t both = Files().size();
  EXPECT_GE(both, 4U);
  journal_->End(b);
  Flush();
  EXPECT_GE(Files().size(), both) << "a began in front of it";
  journal_->End(a);
  Flush();
  Flush();
  EXPECT_EQ(Files().size(), 1U);
}

TEST_F(AnswerJournalTest, BegunAnewItKeepsNothingOfWhatHasEnded) {
  Open();
  const uint64_t a = Begin("a");
  ASSERT_TRUE(Append(a, 0, "secret", {1}).ok());
  const uint64_t b = Begin("b");
  ASSERT_TRUE(Append(b, 0, "other", {1}).ok());
  journal_->End(a);
  journal_->BeginFile();
  Flush();
  ASSERT_EQ(Files().size(), 2U) << "b began in front of it";
  journal_->End(b);
  Flush();
  ASSERT_EQ(Files().size(), 1U);
  EXPECT_THAT(Bytes(Files().at(0)), Not(HasSubstr("secret")));
  Open();
  const auto fresh = Files();
  journal_->BeginFile();
  Flush();
  EXPECT_EQ(Files(), fresh) << "an empty one need not go";
  EXPECT_TRUE(Append(Begin("c"), 0, "x", {1}).ok());
  EXPECT_EQ(Recovered().at(0).text, "x");
}

TEST_F(AnswerJournalTest, WhatComesDuringAWriteGoesWithTheNext) {
  Open();
  const uint64_t a = Begin("a");
  std::promise<void> busy, release;
  std::thread writer([&] {
    journal_->Flush([&](const absl::Status&) {
      busy.set_value();
      release.get_future().wait();
    });
  });
  busy.get_future().wait();
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) {
    Write(a, i, "x", [&order, i](const absl::Status&) { order.push_back(i); });
  }
  const auto writes = [this] {
    const std::string text = process_metrics_.Render();
    const std::string name = "llava_gateway_journal_write_seconds_count ";
    return std::stod(text.substr(text.find(name) + name.size()));
  };
  const double before = writes();
  release.set_value();
  writer.join();
  Flush();
  EXPECT_EQ(writes(), before + 1);
  ASSERT_EQ(order.size(), 100U);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_EQ(Recovered().at(0).text, std::string(100, 'x'));
}

TEST_F(AnswerJournalTest, ManyAnswersAtATime) {
  Open(/*segment_bytes=*/2000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int n = 0; n < 5; ++n) {
        const uint64_t id = Begin(std::to_string(t) + "." + std::to_string(n));
        for (int i = 0; i < 50; ++i) {
          Write(id, i, std::string(1, static_cast<char>('a' + t)));
        }
        if (n > 0) journal_->End(id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto answers = Recovered();
  ASSERT_EQ(answers.size(), 4U);
  for (const JournalledAnswer& answer : answers) {
    const char letter = static_cast<char>('a' + (answer.turn_id[0] - '0'));
    EXPECT_EQ(answer.text, std::string(50, letter)) << answer.turn_id;
  }
}

TEST_F(AnswerJournalTest, ReadsFilesFromBeforeAnswersWereDated) {
  Open();
  ASSERT_TRUE(Append(Begin("a"), 0, "one", {1}).ok());
  const fs::path file = Files().at(0);
  std::string bytes = Bytes(file);
  journal_.reset();
  // Its first record, without the eight bytes at the end.
  std::string_view rest = std::string_view(bytes).substr(kJournalMagic.size());
  ASSERT_TRUE(TakeRecord(rest));
  std::string payload = bytes.substr(kJournalMagic.size() + 8,
                                     bytes.size() - rest.size() - kJournalMagic.size() - 16);
  const uint32_t frame[] = {static_cast<uint32_t>(payload.size()), Crc32c(payload)};
  std::string old(kOldJournalMagic);
  old.append(reinterpret_cast<const char*>(frame), sizeof(frame));
  Put(file, old + payload + std::string(rest));
  const auto answers = Recovered();
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].text, "one");
  EXPECT_EQ(answers[0].asked, JournalledAnswer().asked);
}

TEST_F(AnswerJournalTest, AnEndThatCouldNotBeWrittenGoesWithTheNextWrite) {
  Open(/*segment_bytes=*/1);  // a file for each write
  const uint64_t a = Begin("a"), b = Begin("b");
  const fs::path begun_in = Files().at(0);
  {
    const FullDisk full(kJournalMagic.size() + 4);
    journal_->End(a);
    Flush();
  }
  ASSERT_TRUE(fs::exists(begun_in));
  ASSERT_TRUE(Append(b, 0, "x", {1}).ok());
  Flush();
  EXPECT_FALSE(fs::exists(begun_in)) << "nothing in it lives";
  const auto answers = Recovered();
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].turn_id, "b");
}

TEST_F(AnswerJournalTest, AnEndThatCouldNotBeWrittenIsWrittenAtTheLatestWhenItCloses) {
  Open();
  const uint64_t a = Begin("a");
  {
    const FullDisk full(fs::file_size(Files().at(0)) + 4);
    journal_->End(a);
    Flush();
  }
  EXPECT_THAT(Recovered(), IsEmpty());
}

TEST_F(AnswerJournalTest, AWriteThatFailsLeavesNothingBehind) {
  Open();
  const uint64_t a = Begin("a");
  ASSERT_TRUE(Append(a, 0, "kept", {1}).ok());
  absl::Status failed;
  {
    const FullDisk full(fs::file_size(Files().at(0)) + 20);
    failed = Append(a, 4, " lost", {2});
  }
  ids_[a] = 1;
  EXPECT_FALSE(failed.ok());
  EXPECT_THAT(std::string(failed.message()), HasSubstr("cannot write"));
  ASSERT_TRUE(Append(a, 4, " more", {3}).ok());
  EXPECT_EQ(Recovered().at(0).text, "kept more");
}

TEST_F(AnswerJournalTest, AFileThatCannotBeReadStays) {
  Open();
  ASSERT_TRUE(Append(Begin("a"), 0, "one", {1}).ok());
  journal_.reset();
  const fs::path unreadable = folder() + "/0000000000000007.log";
  fs::create_directory(unreadable);
  const auto files = Files();
  const auto journal = AnswerJournal::Open(folder(), metrics_);
  EXPECT_EQ(journal.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(journal.status().message()),
              HasSubstr("cannot read " + unreadable.string()));
  EXPECT_EQ(Files(), files);
  fs::remove(unreadable);
  EXPECT_EQ(Recovered().at(0).text, "one");
}

TEST_F(AnswerJournalTest, RefusesFilesOfAnotherVersion) {
  Open();
  journal_.reset();
  Put(folder() + "/0000000000000009.log", "LLAVAJ99 in some other form");
  const auto journal = AnswerJournal::Open(folder(), metrics_);
  EXPECT_EQ(journal.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(journal.status().message()), HasSubstr("0000000000000009.log"));
}

}  // namespace
}  // namespace llava
