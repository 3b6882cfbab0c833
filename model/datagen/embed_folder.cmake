# cmake -D FOLDER=<folder> -D OUT=<file.cc> -P embed_folder.cmake <file>...: files of a folder as C++ strings.
set(body "")
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(CMAKE_ARGV${i} MATCHES "\\.(txt|json)$")
    file(RELATIVE_PATH name ${FOLDER} ${CMAKE_ARGV${i}})
    file(READ ${CMAKE_ARGV${i}} text)
    string(APPEND body "    {\"${name}\", R\"prompt(${text})prompt\"},\n")
  endif()
endforeach()
file(WRITE ${OUT} "// Made by embed_folder.cmake.\n#include \"model/datagen/prompt_set.h\"\n
namespace llava {
const std::vector<std::pair<std::string_view, std::string_view>>& BuiltInPromptFiles() {
  static const std::vector<std::pair<std::string_view, std::string_view>> files = {
${body}  };
  return files;
}
}  // namespace llava
")
