#pragma once

// Proofs that no document is valid for two schemas: from their types, values and the members that
// both require. The work of all proofs of one schema is bounded.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/grammar/schema_text.h"

namespace llava::grammar {

class DisjointProofs {
 public:
  // The whole schema, which must outlive it.
  explicit DisjointProofs(const SchemaJson& root) : root_(root) {}

  // Whether no document can be valid for both, as far as that is easily seen. Nothing: that takes
  // more work than a schema may. What is broken counts as disjoint; it is refused where it is made.
  std::optional<bool> AreDisjoint(const SchemaJson& a, const SchemaJson& b);

 private:
  using Types = uint32_t;  // a bit each
  struct Facts {
    // Of "enum" and "const", written so that equal ones are equal texts; in order.
    std::optional<std::vector<std::string>> values;
    Types value_types = 0;
    size_t value_bytes = 0;
    std::map<std::string, const SchemaJson*> members;  // that are required and described
  };

  void Charge(size_t work);
  // The last of a path that follows "$ref"; guards against circles.
  const SchemaJson& Follow(const SchemaJson& schema);
  const Facts& FactsOf(const SchemaJson& schema);
  // Types of documents that may be valid; all where it is not seen at once.
  Types PossibleTypes(const SchemaJson& schema, int depth);
  Types FindTypes(const SchemaJson& schema, int depth);
  bool Disjoint(const SchemaJson& a, const SchemaJson& b, int depth);
  bool FindDisjoint(const SchemaJson& a, const SchemaJson& b, int depth);

  const SchemaJson& root_;
  std::unordered_map<const SchemaJson*, const SchemaJson*> behind_;  // references
  std::unordered_map<const SchemaJson*, Facts> facts_;
  std::map<std::pair<const SchemaJson*, int>, Types> types_;  // by schema and depth
  std::map<std::tuple<const SchemaJson*, const SchemaJson*, int>, bool> disjoint_;
  size_t work_ = 0;
};

}  // namespace llava::grammar
