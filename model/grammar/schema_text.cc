#include "model/grammar/schema_text.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "model/grammar/automaton.h"
#include "model/grammar/grammar.h"
#include "model/text/json_text.h"
#include "model/text/utf8.h"

namespace llava::grammar {
namespace {

// Which type a keyword is about; "": whatever the type.
const std::map<std::string_view, std::string_view>& Keywords() {
  static const std::map<std::string_view, std::string_view> keywords = {
      {"type", ""},
      {"enum", ""},
      {"const", ""},
      {"anyOf", ""},
      {"oneOf", ""},
      {"allOf", ""},
      {"$ref", ""},
      {"$defs", ""},
      {"definitions", ""},
      {"minLength", "string"},
      {"pattern", "string"},
      {"maxLength", "string"},
      {"minimum", "number"},
      {"maximum", "number"},
      {"exclusiveMinimum", "number"},
      {"exclusiveMaximum", "number"},
      {"items", "array"},
      {"prefixItems", "array"},
      {"minItems", "array"},
      {"maxItems", "array"},
      {"properties", "object"},
      {"required", "object"},
      {"additionalProperties", "object"}};
  return keywords;
}

bool IsTypeWord(const SchemaJson& value) {
  return value.is_string() && std::find(AllTypes().begin(), AllTypes().end(),
                                        value.get<std::string>()) != AllTypes().end();
}

// Whole characters: messages travel as UTF-8.
std::string Brief(std::string_view text, size_t most = 100) {
  return std::string(CutUtf8(text, most));
}

std::string Quoted(std::string_view text) {
  std::string quoted(1, '"');
  quoted += Brief(text);
  quoted += '"';
  return quoted;
}

// One way to say which documents are valid; such do not go together.
bool IsWhole(std::string_view keyword) {
  return keyword == "$ref" || keyword == "anyOf" || keyword == "oneOf" || keyword == "allOf" ||
         keyword == "enum" || keyword == "const";
}

void CheckTypeWords(const SchemaPlace& place) {
  const SchemaJson& type = (*place.schema)["type"];
  const bool list =
      type.is_array() && !type.empty() &&
      std::all_of(type.begin(), type.end(), [](const auto& t) { return IsTypeWord(t); });
  if (!list && !IsTypeWord(type)) {
    FailAt(
        place.pointer + "/type",
        "is not one of string, number, integer, boolean, null, array, object, nor a list of them");
  }
}

// Says nothing about which documents are valid.
bool IsAnnotation(std::string_view keyword) {
  static const std::set<std::string_view> annotations = {
      "title",    "description", "default",  "examples",  "example",      "$schema",
      "$comment", "deprecated",  "readOnly", "writeOnly", "discriminator"};
  return annotations.contains(keyword);
}

}  // namespace

void FailAt(const std::string& pointer, const std::string& what) {
  throw GrammarError("at " + Brief(pointer, 400) + ": " + what);
}

const std::vector<std::string>& AllTypes() {
  static const std::vector<std::string> types = {"string", "number", "boolean", "null",
                                                 "array",  "object", "integer"};
  return types;
}

SchemaPlace SchemaPlace::Member(const std::string& name) const {
  std::string escaped;
  for (const char c : name) {
    escaped += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  }
  return {&schema->at(name), pointer + "/" + escaped};
}

SchemaPlace SchemaPlace::Element(size_t index) const {
  return {&schema->at(index), pointer + "/" + std::to_string(index)};
}

SchemaJson ParseSchema(std::string_view text) {
  if (text.size() > kMostSchemaBytes) {
    throw GrammarError("has " + std::to_string(text.size()) + " bytes, allowed are " +
                       std::to_string(kMostSchemaBytes));
  }
  std::vector<std::set<std::string>> names;  // of the objects that are open
  using Event = SchemaJson::parse_event_t;
  const auto look = [&names](int depth, Event event, SchemaJson& value) {
    if (depth > kDeepestJson) {
      throw GrammarError("has more than " + std::to_string(kDeepestJson) + " levels");
    }
    if (event == Event::object_start) names.emplace_back();
    if (event == Event::object_end) names.pop_back();
    if (event != Event::key) return true;
    const auto name = value.get<std::string>();
    if (!names.back().insert(name).second) {
      throw GrammarError("has the member " + Quoted(name) + " twice in one object");
    }
    if (names.back().size() > kMostSchemaMembers) {
      throw GrammarError("has an object of more than " + std::to_string(kMostSchemaMembers) +
                         " members");
    }
    return true;
  };
  try {
    return SchemaJson::parse(text, look);
  } catch (const SchemaJson::exception& error) {
    throw GrammarError("is not JSON: " + Brief(JsonReason(error), 200));
  }
}

void CheckKeywords(const SchemaPlace& place) {
  const SchemaJson& schema = *place.schema;
  std::string whole;  // a keyword that says all
  for (const auto& [keyword, value] : schema.items()) {
    if (IsWhole(keyword) && (whole.empty() || keyword != "const")) whole = keyword;
  }
  if (schema.contains("type")) CheckTypeWords(place);
  const std::vector<std::string> types = TypesOf(place);
  for (const auto& [keyword, value] : schema.items()) {
    const std::string at = place.pointer + "/" + Brief(keyword);
    if (IsAnnotation(keyword) || (keyword == "$id" && place.pointer == "#")) continue;
    const auto known = Keywords().find(keyword);
    if (known == Keywords().end()) {
      if (keyword == "uniqueItems" && value == false) continue;
      std::string names;
      for (const auto& [name, about] : Keywords())
        names += (names.empty() ? "" : ", ") + std::string(name);
      FailAt(at, "this keyword is not supported; supported are " + names +
                     ", and annotations such as description");
    }
    if (keyword == "$defs" || keyword == "definitions") continue;
    const bool lists_values = whole == "enum" || whole == "const";
    const bool with_values =
        lists_values && (keyword == "type" || keyword == "enum" || keyword == "const");
    if (!whole.empty() && keyword != whole && !with_values) {
      FailAt(at, "is not supported beside " + whole +
                     (lists_values ? ", which goes with type only" : "; put it inside"));
    }
    const std::string_view about = known->second;
    const bool concerns =
        about.empty() || std::find(types.begin(), types.end(), about) != types.end() ||
        (about == "number" && std::find(types.begin(), types.end(), "integer") != types.end());
    if (!concerns) {
      FailAt(at,
             "says nothing about the type of this schema: it is for " + std::string(about) + "s");
    }
  }
}

SchemaPlace Resolve(const SchemaJson& root, const SchemaPlace& place) {
  const SchemaJson& ref = (*place.schema)["$ref"];
  const std::string at = place.pointer + "/$ref";
  if (!ref.is_string()) FailAt(at, "is not a text");
  const auto text = ref.get<std::string>();
  if (text == "#") return {&root, "#"};
  if (!text.starts_with("#/")) {
    FailAt(at, Quoted(text) +
                   " is not supported; supported are references within the schema: # and "
                   "#/...");
  }
  try {
    const SchemaJson& target = root.at(SchemaJson::json_pointer(text.substr(1)));
    if (target.is_object() || target.is_boolean()) return {&target, text};
  } catch (const SchemaJson::exception&) {
  }
  FailAt(at, Quoted(text) + " is no schema of this text");
}

bool HasType(const SchemaJson& value, const std::string& type) {
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "array") return value.is_array();
  if (type == "object") return value.is_object();
  if (type == "number") return value.is_number();
  return value.is_number_integer() ||
         (value.is_number_float() && value.get<double>() == std::floor(value.get<double>()));
}

std::vector<std::string> TypesOf(const SchemaPlace& place) {
  const SchemaJson& schema = *place.schema;
  if (schema.contains("type")) {
    const SchemaJson& type = schema["type"];
    if (type.is_string()) return {type.get<std::string>()};
    return type.get<std::vector<std::string>>();
  }
  std::vector<std::string> types;
  for (const auto& [keyword, value] : schema.items()) {
    const auto known = Keywords().find(keyword);
    if (known == Keywords().end() || known->second.empty()) continue;
    const std::string about(known->second);
    if (std::find(types.begin(), types.end(), about) == types.end()) types.push_back(about);
  }
  return types.empty() ? AllTypes() : types;
}

std::optional<std::vector<SchemaJson>> ValuesOf(const SchemaPlace& place) {
  const SchemaJson& schema = *place.schema;
  const bool lists = schema.contains("enum");
  if (!lists && !schema.contains("const")) return std::nullopt;
  if (lists && !schema["enum"].is_array()) FailAt(place.pointer + "/enum", "is not a list");
  std::vector<SchemaJson> values;
  const auto types = TypesOf(place);
  const auto fits = [&](const SchemaJson& value) {
    if (schema.contains("const") && value != schema["const"]) return false;
    return std::any_of(types.begin(), types.end(),
                       [&](const std::string& type) { return HasType(value, type); });
  };
  const SchemaJson one = SchemaJson::array({lists ? SchemaJson() : schema["const"]});
  for (const SchemaJson& value : lists ? schema["enum"] : one) {
    if (fits(value)) values.push_back(value);
  }
  return values;
}

}  // namespace llava::grammar
