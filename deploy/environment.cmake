# llava_environment_path(NAME DOC): a path of the env.sh that deploy/setup.sh writes, kept in CMake's
# cache. An environment variable that has changed since the last configuration counts, unless
# -DNAME=... said otherwise.
function(llava_environment_path name doc)
  set(now "$ENV{${name}}")
  set(${name} "${now}" CACHE PATH "${doc}")
  if(now STREQUAL "")
    return()
  endif()
  if("${${name}}" STREQUAL "" OR "${${name}}" STREQUAL "${LLAVA_ENVIRONMENT_${name}}")
    set(${name} "${now}" CACHE PATH "${doc}" FORCE)
  endif()
  set(LLAVA_ENVIRONMENT_${name} "${now}" CACHE INTERNAL "")
endfunction()
