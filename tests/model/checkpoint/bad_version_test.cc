// Versions that must not be served, and what opening them says.

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/memory_tensors.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/model/checkpoint/unprivileged.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

class BadVersionTest : public testing::Test {
 protected:
  BadVersionTest() : path_(PublishLanguage(good_, folder_.path(), "m")) {}

  // A version whose tensor `name` holds `value` in places.
  fs::path WithValue(const std::string& name, float value, int64_t places) {
    LanguageCheckpoint bad = good_;
    at::Tensor tensor = bad.tensors.Get(name).clone();
    tensor.flatten().narrow(0, 1, places).fill_(value);
    ReplaceTensors(bad.tensors, {{name, tensor}});
    return PublishLanguage(bad, folder_.path(), "m");
  }
  // The manifest says what the files are now.
  void Reseal() const {
    EditJson(path_ / "manifest.json", [&](auto& manifest) {
      nlohmann::json files = nlohmann::json::object();
      for (const auto& entry : fs::directory_iterator(path_)) {
        const std::string name = entry.path().filename().string();
        if (name == "manifest.json") continue;
        files[name] = {{"size_bytes", entry.file_size()},
                       {"sha256", ToHex(HashFile(entry.path().string()))}};
      }
      manifest["files"] = files;
    });
  }
  std::string Error(const OpenOptions& options = {}) const {
    return ErrorOf([&] { OpenLanguage(path_, options).tensors.Finish(); });
  }
  std::string File(const std::string& name) const { return (path_ / name).string(); }
  const std::string kDiffers = ": is not what its manifest says: ";

  const TempFolder folder_;
  const LanguageCheckpoint good_ = OpenLanguage(FixturesDir() / "tiny-llava");
  const fs::path path_;
};

TEST_F(BadVersionTest, TruncatedShard) {
  const auto size = fs::file_size(path_ / "model.safetensors");
  fs::resize_file(path_ / "model.safetensors", size - 10);
  EXPECT_EQ(Error(), path_.string() + kDiffers + "model.safetensors has " +
                         std::to_string(size - 10) + " bytes, expected " + std::to_string(size));
  // Repaired, the same version opens.
  fs::remove_all(path_);
  PublishLanguage(good_, folder_.path(), "m");
  EXPECT_EQ(Error(), "");
}

TEST_F(BadVersionTest, WrongDigest) {
  for (const bool in_memory : {false, true}) {
    OpenOptions options;
    options.in_memory = in_memory;
    EXPECT_EQ(Error(options), "");
    std::string bytes = ReadBytes(path_ / "model.safetensors");
    bytes[bytes.size() - 100] ^= 1;
    WriteBytes(path_ / "model.safetensors", bytes);
    EXPECT_EQ(Error(options), path_.string() + kDiffers + "model.safetensors has another SHA-256");
    bytes[bytes.size() - 100] ^= 1;
    WriteBytes(path_ / "model.safetensors", bytes);
  }
}

TEST_F(BadVersionTest, WeightsThatAreNoNumbers) {
  const fs::path one = WithValue("model.norm.weight", NAN, 1);
  EXPECT_EQ(ErrorOf([&] { OpenLanguage(one); }),
            one.string() + ": 1 value of tensor \"model.norm.weight\" is NaN or infinite");
  const fs::path three = WithValue("lm_head.weight", -std::numeric_limits<float>::infinity(), 3);
  EXPECT_EQ(ErrorOf([&] { OpenLanguage(three); }),
            three.string() + ": 3 values of tensor \"lm_head.weight\" are NaN or infinite");
  OpenOptions unchecked;
  unchecked.verify = false;
  EXPECT_NO_THROW(OpenLanguage(three, unchecked));
}

TEST_F(BadVersionTest, ConfigurationOfOtherShapes) {
  EditJson(path_ / "config.json", [](auto& config) { config["decoder"]["vocab_size"] = 1000; });
  Reseal();
  const TensorInfo table = good_.tensors.tensors().at("lm_head.weight");
  const std::string is = " is [" + std::to_string(table.shape[0]) + ", " +
                         std::to_string(table.shape[1]) + "], expected [1000, " +
                         std::to_string(table.shape[1]) + "]";
  EXPECT_EQ(Error(), path_.string() +
                         ": the tensors do not fit the configuration; misshapen: lm_head.weight" +
                         is + ", model.embed_tokens.weight" + is);
}

TEST_F(BadVersionTest, UnknownFormatVersion) {
  EditJson(path_ / "manifest.json", [](auto& manifest) { manifest["format_version"] = 2; });
  EXPECT_EQ(Error(), File("manifest.json") + ": \"format_version\" is 2; this program reads 1");
}

TEST_F(BadVersionTest, MissingTokenizer) {
  fs::remove(path_ / "tokenizer.model");
  EXPECT_EQ(Error(), path_.string() + kDiffers +
                         "tokenizer.model cannot be read (No such file or directory)");
  Reseal();
  EXPECT_THAT(Error(),
              testing::AllOf(testing::HasSubstr(path_.string()), testing::HasSubstr("tokenizer")));
}

TEST_F(BadVersionTest, MissingManifest) {
  fs::remove(path_ / "manifest.json");
  EXPECT_EQ(Error(),
            path_.string() + ": is a version of a model repository without its manifest.json");
}

// Whatever is read is something that the manifest knows.
TEST_F(BadVersionTest, FilesThatTheManifestDoesNotList) {
  const std::string manifest = ReadBytes(path_ / "manifest.json");
  OpenOptions unchecked;
  unchecked.verify = false;
  const auto error = [&](const char* name) {
    EditJson(path_ / "manifest.json", [&](auto& all) { all["files"].erase(name); });
    const std::string found = Error(unchecked);
    WriteBytes(path_ / "manifest.json", manifest);
    return found;
  };
  const std::string not_listed = path_.string() + ": its manifest does not list ";
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.model",
                           "tokenizer_config.json", "chat_template.json"}) {
    EXPECT_EQ(error(name), not_listed + name);
  }
  WriteBytes(path_ / "added_tokens.json", "{}");
  EXPECT_EQ(Error(unchecked), not_listed + "added_tokens.json");
  fs::remove(path_ / "added_tokens.json");
  // Tensors under another name, by an index that is listed.
  fs::rename(path_ / "model.safetensors", path_ / "weights.bin");
  nlohmann::json map;
  for (const auto& [name, info] : good_.tensors.tensors()) map[name] = "weights.bin";
  WriteBytes(path_ / "model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
  Reseal();
  EXPECT_EQ(Error(unchecked), "");
  EditJson(path_ / "manifest.json", [](auto& all) { all["files"].erase("weights.bin"); });
  EXPECT_EQ(Error(unchecked), not_listed + "weights.bin");
}

TEST_F(BadVersionTest, UnreadableFile) {
  const Unprivileged user(folder_.path());
  fs::permissions(path_ / "model.safetensors", fs::perms::none);
  EXPECT_EQ(Error(), File("model.safetensors") + ": cannot open: Permission denied");
  fs::permissions(path_ / "model.safetensors", fs::perms::owner_all);
  fs::permissions(path_ / "manifest.json", fs::perms::none);
  EXPECT_EQ(Error(), File("manifest.json") + ": cannot read: Permission denied");
}

TEST_F(BadVersionTest, DeletedWhileItIsRead) {
  OpenOptions options;
  options.threads = 1;
  options.progress = [&](double) { fs::remove_all(path_); };  // files come in order of names
  EXPECT_EQ(Error(options), File("config.json") + ": cannot open: No such file or directory");
  // What is open by then is read to its end.
  PublishLanguage(good_, folder_.path(), "m");
  options.progress = [&](double share) {
    if (share == 1) fs::remove_all(path_);
  };
  EXPECT_EQ(Error(options), File("config.json") + ": cannot read: No such file or directory");
}

}  // namespace
}  // namespace llava
