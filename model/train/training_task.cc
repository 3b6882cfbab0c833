#include "model/train/training_task.h"

namespace llava {

TaskSettings TaskSettings::From(Recipe& recipe) {
  TaskSettings s;
  s.seed = static_cast<uint64_t>(
      recipe.Int("seed", static_cast<int64_t>(s.seed), "of all that is drawn by chance"));
  s.compute_dtype = recipe.Choice("precision", "fp32", {"fp32", "bf16"},
                                  "dtype of the computation; masters stay in float32") == "bf16"
                        ? at::kBFloat16
                        : at::kFloat;
  s.gradient_checkpointing =
      recipe.Flag("gradient_checkpointing", s.gradient_checkpointing,
                  "compute each decoder layer again in the backward pass: less memory");
  s.loader_threads =
      recipe.Int("loader_threads", s.loader_threads, "threads that prepare data", 1, 256);
  s.skip_bad = recipe.Flag("skip_bad", s.skip_bad, "leave bad records out instead of refusing");
  return s;
}

}  // namespace llava
