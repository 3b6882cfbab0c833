// llava-model quantize and random.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/manifest.h"
#include "tests/model/checkpoint/llava_model.h"
#include "tests/support/paths.h"
#include "tests/support/slowdown.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_next.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const std::string kEmoji = SourceDir() + "/deploy/models/emoji";

LanguageCheckpoint OpenPacked(const fs::path& path) {
  return OpenLanguage(path, {"", "", /*verify=*/true, /*packed=*/true});
}

// From a folder of transformers to what is served, without a step of its own for tiles.
TEST(PackedCommandsTest, ReadsPicturesInTiles) {
  const TempFolder folder;
  const std::string source = WriteTinyNext(folder.path() / "tiny-next").string();
  const std::string root = (folder.path() / "repository").string();
  const Outcome published =
      LlavaModel("publish " + source + " --repository " + root + " --name next --self-test");
  ASSERT_EQ(published.code, 0) << published.error;
  for (const char* arithmetic : {"float32", "bfloat16"}) {
    const Outcome verified =
        LlavaModel("verify " + root + "/next --self-test " + std::string(arithmetic));
    EXPECT_THAT(verified.output, HasSubstr(": ok, ")) << arithmetic << verified.error;
  }
  const SelfTest test = *OpenLanguage(root + "/next").self_test;
  EXPECT_EQ(test.tensors.at("sizes").numel(), 2);
  EXPECT_EQ(test.tensors.at("features").size(1), 3 * 16) << "the overview and two tiles";

  const Outcome packed =
      LlavaModel("quantize " + root + "/next " + root + "/next-int8 --dtype int8 --group 32");
  ASSERT_EQ(packed.code, 0) << packed.error;
  const LanguageCheckpoint plain = OpenLanguage(root + "/next"),
                           read = OpenPacked(root + "/next-int8");
  EXPECT_EQ(read.config.features.grid, plain.config.features.grid);
  EXPECT_TRUE(read.tensors.tensors().contains("model.image_newline"));
  EXPECT_EQ(LlavaModel("verify " + root + "/next-int8 --self-test int8").code, 0);
  const auto parameters = [](const std::string& model) {
    return json::parse(LlavaModel("inspect --json " + model).output)["parameters"].get<int64_t>();
  };
  EXPECT_EQ(parameters(root + "/next-int8"), parameters(root + "/next"));

  const Outcome random = LlavaModel("random " + root + "/drawn --shape tiny --anyres --tokenizer " +
                                    kEmoji + " --tower " + root + "/next-tower");
  ASSERT_EQ(random.code, 0) << random.error;
  const LanguageCheckpoint drawn = OpenPacked(root + "/drawn");
  EXPECT_EQ(drawn.config.features.grid, plain.config.features.grid);
  EXPECT_EQ(drawn.config.features.tile_size, 56);
  EXPECT_TRUE(drawn.tensors.tensors().contains("model.image_newline"));
}

TEST(PackedCommandsTest, QuantizesIntoARepository) {
  const TempFolder folder;
  const std::string out = (folder.path() / "repository/emoji-int8").string();
  const Outcome run = LlavaModel("quantize " + kEmoji + " " + out + "/ --dtype int8 --group 64");
  ASSERT_EQ(run.code, 0) << run.error;
  EXPECT_THAT(run.output, AllOf(HasSubstr(out + "/1 (int8/64)"), HasSubstr("tower ")));
  EXPECT_THAT(run.error, HasSubstr("packing 6/6"));
  const LanguageCheckpoint plain = OpenLanguage(kEmoji), packed = OpenPacked(out);
  EXPECT_EQ(packed.name, "emoji-int8");
  EXPECT_EQ(packed.tower_digest, plain.tower_digest);
  EXPECT_EQ(packed.chat_template->name(), "emoji");
  EXPECT_EQ(packed.config.decoder.quantization->Describe(), "int8/64");
  EXPECT_TRUE(packed.self_test.has_value());
  const json recipe = json::parse(Manifest::Read(fs::path(out) / "1").recipe);
  EXPECT_EQ(recipe["quantized_from"]["digest"].get<std::string>(), ToHex(plain.digest));

  const Outcome verified = LlavaModel("verify " + out + " --self-test int8");
  EXPECT_THAT(verified.output, AllOf(HasSubstr(": ok, "), HasSubstr("in int8"))) << verified.error;
  ExpectOneLine(LlavaModel("verify " + out + " --self-test int4"), 1, "packed as int8/64");
  const json described = json::parse(LlavaModel("inspect --json " + out).output);
  EXPECT_EQ(described["config"]["quantization_config"]["format"].get<std::string>(), "int8");
  EXPECT_EQ(
      described["parameters"].get<int64_t>(),
      json::parse(LlavaModel("inspect --json " + kEmoji).output)["parameters"].get<int64_t>());

  ExpectOneLine(LlavaModel("quantize " + out + " " + out), 1, "llava-llm can read it");
  ExpectOneLine(
      LlavaModel("import " + out + " --repository " + folder.path().string() + " --name m"), 1,
      "llava-llm can read it");
  ExpectOneLine(LlavaModel("verify --self-test float32 " + out), 1, "");
  EXPECT_EQ(LlavaModel("quantize " + kEmoji + " " + out).code, 0);
  EXPECT_EQ(OpenPacked(out).version, 2u);
  EXPECT_EQ(OpenPacked(out).config.decoder.quantization->Describe(), "int4/64");
}

TEST(PackedCommandsTest, WrongRequestsAreRefused) {
  const TempFolder folder;
  const std::string out = " " + (folder.path() / "m").string();
  ExpectOneLine(LlavaModel("quantize " + kEmoji), 2, "OUT");
  ExpectOneLine(LlavaModel("quantize " + kEmoji + out + " --dtype int3"), 2, "--dtype");
  ExpectOneLine(LlavaModel("quantize " + kEmoji + out + " --group 48"), 2, "--group");
  ExpectOneLine(LlavaModel("quantize " + kEmoji + out + " --dtype bf16 --group 64"), 1, "bf16/64");
  ExpectOneLine(LlavaModel("quantize " + kEmoji + "-tower" + out), 1, "vision tower");
  ExpectOneLine(LlavaModel("random" + out + " --shape llama-9b"), 2, "--shape");
  ExpectOneLine(LlavaModel("random" + out + " --shape tiny --tokenizer /nowhere"), 1, "/nowhere");
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(PackedCommandsTest, Bfloat16HasTwoWords) {
  const TempFolder folder;
  const std::string out = " " + (folder.path() / "m").string();
  for (const std::string word : {"bfloat16", "bf16"}) {
    ExpectOneLine(LlavaModel("quantize " + kEmoji + out + " --dtype " + word + " --group 64"), 1,
                  "bf16/64");
    const Outcome verified = LlavaModel("verify " + kEmoji + " --self-test " + word);
    EXPECT_THAT(verified.output, HasSubstr("in bfloat16")) << verified.error;
    const Outcome measured = LlavaModel(
        "bench --shape tiny --repeats 1 --parallel 1 --prompt 8 --gen 1 --json --dtype " + word +
        " --kv-type " + word);
    ASSERT_EQ(measured.code, 0) << measured.error;
    EXPECT_EQ(json::parse(measured.output)["dtype"].get<std::string>(), "bf16");
  }
}

TEST(PackedCommandsTest, HelpNamesOneWordForOneThing) {
  const std::string help = LlavaModel("quantize --help").output;
  EXPECT_THAT(help, AllOf(HasSubstr("{bfloat16,int8,int4}"), HasSubstr("--no-outliers")));
  EXPECT_THAT(help, Not(HasSubstr("{false}")));
  for (const std::string command : {"quantize", "random", "bench", "verify", "export"}) {
    EXPECT_THAT(LlavaModel(command + " --help").output, Not(HasSubstr("bf16")));
  }
}

TEST(PackedCommandsTest, RandomFindsItsTokenizerFromAnywhere) {
  const TempFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  const Outcome run = LlavaModel("random " + (folder.path() / "m").string() + " --shape tiny");
  fs::current_path(before);
  EXPECT_EQ(run.code, 0) << run.error;
}

TEST(PackedCommandsTest, RandomModelsOpenAndRepeat) {
  const TempFolder folder;
  const auto make = [&](const std::string& name, const std::string& flags) {
    const Outcome run = LlavaModel("random " + (folder.path() / name).string() +
                                   " --shape tiny --tokenizer " + kEmoji + " " + flags);
    EXPECT_EQ(run.code, 0) << run.error;
    return Manifest::Read(folder.path() / name / "1");
  };
  const Manifest first = make("a", "--dtype int4 --seed 5");
  EXPECT_EQ(make("b", "--dtype int4 --seed 5 --threads 1").decoder_digest, first.decoder_digest);
  EXPECT_NE(make("c", "--dtype int4 --seed 6").decoder_digest, first.decoder_digest);
  const LanguageCheckpoint opened = OpenPacked(folder.path() / "a");
  EXPECT_EQ(opened.tower_patches, 576);
  EXPECT_EQ(opened.config.projector.in_width, 1024);
  EXPECT_EQ(opened.chat_template->name(), "v1");
  EXPECT_GT(opened.tokenizer->vocab_size(), 100);
  EXPECT_EQ(LlavaModel("verify " + (folder.path() / "a").string()).code, 0);

  make("d", "--dtype bf16 --tower " + kEmoji + "-tower");
  const LanguageCheckpoint paired = OpenPacked(folder.path() / "d");
  EXPECT_EQ(paired.tower_digest, OpenTower(kEmoji + "-tower").digest);
  EXPECT_EQ(paired.tower_patches, 36);
}

TEST(PackedCommandsTest, AnInterruptedOneLeavesNothing) {
  const TempFolder folder;
  const std::string out = (folder.path() / "m").string();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (freopen("/dev/null", "w", stderr) == nullptr) _exit(99);
    execl(ProgramPath("llava-model").c_str(), "llava-model", "random", out.c_str(), "--shape",
          "llava-1.5-7b", "--tokenizer", kEmoji.c_str(), nullptr);
    _exit(98);
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60 * LLAVA_SLOWDOWN);
  const auto writing = [&] {  // a part of it is there
    for (const auto& entry : fs::recursive_directory_iterator(folder.path())) {
      if (entry.path().extension() == ".safetensors") return true;
    }
    return false;
  };
  while (!writing() && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_TRUE(writing());
  kill(child, SIGINT);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGINT);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

}  // namespace
}  // namespace llava
