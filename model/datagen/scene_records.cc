#include "model/datagen/scene_records.h"

#include <cstdio>
#include <utility>

#include "model/data/instructions/record_json.h"
#include "model/data/scenes/captions.h"
#include "model/data/scenes/category.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

// Purposes of random streams; those of scenes and pictures are 1 and 2.
enum Purpose : uint64_t {
  kBriefWords = 11,
  kConversationWords,
  kDetailWords,
  kReasoningWords,
  kDialogueWords = 1000  // and those after it: one a dialogue
};

std::string RecordId(const char* kind, uint64_t number) {
  return std::string(kind) + "-" + SceneName(number);
}

}  // namespace

std::string SceneName(uint64_t number) {
  char name[24];
  std::snprintf(name, sizeof(name), "%06llu", static_cast<unsigned long long>(number));
  return name;
}

std::string SceneFileName(uint64_t number) { return SceneName(number) + ".png"; }

Json CocoImage(uint64_t number) {
  return {{"id", number},
          {"file_name", SceneFileName(number)},
          {"width", kSceneSide},
          {"height", kSceneSide}};
}

Json CocoCategories(int num_categories) {
  Json categories = Json::array();
  for (int i = 0; i < num_categories; ++i) {
    const Category& category = Categories()[i];
    categories.push_back(
        {{"id", i + 1}, {"name", category.name}, {"supercategory", category.group}});
  }
  return categories;
}

std::vector<Json> CocoCaptions(const Scene& scene, uint64_t number, uint64_t first_id) {
  std::vector<Json> captions;
  for (std::string& caption : FiveCaptions(scene)) {
    captions.push_back({{"id", first_id + captions.size()},
                        {"image_id", number},
                        {"caption", std::move(caption)}});
  }
  return captions;
}

std::vector<Json> CocoInstances(const Scene& scene, uint64_t number, uint64_t first_id) {
  std::vector<Json> instances;
  for (const SceneObject& object : scene.objects) {
    const PixelBox box = BoxOf(object);
    instances.push_back({{"id", first_id + instances.size()},
                         {"image_id", number},
                         {"category_id", object.category + 1},
                         {"bbox", {box.x, box.y, box.width, box.height}},
                         {"area", box.width * box.height},
                         {"iscrowd", 0}});
  }
  return instances;
}

InstructionRecords::InstructionRecords(int num_categories, MoreWordings wordings, size_t turns,
                                       uint64_t seed, InstructionKinds kinds)
    : questioner_(num_categories, wordings, kinds),
      wordings_(std::move(wordings)),
      turns_(turns),
      seed_(seed),
      kinds_(kinds) {}

Json InstructionRecords::Brief(const Scene& scene, uint64_t number) const {
  Random random(seed_, number, kBriefWords);
  return Record(RecordId("brief", number), number,
                {*questioner_.Ask(scene, QuestionType::kBrief, random)}, random);
}

std::optional<Json> InstructionRecords::Detail(const Scene& scene, uint64_t number) const {
  const auto description = DetailedDescription(scene);
  if (!description) return std::nullopt;
  Random random(seed_, number, kDetailWords);
  const std::string& question = random.Pick(wordings_.detailed);
  return Record(RecordId("detail", number), number,
                {{QuestionType::kDetail, question, *description}}, random);
}

std::vector<Json> InstructionRecords::Instructions(const Scene& scene, uint64_t number) const {
  std::vector<Json> records;
  if (kinds_.conversation) {
    Random random(seed_, number, kConversationWords);
    const Dialogue dialogue = questioner_.Converse(scene, turns_, random);
    records.push_back(Record(RecordId("conversation", number), number, dialogue, random));
  }
  if (kinds_.detail) {
    if (auto detail = Detail(scene, number)) records.push_back(std::move(*detail));
  }
  if (kinds_.reasoning) {
    Random random(seed_, number, kReasoningWords);
    if (const auto turn = questioner_.AskOneOf(scene, ReasoningMixture(), random)) {
      records.push_back(Record(RecordId("reasoning", number), number, {*turn}, random));
    }
  }
  return records;
}

std::vector<Json> InstructionRecords::Dialogues(const Scene& scene, uint64_t number,
                                                size_t count) const {
  std::vector<Json> records;
  for (size_t i = 0; i < count; ++i) {
    Random random(seed_, number, kDialogueWords + i);
    const Dialogue dialogue = questioner_.ShortDialogue(scene, random);
    records.push_back(
        Record(RecordId("dialogue", number) + "-" + std::to_string(i), number, dialogue, random));
  }
  return records;
}

Json InstructionRecords::Record(const std::string& id, uint64_t number, const Dialogue& dialogue,
                                Random& random) const {
  std::vector<QuestionAnswer> turns;
  for (const Turn& turn : dialogue) turns.push_back({turn.question, turn.answer});
  return InstructionRecordJson(id, SceneFileName(number), turns, random.Chance(0.5));
}

}  // namespace llava
