#pragma once

// Who is examined: answers questions about scenes.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/data/scenes/scene.h"
#include "model/llava/generate.h"
#include "model/llava/llava.h"

namespace llava {

// One thread. Show and Begin come before Answer.
class Examinee {
 public:
  virtual ~Examinee() = default;
  // From now on everything is about this scene.
  virtual void Show(const Scene& scene) = 0;
  // A new dialogue begins.
  virtual void Begin() = 0;
  // The answer to the next question of the dialogue.
  virtual std::string Answer(const std::string& question) = 0;
};

// What stands in the prompt for the picture of a scene: [N, D] (see Llava::Splice). Thread-safe.
using ImageTokens = std::function<at::Tensor(const Scene& scene)>;

// A model that answers greedily through its own chat template, the picture in front of the first
// question; follow-ups see its own earlier answers, as in serving.
class ModelExaminee : public Examinee {
 public:
  // `model` must outlive this.
  ModelExaminee(const Llava& model, ImageTokens image_tokens);
  void Show(const Scene& scene) override;
  void Begin() override;
  std::string Answer(const std::string& question) override;

 private:
  const Llava* model_;
  ImageTokens image_tokens_;
  StopOptions stop_;
  std::unique_ptr<Generator> generator_;
  std::vector<ChatMessage> messages_;
};

}  // namespace llava
