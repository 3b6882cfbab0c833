# cmake -D OUT=<file.cc> -P embed_templates.cmake <name.json>...: the templates as C++ strings.
set(body "")
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(CMAKE_ARGV${i} MATCHES "([a-z0-9_]+)\\.json$")
    set(name ${CMAKE_MATCH_1})
    file(READ ${CMAKE_ARGV${i}} text)
    string(APPEND body "    {\"${name}\", R\"json(${text})json\"},\n")
  endif()
endforeach()
file(WRITE ${OUT} "// Made by embed_templates.cmake.\n#include \"model/text/builtin_templates.h\"\n
namespace llava {
const std::vector<std::pair<std::string_view, std::string_view>>& BuiltinTemplates() {
  static const std::vector<std::pair<std::string_view, std::string_view>> templates = {
${body}  };
  return templates;
}
}  // namespace llava
")
