#include "model/train/run_start.h"

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/json_object.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/version_folder.h"
#include "model/train/run_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Absolute and without a slash behind it; empty stays empty.
fs::path Plain(const fs::path& folder) {
  if (folder.empty()) return folder;
  const ModelPath path(folder);
  return path.root / path.name;
}

Json AsJson(const RunStart::Part& part) {
  const fs::path folder = Plain(part.folder);
  return {{"folder", folder.string()}, {"digest", ToHex(part.digest)}, {"exact", part.exact}};
}

RunStart::Part FromJson(const JsonObject& object) {
  RunStart::Part part;
  part.folder = object.Text("folder");
  part.exact = object.Bool("exact");
  try {
    part.digest = FromHex(object.Text("digest"));
  } catch (const std::invalid_argument& error) {
    object.Fail("digest", error.what());
  }
  return part;
}

std::optional<RunStart> Read(const fs::path& file) {
  if (!fs::exists(file)) return std::nullopt;
  const JsonObject start = JsonObject::Read(file);
  return RunStart{FromJson(start.Object("model")), FromJson(start.Object("tower"))};
}

bool IsFolder(const fs::path& folder, const RunStart::Part& part) {
  std::error_code ignored;
  return fs::weakly_canonical(Plain(folder), ignored) == fs::weakly_canonical(part.folder, ignored);
}

// `what`: "model" or "tower", which are the names of the settings, too.
void Compare(const std::string& what, const RunStart::Part& began, const RunStart::Part& now,
             const fs::path& run_folder, std::FILE* progress) {
  if (now.digest == began.digest) {
    if (progress != nullptr && !now.newer.empty()) {
      std::fprintf(progress, "llava-train: %s: %s, as when this run began; %s is newer\n",
                   what.c_str(), now.folder.c_str(), now.newer.c_str());
    }
    return;
  }
  if (!began.exact && !now.exact && IsFolder(now.folder, began)) {
    if (progress != nullptr) {
      std::fprintf(progress,
                   "llava-train: %s: %s has changed since this run began; what does not learn is "
                   "as it is there now\n",
                   what.c_str(), now.folder.c_str());
    }
    return;
  }
  const std::string mend = began.folder.empty()
                               ? " (it came with the model)"
                               : ": name it (" + what + "=" + began.folder.string() + ")";
  throw std::invalid_argument(run_folder.string() + ": the " + what +
                              " was another when this run began" + mend +
                              ", or choose another folder");
}

}  // namespace

RunStart::Part PartOf(const fs::path& given, const RunStart::Part* began) {
  RunStart::Part part;
  part.folder = ResolveCheckpoint(given);
  if (began == nullptr || part.folder == given) return part;  // the folder itself is named
  const fs::path version = given / began->folder.filename();
  if (version == part.folder || !HasManifest(version)) return part;
  const Manifest manifest = Manifest::Read(version);
  const bool is_tower = manifest.kind == Manifest::Kind::kTower;
  if ((is_tower ? manifest.tower_digest : manifest.digest) != began->digest) return part;
  part.newer = part.folder;
  part.folder = version;
  return part;
}

std::optional<RunStart> ReadRunStart(const fs::path& run_folder) {
  if (!NewestStateIn(run_folder)) return std::nullopt;
  return Read(run_folder / kRunStartFile);
}

void KeepRunStart(const fs::path& run_folder, const RunStart& now, bool resumes,
                  std::FILE* progress) {
  const fs::path file = run_folder / kRunStartFile;
  if (resumes) {
    if (const auto began = Read(file)) {
      // First the tower, which the digest of a model that is no version has in it.
      Compare("tower", began->tower, now.tower, run_folder, progress);
      Compare("model", began->model, now.model, run_folder, progress);
      return;
    }
    if (progress != nullptr) {
      std::fprintf(progress,
                   "llava-train: this run did not note which model it began with: %s is taken for "
                   "it\n",
                   now.model.folder.c_str());
    }
  }
  const Json start = {{"model", AsJson(now.model)}, {"tower", AsJson(now.tower)}};
  WriteDurably(file, start.dump(2) + "\n");
}

}  // namespace llava
