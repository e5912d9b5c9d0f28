// Text files compiled into the binary: kernels, the standard library and the headers that generated code includes.
#pragma once

#include <span>
#include <string_view>

namespace cpflex {

/// A file's name (without folders) and its text.
struct EmbeddedFile {
  std::string_view name;
  std::string_view text;
};

} // namespace cpflex
