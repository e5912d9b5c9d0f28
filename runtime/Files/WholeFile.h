// How a file's bytes are read and written as a whole, whatever its path names: a regular file, a link, a pipe or a device.
#pragma once

#include "runtime/contract/Status.h"

#include <initializer_list>
#include <string>
#include <string_view>

namespace cpflex {

/// Writes pieces one after the other to `path`. A regular file, or one that is not there yet, appears whole: the bytes go
/// to a file beside it, which then takes the name, and the permissions of a file that was there. A symbolic link stays, and
/// its target is written. What is not a regular file (a device, a pipe, what /dev/stdout or /dev/fd/N stand for) is opened
/// and written straight; a named pipe waits for its reader. Unavailable, with the reason, when a byte cannot be written.
Status writeFile(const std::string &path, std::initializer_list<std::string_view> pieces);
Status writeFile(const std::string &path, std::string_view contents);

/// Reads a whole file.
StatusOr<std::string> readFile(const std::string &path);

} // namespace cpflex
