// llava_device_chat TOWER MODEL PICTURE.ppm QUESTION DEVICE...
//
// Answers the question about the picture greedily in float32 on every device, and measures the
// speed of decoding there. Prints one JSON object. Exit status 1 if the devices do not give the
// same answer.

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <nlohmann/json.hpp>

#include "model/checkpoint/checkpoint.h"
#include "model/image/image.h"
#include "model/llava/generate.h"
#include "model/llava/llava.h"
#include "model/nn/clip.h"
#include "tests/model/llava/prompts.h"

namespace llava {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

Image ReadPpm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int most = 0;
  Image image;
  file >> magic >> image.width >> image.height >> most;
  file.get();
  image.rgb.assign(std::istreambuf_iterator<char>(file), {});
  if (magic != "P6" || most != 255 || image.rgb.size() != size_t{3} * image.width * image.height) {
    throw std::runtime_error(path + ": not a binary 8-bit PPM");
  }
  return image;
}

at::Tensor FeaturesOf(const TowerCheckpoint& checkpoint, const FeatureConfig& config,
                      const Image& image, at::Device device) {
  const ClipTower tower(checkpoint.config, checkpoint.tensors, device, at::kFloat);
  const PreprocessConfig& preprocess = checkpoint.config.preprocess;
  const std::vector<float> pixels =
      NormalizePixels(FitToTower(image, config.image_mode, preprocess), preprocess);
  const int64_t side = preprocess.image_size;
  return tower.Features(at::tensor(pixels).view({1, 3, side, side}), config)[0];
}

// Tokens a second while `sequences` answers are decoded in one batch, behind `features`.
double DecodeSpeed(const Llava& model, const std::vector<int32_t>& prompt,
                   const at::Tensor& features, int sequences) {
  c10::InferenceMode guard;
  constexpr int kWarmup = 20, kSteps = 200;
  const LlamaDecoder& decoder = model.decoder();
  std::vector<KvCache> caches(sequences,
                              KvCache(decoder.config(), decoder.device(), decoder.dtype()));
  const at::Tensor embeddings = model.Embed(prompt, {&features, 1});
  std::vector<Segment> segments;
  for (KvCache& cache : caches) {
    const Segment whole{.tokens = embeddings.size(0), .cache = &cache};
    decoder.Forward(embeddings, {&whole, 1});
    segments.push_back({.tokens = 1, .cache = &cache});
  }
  std::vector<int64_t> ids(sequences, 30);
  Clock::time_point begin;
  for (int step = 0; step < kWarmup + kSteps; ++step) {
    if (step == kWarmup) begin = Clock::now();
    const at::Tensor logits =
        decoder.Logits(decoder.Forward(decoder.Embed(at::tensor(ids, at::kLong)), segments)).cpu();
    const int64_t width = logits.size(1);
    for (int i = 0; i < sequences; ++i) {
      ids[i] = Sample({logits.const_data_ptr<float>() + i * width, static_cast<size_t>(width)}, {},
                      prompt, {});
    }
  }
  const std::chrono::duration<double> seconds = Clock::now() - begin;
  return sequences * kSteps / seconds.count();
}

json Chat(const TowerCheckpoint& tower, const LanguageCheckpoint& language, const Image& image,
          const std::string& question, const std::string& device_name) {
  const at::Device device(device_name);
  const Llava model(language, device, at::kFloat);
  const at::Tensor features = FeaturesOf(tower, language.config.features, image, device);
  const ChatMessage message{ChatMessage::Role::kUser, question, /*num_images=*/1, {}};
  const std::vector<int32_t> prompt =
      model.tokenizer().EncodePrompt(model.chat_template().Render({&message, 1}));
  const GenerateResult result = Generate(model, prompt, {&features, 1}, {}, {.max_new_tokens = 64});
  json speeds;
  for (const int sequences : {1, 8}) {
    speeds[std::to_string(sequences)] = DecodeSpeed(model, prompt, features, sequences);
  }
  return {{"device", device_name},
          {"text", result.text},
          {"ids", result.ids},
          {"logprobs", ScoreAnswer(model, prompt, result.ids, {&features, 1})},
          {"decode_tokens_per_second_by_sequences", speeds}};
}

int Main(const std::vector<std::string>& arguments) {
  if (arguments.size() < 5) {
    std::cerr << "usage: llava_device_chat TOWER MODEL PICTURE.ppm QUESTION DEVICE...\n";
    return 2;
  }
  at::globalContext().setAllowTF32CuBLAS(false);  // the answers are compared: true float32
  at::globalContext().setAllowTF32CuDNN(false);
  at::set_num_threads(1);  // the shipped model is too small to share
  c10::InferenceMode guard;
  const TowerCheckpoint tower = OpenTower(arguments[0]);
  const LanguageCheckpoint language = OpenLanguage(arguments[1]);
  const Image image = ReadPpm(arguments[2]);
  json answers = json::array();
  bool same = true;
  for (size_t i = 4; i < arguments.size(); ++i) {
    answers.push_back(Chat(tower, language, image, arguments[3], arguments[i]));
    same = same && answers.back().at("ids") == answers.front().at("ids");
  }
  std::cout << json({{"question", arguments[3]}, {"same", same}, {"answers", answers}}).dump(1)
            << "\n";
  return same ? 0 : 1;
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  try {
    return llava::Main({argv + 1, argv + argc});
  } catch (const c10::Error& error) {
    std::cerr << "llava_device_chat: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "llava_device_chat: " << error.what() << "\n";
    return 1;
  }
}
