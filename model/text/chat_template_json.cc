// Chat templates as JSON: reading, writing, the built-in ones. Keys: chat_template.h.

#include <algorithm>
#include <stdexcept>
#include <utility>

#include <nlohmann/json.hpp>

#include "model/text/builtin_templates.h"
#include "model/text/chat_template.h"
#include "model/text/json_text.h"

namespace llava {

using nlohmann::json;

namespace {

constexpr const char* kPublishedNames[] = {"", "two_separators", "single_separator", "plain"};

[[noreturn]] void Fail(const std::string& key, const std::string& what) {
  throw std::invalid_argument("chat template, key \"" + key + "\": " + what);
}

// For a message: a list may be as long and as deep as the file.
std::string Shown(const json& value) {
  return value.is_structured() ? value.type_name() : value.dump();
}

// An object of the file; every key in it must be taken.
class Section {
 public:
  Section(const json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object_.is_object()) Fail(path_, "expected an object, found " + Shown(object_));
  }

  std::string Path(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  const json* Find(const std::string& key) {
    auto it = object_.find(key);
    if (it == object_.end()) return nullptr;
    taken_keys_.push_back(key);
    return &*it;
  }
  void Read(const std::string& key, std::string& value) {
    const json* found = Find(key);
    if (!found) return;
    if (!found->is_string()) Fail(Path(key), "expected a text, found " + Shown(*found));
    value = found->get<std::string>();
  }
  void Read(const std::string& key, bool& value) {
    const json* found = Find(key);
    if (!found) return;
    if (!found->is_boolean()) Fail(Path(key), "expected true or false, found " + Shown(*found));
    value = found->get<bool>();
  }
  void Read(const std::string& key, std::vector<std::string>& value) {
    const json* found = Find(key);
    if (!found) return;
    value.clear();
    if (!found->is_array()) Fail(Path(key), "expected a list of texts, found " + Shown(*found));
    for (const json& item : *found) {
      if (!item.is_string() || item.get_ref<const std::string&>().empty()) {
        Fail(Path(key), "expected texts that are not empty, found " + Shown(item));
      }
      value.push_back(item.get<std::string>());
    }
  }
  // Call last.
  void RefuseOthers() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(taken_keys_.begin(), taken_keys_.end(), key) == taken_keys_.end()) {
        Fail(Path(key), "no such key");
      }
    }
  }

 private:
  const json& object_;
  std::string path_;
  std::vector<std::string> taken_keys_;
};

}  // namespace

class TemplateReader {
 public:
  static ChatTemplate Read(const json& file) {
    ChatTemplate t;
    Section top(file, "");
    for (const char* key : {"name", "user", "assistant"}) {
      if (!file.contains(key)) Fail(key, "missing");
    }
    top.Read("name", t.name_);
    if (t.name_.empty()) Fail("name", "is empty");
    top.Read("system", t.system_);
    top.Read("system_in_question", t.system_in_question_);
    top.Read("stop", t.stop_);
    top.Read("special_pieces", t.special_pieces_);
    ReadForm(top, t.prompt_);
    t.training_ = t.prompt_;
    if (const json* found = top.Find("training")) {
      Section training(*found, "training");
      ReadForm(training, t.training_);
      training.Read("end", t.training_end_);
      training.Read("trained_after_answer", t.trained_after_answer_);
      training.Read("drop_questions", t.drop_questions_);
      ReadPublished(training, t.published_);
      training.RefuseOthers();
    }
    top.RefuseOthers();
    const std::string next_question = t.training_.user_separator + t.training_.user_prefix;
    if (!t.training_end_.starts_with(t.trained_after_answer_) ||
        !next_question.starts_with(t.trained_after_answer_)) {
      Fail("training.trained_after_answer",
           "\"training.end\" and the prefix of \"training.user\" must begin with \"" +
               t.trained_after_answer_ + "\"");
    }
    if (t.published_ != ChatTemplate::Published::kNone &&
        (t.system_in_question_ || !t.training_.user_separator.empty())) {
      Fail("training.published_labels",
           "is of formats without \"system_in_question\" and \"separator\"");
    }
    return t;
  }

  static json Write(const ChatTemplate& t) {
    json file = FormJson(t.prompt_);
    file["name"] = t.name_;
    file["system"] = t.system_;
    if (t.system_in_question_) file["system_in_question"] = true;
    file["stop"] = t.stop_;
    file["special_pieces"] = t.special_pieces_;
    json training = FormJson(t.training_);
    // What is missing is as in a prompt.
    if (!t.prompt_.system_prefix.empty()) training["system_prefix"] = t.training_.system_prefix;
    if (!t.prompt_.user_separator.empty()) {
      training["user"]["separator"] = t.training_.user_separator;
    }
    training["end"] = t.training_end_;
    training["trained_after_answer"] = t.trained_after_answer_;
    training["drop_questions"] = t.drop_questions_;
    if (t.published_ != ChatTemplate::Published::kNone) {
      training["published_labels"] = kPublishedNames[static_cast<int>(t.published_)];
    }
    file["training"] = training;
    return file;
  }

 private:
  static void ReadForm(Section& in, ChatTemplate::Form& form) {
    in.Read("system_prefix", form.system_prefix);
    in.Read("system_suffix", form.system_suffix);
    if (const json* found = in.Find("image")) {
      Section image(*found, in.Path("image"));
      image.Read("prefix", form.image_prefix);
      image.Read("suffix", form.image_suffix);
      image.RefuseOthers();
    }
    if (const json* found = in.Find("user")) {
      Section user(*found, in.Path("user"));
      user.Read("separator", form.user_separator);
      user.Read("prefix", form.user_prefix);
      user.Read("suffix", form.user_suffix);
      user.RefuseOthers();
    }
    if (const json* found = in.Find("assistant")) {
      Section assistant(*found, in.Path("assistant"));
      assistant.Read("prefix", form.assistant_prefix);
      assistant.Read("before_answer", form.before_answer);
      assistant.Read("suffix", form.assistant_suffix);
      assistant.RefuseOthers();
    }
  }

  static void ReadPublished(Section& in, ChatTemplate::Published& published) {
    std::string name;
    in.Read("published_labels", name);
    if (name.empty()) return;
    for (int i = 1; i < 4; ++i) {
      if (name == kPublishedNames[i]) {
        published = static_cast<ChatTemplate::Published>(i);
        return;
      }
    }
    Fail(in.Path("published_labels"),
         "\"" + name + "\" is none of two_separators, single_separator, plain");
  }

  static json FormJson(const ChatTemplate::Form& f) {
    json form = {{"system_suffix", f.system_suffix},
                 {"image", {{"prefix", f.image_prefix}, {"suffix", f.image_suffix}}},
                 {"user", {{"prefix", f.user_prefix}, {"suffix", f.user_suffix}}},
                 {"assistant",
                  {{"prefix", f.assistant_prefix},
                   {"before_answer", f.before_answer},
                   {"suffix", f.assistant_suffix}}}};
    // Absent where they say nothing: digests of checkpoints are made of this.
    if (!f.system_prefix.empty()) form["system_prefix"] = f.system_prefix;
    if (!f.user_separator.empty()) form["user"]["separator"] = f.user_separator;
    return form;
  }
};

ChatTemplate ChatTemplate::Parse(std::string_view text) {
  json file;
  try {
    file = ParseJson<json>(text);
  } catch (const std::invalid_argument& e) {
    throw std::invalid_argument(std::string("chat template is no JSON that can be read: ") +
                                e.what());
  }
  return TemplateReader::Read(file);
}

ChatTemplate ChatTemplate::Builtin(std::string_view name) {
  std::string known;
  for (const auto& [builtin, text] : BuiltinTemplates()) {
    if (builtin == name) return Parse(text);
    known.append(" ").append(builtin);
  }
  throw std::invalid_argument("no built-in chat template is called \"" + std::string(name) +
                              "\"; known are:" + known);
}

std::string ChatTemplate::ToJson() const { return TemplateReader::Write(*this).dump(2) + "\n"; }

}  // namespace llava
