#pragma once

// llava-datagen instruct against a teacher that is a script.

#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/model/datagen/datagen_program.h"
#include "tests/support/chat_server.h"

namespace llava {

// The picture that a request is about: its captions say "thing N".
inline int PictureOf(const ChatServer::Asked& asked) {
  const std::string text = asked.last_text();
  return std::stoi(text.substr(text.find("thing ") + 6));
}

// Which type of response a request wants, by its system message.
inline std::string TypeOf(const ChatServer::Asked& asked) {
  const std::string system = asked.body.at("messages").at(0).at("content");
  if (system.find("Write a conversation") != system.npos) return "conversation";
  return system.find("Describe the scene") != system.npos ? "detail" : "complex";
}

inline std::string GoodText(const ChatServer::Asked& asked) {
  const std::string thing = "thing " + std::to_string(PictureOf(asked));
  const std::string type = TypeOf(asked);
  const std::string story = "In the middle there is " + thing +
                            ", and it stands on a wide meadow in the light of the afternoon, with "
                            "trees at the left and a path that leads to the water.";
  if (type == "conversation") {
    return "Question:\nWhat is in the middle?\n===\nAnswer:\nThere is " + thing +
           ".\n===\nQuestion:\nWhere does it stand?\n===\nAnswer:\nIt stands on a meadow.";
  }
  if (type == "detail") return story;
  return "Question:\nWhy might it stand there?\n===\nAnswer:\n" + story;
}

class InstructCommandTest : public DatagenProgram {
 protected:
  InstructCommandTest() { unsetenv("OPENAI_API_KEY"); }

  void WritePictures(int count) const {
    nlohmann::json images = nlohmann::json::array(), captions = nlohmann::json::array(),
                   boxes = nlohmann::json::array();
    for (int i = 0; i < count; ++i) {
      images.push_back({{"id", i},
                        {"file_name", "p" + std::to_string(i) + ".jpg"},
                        {"width", 100},
                        {"height", 50}});
      captions.push_back(
          {{"id", i}, {"image_id", i}, {"caption", "Here is thing " + std::to_string(i)}});
      boxes.push_back({{"id", i}, {"image_id", i}, {"category_id", 1}, {"bbox", {10, 10, 50, 20}}});
    }
    Write("captions.json", nlohmann::json({{"images", images}, {"annotations", captions}}).dump());
    Write("instances.json", nlohmann::json({{"images", images},
                                            {"annotations", boxes},
                                            {"categories", {{{"id", 1}, {"name", "thing"}}}}})
                                .dump());
  }

  std::vector<std::string> Args(const ChatServer& server,
                                std::vector<std::string> more = {}) const {
    std::vector<std::string> args = {"instruct",
                                     "--coco-captions",
                                     folder_.At("captions.json"),
                                     "--coco-instances",
                                     folder_.At("instances.json"),
                                     "--out",
                                     out_,
                                     "--base-url",
                                     server.base_url(),
                                     "--model",
                                     "teacher"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }

  nlohmann::json Report() const { return ReadJson(std::filesystem::path(out_) / "report.json"); }
  nlohmann::json Records() const { return ReadJson(std::filesystem::path(out_) / "instruct.json"); }
  std::map<std::string, std::string> RulesById() const {
    std::map<std::string, std::string> rules;
    std::istringstream lines(ReadBytes(std::filesystem::path(out_) / "rejected.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json rejected = nlohmann::json::parse(line);
      rules[rejected.at("id")] = rejected.at("rule");
    }
    return rules;
  }
};

}  // namespace llava
