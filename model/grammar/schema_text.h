#pragma once

// JSON schemas as texts: reading them, their keywords, and where in them something stands.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava::grammar {

// Keeps the order of members: it becomes that of the document.
using SchemaJson = nlohmann::ordered_json;

// Throws GrammarError: no JSON, too large, or a member that is there twice.
SchemaJson ParseSchema(std::string_view text);

// A schema within the whole one, and its JSON pointer ("#" for the whole).
struct SchemaPlace {
  const SchemaJson* schema;
  std::string pointer;

  SchemaPlace Member(const std::string& name) const;
  SchemaPlace Element(size_t index) const;
};

// Throws GrammarError that names the place.
[[noreturn]] void FailAt(const std::string& pointer, const std::string& what);

// Throws GrammarError for keywords that are not supported, in combinations that are not, and of
// the wrong kind.
void CheckKeywords(const SchemaPlace& place);

// What "$ref" of the place means. Throws GrammarError if it is not of this text.
SchemaPlace Resolve(const SchemaJson& root, const SchemaPlace& place);

// Words of "type", in an order that others rely on.
const std::vector<std::string>& AllTypes();
// The types that the schema itself names, or those that its keywords are about; all, if neither.
std::vector<std::string> TypesOf(const SchemaPlace& place);
bool HasType(const SchemaJson& value, const std::string& type);

// Values of "enum" and "const" that the type allows; none: it has neither.
std::optional<std::vector<SchemaJson>> ValuesOf(const SchemaPlace& place);

}  // namespace llava::grammar
