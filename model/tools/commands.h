#pragma once

// The subcommands of llava-model. They print to stdout and throw on failure.

#include <filesystem>
#include <string>

namespace llava {

struct ImportCommand {
  std::filesystem::path source;      // checkpoint folder of any known layout
  std::filesystem::path repository;  // root of the model repository
  std::string name;                  // of the language model; of the tower if the source is one
  std::string tower_name;            // empty: NAME-tower
  std::filesystem::path tower;       // as OpenOptions::tower
  std::string chat_template;         // as OpenOptions::chat_template
  std::filesystem::path projector;   // empty, or a stage-1 projector to put over the source's
  bool self_test = false;            // make one, in float32 on the CPU, in place of the source's
};
// Publishes tower and language model and prints their folders. A tower that the repository has
// already, under whatever name, is not stored twice.
void RunImport(const ImportCommand& command);

struct InspectCommand {
  std::filesystem::path path;
  std::filesystem::path tower;
  bool json = false;
};
// Prints what the checkpoint is: kind, configuration, digests, tensors, template.
void RunInspect(const InspectCommand& command);

struct VerifyCommand {
  std::filesystem::path path;
  std::filesystem::path tower;
  std::string self_test;  // "float32" or "bfloat16"; empty: not run
};
// Checks a checkpoint as opening it does; for a repository version also every file and every digest
// of the manifest. With `self_test`, loads the model and runs its self-test in that arithmetic;
// throws if it has none. Prints one line.
void RunVerify(const VerifyCommand& command);

}  // namespace llava
