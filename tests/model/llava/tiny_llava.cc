#include "tests/model/llava/tiny_llava.h"

#include <filesystem>
#include <memory>

#include <ATen/ATen.h>

#include "tests/model/nn/tiny_model.h"
#include "tests/support/fixtures.h"

namespace llava {

LanguageCheckpoint TinyLanguageCheckpoint() {
  LanguageCheckpoint checkpoint;
  checkpoint.config.decoder = TinyDecoderConfig();
  checkpoint.config.projector = {.depth = 2, .in_width = 24, .out_width = 36};
  checkpoint.tower_patches = 9;
  auto tensors = RandomDecoder(checkpoint.config.decoder);
  tensors.merge(RandomProjector(checkpoint.config.projector));
  checkpoint.tensors = MemoryTensors(std::move(tensors));
  checkpoint.tokenizer = std::make_shared<Tokenizer>(Tokenizer::Load(FixturesDir() / "tiny-llava"));
  checkpoint.chat_template = std::make_shared<ChatTemplate>(ChatTemplate::Builtin("v1"));
  return checkpoint;
}

Llava TinyLlava(at::ScalarType dtype) { return Llava(TinyLanguageCheckpoint(), at::kCPU, dtype); }

at::Tensor TinyFeatures(uint64_t seed) {
  return at::randn({9, 24}, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

}  // namespace llava
