// The program llava-model as its users meet it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/model/checkpoint/llava_model.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST(LlavaModelTest, HelpAndVersion) {
  const Outcome help = LlavaModel("--help");
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.output, AllOf(HasSubstr("publish"), HasSubstr("verify"), HasSubstr("inspect")));
  EXPECT_THAT(LlavaModel("import --help").output, HasSubstr("--chat-template"));
  EXPECT_THAT(LlavaModel("--version").output, StartsWith("llava-model "));
}

TEST(LlavaModelTest, WrongCommandLinesAreTwo) {
  ExpectOneLine(LlavaModel(""), 2, "subcommand");
  ExpectOneLine(LlavaModel("--frobnicate"), 2, "--frobnicate");
  ExpectOneLine(LlavaModel("import --frobnicate"), 2, "--frobnicate");
  ExpectOneLine(LlavaModel("inspect x --frobnicate"), 2, "--frobnicate");
  ExpectOneLine(LlavaModel("import x --name m"), 2, "--repository");
  ExpectOneLine(LlavaModel("inspect"), 2, "PATH");
}

TEST(LlavaModelTest, RefusesFlagsThatWouldDoNothing) {
  for (const char* flag : {"--group 64", "--kv-type int8", "--prompt 1", "--chunk 1", "--context 1",
                           "--gen 1", "--parallel 1"}) {
    const std::string name = std::string(flag).substr(0, std::string(flag).find(' '));
    ExpectOneLine(LlavaModel(std::string("bench --vision vit-l-14 ") + flag), 2, name);
    ExpectOneLine(LlavaModel(std::string("bench --shape x --load ") + flag), 2, name);
  }
  for (const char* flag : {"--dtype int8", "--repeats 2", "--vision vit-l-14"}) {
    const std::string name = std::string(flag).substr(0, std::string(flag).find(' '));
    ExpectOneLine(LlavaModel(std::string("bench --shape x --load ") + flag), 2, name);
  }
  ExpectOneLine(LlavaModel("bench --load"), 2, "--shape");
  // Told before anything is loaded: else it were that this is no language model.
  ExpectOneLine(LlavaModel("bench --load --shape " + (FixturesDir() / "clip-tower").string()), 1,
                "is no version of a model repository");
  ExpectOneLine(LlavaModel("bench --shape tiny --dtype float32 --group 64"), 1, "--group");
  ExpectOneLine(
      LlavaModel("bench --vision " + (FixturesDir() / "clip-tower").string() + " --outliers 0.1"),
      2, "--outliers");
  for (const char* flag : {"--dtype bf16", "--group 64", "--no-outliers", "--threads 1"}) {
    const std::string name = std::string(flag).substr(0, std::string(flag).find(' '));
    ExpectOneLine(LlavaModel(std::string("random x/y --plain ") + flag), 2, name);
  }
}

TEST(LlavaModelTest, FailuresAreOne) {
  ExpectOneLine(LlavaModel("verify /nowhere"), 1, "/nowhere");
  ExpectOneLine(LlavaModel("inspect " + (FixturesDir() / "images").string()), 1, "no checkpoint");
}

TEST(LlavaModelTest, ImportsVerifiesAndInspects) {
  const TempFolder folder;
  const std::string repository = folder.path().string();
  const auto import = [&](const std::string& fixture, const std::string& flags) {
    return LlavaModel("import " + (FixturesDir() / fixture).string() + " --repository " +
                      repository + " " + flags);
  };
  const Outcome first = import("tiny-llava", "--name m --chat-template llava_v1");
  EXPECT_EQ(first.code, 0) << first.error;
  EXPECT_THAT(first.output, AllOf(HasSubstr("m-tower/1"), HasSubstr("m/1")));
  // The same tower from another layout is not stored again.
  const Outcome second = import("orig-f32", "--name m --tower-name t --projector " +
                                                (FixturesDir() / "stage1-linear").string());
  EXPECT_THAT(second.output, AllOf(HasSubstr("m-tower/1 (already there)"), HasSubstr("m/2")));
  EXPECT_THAT(first.output, Not(HasSubstr("assumed")));
  EXPECT_THAT(
      import("orig-bf16", "--name n --tower-name t").output,
      AllOf(HasSubstr("t/1"), HasSubstr("template v1 (assumed; --chat-template names another)\n")));
  EXPECT_THAT(LlavaModel("inspect " + (FixturesDir() / "tiny-llava").string()).output,
              HasSubstr("chat_template_assumed  true\n"));
  EXPECT_THAT(import("clip-tower", "--name c").output, HasSubstr("already there"));
  ExpectOneLine(import("clip-tower", "--name c --chat-template v1"), 1, "vision tower");
  ExpectOneLine(import("tiny-llava", "--name m --chat-template nonsense"), 1, "nonsense");

  const Outcome inspected = LlavaModel("inspect --json " + repository + "/m/1");
  const json description = json::parse(inspected.output);
  EXPECT_EQ(description["kind"], "language");
  EXPECT_EQ(description["layout"], "repository");
  EXPECT_EQ(description["chat_template"], "llava_v1");
  const LanguageCheckpoint checkpoint = OpenLanguage(folder.path() / "m/1");
  EXPECT_EQ(description["digests"]["version"], ToHex(checkpoint.digest));
  EXPECT_EQ(description["digests"]["tower"], ToHex(checkpoint.tower_digest));
  EXPECT_EQ(description["tensors"], checkpoint.tensors.tensors().size());
  EXPECT_EQ(description["recipe"]["imported_from"], "llava-hf");
  EXPECT_EQ(
      json::parse(
          LlavaModel("inspect --json " + repository + "/m").output)["config"]["projector"]["type"],
      "linear");
  EXPECT_THAT(LlavaModel("inspect " + repository + "/m-tower").output,
              AllOf(HasSubstr("kind  tower"), HasSubstr("digests.tower  ")));

  for (const char* model : {"m", "m/1", "n", "t", "m-tower"}) {
    const Outcome verified = LlavaModel("verify " + repository + "/" + model);
    EXPECT_EQ(verified.code, 0) << verified.error;
    EXPECT_THAT(verified.output, HasSubstr(": ok, "));
  }
  std::string bytes = ReadBytes(folder.path() / "t/1/model.safetensors");
  bytes.back() ^= 1;
  WriteBytes(folder.path() / "t/1/model.safetensors", bytes);
  ExpectOneLine(LlavaModel("verify " + repository + "/t"), 1, "model.safetensors has another");
  EditJson(folder.path() / "m/1/manifest.json",
           [](auto& manifest) { manifest["decoder_digest"] = manifest["projector_digest"]; });
  ExpectOneLine(LlavaModel("verify " + repository + "/m/1"), 1, "the decoder has the digest");
}

TEST(LlavaModelTest, PublishesAdaptersMergedIntoTheirBase) {
  const TempFolder folder;
  CopyOf("clip-tower", folder);
  const std::string adapter = CopyOf("lora", folder).string();  // away from its base
  const std::string root = (folder.path() / "models").string();
  const std::string publish = "publish " + adapter + " --repository " + root + " --name tuned";
  ExpectOneLine(LlavaModel(publish), 1, "--base");
  const Outcome published =
      LlavaModel(publish + " --self-test --base " + (FixturesDir() / "orig-f32").string());
  ASSERT_EQ(published.code, 0) << published.error;
  const Outcome verified = LlavaModel("verify " + root + "/tuned --self-test float32");
  EXPECT_EQ(verified.code, 0) << verified.error;
  EXPECT_THAT(verified.output, HasSubstr("self-test off by"));
  EXPECT_THAT(LlavaModel("inspect " + root + "/tuned").output, HasSubstr("orig-f32"));
  // The same model as the folder itself beside its base.
  const Outcome diff = LlavaModel("diff " + root + "/tuned " + (FixturesDir() / "lora").string());
  EXPECT_THAT(diff.output, Not(HasSubstr("changed   model."))) << diff.output;
}

// From one repository to another: the tower has to come along or be there.
TEST(LlavaModelTest, MovesVersionsBetweenRepositories) {
  const TempFolder from, to;
  const auto language = OpenLanguage(FixturesDir() / "tiny-llava");
  const std::string source = PublishLanguage(language, from.path(), "m").string();
  const std::string import = "import " + source + " --name m --repository " + to.path().string();
  ExpectOneLine(LlavaModel(import), 1, "--tower");
  ExpectOneLine(LlavaModel(import + " --tower " + (FixturesDir() / "orig-bf16").string()), 1,
                "is not the tower of this model");
  EXPECT_EQ(LlavaModel(import + " --tower " + (FixturesDir() / "clip-tower").string()).code, 0);
  EXPECT_EQ(LlavaModel(import).code, 0);
}

// A version elsewhere in the repository is nothing that the published one needs.
TEST(LlavaModelTest, PublishesBesideBrokenVersions) {
  const TempFolder from, to;
  const auto language = OpenLanguage(FixturesDir() / "tiny-llava");
  const std::string source = PublishLanguage(language, from.path(), "m").string();
  const std::string import = "import " + source + " --name m --repository " + to.path().string();
  for (const char* broken : {"a/1", "z/7"}) {
    std::filesystem::create_directories(to.path() / broken);
    WriteBytes(to.path() / broken / "manifest.json", "{");
  }
  ExpectOneLine(LlavaModel(import), 1, "--tower; not read: " + (to.path() / "a/1").string());
  const Outcome anew = LlavaModel(import + " --tower " + (FixturesDir() / "clip-tower").string());
  EXPECT_EQ(anew.code, 0) << anew.error;
  EXPECT_THAT(anew.error, HasSubstr("the tower is stored anew; not read: "));
  EXPECT_THAT(anew.error, HasSubstr((to.path() / "z/7/manifest.json").string()));
  const Outcome again = LlavaModel(import);
  EXPECT_EQ(again.code, 0) << again.error;
}

TEST(LlavaModelTest, MakesAndRunsSelfTests) {
  const TempFolder repository;
  const std::string root = repository.path().string();
  const std::string source = (FixturesDir() / "tiny-llava").string();
  const std::string import = "import " + source + " --repository " + root + " --name ";
  ASSERT_EQ(LlavaModel(import + "tested --self-test").code, 0);
  for (const char* version : {"/tested", "/tested-tower"}) {
    for (const char* arithmetic : {"float32", "bfloat16"}) {
      const Outcome run = LlavaModel("verify " + root + version + " --self-test " + arithmetic);
      EXPECT_EQ(run.code, 0) << run.error;
      EXPECT_THAT(run.output, HasSubstr(std::string("self-test off by"))) << version;
    }
  }
  // By default too, the tower of a version that comes without one from the repository.
  ASSERT_EQ(LlavaModel(import + "default").code, 0);
  EXPECT_EQ(LlavaModel("verify " + root + "/default --self-test auto").code, 0);
  ASSERT_EQ(LlavaModel(import + "untested --no-self-test").code, 0);
  ExpectOneLine(LlavaModel("verify " + root + "/untested --self-test float32"), 1, "no self-test");
  ExpectOneLine(LlavaModel("verify " + root + "/tested --self-test int3"), 2, "--self-test");
  ExpectOneLine(LlavaModel(import + "x --self-test --no-self-test"), 2, "self-test");
  const std::string again =
      "publish " + root + "/untested --repository " + root + " --name again --self-test";
  EXPECT_EQ(LlavaModel(again).code, 0);
  EXPECT_EQ(LlavaModel("verify " + root + "/again --self-test bfloat16").code, 0);
}

}  // namespace
}  // namespace llava
