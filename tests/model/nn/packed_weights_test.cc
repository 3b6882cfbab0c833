// Decoders packed for serving: from plain tensors, from packed versions, and what is refused.
#include "model/nn/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/finite.h"
#include "model/checkpoint/tensor_file.h"
#include "model/nn/llama.h"
#include "model/nn/quantize.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using ops::cpu::PackedMatrix;
using ops::cpu::ThreadPool;
using ops::cpu::WeightFormat;
using testing::AllOf;
using testing::HasSubstr;

const PackOptions kInt4{WeightFormat::kInt4, 32, true};
const PackOptions kAll[] = {{WeightFormat::kBFloat16, 0, true},
                            {WeightFormat::kInt8, 128, true},
                            {WeightFormat::kInt8, 64, false},
                            {WeightFormat::kInt4, 64, true},
                            kInt4};

bool Always(int64_t, int64_t) { return true; }

at::Tensor Unpacked(const PackedMatrix& matrix) {
  std::vector<float> values(static_cast<size_t>(matrix.rows() * matrix.depth()));
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    matrix.Unpack(i, values.data() + i * matrix.depth());
  }
  return at::from_blob(values.data(), {matrix.rows(), matrix.depth()}).clone();
}

// As `options` packs the tensor by itself.
at::Tensor PackedAlone(const at::Tensor& tensor, const PackOptions& options, ThreadPool& pool) {
  const at::Tensor wide = tensor.to(at::kFloat).contiguous();
  PackedMatrix matrix(wide.size(0), wide.size(1), options);
  matrix.Append(pool, ops::cpu::SourceElement::kFloat, wide.const_data_ptr(), wide.size(0),
                wide.size(1));
  return Unpacked(matrix);
}

bool SameBytes(const PackedMatrix& a, const PackedMatrix& b) {
  return at::equal(StoredTensor(a), StoredTensor(b));
}

void ExpectSame(const PackedDecoderWeights& a, const PackedDecoderWeights& b) {
  EXPECT_TRUE(at::equal(a.embedding, b.embedding));
  EXPECT_EQ(a.norm, b.norm);
  EXPECT_TRUE(SameBytes(a.lm_head, b.lm_head));
  EXPECT_EQ(a.options.format, b.options.format);
  EXPECT_EQ(a.bytes(), b.bytes());
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].input_norm, b.layers[i].input_norm);
    EXPECT_EQ(a.layers[i].post_attention_norm, b.layers[i].post_attention_norm);
    EXPECT_TRUE(SameBytes(a.layers[i].qkv, b.layers[i].qkv)) << i;
    EXPECT_TRUE(SameBytes(a.layers[i].o, b.layers[i].o)) << i;
    EXPECT_TRUE(SameBytes(a.layers[i].gate_up, b.layers[i].gate_up)) << i;
    EXPECT_TRUE(SameBytes(a.layers[i].down, b.layers[i].down)) << i;
  }
}

class PackedWeightsTest : public testing::Test {
 protected:
  fs::path Publish(const LanguageCheckpoint& checkpoint, const PackOptions& options,
                   const std::string& name = "packed") {
    return *PublishPacked(checkpoint, options, folder_.path(), name, "{}", pool_, Always);
  }
  LanguageCheckpoint OpenPacked(const fs::path& path) {
    return OpenLanguage(path, {"", "", /*verify=*/true, /*packed=*/true});
  }

  const LanguageCheckpoint plain_ = OpenLanguage(FixturesDir() / "tiny-llava");
  const DecoderConfig& config_ = plain_.config.decoder;
  ThreadPool pool_{2};
  TempFolder folder_;
};

TEST_F(PackedWeightsTest, JoinsMatricesThatReadTheSame) {
  const TensorSource& tensors = plain_.tensors;
  for (const PackOptions& options : kAll) {
    const PackedDecoderWeights packed = PackDecoder(config_, tensors, options, pool_);
    SCOPED_TRACE(packed.layers[0].o.Describe());
    EXPECT_TRUE(
        at::equal(packed.embedding, tensors.Get("model.embed_tokens.weight").to(at::kBFloat16)));
    ASSERT_EQ(packed.layers.size(), 3u);
    for (int64_t i = 0; i < 3; ++i) {
      const std::string name = "model.layers." + std::to_string(i) + ".";
      const auto joined = [&](const std::vector<const char*>& parts) {
        std::vector<at::Tensor> list;
        for (const char* part : parts) list.push_back(tensors.Get(name + part + ".weight"));
        return PackedAlone(at::cat(list), options, pool_);
      };
      const PackedLayer& layer = packed.layers[static_cast<size_t>(i)];
      EXPECT_TRUE(at::equal(Unpacked(layer.qkv),
                            joined({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})));
      EXPECT_TRUE(at::equal(Unpacked(layer.o), joined({"self_attn.o_proj"})));
      EXPECT_TRUE(at::equal(Unpacked(layer.gate_up), joined({"mlp.gate_proj", "mlp.up_proj"})));
      EXPECT_TRUE(at::equal(Unpacked(layer.down), joined({"mlp.down_proj"})));
      const at::Tensor norm = tensors.Get(name + "input_layernorm.weight").to(at::kFloat);
      EXPECT_EQ(0, std::memcmp(layer.input_norm.data(), norm.const_data_ptr(), norm.nbytes()));
    }
    const PackOptions head = options.format == WeightFormat::kInt4
                                 ? PackOptions{WeightFormat::kInt8, 128, true}
                                 : options;
    EXPECT_TRUE(at::equal(Unpacked(packed.lm_head),
                          PackedAlone(tensors.Get("lm_head.weight"), head, pool_)));
  }
}

TEST_F(PackedWeightsTest, WithoutAWishPlainTensorsBecomeBFloat16) {
  const PackedDecoderWeights packed = PackDecoder(config_, plain_.tensors, std::nullopt, pool_);
  EXPECT_EQ(packed.layers[0].qkv.format(), WeightFormat::kBFloat16);
}

TEST_F(PackedWeightsTest, ReadsEveryElementType) {
  const PackedDecoderWeights expected = PackDecoder(config_, plain_.tensors, kInt4, pool_);
  std::map<std::string, at::Tensor> half;
  for (const auto& [name, info] : plain_.tensors.tensors()) {
    half[name] = plain_.tensors.Get(name).to(at::kBFloat16).to(at::kFloat).to(at::kHalf);
  }
  std::map<std::string, at::Tensor> single;
  for (const auto& [name, tensor] : half) single[name] = tensor.to(at::kFloat);
  const TensorSource in_half = MemoryTensors(half), in_single = MemoryTensors(single);
  ExpectSame(PackDecoder(config_, in_half, kInt4, pool_),
             PackDecoder(config_, in_single, kInt4, pool_));
  half["model.norm.weight"] = half["model.norm.weight"].to(at::kInt);
  EXPECT_THAT(ErrorOf([&] { PackDecoder(config_, MemoryTensors(half), kInt4, pool_); }),
              HasSubstr("model.norm.weight is I32"));
}

TEST_F(PackedWeightsTest, PublishedVersionsReadBackToTheBit) {
  for (const PackOptions& options : kAll) {
    const fs::path path = Publish(plain_, options);
    const LanguageCheckpoint read = OpenPacked(path);
    ASSERT_TRUE(read.config.decoder.quantization.has_value());
    EXPECT_EQ(read.config.decoder.quantization->Describe(), ToQuantization(options).Describe());
    EXPECT_EQ(read.tower_digest, plain_.tower_digest);
    EXPECT_EQ(read.tokenizer->digest(), plain_.tokenizer->digest());
    EXPECT_TRUE(at::equal(read.tensors.Get("model.mm_projector.0.weight"),
                          plain_.tensors.Get("model.mm_projector.0.weight")));
    ExpectSame(PackDecoder(read.config.decoder, read.tensors, std::nullopt, pool_),
               PackDecoder(config_, plain_.tensors, options, pool_));
  }
}

TEST_F(PackedWeightsTest, TiedTablesBecomeTwo) {
  LanguageCheckpoint tied = plain_;
  tied.config.decoder.tie_word_embeddings = true;
  tied.tensors.Remove("lm_head.weight");
  const PackedDecoderWeights packed = PackDecoder(tied.config.decoder, tied.tensors, kInt4, pool_);
  EXPECT_TRUE(
      at::equal(Unpacked(packed.lm_head), PackedAlone(tied.tensors.Get("model.embed_tokens.weight"),
                                                      {WeightFormat::kInt8, 128, true}, pool_)));
  const LanguageCheckpoint read = OpenPacked(Publish(tied, kInt4));
  ExpectSame(PackDecoder(read.config.decoder, read.tensors, kInt4, pool_), packed);
}

TEST_F(PackedWeightsTest, AskingForAnotherFormatNamesTheStoredOne) {
  const LanguageCheckpoint read = OpenPacked(Publish(plain_, {WeightFormat::kInt4, 64, true}));
  const auto ask = [&](const PackOptions& options) {
    return ErrorOf([&] { PackDecoder(read.config.decoder, read.tensors, options, pool_); });
  };
  EXPECT_THAT(ask({WeightFormat::kInt8}),
              AllOf(HasSubstr("packed as int4/64"), HasSubstr("ask for int4")));
  EXPECT_THAT(ask({WeightFormat::kInt4, 32}),
              AllOf(HasSubstr("packed as int4/64"), HasSubstr("leave --group out")));
  EXPECT_EQ(ask({WeightFormat::kInt4, 64}), "");
  const LanguageCheckpoint half =
      OpenPacked(Publish(plain_, {WeightFormat::kBFloat16, 0, true}, "half"));
  EXPECT_THAT(
      ErrorOf([&] { PackDecoder(half.config.decoder, half.tensors, PackOptions{}, pool_); }),
      HasSubstr("ask for bfloat16"));
  EXPECT_EQ(ask({WeightFormat::kInt4}), "");
}

TEST_F(PackedWeightsTest, OthersRefusePackedVersions) {
  const fs::path path = Publish(plain_, kInt4);
  EXPECT_THAT(ErrorOf([&] { OpenLanguage(path); }),
              AllOf(HasSubstr("int4/32"), HasSubstr("llava-llm"), HasSubstr("made from")));
  const LanguageCheckpoint read = OpenPacked(path);
  EXPECT_THAT(
      ErrorOf([&] { LlamaDecoder(read.config.decoder, read.tensors, at::kCPU, at::kFloat); }),
      AllOf(HasSubstr("int4/32"), HasSubstr("made from")));
  EXPECT_THAT(ErrorOf([&] { Publish(read, kInt4, "again"); }), HasSubstr("packed already"));
  EXPECT_FALSE(fs::exists(folder_.path() / "again"));
}

TEST_F(PackedWeightsTest, ConfigurationAndTensorsHaveToAgree) {
  const fs::path path = Publish(plain_, kInt4);
  const auto edited = [&](const std::function<void(nlohmann::json&)>& edit) {
    const std::string before = ReadBytes(path / "config.json");
    EditJson(path / "config.json", edit);
    const std::string error = ErrorOf([&] {
      const LanguageCheckpoint read =
          OpenLanguage(path, {"", "", /*verify=*/false, /*packed=*/true});
      PackDecoder(read.config.decoder, read.tensors, std::nullopt, pool_);
    });
    WriteBytes(path / "config.json", before);
    return error;
  };
  const auto set = [&](const char* key, const nlohmann::json& value) {
    return edited([&](auto& json) { json["quantization_config"][key] = value; });
  };
  EXPECT_EQ(set("group", 32), "");
  EXPECT_THAT(set("group", 64), AllOf(HasSubstr("groups of 32"), HasSubstr("int4/64")));
  EXPECT_THAT(set("group", 48), HasSubstr("int4/48 is not known"));
  EXPECT_THAT(set("format", "int8"), AllOf(HasSubstr("is int4 ["), HasSubstr("int8/32")));
  EXPECT_THAT(set("format", "int3"), HasSubstr("int3/32 is not known"));
  EXPECT_THAT(set("layout", "panel64.v9"),
              AllOf(HasSubstr("panel64.v9"), HasSubstr("panel32.v1"), HasSubstr("again")));
  EXPECT_THAT(set("quant_method", "awq"), HasSubstr("\"awq\""));
  EXPECT_THAT(edited([](auto& json) { json.erase("quantization_config"); }),
              AllOf(HasSubstr("missing: lm_head.weight"), HasSubstr("surplus: lm_head.packed")));
  EXPECT_THAT(edited([](auto& json) { json["decoder"]["intermediate_size"] = 224; }),
              AllOf(HasSubstr("mlp.gate_up_proj.packed: is int4 [384, 96]"),
                    HasSubstr("expected [448, 96]")));
}

TEST_F(PackedWeightsTest, DamagedAndMissingFilesAreNamed) {
  const fs::path path = Publish(plain_, kInt4);
  const std::string part = "model-00003.safetensors";  // layer 1
  const std::string bytes = ReadBytes(path / part);
  WriteBytes(path / part, bytes.substr(0, bytes.size() - 100));
  EXPECT_THAT(ErrorOf([&] { OpenPacked(path); }), HasSubstr(part));
  EXPECT_THAT(ErrorOf([&] {
                OpenLanguage(path, {"", "", /*verify=*/false, /*packed=*/true});
              }),
              AllOf(HasSubstr(part), HasSubstr("cut off")));
  fs::remove(path / part);
  EXPECT_THAT(ErrorOf([&] { OpenPacked(path); }), HasSubstr(part));

  // A whole file whose matrix is damaged within.
  std::map<std::string, at::Tensor> tensors;
  WriteBytes(path / part, bytes);
  {
    const auto file = TensorFile::Open(path / part);
    for (const auto& [name, info] : file->tensors()) tensors[name] = file->Get(name).clone();
  }
  const std::string name = "model.layers.1.mlp.down_proj.packed";
  tensors[name] = tensors[name].slice(0, 0, tensors[name].size(0) - 8).contiguous();
  SaveSafetensors(path / part, tensors);
  const LanguageCheckpoint read = OpenLanguage(path, {"", "", /*verify=*/false, /*packed=*/true});
  EXPECT_THAT(ErrorOf([&] { PackDecoder(read.config.decoder, read.tensors, kInt4, pool_); }),
              AllOf(HasSubstr(name), HasSubstr("does not fill")));
}

// Scales, weights and outliers that are no numbers are found by who checks a version, wherever they
// stand and however the bytes come.
TEST_F(PackedWeightsTest, NumbersThatAreNoneAreFound) {
  const at::Tensor weights = at::randn({70, 300}).mul_(0.02);
  weights[33][200] = 9;  // an outlier
  for (const PackOptions& options : kAll) {
    PackedMatrix matrix(70, 300, options);
    matrix.Append(pool_, ops::cpu::SourceElement::kFloat, weights.const_data_ptr(), 70, 300);
    const at::Tensor good = StoredTensor(matrix);
    const bool integers = options.format != WeightFormat::kBFloat16;
    const auto count = [&](const at::Tensor& stored) {
      // Behind something else, so that nothing is aligned.
      SaveSafetensors(folder_.path() / "f",
                      {{"a", at::zeros({3}, at::kByte)},
                       {"m.packed", stored},
                       {"n.packed", at::full({99}, 255, at::kByte)}});  // no matrix
      const std::string bytes = ReadBytes(folder_.path() / "f");
      std::vector<uint64_t> counts;
      for (const size_t piece : {size_t{9}, size_t{64}, size_t{1000}, bytes.size()}) {
        FiniteCheck check(bytes.size());
        for (size_t from = 0; from < bytes.size(); from += piece) {
          check.Feed({reinterpret_cast<const uint8_t*>(bytes.data()) + from,
                      std::min(piece, bytes.size() - from)});
        }
        EXPECT_FALSE(check.counts().contains("n.packed"));
        counts.push_back(check.counts().contains("m.packed") ? check.counts().at("m.packed") : 0);
      }
      EXPECT_EQ(std::count(counts.begin(), counts.end(), counts[0]), 4);
      return counts[0];
    };
    const auto with = [&](std::vector<int64_t> places) {  // 0xFF there: a byte of a NaN
      at::Tensor stored = good.clone();
      for (const int64_t place : places) {
        for (int64_t i = 0; i < 2; ++i) stored[place + i] = 255;
      }
      return count(stored);
    };
    const int64_t panel = matrix.layout().panel_bytes, block = matrix.layout().block_bytes;
    EXPECT_EQ(count(good), 0u);
    EXPECT_EQ(with({64}), 1u);
    EXPECT_EQ(with({64 + 62, 64 + 2 * panel + 10}), 2u);  // the last panel too
    if (!integers) continue;
    EXPECT_EQ(with({64 + panel + block + 6}), 1u);
    EXPECT_EQ(with({64 + 64}), 0u);  // values
    if (matrix.num_outliers() > 0) {
      EXPECT_EQ(with({good.size(0) - 2}), 1u);
    }
  }
}

TEST_F(PackedWeightsTest, FilesThatTheManifestDoesNotKnowAreNotRead) {
  const fs::path path = Publish(plain_, kInt4);
  fs::copy(path / "model-00001.safetensors", path / "extra.safetensors");
  EXPECT_THAT(ErrorOf([&] { OpenPacked(path); }), HasSubstr("does not list extra.safetensors"));
}

TEST_F(PackedWeightsTest, StoppedAtAnyStepNothingIsLeft) {
  for (int64_t last = 1; last <= config_.num_layers + 2; ++last) {
    int64_t calls = 0;
    const auto path = PublishPacked(plain_, kInt4, folder_.path(), "m", "{}", pool_,
                                    [&](int64_t done, int64_t total) {
                                      EXPECT_EQ(done, ++calls);
                                      EXPECT_EQ(total, config_.num_layers + 2);
                                      return done < last;
                                    });
    EXPECT_FALSE(path.has_value());
    EXPECT_EQ(calls, last);
    EXPECT_TRUE(fs::is_empty(folder_.path())) << last;
  }
}

TEST(PackOptionsTest, HaveNames) {
  for (const PackOptions& options : kAll) {
    const PackOptions read = ToPackOptions(ToQuantization(options));
    EXPECT_EQ(read.format, options.format);
    EXPECT_EQ(read.group, options.group);
  }
  EXPECT_EQ(ToQuantization({WeightFormat::kInt4}).Describe(), "int4/64");
  EXPECT_EQ(ToQuantization({WeightFormat::kInt8}).Describe(), "int8/128");
  EXPECT_EQ(ToQuantization({WeightFormat::kBFloat16}).Describe(), "bf16");
  EXPECT_THROW(ToPackOptions({"bf16", 32, ""}), std::invalid_argument);
  EXPECT_THROW(ToPackOptions({"int2", 32, ""}), std::invalid_argument);
  EXPECT_THROW(ToPackOptions({"int4", 48, ""}), std::invalid_argument);
}

}  // namespace
}  // namespace llava
