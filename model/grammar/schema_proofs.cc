#include "model/grammar/schema_proofs.h"

#include <algorithm>
#include <cmath>

#include "model/grammar/automaton.h"

namespace llava::grammar {
namespace {

constexpr int kDeepestProof = 8;
// Schemas and pairs of them looked at, keywords, members and values (and each 64 bytes of those).
constexpr size_t kMostWork = 100'000;

struct OutOfWork {};

// Bits of AllTypes().
constexpr uint32_t kAllTypes = 0x7F, kObject = 1u << 5;

uint32_t TypesOfWord(const std::string& word) {
  uint32_t types = 0;
  for (size_t i = 0; i < AllTypes().size(); ++i) {
    if (word == AllTypes()[i]) types |= 1u << i;
  }
  // 1.0 is both.
  constexpr uint32_t kNumbers = (1u << 1) | (1u << 6);
  return (types & kNumbers) != 0 ? types | kNumbers : types;
}

// A text that equal values have in common: members in the order of their names, 1.0 as 1.
std::string Canonical(const SchemaJson& value) {
  std::string text;
  if (value.is_array()) {
    for (const SchemaJson& element : value) text.append(1, ',').append(Canonical(element));
    return text.append(1, ']');
  }
  if (value.is_object()) {
    std::map<std::string, std::string> members;
    for (const auto& [name, member] : value.items()) members.emplace(name, Canonical(member));
    for (const auto& [name, member] : members) {
      text.append(1, ',').append(SchemaJson(name).dump()).append(1, ':').append(member);
    }
    return text.append(1, '}');
  }
  if (!value.is_number_float()) return value.dump();
  const auto number = value.get<double>();
  if (number != std::floor(number) || std::abs(number) >= 0x1p63) return value.dump();
  return std::to_string(static_cast<int64_t>(number));
}

}  // namespace

std::optional<bool> DisjointProofs::AreDisjoint(const SchemaJson& a, const SchemaJson& b) {
  try {
    return Disjoint(a, b, 0);
  } catch (const OutOfWork&) {
    return std::nullopt;
  } catch (const GrammarError&) {
  } catch (const SchemaJson::exception&) {
  }
  return true;
}

void DisjointProofs::Charge(size_t work) {
  if ((work_ += work) > kMostWork) throw OutOfWork{};
}

const SchemaJson& DisjointProofs::Follow(const SchemaJson& schema) {
  const auto [entry, is_new] = behind_.try_emplace(&schema, &schema);
  if (!is_new) return *entry->second;
  const SchemaJson* last = &schema;
  for (int i = 0; i < 16 && last->is_object() && last->contains("$ref"); ++i) {
    Charge(16);
    last = Resolve(root_, {last, "#"}).schema;
  }
  return *(behind_[&schema] = last);
}

const DisjointProofs::Facts& DisjointProofs::FactsOf(const SchemaJson& schema) {
  const auto there = facts_.find(&schema);
  if (there != facts_.end()) return there->second;
  Facts facts;
  if (const auto values = ValuesOf({&schema, "#"})) {
    Charge(values->size());
    facts.values.emplace();
    for (const SchemaJson& value : *values) {
      for (size_t i = 0; i < AllTypes().size(); ++i) {
        if (HasType(value, AllTypes()[i])) facts.value_types |= 1u << i;
      }
      facts.values->push_back(Canonical(value));
      facts.value_bytes += facts.values->back().size();
    }
    std::sort(facts.values->begin(), facts.values->end());
  }
  if (schema.contains("required") && schema.contains("properties")) {
    std::map<std::string, const SchemaJson*> described;
    for (const auto& [name, member] : schema["properties"].items()) described[name] = &member;
    Charge(described.size() + schema["required"].size());
    for (const SchemaJson& name : schema["required"]) {
      if (!name.is_string()) continue;
      const auto member = described.find(name.get<std::string>());
      if (member != described.end()) facts.members.insert(*member);
    }
  }
  return facts_.emplace(&schema, std::move(facts)).first->second;
}

DisjointProofs::Types DisjointProofs::PossibleTypes(const SchemaJson& schema, int depth) {
  Charge(1);
  const std::pair key(&schema, depth);
  if (const auto there = types_.find(key); there != types_.end()) return there->second;
  return types_[key] = FindTypes(Follow(schema), depth);
}

DisjointProofs::Types DisjointProofs::FindTypes(const SchemaJson& schema, int depth) {
  if (!schema.is_object() || depth > kDeepestProof) return kAllTypes;
  if (const Facts& facts = FactsOf(schema); facts.values) return facts.value_types;
  Types types = 0;
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    if (!schema.contains(keyword)) continue;
    const SchemaJson& list = schema[keyword];
    for (size_t i = 0; i < list.size(); ++i) types |= PossibleTypes(list.at(i), depth + 1);
    return types;
  }
  if (schema.contains("$ref")) return kAllTypes;
  Charge(schema.size());
  for (const std::string& type : TypesOf({&schema, "#"})) types |= TypesOfWord(type);
  return types;
}

bool DisjointProofs::Disjoint(const SchemaJson& a, const SchemaJson& b, int depth) {
  Charge(1);
  if (depth > kDeepestProof) return false;
  const std::tuple key(&a, &b, depth);
  if (const auto there = disjoint_.find(key); there != disjoint_.end()) return there->second;
  return disjoint_[key] = FindDisjoint(Follow(a), Follow(b), depth);
}

bool DisjointProofs::FindDisjoint(const SchemaJson& a, const SchemaJson& b, int depth) {
  const Types both = PossibleTypes(a, depth) & PossibleTypes(b, depth);
  if (both == 0) return true;
  if (!a.is_object() || !b.is_object()) return false;
  const Facts &facts_a = FactsOf(a), &facts_b = FactsOf(b);
  if (facts_a.values && facts_b.values) {
    Charge(facts_a.values->size() + facts_b.values->size() +
           (facts_a.value_bytes + facts_b.value_bytes) / 64);
    auto in_a = facts_a.values->begin(), in_b = facts_b.values->begin();
    while (in_a != facts_a.values->end() && in_b != facts_b.values->end()) {
      const int order = in_a->compare(*in_b);
      if (order == 0) return false;
      order < 0 ? ++in_a : ++in_b;
    }
    return true;
  }
  // Objects that differ in a member which both must have.
  if (both != kObject) return false;
  Charge(facts_a.members.size());
  return std::any_of(facts_a.members.begin(), facts_a.members.end(), [&](const auto& member) {
    const auto other = facts_b.members.find(member.first);
    return other != facts_b.members.end() && Disjoint(*member.second, *other->second, depth + 1);
  });
}

}  // namespace llava::grammar
