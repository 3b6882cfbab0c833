#include "tests/model/train/instruction_world.h"

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "model/train/optimizer.h"
#include "tests/support/fixtures.h"

namespace llava {

std::string RecordJson(const std::string& id, const std::string& image,
                       const std::vector<std::string>& texts) {
  nlohmann::ordered_json record = {{"id", id}};
  if (!image.empty()) record["image"] = image;
  record["conversations"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < texts.size(); ++i) {
    record["conversations"].push_back(
        {{"from", i % 2 == 0 ? "human" : "gpt"}, {"value", texts[i]}});
  }
  return record.dump();
}

std::string ArrayJson(const std::vector<std::string>& records) {
  std::string json;
  for (const std::string& record : records) json += (json.empty() ? "[\n" : ",\n") + record;
  return json + "\n]\n";
}

InstructionWorld::InstructionWorld() {
  at::set_num_threads(1);  // the model is too small to share, and other tests run beside
  const auto fixtures = FixturesDir() / "images";
  const char* names[] = {"plain.png", "rgba.png", "palette.png"};
  std::filesystem::create_directories(scratch_.path() / "images");
  for (int i = 0; i < 3; ++i) {
    std::filesystem::copy_file(fixtures / names[i],
                               scratch_.path() / "images" / (std::to_string(i) + ".png"));
  }
  Write("data.json", ArrayJson(records()));
}

std::filesystem::path InstructionWorld::model() const { return FixturesDir() / "tiny-llava"; }

std::vector<std::string> InstructionWorld::records() const {
  return {RecordJson("a", "0.png", {"<image>\nWhat is it?", "A red house."}),
          RecordJson("b", "0.png", {"What colour is it?\n<image>", "Red.", "Sure?", "Yes, I am."}),
          RecordJson("c", "0.png", {"<image>\nIs there a dog?", "No."}),
          RecordJson("d", "1.png", {"<image>\nWhat is it?", "A blue boat.", "Where?", "At sea."}),
          RecordJson("e", "", {"Can a boat fly?", "No, it cannot."}),
          RecordJson("f", "2.png", {"<image>\nDescribe it.", "A tree on a hill in the sun."}),
          RecordJson("g", "2.png", {"How many trees?\n<image>", "One."}),
          RecordJson("h", "", {"Is the sun hot?", "Yes.", "And ice?", "No, it is cold."})};
}

std::unique_ptr<TrainingTask> InstructionWorld::Make(InstructionStage stage,
                                                     const std::vector<std::string>& settings,
                                                     std::FILE* progress) const {
  Recipe recipe;
  recipe.Set("model=" + model().string());
  recipe.Set("data=" + (folder() / "data.json").string());
  recipe.Set("images=" + (folder() / "images").string());
  for (const std::string& setting : settings) recipe.Set(setting);
  const TaskSettings task = TaskSettings::From(recipe);
  auto made = MakeInstructionTask(stage, recipe, task, progress);
  recipe.CheckAllRead();
  return made;
}

std::string InstructionWorld::Told(InstructionStage stage,
                                   const std::vector<std::string>& settings) const {
  char* told = nullptr;
  size_t size = 0;
  std::FILE* progress = open_memstream(&told, &size);
  Make(stage, settings, progress);
  std::fclose(progress);
  const std::string text = told;
  std::free(told);
  return text;
}

std::string InstructionWorld::Refusal(InstructionStage stage,
                                      const std::vector<std::string>& settings) const {
  try {
    Make(stage, settings);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

std::map<std::string, at::Tensor> Gradients(TrainingTask& task) {
  std::map<std::string, at::Tensor> gradients;
  for (const ParameterGroup& group : task.groups()) {
    for (const auto& [name, parameter] : group.parameters) gradients[name] = parameter.grad();
  }
  return gradients;
}

std::vector<double> TrainSteps(TrainingTask& task, int64_t steps, double rate) {
  std::vector<at::Tensor> parameters;
  for (const ParameterGroup& group : task.groups()) {
    for (const auto& [name, parameter] : group.parameters) parameters.push_back(parameter);
  }
  AdamW optimizer(parameters, {});
  std::vector<double> losses;
  for (int64_t step = 0; step < steps; ++step) {
    const MicroBatch batch = task.Forward(step, 0);
    batch.loss.backward();
    losses.push_back(batch.loss.item<double>());
    ClipGradients(parameters, 1.0);
    optimizer.Step(rate);
    optimizer.ZeroGradients();
  }
  return losses;
}

}  // namespace llava
