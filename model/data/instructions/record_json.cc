#include "model/data/instructions/record_json.h"

#include <utility>

namespace llava {

nlohmann::ordered_json InstructionRecordJson(const std::string& id, const std::string& image,
                                             const std::vector<QuestionAnswer>& turns,
                                             bool image_first) {
  using Json = nlohmann::ordered_json;
  Json conversations = Json::array();
  for (const QuestionAnswer& turn : turns) {
    conversations.push_back({{"from", "human"}, {"value", turn.question}});
    conversations.push_back({{"from", "gpt"}, {"value", turn.answer}});
  }
  Json record = {{"id", id}};
  if (!image.empty()) {
    std::string& first = conversations[0]["value"].get_ref<std::string&>();
    first = image_first ? "<image>\n" + first : first + "\n<image>";
    record["image"] = image;
  }
  record["conversations"] = std::move(conversations);
  return record;
}

}  // namespace llava
