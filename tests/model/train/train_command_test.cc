#include "model/train/train_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;

// A stream that notes what is written, and does something when a text comes by.
class Watched {
 public:
  Watched(std::string text, std::function<void()> then)
      : awaited_(std::move(text)), then_(std::move(then)) {
    cookie_io_functions_t functions = {};
    functions.write = [](void* self, const char* data, size_t size) {
      static_cast<Watched*>(self)->Write({data, size});
      return static_cast<ssize_t>(size);
    };
    file_ = fopencookie(this, "w", functions);
    setvbuf(file_, nullptr, _IONBF, 0);
  }
  ~Watched() { fclose(file_); }

  std::FILE* file() { return file_; }
  const std::string& written() const { return written_; }

 private:
  void Write(std::string_view text) {
    written_ += text;
    if (!then_ || written_.find(awaited_) == written_.npos) return;
    then_();
    then_ = nullptr;
  }

  std::string awaited_, written_;
  std::function<void()> then_;
  std::FILE* file_ = nullptr;
};

class TrainCommandTest : public testing::Test {
 protected:
  TrainCommandTest() {
    const std::string model = (FixturesDir() / "tiny-llava").string();
    const std::string data = scratch_.Write("data.json", R"([
        {"id": "a", "conversations": [{"from": "human", "value": "Can a boat fly?"},
                                      {"from": "gpt", "value": "No."}]},
        {"id": "b", "conversations": [{"from": "human", "value": "Is the sun hot?"},
                                      {"from": "gpt", "value": "Yes."}]}])");
    command_.kind = "finetune";
    command_.settings = {"model=" + model,  "data=" + data, "images=" + scratch_.path().string(),
                         "steps=2",         "batch_size=1", "threads=1",
                         "loader_threads=1"};
    command_.run_folder = scratch_.path() / "run";
    command_.repository = scratch_.path() / "models";
    command_.name = "tiny";
  }

  const TempFolder scratch_;
  TrainCommand command_;
};

TEST_F(TrainCommandTest, ASignalEndsItBeforeTheFirstStepAndBeforePublishing) {
  for (const char* moment : {"reading data", "finetune 2/2"}) {
    Watched progress(moment, [] { raise(SIGTERM); });
    EXPECT_EQ(RunTraining(command_, progress.file()), kExitResume) << progress.written();
    EXPECT_THAT(progress.written(), HasSubstr("stopped; the same command goes on from here"));
    EXPECT_FALSE(std::filesystem::exists(command_.repository));
    EXPECT_FALSE(std::filesystem::exists(command_.run_folder / "state-00000000.safetensors"));
  }
  Watched progress("", {});
  EXPECT_EQ(RunTraining(command_, progress.file()), 0) << progress.written();
  EXPECT_THAT(progress.written(), HasSubstr("goes on from step 2 of 2"));
  EXPECT_TRUE(std::filesystem::exists(command_.repository / "tiny/1"));
  EXPECT_TRUE(std::filesystem::exists(command_.run_folder / "data-report.json"));
}

TEST_F(TrainCommandTest, ADryRunTellsHowLargeStatesWillBe) {
  command_.settings.push_back("keep_states=4");
  Watched progress("", {});
  testing::internal::CaptureStdout();
  RunDry(command_, progress.file());
  const auto report = nlohmann::json::parse(testing::internal::GetCapturedStdout());
  const int64_t state = report.at("state_bytes");
  EXPECT_EQ(report.at("states_bytes"), 5 * state);
  RunTraining(command_, progress.file());
  const auto written =
      static_cast<int64_t>(file_size(command_.run_folder / "state-00000002.safetensors"));
  EXPECT_GE(written, state);
  EXPECT_LT(written, state + state / 10) << "names, shapes and counts of steps";
}

}  // namespace
}  // namespace llava
