// The standard library of masks and score functions: `.cpf` files compiled into the binary,
// imported as `cpflex.std`.
#pragma once

#include "runtime/contract/EmbeddedFile.h"

namespace cpflex {

/// Every file of lib/Std by its name with extension.
std::span<const EmbeddedFile> standardLibrary();

} // namespace cpflex
