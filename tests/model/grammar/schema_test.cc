// Keywords one by one: what they allow, what they forbid, what is refused and how.

#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "model/grammar/configurations.h"
#include "model/grammar/grammar.h"

namespace llava::grammar {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct SchemaCase {
  std::string schema;
  std::vector<std::string> good, bad;
};

bool Accepts(const std::shared_ptr<const Automaton>& automaton, std::string_view text) {
  Configurations sets(automaton);
  int32_t set = sets.initial();
  for (const char byte : text) set = sets.Step(set, static_cast<uint8_t>(byte));
  return sets.complete(set);
}

std::string Refusal(const std::string& schema) {
  try {
    JsonSchema(schema);
  } catch (const GrammarError& error) {
    return error.what();
  }
  return "taken";
}

TEST(JsonSchemaTest, Keywords) {
  for (
      const SchemaCase& c : {
          SchemaCase{R"({"type":"string"})",
                     {R"("")", R"("a b")"},
                     {"a", "1", R"("a)", R"( "a")", R"("a" )"}},
          {R"({"type":"string","minLength":2,"maxLength":3})",
           {R"("ab")", R"("éé中")"},
           {R"("a")", R"("abcd")"}},
          {R"({"type":"string","pattern":"^[a-c]{2,3}$"})",
           {R"("ab")", R"("abc")"},
           {R"("a")", R"("abcd")", R"("ad")"}},
          {R"({"type":"string","pattern":"b\\d"})",
           {R"("b1")", R"("aab7\"x")"},
           {R"("b")", R"("1b")"}},
          {R"({"type":["integer","null"]})", {"1", "null", "-5"}, {"1.5", "true"}},
          {R"({"type":["integer","number"]})", {"1", "1.5"}, {"null"}},
          {R"({"type":"integer","minimum":-2,"exclusiveMaximum":12})",
           {"-2", "0", "11"},
           {"-3", "12", "1.0", "-20"}},
          {R"({"type":"number","minimum":0,"maximum":1})",
           {"0", "1", "0.5", "1.0", "0.00001"},
           {"-0.1", "1.01", "1e-1"}},
          {R"({"type":"boolean"})", {"true", "false"}, {"True", "null"}},
          {R"({"enum":["a",1,null,{"b":[1,2]},"é"]})",
           {R"("a")", "1", "null", R"({"b":[1,2]})", R"("é")"},
           {R"("b")", "2", R"({"b":[1]})"}},
          {R"({"type":"string","enum":["a",1,"b"]})", {R"("a")", R"("b")"}, {"1"}},
          {R"({"const":{"a":"\n"}})", {R"({"a":"\n"})"}, {"{}"}},
          {R"({"type":"array","items":{"type":"integer"}})",
           {"[]", "[1]", "[1,2]", "[ 1, 2 ]", "[\n  1,\n  2\n]"},
           {"[1,]", "[,1]", "[1 ,2]", R"(["a"])"}},
          {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":3})",
           {"[1,2]", "[1,2,3]"},
           {"[]", "[1]", "[1,2,3,4]"}},
          {R"({"type":"array","maxItems":0})", {"[]"}, {"[1]"}},
          {R"({"type":"array","minItems":1})", {"[1]", R"([{"a":[]},null])"}, {"[]"}},
          {R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false})",
           {"[]", "[1]", R"([1,"a"])"},
           {R"(["a"])", R"([1,"a",2])"}},
          {R"({"type":"array","prefixItems":[{"type":"integer"}],"items":{"type":"string"},"minItems":1})",
           {"[1]", R"([1,"a","b"])"},
           {"[]", "[1,2]"}},
          {R"({"type":"object"})",
           {"{}", R"({"a":1,"b":{"c":[]}})", R"({ "a": 1 })"},
           {"[]", R"({a:1})", R"({"a":1,})"}},
          {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},"required":["a"]})",
           {R"({"a":1})", R"({"a": 1, "b": "x"})"},
           {"{}", R"({"b":"x","a":1})", R"({"a":1,"c":2})", R"({"b":"x"})"}},
          {R"({"type":"object","properties":{"a":{},"b":{},"c":{}}})",
           {"{}", R"({"a":1,"c":2})", R"({"b":1})", R"({"c":[]})"},
           {R"({"c":1,"a":1})", R"({,"a":1})"}},
          {R"({"type":"object","properties":{"ab":{"type":"integer"}},"additionalProperties":true})",
           {R"({"ab":1})", R"({"a":"x"})", R"({"abc":"x","b":[]})", R"({"":1,"\n":2})",
            R"({"ab":1,"é":2})"},
           {R"({"ab":"x"})", R"({"c":1,"ab":"x"})", R"({"\u0061b":"x"})"}},
          {R"({"type":"object","properties":{"é":{"type":"integer"}},"additionalProperties":{"type":"boolean"}})",
           {R"({"é":1})", R"({"è":true})", R"({"ée":true,"中":false,"😀":true})"},
           {R"({"é":true})", R"({"a":1})"}},
          {R"({"type":"object","additionalProperties":false})", {"{}"}, {R"({"a":1})"}},
          {R"({"type":"object","required":["x"],"properties":{"a":{"const":1}}})",
           {R"({"a":1,"x":[true]})", R"({"x":null})"},
           {R"({"a":1})"}},
          {R"({"properties":{"a":{"type":"null"}}})", {"{}", R"({"a":null})"}, {"1"}},
          {R"({"type":"object","properties":{"a\"b\\c\n":{"const":1}},"required":["a\"b\\c\n"]})",
           {R"({"a\"b\\c\n":1})"},
           {"{}"}},
          {R"({"anyOf":[{"type":"string"},{"type":"array","items":{"type":"null"}}]})",
           {R"("a")", "[null]"},
           {"1", "[1]"}},
          {R"({"oneOf":[{"type":"string"},{"type":"integer"}]})", {R"("a")", "1"}, {"true"}},
          {R"({"oneOf":[{"type":"object","properties":{"k":{"const":"a"},"x":{"type":"integer"}},"required":["k"]},{"type":"object","properties":{"k":{"const":"b"},"x":{"type":"string"}},"required":["k"]}]})",
           {R"({"k":"a","x":1})", R"({"k":"b","x":"y"})"},
           {R"({"k":"a","x":"y"})"}},
          {R"({"allOf":[{"$ref":"#/$defs/n"}],"description":"d","$defs":{"n":{"type":"integer"}}})",
           {"1"},
           {"null"}},
          {R"({"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/tree"}}},"required":["v"]}}})",
           {R"({"v":1})", R"({"v":1,"kids":[{"v":2,"kids":[]},{"v":3}]})"},
           {"{}", R"({"v":1,"kids":[{}]})"}},
          {R"({"type":"array","items":{"$ref":"#"}})", {"[]", "[[],[[]]]"}, {"[1]"}},
          {R"({"$ref":"#/definitions/a~1b~0c","definitions":{"a/b~c":{"const":1}}})", {"1"}, {"2"}},
          {"true", {"1", "{}", R"("a")", "null"}, {"", "nul"}},
          {"{}", {"1", "[]"}, {"", "x"}},
          {R"({"title":"t","$schema":"s","$id":"i","default":1,"examples":[2],"$comment":"c","uniqueItems":false,"type":"null"})",
           {"null"},
           {"1"}},
      }) {
    const auto automaton = JsonSchema(c.schema);
    for (const std::string& text : c.good)
      EXPECT_TRUE(Accepts(automaton, text)) << c.schema << "\n" << text;
    for (const std::string& text : c.bad)
      EXPECT_FALSE(Accepts(automaton, text)) << c.schema << "\n" << text;
  }
}

TEST(JsonSchemaTest, WhiteSpaceIsBounded) {
  const auto automaton = JsonSchema(R"({"type":"array","items":{"type":"integer"}})");
  const auto spaced = [](size_t count) { return "[" + std::string(count, ' ') + "1]"; };
  EXPECT_TRUE(Accepts(automaton, spaced(24)));
  EXPECT_FALSE(Accepts(automaton, spaced(25)));
}

TEST(JsonSchemaTest, RefusalsNameThePlace) {
  struct Case {
    std::string schema;
    std::vector<std::string> words;
  };
  for (const Case& c : {
           Case{R"({"type":"object","properties":{"a/b":{"type":"string","format":"date"}}})",
                {"#/properties/a~1b/format", "not supported", "minLength"}},
           {R"({"type":"array","items":{"not":{}}})", {"#/items/not", "not supported"}},
           {R"x({"type":"string","pattern":"a(?!b)"})x", {"#/pattern", "byte 2", "looking ahead"}},
           {R"({"type":"string","pattern":"a","maxLength":3})", {"#/pattern", "beside minLength"}},
           {R"({"type":"array","uniqueItems":true})", {"#/uniqueItems"}},
           {R"({"$ref":"#/$defs/a","$defs":{"a":{"if":{}}}})", {"#/$defs/a/if"}},
           {R"({"$ref":"#/$defs/b"})", {"#/$ref", "no schema of this text"}},
           {R"({"$ref":"http://x/y"})", {"#/$ref", "within the schema"}},
           {R"({"$ref":"#/$defs/a","type":"string","$defs":{"a":{}}})", {"#/type", "beside $ref"}},
           {R"({"anyOf":[{"type":"string"}],"type":"string"})", {"#/type", "beside anyOf"}},
           {R"({"enum":["a"],"minLength":1})", {"#/minLength", "type only"}},
           {R"({"type":"string","minimum":1})", {"#/minimum", "numbers"}},
           {R"({"type":"strung"})", {"#/type", "string, number"}},
           {R"({"type":[]})", {"#/type"}},
           {R"({"type":"string","minLength":3,"maxLength":2})",
            {"#/minLength", "more than maxLength"}},
           {R"({"type":"string","minLength":-1})", {"#/minLength", "whole number"}},
           {R"({"type":"string","maxLength":1000000000})", {"at #:", "shorter maxLength"}},
           {R"({"type":"array","items":{},"maxItems":1000000000})", {"at #:", "fewer maxItems"}},
           {R"({"type":"integer","minimum":"a"})", {"#/minimum", "not a number"}},
           {R"({"type":"integer","minimum":1e30})", {"#/minimum", "digits"}},
           {R"({"type":"integer","minimum":1,"exclusiveMinimum":1})",
            {"#/exclusiveMinimum", "beside minimum"}},
           {R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", {"#/oneOf", "0 and 1", "anyOf"}},
           {R"({"oneOf":[{"enum":[1,2]},{"enum":[2.0]}]})", {"#/oneOf", "0 and 1"}},
           {R"({"allOf":[{},{}]})", {"#/allOf", "more than one"}},
           {R"({"anyOf":[]})", {"#/anyOf", "list"}},
           {R"({"enum":[]})", {"at #:", "no value"}},
           {R"({"enum":1})", {"#/enum", "list"}},
           {R"({"type":"object","required":["a"],"additionalProperties":false})",
            {"#/required", "\"a\""}},
           {R"({"type":"object","required":"a"})", {"#/required", "list"}},
           {R"({"type":"object","properties":[]})", {"#/properties"}},
           {R"({"type":"object","properties":{"a":false}})", {"#/properties/a", "false"}},
           {R"({"type":"object","properties":{"a":1}})", {"#/properties/a"}},
           {R"({"type":"array","items":false,"minItems":1})", {"#/minItems"}},
           {R"({"$ref":"#"})", {"itself"}},
           {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", {"itself"}},
           {R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})",
            {"nothing can fit"}},
           {R"({"type":"integer","minimum":3,"maximum":2})", {"nothing can fit"}},
           {R"({"a":1,"a":2})", {"\"a\" twice"}},
           {R"({"type":)", {"not JSON"}},
           {R"({")" + std::string(99, 'x') + R"(é":1})", {"xx: this keyword"}},
           {"1", {"neither an object nor true"}},
           {"false", {"false"}},
           {"{\"description\":\"" + std::string(70'000, 'x') + "\"}", {"70", "65536"}},
           {std::string(1000, '['), {"200 levels"}},
       }) {
    const std::string refusal = Refusal(c.schema);
    for (const std::string& word : c.words)
      EXPECT_THAT(refusal, HasSubstr(word)) << c.schema.substr(0, 200);
  }
}

TEST(JsonSchemaTest, LargeSchemasAreTakenOrRefusedSoon) {
  std::string wide = R"({"type":"object","properties":{)", values = R"({"enum":[)",
              chain = R"({"$ref":"#/$defs/0","$defs":{)";
  for (int i = 0; i < 450; ++i) {
    wide += (i > 0 ? "," : "") + std::string("\"name number ") + std::to_string(i) +
            "\":{\"type\":\"integer\"}";
  }
  for (int i = 0; i < 4000; ++i) values += (i > 0 ? ",\"" : "\"") + std::to_string(i * 7919) + "\"";
  for (int i = 0; i < 999; ++i) {
    chain += "\"" + std::to_string(i) + "\":{\"$ref\":\"#/$defs/" + std::to_string(i + 1) + "\"},";
  }
  const auto object = JsonSchema(wide + "}}");
  EXPECT_TRUE(Accepts(object, R"({"name number 17":1,"name number 449":2})"));
  EXPECT_FALSE(Accepts(object, R"({"name number 17":1,"name number 16":2})"));
  EXPECT_TRUE(Accepts(JsonSchema(values + "]}"), "\"" + std::to_string(3999 * 7919) + "\""));
  EXPECT_TRUE(Accepts(JsonSchema(chain + "\"999\":{\"const\":1}}}"), "1"));
}

}  // namespace
}  // namespace llava::grammar
