#pragma once

// The subcommands of llava-model. They print to stdout and throw on failure.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace llava {

struct ImportCommand {
  std::filesystem::path source;      // checkpoint folder of any known layout
  std::filesystem::path repository;  // root of the model repository
  std::string name;                  // of the language model; of the tower if the source is one
  std::string tower_name;            // empty: NAME-tower
  std::filesystem::path tower;       // as OpenOptions::tower
  std::string chat_template;         // as OpenOptions::chat_template
  std::filesystem::path base;        // as OpenOptions::base
  std::filesystem::path projector;   // empty, or a stage-1 projector to put over the source's
  // Self-tests of what is published, made in float32 on the CPU. kIfPossible: the source's if it
  // has one, else made if the memory is there.
  enum class MakeSelfTest { kIfPossible, kYes, kNo };
  MakeSelfTest self_test = MakeSelfTest::kIfPossible;
};
// Publishes tower and language model and prints their folders. A tower that the repository has
// already, under whatever name, is not stored twice.
void RunImport(const ImportCommand& command);

struct ExportCommand {
  std::filesystem::path source;  // language model of any known layout
  std::filesystem::path folder;  // which must not be there
  // As OpenOptions::tower; of a repository version the tower, if its own repository has it not.
  std::filesystem::path tower;
  std::string dtype;  // "float32", "float16", "bfloat16"; empty: as stored
};
// Writes model and tower as a llava-hf folder and prints what transformers has to be told besides.
// Shows its progress on stderr. Stopped by SIGINT or SIGTERM, it leaves nothing behind. Returns the
// exit code.
int RunExport(const ExportCommand& command);

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
  // "float32", "bfloat16", or "int8", "int4" of decoders, "auto": as it is served; empty: not run
  std::string self_test;
  bool json = false;
};
// Checks a checkpoint as opening it does, and that no weight is NaN or infinite; for a repository
// version also every file and every digest of the manifest. With `self_test`, loads the model as it
// is served and runs its self-test so; throws if it has none. Prints one line.
void RunVerify(const VerifyCommand& command);

struct DiffCommand {
  std::filesystem::path a, b;  // checkpoints of one kind, of any layout
  std::filesystem::path tower;
  bool json = false;
};
// Prints what changed from `a` to `b`: tensors (added, removed, of another shape or type, values
// and by how much), configuration, tokenizer, chat template, tower.
void RunDiff(const DiffCommand& command);

struct ListCommand {
  std::filesystem::path root;
  std::string name;  // empty: all
  bool json = false;
};
// Prints the versions of a repository, with what is said about them. A version that cannot be read
// is listed with the reason.
void RunList(const ListCommand& command);

// What marks a version or removes it: of <root>/<name>, told as one path.
struct MarkCommand {
  std::filesystem::path model;
  std::string label;
  uint64_t version = 0;
  bool json = false;
};
void RunPin(const MarkCommand& command, bool pinned);
void RunLabel(const MarkCommand& command);  // version 0 takes the label away
void RunRollback(const MarkCommand& command);

struct GcCommand {
  std::filesystem::path model;
  int keep = 0;
  bool dry_run = false;
  bool json = false;
};
void RunGc(const GcCommand& command);

// How a decoder is packed for serving.
struct PackingFlags {
  std::string dtype = "int4";  // "bf16", "int8", "int4"
  int64_t group = 0;           // 32, 64 or 128; 0: 128 for int8, 64 for int4
  bool outliers = true;        // kept apart
  int threads = 0;             // 0: all cores
};

struct QuantizeCommand {
  std::filesystem::path source;  // language model of any known layout
  std::filesystem::path out;     // ROOT/NAME
  std::filesystem::path tower;   // as OpenOptions::tower
  std::string chat_template;     // as OpenOptions::chat_template
  PackingFlags packing;
};
// Publishes the model with its decoder packed as the next version of OUT and prints its folder; its
// tower stays where it is. Shows its progress on stderr. Stopped by SIGINT or SIGTERM, it leaves
// nothing behind. Returns the exit code.
int RunQuantize(const QuantizeCommand& command);

struct RandomCommand {
  std::filesystem::path out;  // ROOT/NAME
  std::string shape = "llava-1.5-7b";
  uint64_t seed = 0;
  std::filesystem::path tokenizer;   // empty: that of the default model in the tree
  std::string chat_template = "v1";  // built-in
  std::filesystem::path tower;       // empty: as CLIP ViT-L/14 at 336
  bool anyres = false;               // pictures in tiles, as LLaVA-1.6 has them
  bool plain = false;                // in bfloat16 as it is trained, not packed; no self-test
  PackingFlags packing;
};
// The same with random weights of a published shape, for measuring and trying.
int RunRandom(const RandomCommand& command);

struct BenchCommand {
  std::string model = "llama-1.1b";               // a shape, or the path of a language model
  std::string dtype = "int4";                     // "float32", "bf16", "int8", "int4"
  int64_t group = 0;                              // as PackingFlags
  std::string kv_type = "auto";                   // "auto", "float32", "bfloat16", "int8"
  int threads = 0;                                // 0: all cores
  int64_t prompt = 512;                           // tokens; 0: not measured
  int64_t generate = 64;                          // tokens of each sequence
  int64_t context = 64;                           // tokens of each sequence before it generates
  int64_t chunk = 512;                            // prompt tokens of a step
  std::vector<int64_t> parallel = {1, 4, 8, 16};  // sequences that generate together
  int repeats = 3;                                // the median counts
  bool load = false;                              // measure the loading of MODEL, nothing else
  bool json = false;
};
// Measures the decoder as llava-llm steps it, on the CPU: prompt, generation, memory.
void RunBench(const BenchCommand& command);
// Opens a language model as llava-llm does, every file checked, and builds what it serves on the
// CPU. Prints time, speed and peak memory. What the page cache holds of the files is the caller's
// business.
void RunLoadBench(const BenchCommand& command);

struct VisionBenchCommand {
  std::string model;                 // a shape, or the path of a tower
  std::string dtype = "bf16";        // "float32", "bf16", "int8"
  int threads = 0;                   // 0: all cores
  std::vector<int64_t> batch = {1};  // pictures of a call
  int repeats = 3;                   // the median counts
  uint64_t seed = 0;                 // of weights and pictures
  double outliers = 0;               // share of random weights that are 20 times as large
  bool json = false;
};
// Measures the tower as llava-vision runs it on the CPU, up to the layer that LLaVA reads, and its
// features beside those in float32.
void RunVisionBench(const VisionBenchCommand& command);

}  // namespace llava
