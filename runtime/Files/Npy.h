// How arrays get in and out of files: NumPy's `.npy` format, version 1 to 3, little-endian, C or Fortran order on
// reading, C order on writing.
#pragma once

#include "runtime/Files/WholeFile.h"
#include "runtime/contract/Bindings.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <string>
#include <vector>

namespace cpflex {

/// A dense array in C order that owns its memory. F64 files are read as F32.
struct Array {
  ElementType type = ElementType::F32;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  int64_t numElements() const;
};

/// Reads a `.npy` file. Fails with InvalidArgument when the file is no `.npy` file, is cut short or holds an element
/// type that no declaration can name, and with Unavailable when it cannot be read.
StatusOr<Array> readNpy(const std::string &path);

/// Writes `array` to `path` as writeFile does. BF16 is written as uint16, the form in which it travels.
Status writeNpy(const std::string &path, const Array &array);

} // namespace cpflex
