# Files as C++ sources. Included, it defines
#
#   llava_embed(<file> <function> <header> <variable>)                the bytes of a file: std::string_view function()
#   llava_embed_folder(<folder> <function> <header> <variable> [<ending>])   the texts of a folder's files:
#       const std::vector<std::pair<std::string_view, std::string_view>>& function(), name relative to the
#       folder (without this ending) and text
#
# which add the source that defines the function, declared in <header>, to the variable. The build runs it
# (cmake -D OUT=... -P embed.cmake) to write that source.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  set(llava_embed_script ${CMAKE_CURRENT_LIST_FILE} CACHE INTERNAL "of llava_embed")
  function(llava_embed file function header result)
    set(source ${CMAKE_CURRENT_BINARY_DIR}/${function}.cc)
    add_custom_command(OUTPUT ${source}
      COMMAND ${CMAKE_COMMAND} -D FILE=${file} -D FUNCTION=${function} -D HEADER=${header}
              -D OUT=${source} -P ${llava_embed_script}
      DEPENDS ${file} ${llava_embed_script} VERBATIM)
    set(${result} ${${result}} ${source} PARENT_SCOPE)
  endfunction()
  function(llava_embed_folder folder function header result)
    set(source ${CMAKE_CURRENT_BINARY_DIR}/${function}.cc)
    file(GLOB_RECURSE files CONFIGURE_DEPENDS ${folder}/*)
    add_custom_command(OUTPUT ${source}
      COMMAND ${CMAKE_COMMAND} -D FOLDER=${folder} -D ENDING=${ARGV4} -D FUNCTION=${function}
              -D HEADER=${header} -D OUT=${source} -P ${llava_embed_script}
      DEPENDS ${files} ${llava_embed_script} VERBATIM)
    set(${result} ${${result}} ${source} PARENT_SCOPE)
  endfunction()
  return()
endif()

if(FOLDER)
  set(type "const std::vector<std::pair<std::string_view, std::string_view>>&")
  file(GLOB_RECURSE files RELATIVE ${FOLDER} ${FOLDER}/*)
  foreach(name ${files})
    file(READ ${FOLDER}/${name} text)
    if(ENDING)
      string(REGEX REPLACE "${ENDING}$" "" name ${name})
    endif()
    string(APPEND body "    {\"${name}\", R\"text(${text})text\"},\n")
  endforeach()
  set(body "  static const std::vector<std::pair<std::string_view, std::string_view>> files = {\n${body}  };
  return files;")
else()
  set(type "std::string_view")
  file(READ ${FILE} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REPEAT "." 80 line)  # 16 bytes of text
  string(REGEX REPLACE "(${line})" "\\1\n" bytes "${bytes}")
  set(body "  static const unsigned char bytes[] = {\n${bytes}};
  return {reinterpret_cast<const char*>(bytes), sizeof(bytes)};")
endif()
file(WRITE ${OUT} "// Made by embed.cmake.\n#include \"${HEADER}\"\n
namespace llava {
${type} ${FUNCTION}() {
${body}
}
}  // namespace llava
")
