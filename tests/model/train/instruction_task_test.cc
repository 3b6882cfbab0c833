#include "model/train/instruction_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "model/progress/stop_request.h"
#include "model/train/gradient_step.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/train/instruction_world.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using Stage = InstructionStage;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

double Mean(const std::vector<double>& values, size_t begin, size_t count) {
  return std::accumulate(values.begin() + begin, values.begin() + begin + count, 0.0) / count;
}

class InstructionTaskTest : public testing::Test {
 protected:
  InstructionWorld world_;
};

TEST_F(InstructionTaskTest, Stage1TrainsTheProjectorAlone) {
  const auto task = world_.Make(Stage::kAlign, {"batch_size=4", "steps=30"});
  EXPECT_EQ(task->kind(), "align");
  EXPECT_EQ(task->total_steps(), 30);
  for (const ParameterGroup& group : task->groups()) {
    EXPECT_DOUBLE_EQ(group.learning_rate, 2e-3);
    for (const auto& [name, parameter] : group.parameters) {
      EXPECT_THAT(name, StartsWith("model.mm_projector."));
      EXPECT_TRUE(parameter.requires_grad() && parameter.is_leaf());
    }
  }
  const auto losses = TrainSteps(*task, 30, 1e-2);
  EXPECT_LT(Mean(losses, 25, 5), 0.9 * Mean(losses, 0, 5));
}

TEST_F(InstructionTaskTest, Stage2TrainsAdaptersAlone) {
  const auto task = world_.Make(Stage::kFinetune,
                                {"batch_size=4", "steps=30", "lora.rank=4", "publish.dtype=fp32"});
  const auto plain = world_.Make(Stage::kFinetune, {"batch_size=4", "steps=30"});
  std::map<std::string, double> rates;
  for (const ParameterGroup& group : task->groups()) {
    rates[group.name] = group.learning_rate;
    for (const auto& [name, parameter] : group.parameters) {
      EXPECT_TRUE(name.starts_with("model.mm_projector.") || name.find(".lora_") != name.npos)
          << name;
    }
  }
  EXPECT_THAT(
      rates, testing::ElementsAre(testing::Pair("adapters", 2e-4), testing::Pair("projector", 2e-5),
                                  testing::Pair("projector biases", 2e-5)));
  // Fresh ones add nothing; what is left out of their inputs is a function of step and sample.
  const double loss = task->Forward(0, 0).loss.item<double>();
  EXPECT_NEAR(loss, plain->Forward(0, 0).loss.item<double>(), 1e-5);
  const auto losses = TrainSteps(*task, 30, 1e-2);
  EXPECT_LT(Mean(losses, 25, 5), 0.9 * Mean(losses, 0, 5));

  const auto version = task->Publish(world_.folder() / "repository", "adapted", {});
  const LanguageCheckpoint before = OpenLanguage(world_.model()), after = OpenLanguage(version);
  ASSERT_EQ(after.tensors.tensors().size(), before.tensors.tensors().size());
  for (const auto& [name, info] : after.tensors.tensors()) {
    const bool kept = name.find("norm") != name.npos || name.find("embed") != name.npos ||
                      name == "lm_head.weight";
    EXPECT_EQ(at::equal(before.tensors.Get(name), after.tensors.Get(name)), kept) << name;
  }
  // What was published is what was trained.
  const auto again = world_.Make(Stage::kFinetune, {"batch_size=4", "model=" + version.string(),
                                                    "tower=" + world_.model().string()});
  const at::NoGradGuard guard;
  EXPECT_NEAR(again->Forward(3, 0).loss.item<double>(),
              world_
                  .Make(Stage::kFinetune,
                        {"batch_size=4", "model=" + version.string(),
                         "tower=" + world_.model().string(), "lora.rank=2", "lora.dropout=0.5"})
                  ->Forward(3, 0)
                  .loss.item<double>(),
              1e-5);
}

TEST_F(InstructionTaskTest, AdaptersAreAskedForByTheirRank) {
  EXPECT_THAT(world_.Refusal(Stage::kFinetune, {"lora.alpha=16"}), HasSubstr("set lora.rank too"));
  EXPECT_THAT(world_.Refusal(Stage::kFinetune, {"lora.dropout=0.3"}),
              HasSubstr("set lora.rank too"));
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {"lora.rank=4"}), HasSubstr("lora.rank"));
}

TEST_F(InstructionTaskTest, Stage2StartsFromStage1AndTrainsTheDecoderToo) {
  const auto align = world_.Make(Stage::kAlign, {"batch_size=4", "publish.dtype=fp32"});
  TrainSteps(*align, 20, 1e-2);
  const auto root = world_.folder() / "repository";
  const auto version1 = align->Publish(root, "tiny", {{"stage", 1}});
  EXPECT_EQ(version1, root / "tiny/1");
  const LanguageCheckpoint before = OpenLanguage(world_.model()), after = OpenLanguage(version1);
  for (const auto& [name, info] : after.tensors.tensors()) {
    const bool trained = name.starts_with("model.mm_projector.");
    EXPECT_EQ(at::equal(before.tensors.Get(name), after.tensors.Get(name)), !trained) << name;
  }

  const std::vector<std::string> settings = {"model=" + (root / "tiny").string(),
                                             "tower=" + world_.model().string(), "batch_size=8",
                                             "image_order=front"};
  const auto finetune = world_.Make(Stage::kFinetune, settings);
  EXPECT_EQ(finetune->kind(), "finetune");
  const auto last = align->groups(), first = finetune->groups();
  EXPECT_TRUE(at::equal(last[0].parameters[0].second, first[0].parameters[0].second));
  ASSERT_EQ(first.size(), 4u);
  EXPECT_DOUBLE_EQ(first[2].learning_rate, 2e-5);
  const auto losses = TrainSteps(*finetune, 30, 3e-3);
  EXPECT_LT(Mean(losses, 25, 5), 0.5 * Mean(losses, 0, 5))
      << "eight records can be learnt by heart";
  const auto version2 = finetune->Publish(root, "tiny", {{"stage", 2}});
  EXPECT_EQ(version2, root / "tiny/2");
  const LanguageCheckpoint published = OpenLanguage(version2);
  for (const auto& [name, info] : published.tensors.tensors()) {
    EXPECT_EQ(info.dtype, at::kBFloat16) << name;
  }
  EXPECT_LT(MaxDifference(published.tensors.Get("model.norm.weight"),
                          finetune->groups()[3].parameters.back().second.detach()),
            0.01);
}

TEST_F(InstructionTaskTest, AMicroBatchIsAPureFunctionOfItsNumber) {
  const std::vector<std::string> settings = {"batch_size=3", "accumulation=2", "epochs=4"};
  const auto one = world_.Make(Stage::kFinetune, settings);
  EXPECT_EQ(one->total_steps(), 6);  // 32 rows, 6 a step
  std::map<std::pair<int64_t, int64_t>, std::pair<double, std::string>> seen;
  for (int64_t step = 0; step < 6; ++step) {
    for (int64_t micro = 0; micro < 2; ++micro) {
      const MicroBatch batch = one->Forward(step, micro);
      EXPECT_EQ(batch.samples, 3);
      EXPECT_GT(batch.trained_tokens, 0);
      EXPECT_GT(batch.tokens, batch.trained_tokens);
      EXPECT_GE(batch.waited_seconds, 0);
      seen[{step, micro}] = {batch.loss.item<double>(), batch.origin};
    }
  }
  auto others = settings;
  others.push_back("loader_threads=3");
  others.push_back("feature_cache.memory_mib=0");
  const auto other = world_.Make(Stage::kFinetune, others);
  for (const auto& [step, micro] :
       {std::pair{5, 1}, {2, 0}, {2, 1}, {0, 0}}) {  // as after a resume
    const MicroBatch batch = other->Forward(step, micro);
    EXPECT_EQ(batch.loss.item<double>(), (seen.at({step, micro}).first));
    EXPECT_EQ(batch.origin, (seen.at({step, micro}).second));
  }
  EXPECT_THAT(seen.at({0, 0}).second, HasSubstr("data.json records "));
}

TEST_F(InstructionTaskTest, TheHeaviestStepHasTheLargestMicroBatch) {
  for (const char* packing : {"packing=none", "packing=picture"}) {
    const auto task = world_.Make(Stage::kFinetune, {"batch_size=1", "accumulation=2", "epochs=2",
                                                     "image_order=front", packing});
    int64_t heaviest = 0, most = 0;
    for (int64_t step = 0; step < task->total_steps(); ++step) {
      for (int64_t micro = 0; micro < 2; ++micro) {
        const int64_t tokens = task->Forward(step, micro).tokens;
        if (tokens > most) heaviest = step;
        most = std::max(most, tokens);
      }
    }
    EXPECT_EQ(task->HeaviestStep(), heaviest) << packing;
  }
}

TEST_F(InstructionTaskTest, PackingChangesNeitherLossNorGradients) {
  for (const char* order : {"front", "random"}) {
    const std::vector<std::string> common = {"order=as_data", std::string("image_order=") + order};
    auto separate = common, packed = common;
    separate.insert(separate.end(), {"packing=none", "batch_size=8"});
    packed.insert(packed.end(), {"packing=picture", "batch_size=5"});
    const auto alone = world_.Make(Stage::kFinetune, separate);
    const auto together = world_.Make(Stage::kFinetune, packed);
    const MicroBatch expected = alone->Forward(0, 0), found = together->Forward(0, 0);
    EXPECT_EQ(found.samples, 8);
    EXPECT_EQ(found.trained_tokens, expected.trained_tokens);
    EXPECT_LT(found.tokens, expected.tokens) << "shared pictures are computed once";
    EXPECT_NEAR(found.loss.item<double>(), expected.loss.item<double>(), 1e-5);
    expected.loss.backward();
    found.loss.backward();
    const auto theirs = Gradients(*alone), ours = Gradients(*together);
    for (const auto& [name, gradient] : theirs) {
      EXPECT_LT(MaxDifference(gradient, ours.at(name)), 1e-5) << name << " " << order;
    }
  }
}

TEST_F(InstructionTaskTest, CachedFeaturesChangeNothing) {
  const auto losses = [&](std::vector<std::string> settings) {
    settings.insert(settings.end(), {"batch_size=4", "epochs=3"});
    const auto task = world_.Make(Stage::kAlign, settings);
    return TrainSteps(*task, task->total_steps(), 1e-3);
  };
  const auto plain = losses({"feature_cache.memory_mib=0"});
  EXPECT_EQ(plain.size(), 6u);
  EXPECT_EQ(losses({"feature_cache.memory_mib=64"}), plain);
  const std::string file = "feature_cache.file=" + (world_.folder() / "features").string();
  EXPECT_EQ(losses({file, "feature_cache.memory_mib=0"}), plain);
  EXPECT_EQ(losses({file}), plain);
}

TEST_F(InstructionTaskTest, ImageOrderIsDrawnAnewInEveryEpoch) {
  const auto epochs = [&](const char* order) {
    const auto task = world_.Make(Stage::kFinetune, {"order=as_data", "batch_size=8", "epochs=3",
                                                     std::string("image_order=") + order});
    std::vector<double> losses;
    for (int64_t step = 0; step < 3; ++step) {
      losses.push_back(task->Forward(step, 0).loss.item<double>());
    }
    return losses;
  };
  const auto random = epochs("random"), front = epochs("front"), as_data = epochs("as_data");
  EXPECT_EQ(front[0], front[1]);
  EXPECT_EQ(as_data[0], as_data[2]);
  EXPECT_NE(front[0], as_data[0]);
  EXPECT_FALSE(random[0] == random[1] && random[1] == random[2]);
  EXPECT_EQ(epochs("random"), random);
}

TEST_F(InstructionTaskTest, HeldOutLossAndAccuracyAreMeansOverTokens) {
  EXPECT_TRUE(world_.Make(Stage::kAlign)->Evaluate().empty());
  const auto file = world_.Write("held_out.json", ArrayJson(world_.records()));
  const std::vector<std::string> settings = {"held_out_data=" + file.string(), "order=as_data",
                                             "image_order=front", "projector.init=keep"};
  auto whole = settings;
  whole.push_back("batch_size=8");
  const auto task = world_.Make(Stage::kAlign, whole);
  const double expected = task->Forward(0, 0).loss.item<double>();
  std::optional<double> accuracy;
  for (const int batch_size : {8, 3, 100}) {
    auto some = settings;
    some.push_back("batch_size=" + std::to_string(batch_size));
    const Figures figures = world_.Make(Stage::kAlign, some)->Evaluate();
    ASSERT_EQ(figures.size(), 2u);
    EXPECT_EQ(figures[0].first, "held_out_loss");
    EXPECT_NEAR(figures[0].second, expected, 1e-5) << batch_size;
    EXPECT_EQ(figures[1].first, "held_out_accuracy");
    if (!accuracy) accuracy = figures[1].second;
    EXPECT_NEAR(figures[1].second, *accuracy, 1e-9) << batch_size;
  }
  whole.push_back("held_out_records=2");
  EXPECT_NE(world_.Make(Stage::kAlign, whole)->Evaluate()[0].second, expected);
  const MicroBatch after = task->Forward(1, 0);
  task->Evaluate();
  EXPECT_TRUE(after.loss.requires_grad()) << "evaluation leaves training alone";
}

TEST_F(InstructionTaskTest, BadRecordsAreRefusedTogetherOrLeftOut) {
  auto records = world_.records();
  records[1] = RecordJson("b", "none.png", {"<image>\nWhat?", "A cat."});
  records[4] = R"({"id": "e", "conversations": [})";
  world_.Write("data.json", ArrayJson(records));
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {}),
              AllOf(HasSubstr("2 of 8 records cannot be used (--skip-bad leaves them out)"),
                    HasSubstr("data.json record 1 (\"b\"): no picture "),
                    HasSubstr("data.json record 4: '}' without its partner")));
  char* told = nullptr;
  size_t size = 0;
  std::FILE* progress = open_memstream(&told, &size);
  const auto task =
      world_.Make(Stage::kAlign, {"skip_bad=true", "batch_size=6", "order=as_data"}, progress);
  std::fclose(progress);
  EXPECT_THAT(told, HasSubstr("llava-train: data: 2 of 8 records left out (broken JSON 1, missing "
                              "picture 1), the first: " +
                              (world_.folder() / "data.json").string() + " record 1 (\"b\"): no "));
  std::free(told);
  std::filesystem::create_directory(world_.folder() / "run");
  task->Begin(world_.folder() / "run", /*resumes=*/false, /*progress=*/nullptr);
  const MicroBatch batch = task->Forward(0, 0);
  EXPECT_EQ(batch.samples, 6);
  EXPECT_THAT(batch.origin, HasSubstr("records 0, 2, 3, 5, 6, 7"));
  const auto report = task->Check(nullptr)["data"];
  EXPECT_EQ(report["records"], 8);
  EXPECT_EQ(report["usable"], 6);
  EXPECT_EQ(report["bad"], (nlohmann::ordered_json{{"broken JSON", 1}, {"missing picture", 1}}));
  EXPECT_EQ(report["complaints"].size(), 2u);
  EXPECT_EQ(nlohmann::ordered_json::parse(
                std::ifstream(world_.folder() / "run/data-report.json"))["data"],
            report);
  world_.Write("data.json", "[{}]");
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {"skip_bad=true"}),
              HasSubstr("has no record that can be used, of 1"));
}

TEST_F(InstructionTaskTest, AFileThatIsNoPictureIsFoundAtOnce) {
  for (const auto& [content, named] :
       {std::pair{"GIF89a", "is a GIF picture"}, {"<html>", "is an HTML page"}, {"", "is empty"}}) {
    world_.Write("images/1.png", content);
    EXPECT_THAT(world_.Refusal(Stage::kAlign, {"image_mode=pad"}),
                AllOf(HasSubstr("data.json record 3 (\"d\"): "), HasSubstr("images/1.png"),
                      HasSubstr(named), HasSubstr("--skip-bad")));
  }
}

TEST_F(InstructionTaskTest, ABrokenPictureIsFoundBeforeOrInTraining) {
  const std::string whole = ReadBytes(world_.folder() / "images/1.png");
  world_.Write("images/1.png", whole.substr(0, whole.size() / 2));
  const auto task = world_.Make(Stage::kAlign, {"batch_size=4", "order=as_data"});
  try {
    task->Forward(0, 0);
    FAIL();
  } catch (const BadRecord& bad) {
    EXPECT_THAT(bad.what(), AllOf(HasSubstr("data.json record 3: "), HasSubstr("images/1.png"),
                                  HasSubstr("--skip-bad")));
  }
  EXPECT_GT(task->Forward(1, 0).samples, 0) << "what comes later can still be read";
  EXPECT_THROW(task->Check(nullptr), std::runtime_error);

  const auto skipping =
      world_.Make(Stage::kAlign, {"skip_bad=true", "batch_size=1", "order=as_data"});
  EXPECT_EQ(skipping->Check(nullptr)["data"]["bad"]["broken picture"], 1);
  const MicroBatch replaced = skipping->Forward(3, 0);  // record 3 alone
  EXPECT_EQ(replaced.samples, 1);
  EXPECT_THAT(replaced.origin, HasSubstr("records 4"));
  ASSERT_EQ(replaced.figures.size(), 1u);
  EXPECT_EQ(replaced.figures[0], (std::pair<std::string, double>{"left_out", 1}));
  const auto of_two = world_.Make(
      Stage::kAlign, {"skip_bad=true", "batch_size=1", "accumulation=2", "order=as_data"});
  StepSums sums;
  GradientStep passes(*of_two, /*accumulation=*/2);
  for (int64_t turn = 0; turn < passes.num_turns(); ++turn) passes.Turn(/*step=*/1, turn, sums);
  EXPECT_EQ(sums.figures.at("left_out"), 1) << "a count, of the step";
}

// The first evaluation may come hours later.
TEST_F(InstructionTaskTest, ABrokenPictureOfTheHeldOutDataIsFoundAtOnce) {
  world_.Write("images/1.png", "no picture at all");
  world_.Write("data.json", ArrayJson({world_.records()[0]}));
  const std::string held_out =
      "held_out_data=" + world_.Write("held_out.json", ArrayJson(world_.records())).string();
  EXPECT_THAT(world_.Refusal(Stage::kAlign, {held_out}),
              AllOf(HasSubstr("held_out.json record 3 (\"d\"): "), HasSubstr("images/1.png"),
                    HasSubstr("--skip-bad")));
  EXPECT_EQ(world_.Make(Stage::kAlign, {held_out, "skip_bad=true"})->Evaluate().size(), 2u);
}

TEST_F(InstructionTaskTest, ASignalEndsAnEvaluation) {
  const auto file = world_.Write("held_out.json", ArrayJson(world_.records()));
  const auto task = world_.Make(Stage::kAlign, {"held_out_data=" + file.string()});
  {
    const StopRequest stop;
    raise(SIGTERM);
    EXPECT_THROW(task->Evaluate(), StopRequest::Came);
  }
  EXPECT_EQ(task->Evaluate().size(), 2u);
}

TEST_F(InstructionTaskTest, AMicroBatchOfTextAloneMovesNoProjector) {
  world_.Write("data.json", ArrayJson({world_.records()[4], world_.records()[0]}));
  const auto task = world_.Make(Stage::kAlign, {"batch_size=1", "order=as_data"});
  const MicroBatch text = task->Forward(0, 0);
  EXPECT_GT(text.loss.item<double>(), 0);
  ASSERT_NO_THROW(text.loss.backward());
  for (const auto& [name, gradient] : Gradients(*task)) {
    ASSERT_TRUE(gradient.defined()) << name << ": a step's moments decay all the same";
    EXPECT_EQ(gradient.abs().sum().item<double>(), 0) << name;
  }
  task->Forward(1, 0).loss.backward();  // accumulated
  for (const auto& [name, gradient] : Gradients(*task)) {
    EXPECT_GT(gradient.abs().sum().item<double>(), 0) << name;
  }
}

TEST_F(InstructionTaskTest, CheckCountsWhatThereIs) {
  const auto file = world_.Write("held_out.json", ArrayJson({world_.records()[0]}));
  const auto task = world_.Make(Stage::kFinetune, {"packing=picture", "batch_size=2", "epochs=2",
                                                   "held_out_data=" + file.string()});
  const auto report = task->Check(nullptr);
  EXPECT_EQ(report["kind"], "finetune");
  EXPECT_EQ(report["steps"], 5);
  EXPECT_EQ(report["epochs"], 2.0);
  int64_t parameters = 0;
  for (const ParameterGroup& group : task->groups()) {
    for (const auto& [name, parameter] : group.parameters) parameters += parameter.numel();
  }
  EXPECT_EQ(report["parameters"], parameters) << "all are trained in stage 2";
  const auto& data = report["data"];
  EXPECT_EQ(data["records"], 8);
  EXPECT_EQ(data["with_picture"], 6);
  EXPECT_EQ(data["text_only"], 2);
  EXPECT_EQ(data["pictures"], 3);
  EXPECT_EQ(data["turns"], 11);
  EXPECT_EQ(data["dropped_turns"], 0);
  EXPECT_EQ(data["rows_per_epoch"], 5);
  EXPECT_GT(data["trained_tokens"], 50);
  EXPECT_EQ(report["held_out_data"]["records"], 1);
}

TEST_F(InstructionTaskTest, TruncationIsCounted) {
  // Where a place is drawn, the other one may fit.
  const std::string front = "image_order=front";
  const int64_t longest =
      world_.Make(Stage::kFinetune, {front})->Check(nullptr)["data"]["longest_sample_tokens"];
  char* told = nullptr;
  size_t size = 0;
  std::FILE* progress = open_memstream(&told, &size);
  const auto task =
      world_.Make(Stage::kFinetune, {front, "max_tokens=" + std::to_string(longest - 1)}, progress);
  std::fclose(progress);
  EXPECT_THAT(told, HasSubstr("llava-train: data: 1 too long records lost their last 1 turns\n"));
  std::free(told);
  const auto data = task->Check(nullptr)["data"];
  EXPECT_EQ(data["shortened_records"], 1);
  EXPECT_EQ(data["dropped_turns"], 1);
  EXPECT_THAT(world_.Refusal(Stage::kFinetune, {"max_tokens=20"}),
              HasSubstr("tokens, at most 20 fit (max_tokens)"));
}

TEST_F(InstructionTaskTest, PublishedLabelsAreSelectable) {
  const std::vector<std::string> settings = {"chat_template=v1", "order=as_data", "batch_size=8",
                                             "image_order=front", "skip_bad=true"};
  auto published = settings;
  published.push_back("labels=published");
  const auto ours = world_.Make(Stage::kFinetune, settings);
  const auto theirs = world_.Make(Stage::kFinetune, published);
  // On this vocabulary their arithmetic drops every sample of several turns (docs of the fixtures).
  EXPECT_EQ(ours->Check(nullptr)["data"]["usable"], 8);
  EXPECT_EQ(theirs->Check(nullptr)["data"]["bad"]["nothing to train"], 3);
}

TEST_F(InstructionTaskTest, ComputesIn16BitsWithMastersIn32) {
  const auto exact = world_.Make(Stage::kFinetune, {"batch_size=8", "projector.init=keep"});
  const auto mixed =
      world_.Make(Stage::kFinetune, {"batch_size=8", "projector.init=keep", "precision=bf16"});
  const MicroBatch expected = exact->Forward(0, 0), found = mixed->Forward(0, 0);
  EXPECT_EQ(found.loss.scalar_type(), at::kFloat);
  EXPECT_NEAR(found.loss.item<double>(), expected.loss.item<double>(), 0.1);
  found.loss.backward();
  for (const auto& [name, gradient] : Gradients(*mixed)) {
    EXPECT_EQ(gradient.scalar_type(), at::kFloat) << name;
  }
}

TEST_F(InstructionTaskTest, GradientCheckpointingChangesNoGradient) {
  for (const char* rank : {"lora.rank=0", "lora.rank=4"}) {  // these leave out inputs
    const auto plain = world_.Make(Stage::kFinetune, {"batch_size=8", rank});
    const auto saving =
        world_.Make(Stage::kFinetune, {"batch_size=8", rank, "gradient_checkpointing=true"});
    plain->Forward(0, 0).loss.backward();
    saving->Forward(0, 0).loss.backward();
    const auto theirs = Gradients(*plain), ours = Gradients(*saving);
    for (const auto& [name, gradient] : theirs) {
      EXPECT_LT(MaxDifference(gradient, ours.at(name)), 1e-6) << name << " " << rank;
    }
  }
}

TEST_F(InstructionTaskTest, WeightDecaySparesBiasesAndNorms) {
  const auto task = world_.Make(
      Stage::kFinetune, {"weight_decay=0.1", "learning_rate=1e-4", "projector.learning_rate=1e-3"});
  for (const ParameterGroup& group : task->groups()) {
    for (const auto& [name, parameter] : group.parameters) {
      EXPECT_EQ(group.weight_decay, parameter.dim() > 1 ? 0.1 : 0) << name;
      EXPECT_EQ(group.learning_rate, name.starts_with("model.mm_projector") ? 1e-3 : 1e-4);
    }
  }
}

}  // namespace
}  // namespace llava
