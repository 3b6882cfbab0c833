// llava-model: publishes, checks, compares, describes and packs checkpoints and keeps a repository.
// Exit codes: 0 done, 1 failed, 2 wrong command line, 128 + the signal when stopped.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <exception>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "model/tools/commands.h"
#include "model/tools/shapes.h"

namespace {

int Complain(std::string what, int code) {
  std::replace(what.begin(), what.end(), '\n', ' ');
  std::cerr << "llava-model: " << what << "\n";
  return code;
}

// Words for types of numbers, of which bf16 is another for bfloat16; what is set is `bfloat16`.
CLI::Validator OneOfTypes(std::vector<std::string> types,
                          const std::string& bfloat16 = "bfloat16") {
  const std::string all = "{" + CLI::detail::join(types) + "}";
  const auto take = [types = std::move(types), bfloat16, all](std::string& word) -> std::string {
    if (word == "bf16") word = "bfloat16";
    if (std::find(types.begin(), types.end(), word) == types.end()) return word + " not in " + all;
    if (word == "bfloat16") word = bfloat16;
    return "";
  };
  return CLI::Validator(take, all);
}
constexpr char kPackedBFloat16[] = "bf16";  // as packed versions name it

void AddPackingFlags(CLI::App& app, llava::PackingFlags& flags) {
  app.add_option("--dtype", flags.dtype, "Format of the packed weights")
      ->transform(OneOfTypes({"bfloat16", "int8", "int4"}, kPackedBFloat16))
      ->capture_default_str();
  app.add_option("--group", flags.group,
                 "Weights with one scale (default: 128 for int8, 64 for int4)")
      ->check(CLI::IsMember({32, 64, 128}));
  app.add_flag_callback(
      "--no-outliers", [&flags] { flags.outliers = false; },
      "Keep no weights apart that are far from the rest of their group");
  app.add_option("--threads", flags.threads, "Threads (default: all cores)")
      ->check(CLI::Range(1, 1024));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Publishes, checks, compares, describes and packs LLaVA checkpoints", "llava-model");
  app.set_version_flag("--version", std::string("llava-model ") + LLAVA_VERSION);
  app.require_subcommand(1);

  llava::ImportCommand import;
  auto* import_app = app.add_subcommand("publish",
                                        "Publish a checkpoint (llava-hf, original LLaVA, LoRA "
                                        "adapter, CLIP tower, repository version) as "
                                        "new versions of a model repository");
  import_app->alias("import");
  import_app->add_option("SRC", import.source, "Folder of the checkpoint")->required();
  import_app->add_option("--repository", import.repository, "Root of the model repository")
      ->required();
  import_app->add_option("--name", import.name, "Name of the published model")->required();
  import_app->add_option("--tower-name", import.tower_name,
                         "Name of the published tower (default: NAME-tower)");
  import_app->add_option("--tower", import.tower,
                         "Folder of the vision tower, if SRC does not hold it");
  import_app->add_option("--base", import.base,
                         "Base of SRC, a LoRA adapter, if it is not the folder that SRC names");
  import_app->add_option(
      "--chat-template", import.chat_template,
      "Built-in chat template or JSON file (default: the checkpoint's, else v1, "
      "of Mistral without a window mistral_instruct, with ChatML's pieces chatml_direct)");
  import_app->add_option("--projector", import.projector,
                         "mm_projector.bin, or its folder, to put over the checkpoint's projector");
  bool self_test = false, no_self_test = false;
  auto* with_test = import_app->add_flag("--self-test", self_test,
                                         "Make self-tests in place of those that SRC has (default: "
                                         "where there are none and the memory "
                                         "is there)");
  import_app->add_flag("--no-self-test", no_self_test, "Make none")->excludes(with_test);
  import_app->callback([&] {
    using Make = llava::ImportCommand::MakeSelfTest;
    import.self_test = self_test ? Make::kYes : no_self_test ? Make::kNo : Make::kIfPossible;
    llava::RunImport(import);
  });

  int code = 0;  // of the subcommand that ran
  llava::ExportCommand exported;
  auto* export_app = app.add_subcommand(
      "export", "Write a checkpoint as a llava-hf folder, which transformers loads");
  export_app->add_option("CHECKPOINT", exported.source, "Checkpoint folder, or ROOT/NAME")
      ->required();
  export_app->add_option("FOLDER", exported.folder, "Folder to make")->required();
  export_app->add_option("--tower", exported.tower,
                         "Folder of the vision tower, if CHECKPOINT does not hold it (default: the "
                         "one in its repository)");
  export_app
      ->add_option("--dtype", exported.dtype, "Type of the weights (default: as they are stored)")
      ->transform(OneOfTypes({"float32", "float16", "bfloat16"}));
  export_app->callback([&] { code = llava::RunExport(exported); });

  llava::VerifyCommand verify;
  auto* verify_app = app.add_subcommand(
      "verify",
      "Check tensors against the configuration, and files and digests against the manifest");
  verify_app
      ->add_option("PATH", verify.path, "Checkpoint folder, or ROOT/NAME for its newest version")
      ->required();
  verify_app->add_option("--tower", verify.tower, "Folder of the vision tower");
  verify_app
      ->add_option("--self-test", verify.self_test,
                   "Load the model and run its self-test in this arithmetic")
      ->transform(OneOfTypes({"auto", "float32", "bfloat16", "int8", "int4"}));
  verify_app->add_flag("--json", verify.json, "Print JSON");
  verify_app->callback([&] { llava::RunVerify(verify); });

  llava::InspectCommand inspect;
  auto* inspect_app = app.add_subcommand("inspect", "Describe a checkpoint");
  inspect_app->add_option("PATH", inspect.path, "Checkpoint folder, or ROOT/NAME")->required();
  inspect_app->add_option("--tower", inspect.tower, "Folder of the vision tower");
  inspect_app->add_flag("--json", inspect.json, "Print JSON");
  inspect_app->callback([&] { llava::RunInspect(inspect); });

  llava::DiffCommand diff;
  auto* diff_app = app.add_subcommand("diff", "Tell what changed from one checkpoint to another");
  diff_app->add_option("A", diff.a, "Checkpoint folder, or ROOT/NAME")->required();
  diff_app->add_option("B", diff.b, "Checkpoint folder, or ROOT/NAME")->required();
  diff_app->add_option("--tower", diff.tower, "Folder of the vision tower");
  diff_app->add_flag("--json", diff.json, "Print JSON");
  diff_app->callback([&] { llava::RunDiff(diff); });

  llava::ListCommand list;
  auto* list_app = app.add_subcommand("list", "List the versions of a model repository");
  list_app->add_option("ROOT", list.root, "Root of the model repository")->required();
  list_app->add_option("NAME", list.name, "One model (default: all)");
  list_app->add_flag("--json", list.json, "Print JSON");
  list_app->callback([&] { llava::RunList(list); });

  llava::MarkCommand mark;
  const auto mark_app = [&](const char* name, const char* what) {
    auto* command = app.add_subcommand(name, what);
    command->add_option("MODEL", mark.model, "ROOT/NAME in a model repository")->required();
    command->add_flag("--json", mark.json, "Print JSON");
    return command;
  };
  const auto version_of = [&](CLI::App* command) {
    command->add_option("VERSION", mark.version, "Its version")
        ->required()
        ->check(CLI::PositiveNumber);
  };
  auto* pin_app = mark_app("pin", "Keep a version from being collected");
  version_of(pin_app);
  pin_app->callback([&] { llava::RunPin(mark, true); });
  auto* unpin_app = mark_app("unpin", "Let it be collected again");
  version_of(unpin_app);
  unpin_app->callback([&] { llava::RunPin(mark, false); });
  auto* label_app = mark_app("label", "Point a label (stable, canary) at a version");
  bool remove_label = false;
  label_app->add_option("LABEL", mark.label, "The label")->required();
  auto* label_version = label_app->add_option("VERSION", mark.version, "The version");
  label_version->check(CLI::PositiveNumber);
  label_app->add_flag("--remove", remove_label, "Take the label away")->excludes(label_version);
  label_app->callback([&] {
    if (!remove_label && mark.version == 0) throw CLI::RequiredError("VERSION or --remove");
    llava::RunLabel(mark);
  });
  auto* rollback_app = mark_app("rollback", "Point stable back at the version that had it before");
  rollback_app->callback([&] { llava::RunRollback(mark); });

  llava::GcCommand gc;
  auto* gc_app = app.add_subcommand(
      "gc", "Remove versions that are neither labelled, pinned, needed nor among the newest");
  gc_app->add_option("MODEL", gc.model, "ROOT/NAME in a model repository")->required();
  gc_app->add_option("--keep", gc.keep, "How many of the newest versions to keep")
      ->required()
      ->check(CLI::Range(1, 1 << 30));
  gc_app->add_flag("--dry-run", gc.dry_run, "Only tell which would go");
  gc_app->add_flag("--json", gc.json, "Print JSON");
  gc_app->callback([&] { llava::RunGc(gc); });

  llava::QuantizeCommand quantize;
  auto* quantize_app = app.add_subcommand("quantize",
                                          "Pack a model's decoder for serving, on the CPU or a "
                                          "GPU, and publish it as a version of OUT");
  quantize_app->add_option("MODEL", quantize.source, "Checkpoint folder, or ROOT/NAME")->required();
  quantize_app->add_option("OUT", quantize.out, "ROOT/NAME in a model repository")->required();
  quantize_app->add_option("--tower", quantize.tower,
                           "Folder of the vision tower, if MODEL does not hold it");
  quantize_app->add_option(
      "--chat-template", quantize.chat_template,
      "Built-in chat template or JSON file (default: the checkpoint's, else "
      "v1, of Mistral without a window mistral_instruct, with ChatML's pieces chatml_direct)");
  AddPackingFlags(*quantize_app, quantize.packing);
  quantize_app->callback([&] { code = llava::RunQuantize(quantize); });

  llava::RandomCommand random;
  auto* random_app = app.add_subcommand(
      "random", "Make a model of a published shape with random weights, to measure with");
  random_app->add_option("OUT", random.out, "ROOT/NAME in a model repository")->required();
  random_app->add_option("--shape", random.shape, "Whose shape")
      ->check(CLI::IsMember(llava::ShapeNames()))
      ->capture_default_str();
  random_app->add_option("--seed", random.seed, "Equal seeds give equal weights")
      ->capture_default_str();
  random_app->add_option("--tokenizer", random.tokenizer,
                         "Folder with the tokenizer to take (default: deploy/models/emoji of the "
                         "tree in which this program was built)");
  random_app->add_option("--chat-template", random.chat_template, "Built-in chat template")
      ->capture_default_str();
  random_app->add_option("--tower", random.tower,
                         "Folder of the vision tower that it reads (default: the shape of CLIP "
                         "ViT-L/14 at 336)");
  random_app->add_flag("--anyres", random.anyres,
                       "Pictures as an overview and tiles, on the canvases of LLaVA-1.6");
  auto* plain_option = random_app->add_flag("--plain", random.plain,
                                            "Not packed: in bfloat16 as it would be trained");
  AddPackingFlags(*random_app, random.packing);
  for (const char* name : {"--dtype", "--group", "--no-outliers", "--threads"}) {
    plain_option->excludes(random_app->get_option(name));
  }
  random_app->callback([&] { code = llava::RunRandom(random); });

  llava::BenchCommand bench;
  auto* bench_app = app.add_subcommand(
      "bench",
      "Measure a decoder on the CPU as llava-llm steps it: prompt, generation, memory; or a vision "
      "tower as llava-vision runs it");
  auto* shape_option =
      bench_app
          ->add_option("--shape", bench.model,
                       "llama-1.1b, llama-7b, ... with random weights, or the path of a model")
          ->capture_default_str();
  llava::VisionBenchCommand vision_bench;
  auto* vision_option =
      bench_app
          ->add_option("--vision", vision_bench.model,
                       "A tower: vit-l-14-336, vit-l-14 with random weights, or its path")
          ->excludes(shape_option);
  bench_app->add_option("--batch", vision_bench.batch, "Pictures that a tower sees together")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->needs(vision_option);
  auto* outliers_option =
      bench_app
          ->add_option("--outliers", vision_bench.outliers,
                       "Share of a tower's random weights that are 20 times as large")
          ->check(CLI::Range(0.0, 1.0))
          ->needs(vision_option);
  auto* dtype_option =
      bench_app
          ->add_option("--dtype", bench.dtype,
                       "Format of the weights (default: int4, of a tower bfloat16)")
          ->transform(OneOfTypes({"float32", "bfloat16", "int8", "int4"}, kPackedBFloat16));
  bench_app
      ->add_option("--group", bench.group,
                   "Weights with one scale (default: 128 for int8, 64 for int4)")
      ->check(CLI::IsMember({32, 64, 128}));
  bench_app->add_option("--kv-type", bench.kv_type, "Keys and values")
      ->transform(OneOfTypes({"auto", "float32", "bfloat16", "int8"}))
      ->capture_default_str();
  bench_app->add_option("--threads", bench.threads, "Threads (default: all cores)")
      ->check(CLI::Range(1, 1024));
  bench_app->add_option("--prompt", bench.prompt, "Tokens of the prompt; 0: not measured")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  bench_app->add_option("--chunk", bench.chunk, "Prompt tokens of a step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  bench_app->add_option("--context", bench.context, "Tokens before a sequence generates")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  bench_app->add_option("--gen", bench.generate, "Tokens that each sequence generates")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  bench_app->add_option("--parallel", bench.parallel, "Sequences that generate together")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  bench_app->add_option("--repeats", bench.repeats, "Measurements, of which the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  auto* load_option =
      bench_app
          ->add_flag("--load", bench.load,
                     "Measure how fast the version at --shape is read, checked and made ready")
          ->needs(shape_option)
          ->excludes(vision_option);
  for (const char* name :
       {"--group", "--kv-type", "--prompt", "--chunk", "--context", "--gen", "--parallel"}) {
    load_option->excludes(bench_app->get_option(name));
    vision_option->excludes(bench_app->get_option(name));
  }
  load_option->excludes(dtype_option)->excludes(bench_app->get_option("--repeats"));
  bench_app->add_flag("--json", bench.json, "Print JSON");
  bench_app->callback([&] {
    if (bench.load) return llava::RunLoadBench(bench);
    if (vision_option->count() == 0) return llava::RunBench(bench);
    const auto shapes = llava::VisionShapeNames();
    const bool drawn = std::find(shapes.begin(), shapes.end(), vision_bench.model) != shapes.end();
    if (outliers_option->count() > 0 && !drawn) {
      throw CLI::ValidationError("--outliers", "is of random weights, not of a tower's own");
    }
    if (dtype_option->count() > 0) vision_bench.dtype = bench.dtype;
    vision_bench.threads = bench.threads;
    vision_bench.repeats = bench.repeats;
    vision_bench.json = bench.json;
    llava::RunVisionBench(vision_bench);
  });

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& call) {
    return app.exit(call);
  } catch (const CLI::CallForAllHelp& call) {
    return app.exit(call);
  } catch (const CLI::CallForVersion& call) {
    return app.exit(call);
  } catch (const CLI::ParseError& error) {
    // CLI11 looks for missing arguments first; a mistyped flag is the likelier cause.
    for (const std::string& rest : app.remaining(/*recurse=*/true)) {
      if (rest.starts_with("-")) return Complain("unknown option " + rest + " (see --help)", 2);
    }
    return Complain(std::string(error.what()) + " (see --help)", 2);
  } catch (const std::exception& error) {
    return Complain(error.what(), 1);
  }
  return code;
}
