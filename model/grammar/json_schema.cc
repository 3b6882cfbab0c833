// Schemas to automata: one rule for each schema within the whole one, equal ones sharing theirs.

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "model/grammar/grammar.h"
#include "model/grammar/json_rules.h"
#include "model/grammar/number_range.h"
#include "model/grammar/regex.h"
#include "model/grammar/schema_proofs.h"
#include "model/grammar/schema_text.h"
#include "model/text/utf8.h"

namespace llava::grammar {
namespace {

// Reads one of the texts; states behind equal beginnings are one, so that it stays in one place.
void AddTexts(AutomatonBuilder& builder, int32_t from, std::vector<std::string> texts, int32_t to) {
  std::sort(texts.begin(), texts.end());
  std::vector<int32_t> path = {from};  // states behind the bytes of the text before
  std::string_view before;
  for (const std::string& text : texts) {
    const auto parts = std::mismatch(before.begin(), before.end(), text.begin(), text.end());
    path.resize(static_cast<size_t>(parts.first - before.begin()) + 1);
    while (path.size() <= text.size()) {
      const int32_t next = builder.AddState();
      builder.AddByte(path.back(), text[path.size() - 1], next);
      path.push_back(next);
    }
    builder.AddEmpty(path.back(), to);
    before = text;
  }
}

class SchemaCompiler {
 public:
  explicit SchemaCompiler(const SchemaJson& root) : root_(root), rules_(builder_) {}

  std::shared_ptr<const Automaton> Compile() {
    const int32_t rule = RuleOf({&root_, "#"});
    // One after the other instead of each within the one that it belongs to: references may make
    // long chains.
    for (; !open_.empty(); open_.pop_front()) {
      const auto [place, number] = open_.front();
      try {
        Make(place, number);
      } catch (const SchemaJson::exception&) {
        FailAt(place.pointer, "has a keyword whose value is of the wrong kind");
      } catch (const TooLarge& error) {
        FailAt(place.pointer, error.what());
      }
    }
    return builder_.Build(rule);
  }

 private:
  // The rule of a schema, which is made later.
  int32_t RuleOf(const SchemaPlace& place) {
    const SchemaJson& schema = *place.schema;
    if (schema.is_boolean()) {
      if (schema.get<bool>()) return rules_.Value();
      FailAt(place.pointer, "false allows nothing, which is not supported; leave the member out");
    }
    if (!schema.is_object()) FailAt(place.pointer, "is neither an object nor true");
    // Written out once, however many references there are to it.
    if (const auto there = places_.find(&schema); there != places_.end()) return there->second;
    const auto [entry, is_new] = known_.try_emplace(schema.dump(), 0);
    if (is_new) {
      entry->second = builder_.AddRule();
      open_.emplace_back(place, entry->second);
    }
    return places_[&schema] = entry->second;
  }

  void Make(const SchemaPlace& place, int32_t rule) {
    const SchemaJson& schema = *place.schema;
    CheckKeywords(place);
    const int32_t start = builder_.start(rule), end = builder_.AddState();
    builder_.SetFinal(end);
    const auto call = [&](int32_t other) { builder_.AddCall(start, other, end); };
    if (schema.contains("$ref")) return call(RuleOf(Resolve(root_, place)));
    for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
      if (!schema.contains(keyword)) continue;
      for (const SchemaPlace& alternative : Alternatives(place, keyword)) call(RuleOf(alternative));
      return;
    }
    if (const auto values = ValuesOf(place)) {
      if (values->empty()) FailAt(place.pointer, "no value of enum and const has the type");
      return AddValues(*values, start, end);
    }
    const std::vector<std::string> types = TypesOf(place);
    const bool numbers = std::find(types.begin(), types.end(), "number") != types.end();
    for (const std::string& type : types) {
      if (type == "null") builder_.AddText(start, "null", end);
      if (type == "boolean") {
        for (const char* text : {"true", "false"}) builder_.AddText(start, text, end);
      }
      if (type == "string") call(StringOf(place));
      if (type == "number" || (type == "integer" && !numbers)) call(NumberOf(place, !numbers));
      if (type == "array") call(ArrayOf(place));
      if (type == "object") call(ObjectOf(place));
    }
  }

  // One of the values.
  void AddValues(std::span<const SchemaJson> values, int32_t from, int32_t to) {
    std::vector<std::string> texts;
    for (const SchemaJson& value : values) {
      if (value.is_structured()) {
        builder_.AddCall(from, ExactlyOf(value), to);
      } else {
        texts.push_back(value.dump());
      }
    }
    AddTexts(builder_, from, std::move(texts), to);
  }

  // An array or object, with white space where other documents may have it.
  int32_t ExactlyOf(const SchemaJson& value) {
    const auto rule_of = [this](const SchemaJson& part) {
      const int32_t rule = builder_.AddRule(), end = builder_.AddState();
      builder_.SetFinal(end);
      AddValues(std::span(&part, 1), builder_.start(rule), end);
      return rule;
    };
    if (value.is_array()) {
      std::vector<int32_t> elements;
      for (const SchemaJson& element : value) elements.push_back(rule_of(element));
      return rules_.Array(elements, std::nullopt, elements.size(), elements.size());
    }
    std::vector<JsonRules::Member> members;
    for (const auto& [name, part] : value.items()) members.push_back({name, rule_of(part), true});
    return rules_.Object(members, std::nullopt);
  }

  std::vector<SchemaPlace> Alternatives(const SchemaPlace& place, const std::string& keyword) {
    const SchemaPlace list = place.Member(keyword);
    if (!list.schema->is_array() || list.schema->empty()) {
      FailAt(list.pointer, "is not a list of schemas");
    }
    std::vector<SchemaPlace> alternatives;
    for (size_t i = 0; i < list.schema->size(); ++i) alternatives.push_back(list.Element(i));
    if (keyword == "allOf" && alternatives.size() > 1) {
      FailAt(list.pointer, "of more than one schema is not supported");
    }
    if (keyword != "oneOf") return alternatives;
    for (size_t i = 0; i < alternatives.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        const auto disjoint = proofs_.AreDisjoint(*alternatives[j].schema, *alternatives[i].schema);
        if (!disjoint) FailAt(list.pointer, "has too many alternatives; use anyOf");
        if (*disjoint) continue;
        FailAt(list.pointer, "alternatives " + std::to_string(j) + " and " + std::to_string(i) +
                                 " may both fit a document, as far as is seen from their types, "
                                 "values and required members; use anyOf");
      }
    }
    return alternatives;
  }

  static std::optional<uint64_t> CountOf(const SchemaPlace& place, const char* keyword) {
    if (!place.schema->contains(keyword)) return std::nullopt;
    const SchemaJson& value = (*place.schema)[keyword];
    if (!value.is_number_unsigned()) {
      FailAt(place.pointer + "/" + keyword, "is not a whole number of 0 or more");
    }
    return value.get<uint64_t>();
  }

  static std::pair<uint64_t, std::optional<uint64_t>> CountsOf(const SchemaPlace& place,
                                                               const char* least,
                                                               const char* most) {
    const auto low = CountOf(place, least).value_or(0);
    const auto high = CountOf(place, most);
    if (high && low > *high) {
      FailAt(place.pointer + "/" + least, std::string("is more than ") + most);
    }
    return {low, high};
  }

  int32_t StringOf(const SchemaPlace& place) {
    if (place.schema->contains("pattern")) return MatchingOf(place);
    const auto [least, most] = CountsOf(place, "minLength", "maxLength");
    return rules_.String(least, most);
  }

  int32_t MatchingOf(const SchemaPlace& place) {
    const SchemaJson& pattern = (*place.schema)["pattern"];
    const std::string at = place.pointer + "/pattern";
    if (!pattern.is_string()) FailAt(at, "is not a text");
    if (place.schema->contains("minLength") || place.schema->contains("maxLength")) {
      FailAt(at, "is not supported beside minLength and maxLength; say it in the pattern");
    }
    const int32_t rule = builder_.AddRule(), behind = builder_.AddState(),
                  end = builder_.AddState();
    builder_.SetFinal(end);
    const int32_t begin = builder_.AddText(builder_.start(rule), "\"");
    try {
      regexes_.Add(pattern.get<std::string>(), /*search=*/true, begin, behind);
    } catch (const GrammarError& error) {
      FailAt(at, error.what());
    }
    builder_.AddByte(behind, '"', end);
    return rule;
  }

  int32_t NumberOf(const SchemaPlace& place, bool integer) {
    const auto low = BoundOf(place, "minimum", "exclusiveMinimum"),
               high = BoundOf(place, "maximum", "exclusiveMaximum");
    if (!low && !high) return integer ? rules_.Integer() : rules_.Number();
    return NumberBetween(builder_, low, high, integer);
  }

  static std::optional<Bound> BoundOf(const SchemaPlace& place, const char* keyword,
                                      const char* exclusive) {
    const SchemaJson& schema = *place.schema;
    for (const char* each : {keyword, exclusive}) {
      if (schema.contains(each) && !schema[each].is_number()) {
        FailAt(place.pointer + "/" + each, "is not a number");
      }
    }
    if (schema.contains(keyword) && schema.contains(exclusive)) {
      FailAt(place.pointer + "/" + exclusive,
             std::string("is not supported beside ") + keyword + "; give the stricter one");
    }
    const bool is_exclusive = schema.contains(exclusive);
    const char* given = is_exclusive ? exclusive : keyword;
    if (!schema.contains(given)) return std::nullopt;
    try {
      return Bound{ParseDecimal(schema[given].dump()), is_exclusive};
    } catch (const GrammarError& error) {
      FailAt(place.pointer + "/" + given, error.what());
    }
  }

  int32_t ArrayOf(const SchemaPlace& place) {
    const SchemaJson& schema = *place.schema;
    std::vector<int32_t> first;
    if (schema.contains("prefixItems")) {
      const SchemaPlace list = place.Member("prefixItems");
      if (!list.schema->is_array()) FailAt(list.pointer, "is not a list of schemas");
      for (size_t i = 0; i < list.schema->size(); ++i) first.push_back(RuleOf(list.Element(i)));
    }
    std::optional<int32_t> rest;
    if (!schema.contains("items")) {
      rest = rules_.Value();
    } else if (schema["items"] != false) {
      rest = RuleOf(place.Member("items"));
    }
    const auto [least, most] = CountsOf(place, "minItems", "maxItems");
    if (!rest && least > first.size()) {
      FailAt(place.pointer + "/minItems", "is more than there are prefixItems, and items is false");
    }
    return rules_.Array(first, rest, least, most);
  }

  int32_t ObjectOf(const SchemaPlace& place) {
    const SchemaJson& schema = *place.schema;
    std::set<std::string> required = RequiredOf(place);
    std::optional<int32_t> others;
    const bool open = !schema.contains("additionalProperties");
    if (open ? !schema.contains("properties") : schema["additionalProperties"] != false) {
      others = open ? rules_.Value() : RuleOf(place.Member("additionalProperties"));
    }
    std::vector<JsonRules::Member> members;
    if (schema.contains("properties")) {
      const SchemaPlace properties = place.Member("properties");
      if (!properties.schema->is_object()) FailAt(properties.pointer, "is not an object");
      for (const auto& [name, value] : properties.schema->items()) {
        members.push_back(
            {name, RuleOf({&value, properties.Member(name).pointer}), required.erase(name) > 0});
      }
    }
    for (const std::string& name : required) {
      if (!others && !open) {
        FailAt(place.pointer + "/required",
               "names \"" + std::string(CutUtf8(name, 100)) +
                   "\", which properties lacks and additionalProperties: false forbids");
      }
      members.push_back({name, others ? *others : rules_.Value(), true});
    }
    return rules_.Object(members, others);
  }

  static std::set<std::string> RequiredOf(const SchemaPlace& place) {
    std::set<std::string> names;
    if (!place.schema->contains("required")) return names;
    const SchemaJson& list = (*place.schema)["required"];
    const auto is_text = [](const SchemaJson& name) { return name.is_string(); };
    if (!list.is_array() || !std::all_of(list.begin(), list.end(), is_text)) {
      FailAt(place.pointer + "/required", "is not a list of names");
    }
    for (const SchemaJson& name : list) names.insert(name.get<std::string>());
    return names;
  }

  const SchemaJson& root_;
  AutomatonBuilder builder_;
  JsonRules rules_;
  Regexes regexes_{builder_, Regexes::Spelling::kJson};
  std::map<std::string, int32_t> known_;  // rules by the text of their schemas
  std::unordered_map<const SchemaJson*, int32_t> places_;
  std::deque<std::pair<SchemaPlace, int32_t>> open_;
  DisjointProofs proofs_{root_};
};

}  // namespace

std::shared_ptr<const Automaton> JsonObject() {
  AutomatonBuilder builder;
  return builder.Build(JsonRules(builder).Object());
}

std::shared_ptr<const Automaton> JsonSchema(std::string_view schema) {
  const SchemaJson root = ParseSchema(schema);
  return SchemaCompiler(root).Compile();
}

std::shared_ptr<const Automaton> Regex(std::string_view pattern) {
  AutomatonBuilder builder;
  const int32_t body = builder.AddState(), end = builder.AddState();
  Regexes(builder, Regexes::Spelling::kPlain).Add(pattern, /*search=*/false, body, end);
  builder.SetFinal(end);
  const int32_t rule = builder.AddRule();
  builder.AddBeginningWithout(' ', body, builder.start(rule));
  try {
    return builder.Build(rule);
  } catch (const NoText&) {
    throw GrammarError(
        "nothing can fit it: no text matches it that does not begin with a space, as none may");
  }
}

std::shared_ptr<const Automaton> Choices(std::span<const std::string> texts) {
  AutomatonBuilder builder;
  if (texts.empty()) throw GrammarError("has no texts to choose from");
  for (const std::string& text : texts) {
    if (text.empty()) throw GrammarError("has an empty text");
    if (text.front() == ' ') throw GrammarError("has a text that begins with a space");
  }
  const int32_t rule = builder.AddRule(), end = builder.AddState();
  builder.SetFinal(end);
  AddTexts(builder, builder.start(rule), {texts.begin(), texts.end()}, end);
  return builder.Build(rule);
}

}  // namespace llava::grammar
