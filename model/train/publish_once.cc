#include "model/train/publish_once.h"

#include <cstdint>
#include <optional>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/json_object.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/version_folder.h"
#include "model/train/run_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// {"folder": the last version, "folders": all of them}: with another repository or name the same
// run is published again.
constexpr const char* kDone = "published.json";
// {"model": folder, "newest": its newest version before}: is there while a version is being made.
constexpr const char* kBegun = "publishing.json";

std::vector<std::string> Published(const fs::path& file) {
  if (!fs::exists(file)) return {};
  const JsonObject done = JsonObject::Read(file);
  if (!done.Has("folders")) return {done.Text("folder")};
  std::vector<std::string> folders;
  for (const auto& folder : done.At("folders")) {
    if (!folder.is_string()) done.Fail("folders", "is not a list of folders");
    folders.push_back(folder.get<std::string>());
  }
  return folders;
}

// Where the versions that a killed call may have made begin.
uint64_t NewestBefore(const fs::path& file, const fs::path& model) {
  if (fs::exists(file)) {
    const JsonObject begun = JsonObject::Read(file);
    if (begun.Text("model") == model.string()) return static_cast<uint64_t>(begun.Int("newest"));
  }
  const uint64_t newest = NewestVersion(model).value_or(0);
  WriteDurably(file, Json{{"model", model.string()}, {"newest", newest}}.dump() + "\n");
  return newest;
}

std::optional<fs::path> MadeBefore(const fs::path& model, uint64_t newest, const Json& recipe) {
  for (const uint64_t version : CompleteVersions(model)) {
    if (version <= newest) continue;
    const fs::path folder = model / std::to_string(version);
    const Manifest manifest = Manifest::Read(folder);
    // A version of another origin may have no recipe.
    const Json made_by = Json::parse(manifest.recipe, nullptr, /*allow_exceptions=*/false);
    if (FixedSettings(made_by) == FixedSettings(recipe)) return folder;
  }
  return std::nullopt;
}

}  // namespace

fs::path PublishOnce(const fs::path& run_folder, const fs::path& repository,
                     const std::string& name, const Json& recipe,
                     const std::function<fs::path()>& publish) {
  const fs::path done = run_folder / kDone, begun = run_folder / kBegun;
  const fs::path model = fs::weakly_canonical(repository / name);
  std::vector<std::string> folders = Published(done);
  for (const fs::path folder : folders) {
    if (fs::weakly_canonical(folder.parent_path()) == model && HasManifest(folder)) return folder;
  }
  const auto made = MadeBefore(model, NewestBefore(begun, model), recipe);
  const fs::path folder = made ? repository / name / made->filename() : publish();
  folders.push_back(folder.string());
  WriteDurably(done, Json{{"folder", folder.string()}, {"folders", folders}}.dump() + "\n");
  fs::remove(begun);
  return folder;
}

}  // namespace llava
