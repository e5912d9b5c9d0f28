# Helpers that declare the project's libraries: every library includes headers from the repository root.

# cpflex_add_library(NAME SOURCES... [LINK libs...]): a static library of the runtime or the compiler.
function(cpflex_add_library name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}" "${PROJECT_BINARY_DIR}")
  target_link_libraries(${name} PUBLIC ${ARG_LINK})
endfunction()

# cpflex_embed(TARGET SYMBOL FILES...): embeds text files into TARGET; Embed.h declares how they are found by name.
# Each becomes an entry of the array that SYMBOL() returns.
function(cpflex_embed target symbol)
  set(output "${CMAKE_CURRENT_BINARY_DIR}/${symbol}.cpp")
  set(paths)
  foreach(file IN LISTS ARGN)
    list(APPEND paths "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
  endforeach()
  add_custom_command(
    OUTPUT "${output}"
    COMMAND "${CMAKE_COMMAND}" "-DOUTPUT=${output}" "-DSYMBOL=${symbol}" "-DFILES=${paths}"
            -P "${PROJECT_SOURCE_DIR}/cmake/Embed.cmake"
    DEPENDS ${paths} "${PROJECT_SOURCE_DIR}/cmake/Embed.cmake"
    VERBATIM)
  target_sources(${target} PRIVATE "${output}")
endfunction()
