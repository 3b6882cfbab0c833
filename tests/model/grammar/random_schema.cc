#include "tests/model/grammar/random_schema.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

int Below(RandomSource& random, int count) {
  return std::uniform_int_distribution<int>(0, count - 1)(random);
}

std::string RandomText(RandomSource& random, size_t least, size_t most) {
  static const std::vector<std::string> characters = {
      "a",  "b",    "z",    " ", "0", "\"", "\\",           "/", "\n",
      "\t", "\x01", "\x7f", "é", "ß", "中", "\xEF\xBF\xBF", "😀", "\xF4\x8F\xBF\xBF",
      "{",  "}",    ",",    ":"};
  std::string text;
  const size_t size =
      least + static_cast<size_t>(Below(random, static_cast<int>(most - least) + 1));
  for (size_t i = 0; i < size; ++i) {
    text += characters[static_cast<size_t>(Below(random, static_cast<int>(characters.size())))];
  }
  return text;
}

Json RandomNumber(RandomSource& random, bool integer) {
  const int64_t whole =
      Below(random, 5) == 0 ? Below(random, 1'000'000'000) * int64_t{10'007} : Below(random, 30);
  const int64_t sign = Below(random, 2) == 0 ? 1 : -1;
  if (integer) return sign * whole;
  return static_cast<double>(sign * whole) + Below(random, 1000) / 1000.0;
}

Json RandomAny(RandomSource& random, int depth) {
  switch (Below(random, depth > 2 ? 4 : 6)) {
    case 0:
      return RandomText(random, 0, 5);
    case 1:
      return RandomNumber(random, Below(random, 2) == 0);
    case 2:
      return Below(random, 2) == 0;
    case 3:
      return nullptr;
    case 4: {
      Json array = Json::array();
      for (int i = Below(random, 4); i > 0; --i) array.push_back(RandomAny(random, depth + 1));
      return array;
    }
    default: {
      Json object = Json::object();
      for (int i = Below(random, 4); i > 0; --i) {
        object[RandomText(random, 0, 3)] = RandomAny(random, depth + 1);
      }
      return object;
    }
  }
}

Json RandomObjectSchema(RandomSource& random, int depth) {
  Json schema = {{"type", "object"}};
  if (Below(random, 8) == 0) return schema;
  schema["properties"] = Json::object();
  schema["required"] = Json::array();
  for (int i = Below(random, 5); i > 0; --i) {
    const std::string name = RandomText(random, 0, 4);
    if (schema["properties"].contains(name)) continue;
    schema["properties"][name] = RandomSchema(random, depth - 1);
    if (Below(random, 2) == 0) schema["required"].push_back(name);
  }
  if (const int others = Below(random, 4); others < 2) {
    schema["additionalProperties"] = others == 0;
  } else if (others == 2) {
    schema["additionalProperties"] = RandomSchema(random, depth - 1);
  }
  return schema;
}

Json RandomArraySchema(RandomSource& random, int depth) {
  Json schema = {{"type", "array"}, {"items", RandomSchema(random, depth - 1)}};
  if (Below(random, 4) == 0) {
    schema["prefixItems"] = {RandomSchema(random, depth - 1), RandomSchema(random, depth - 1)};
  }
  const int least = Below(random, 4);
  if (Below(random, 2) == 0) schema["minItems"] = least;
  if (Below(random, 2) == 0) schema["maxItems"] = least + Below(random, 3);
  return schema;
}

}  // namespace

Json RandomSchema(RandomSource& random, int depth) {
  switch (Below(random, depth > 0 ? 11 : 7)) {
    case 0: {
      Json schema = {{"type", "string"}};
      const int least = Below(random, 5);
      if (Below(random, 2) == 0) schema["minLength"] = least;
      if (Below(random, 2) == 0) schema["maxLength"] = least + Below(random, 4);
      return schema;
    }
    case 1: {
      const bool integer = Below(random, 2) == 0;
      Json schema = {{"type", integer ? "integer" : "number"}};
      const Json low = RandomNumber(random, integer);
      if (Below(random, 2) == 0) {
        schema[Below(random, 2) == 0 ? "minimum" : "exclusiveMinimum"] = low;
      }
      if (Below(random, 2) == 0) {
        schema[Below(random, 2) == 0 ? "maximum" : "exclusiveMaximum"] =
            low.get<double>() + 2 + Below(random, 200);
      }
      return schema;
    }
    case 2:
      return {{"type", Json::array({"boolean", "null", "string"})}};
    case 3: {
      Json values = Json::array();
      for (int i = 1 + Below(random, 5); i > 0; --i) values.push_back(RandomAny(random, 1));
      return {{"enum", values}};
    }
    case 4:
      return {{"const", RandomAny(random, 1)}};
    case 5:
      return {{"description", "anything"}};
    case 6:
      return {{"type", Json::array({"integer", "boolean"})}, {"title", "one of two"}};
    case 7:
      return {{"anyOf", {RandomSchema(random, depth - 1), RandomSchema(random, depth - 1)}}};
    case 8:
      return RandomArraySchema(random, depth);
    default:
      return RandomObjectSchema(random, depth);
  }
}

Json RandomDocument(RandomSource& random, const Json& schema, int depth) {
  if (schema.is_boolean() || !(schema.contains("type") || schema.contains("enum") ||
                               schema.contains("const") || schema.contains("anyOf"))) {
    return RandomAny(random, depth);
  }
  const auto one_of = [&](const Json& list) -> const Json& {
    return list[static_cast<size_t>(Below(random, static_cast<int>(list.size())))];
  };
  if (schema.contains("const")) return schema["const"];
  if (schema.contains("enum")) return one_of(schema["enum"]);
  if (schema.contains("anyOf")) return RandomDocument(random, one_of(schema["anyOf"]), depth);
  const Json type = schema["type"].is_array() ? one_of(schema["type"]) : schema["type"];
  if (type == "boolean") return Below(random, 2) == 0;
  if (type == "null") return nullptr;
  if (type == "string") {
    const size_t least = schema.value("minLength", size_t{0});
    return RandomText(random, least, schema.value("maxLength", least + 6));
  }
  if (type == "integer" || type == "number") {
    double low = -1e9, high = 1e9;
    if (schema.contains("minimum")) low = schema["minimum"];
    if (schema.contains("exclusiveMinimum")) low = schema["exclusiveMinimum"].get<double>() + 1;
    if (schema.contains("maximum")) high = schema["maximum"];
    if (schema.contains("exclusiveMaximum")) high = schema["exclusiveMaximum"].get<double>() - 1;
    if (low > high) low = high;
    low = std::max(low, high - 1000);
    const double value = low + (high - low) * Below(random, 1001) / 1000.0;
    if (type == "integer") return static_cast<int64_t>(std::ceil(low) + Below(random, 2));
    return value;
  }
  if (type == "array") {
    Json array = Json::array();
    const size_t least = schema.value("minItems", size_t{0});
    const size_t most = schema.value("maxItems", least + 3);
    const Json first = schema.value("prefixItems", Json::array());
    const size_t size =
        least + static_cast<size_t>(Below(random, static_cast<int>(most - least) + 1));
    for (size_t i = 0; i < size; ++i) {
      array.push_back(RandomDocument(
          random, i < first.size() ? first[i] : schema.value("items", Json(true)), depth + 1));
    }
    return array;
  }
  Json object = Json::object();
  const Json required = schema.value("required", Json::array());
  const Json properties = schema.value("properties", Json::object());
  for (const auto& [name, value] : properties.items()) {
    const bool must = std::find(required.begin(), required.end(), name) != required.end();
    if (must || Below(random, 2) == 0) object[name] = RandomDocument(random, value, depth + 1);
  }
  const bool open = !schema.contains("properties");
  const Json others = schema.value("additionalProperties", Json(open));
  if (others == false) return object;
  for (int i = Below(random, 3); i > 0; --i) {
    const std::string name = "more \n" + RandomText(random, 0, 2);
    if (properties.contains(name) || name.find('\x01') != name.npos) continue;
    object[name] = RandomDocument(random, others, depth + 1);
  }
  return object;
}

std::shared_ptr<const grammar::Vocabulary> JsonVocabulary(bool drops_space) {
  static const auto make = [](bool drops) {
    std::vector<std::string> tokens = {"", "", ""};  // <unk>, <s>, </s>
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    for (const char* text :
         {"{\"",    "\":",      "\": ",     "\": \"",    "\",",       "\", \"", "\"}",  "\"}]",
          "}}",     "}]",       "}],",      "]}",        "[[",        "[{\"",   "[[[[", "]]",
          "],",     ", ",       ",\n",      "\n  ",      "\n    ",    "  ",     "    ", "        ",
          "null",   "true",     "false",    "rue",       "alse",      "tr",     "nul",  "10",
          "12",     "00",       "1.5",      "0.",        "-1",        "e5",     "E+",   "the",
          " the",   "ab",       "aa",       "aab",       "zz",        "more",   " \"",  "\\u",
          "\\u00",  "\\ud83d",  "\\ude00",  "\\\"",      "\\\\",      "\\n",    "\\",   "é",
          "中",     "😀",        "\xF0\x9F", "\x98\x80",  "\xE4\xB8",  "\xAD\"", "é\"",  "\"a\"",
          "\"a\":", "a\":",     " {",       " [",        "} ",        "] ",     "a",    "\"",
          "\t",     "\x7f\x7f", "999999",   "[1,",       ",1",        ":1",     ": 1",  "\":1",
          "\":{\"", "{}",       "[]",       "\"\"",      "a\",\"b",   "\xC3",   "\xA9", "bbbb",
          "b b b",  "/",        "\\/",      "123456789", "0000000000"}) {
      tokens.emplace_back(text);
    }
    tokens.emplace_back(" ");
    std::vector<bool> drops_of;
    for (size_t id = 0; id < tokens.size(); ++id) {
      // Not so the byte of the space.
      drops_of.push_back(drops && tokens[id].starts_with(' ') && id != size_t{3 + ' '});
    }
    return std::make_shared<const grammar::Vocabulary>(std::move(tokens), std::move(drops_of));
  };
  static const auto dropping = make(true), keeping = make(false);
  return drops_space ? dropping : keeping;
}

std::vector<int32_t> AllowedTokens(grammar::Matcher& matcher,
                                   const grammar::Vocabulary& vocabulary) {
  std::vector<uint64_t> mask((static_cast<size_t>(vocabulary.size()) + 63) / 64);
  matcher.FillMask(mask);
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if ((mask[static_cast<size_t>(id) / 64] >> (static_cast<size_t>(id) % 64)) & 1)
      ids.push_back(id);
  }
  return ids;
}

std::string RandomWalk(RandomSource& random, grammar::Matcher& matcher,
                       const grammar::Vocabulary& vocabulary, int patience) {
  // Later, what closes comes first: quotes, brackets, what ends numbers and literals.
  const std::string closing = "\"]}truefalsn0123456789";
  std::string text;
  for (int i = 0; !matcher.finished() && i < 40 * patience; ++i) {
    if (matcher.complete() && Below(random, 3) == 0) break;
    const std::vector<int32_t> allowed = AllowedTokens(matcher, vocabulary);
    if (allowed.empty()) return text + " <no way on>";
    int32_t token = allowed[static_cast<size_t>(Below(random, static_cast<int>(allowed.size())))];
    if (i > patience && Below(random, 4) > 0) {
      size_t best = closing.size();
      for (const int32_t id : allowed) {
        const std::string& bytes = vocabulary.bytes(id);
        const size_t rank = bytes.size() == 1 ? closing.find(bytes) : closing.npos;
        if (rank < best) {
          best = rank;
          token = id;
        }
      }
    }
    text += vocabulary.bytes(token);
    if (!matcher.Advance(token)) return text + " <refused>";
  }
  return text;
}

}  // namespace llava
