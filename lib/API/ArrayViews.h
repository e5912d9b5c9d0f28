// Arrays in the memory of others: what is wrong with one, and its elements as a dense array on the host, wherever it
// is.
#pragma once

#include "lib/API/cpflex.h"

namespace cpflex {

/// InvalidArgument unless shape and strides fit together and there is data where there are elements. `name` is the
/// capture's, for messages.
Status checkView(const std::string &name, const ArrayView &view);

/// Whether the host can read the elements where they are.
bool isOnHost(const ArrayView &view);

/// A dense copy of the elements. From CUDA memory it is made on `stream`, which the host waits for; Unavailable without
/// a device.
StatusOr<Array> denseCopy(const ArrayView &view, void *stream = nullptr);

/// A dense array as a view; the view keeps it alive.
ArrayView viewOfArray(Array array);

} // namespace cpflex
