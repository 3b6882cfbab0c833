#pragma once

// The subcommands of llava-train that train: one for each kind of task.

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace llava {

// "pretrain-vision", "pretrain-lm", "align", "finetune".
std::vector<std::string> TrainingKinds();

struct TrainCommand {
  std::string kind;
  std::filesystem::path recipe;       // empty: defaults alone
  std::vector<std::string> settings;  // key=value, over the recipe's
  std::filesystem::path run_folder;
  std::filesystem::path repository;  // where to publish at the end; empty: nowhere
  std::string name;                  // of what is published
  std::string metrics_address;       // "127.0.0.1:8032" for Prometheus; empty: none
};

// Exit code of a run that was stopped and goes on by the same command: EX_TEMPFAIL of sysexits.h.
inline constexpr int kExitResume = 75;

// Trains; progress and messages go to `progress`, the folder published to stdout. Returns 0, or
// kExitResume after a signal, be it before the first step or before publishing. Throws
// std::invalid_argument for what the caller did wrong, std::runtime_error for the rest.
int RunTraining(const TrainCommand& command, std::FILE* progress);

// Looks at all data and tries the first steps without changing anything: prints counts, tokens,
// memory and time as JSON to stdout.
void RunDry(const TrainCommand& command, std::FILE* progress);

// Prints every setting with value and meaning, and, if the task can be opened, what is trained.
void RunDescribe(const TrainCommand& command);

}  // namespace llava
