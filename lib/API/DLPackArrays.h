// Arrays of DLPack in and out: a tensor of another library as a view, and a view as a tensor.
#pragma once

#include "lib/API/DLPack.h"
#include "lib/API/cpflex.h"

namespace cpflex {

/// The tensor as a view that keeps nothing alive. InvalidArgument for vectors and element types that no declaration
/// names, Unsupported for memory that neither the host nor CUDA reads.
StatusOr<ArrayView> viewOfDLTensor(const DLTensor &tensor);

/// The tensor as a view that owns it: its deleter is called with the last copy of the view, or here on failure.
StatusOr<ArrayView> takeDLPack(DLManagedTensor *tensor);
/// The same; Unsupported for another major version.
StatusOr<ArrayView> takeDLPack(DLManagedTensorVersioned *tensor);

/// A tensor over the view's memory that keeps view.owner alive until its deleter is called.
DLManagedTensor *toDLPack(const ArrayView &view);
/// The same, marked read-only.
DLManagedTensorVersioned *toDLPackVersioned(const ArrayView &view);

} // namespace cpflex
