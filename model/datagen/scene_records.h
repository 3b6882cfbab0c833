#pragma once

// A scene as records of the usual formats: COCO's captions and instances, LLaVA's conversations.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/data/scenes/questions.h"
#include "model/data/scenes/scene.h"

namespace llava {

// "000042" and "000042.png".
std::string SceneName(uint64_t number);
std::string SceneFileName(uint64_t number);

// COCO. Image ids are the numbers of the scenes; ids of annotations count from `first_id`, those of
// categories from 1.
nlohmann::ordered_json CocoImage(uint64_t number);
nlohmann::ordered_json CocoCategories(int num_categories);
std::vector<nlohmann::ordered_json> CocoCaptions(const Scene& scene, uint64_t number,
                                                 uint64_t first_id);
std::vector<nlohmann::ordered_json> CocoInstances(const Scene& scene, uint64_t number,
                                                  uint64_t first_id);

// LLaVA. The words of scene `number` are drawn from streams of `seed`; <image> stands before or
// after the first question, by chance too.
class InstructionRecords {
 public:
  // `turns`: of a conversation, at least. `kinds`: of stage 2.
  InstructionRecords(int num_categories, MoreWordings wordings, size_t turns, uint64_t seed,
                     InstructionKinds kinds = {});

  // Stage 1, naive expansion: one of the brief questions, answered with a caption. Id
  // "brief-000042".
  nlohmann::ordered_json Brief(const Scene& scene, uint64_t number) const;

  // A detailed question and a description, "detail-000042"; none where places are not clear.
  std::optional<nlohmann::ordered_json> Detail(const Scene& scene, uint64_t number) const;

  // Stage 2, of the kinds: "conversation-000042" (several turns), Detail and "reasoning-000042"
  // (one question that needs knowledge; left out where the scene allows none). Conversations ask of
  // all the kinds.
  std::vector<nlohmann::ordered_json> Instructions(const Scene& scene, uint64_t number) const;

  // Many short dialogues (Questioner::ShortDialogue), each a record of its own: "dialogue-000042-0"
  // and so on. Throws std::invalid_argument without the kind conversation.
  std::vector<nlohmann::ordered_json> Dialogues(const Scene& scene, uint64_t number,
                                                size_t count) const;

 private:
  nlohmann::ordered_json Record(const std::string& id, uint64_t number, const Dialogue& dialogue,
                                Random& random) const;

  Questioner questioner_;
  MoreWordings wordings_;
  size_t turns_;
  uint64_t seed_;
  InstructionKinds kinds_;
};

}  // namespace llava
