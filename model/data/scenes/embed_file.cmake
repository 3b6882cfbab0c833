# cmake -D FILE=<any file> -D FUNCTION=<name> -D HEADER=<file.h> -D OUT=<file.cc> -P embed_file.cmake: the
# bytes of a file as a C++ function that returns them, declared in HEADER.
file(READ ${FILE} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REPEAT "." 80 line)  # 16 bytes of text
string(REGEX REPLACE "(${line})" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "// Made by embed_file.cmake.\n#include \"${HEADER}\"\n
namespace llava {
std::string_view ${FUNCTION}() {
  static const unsigned char bytes[] = {
${bytes}};
  return {reinterpret_cast<const char*>(bytes), sizeof(bytes)};
}
}  // namespace llava
")
