// Arrays, params and dimensions of an Evaluator laid out as compiled functions read them.
#pragma once

#include "lib/Analysis/ProgramSignature.h"
#include "test/lib/Transforms/Evaluator.h"

#include <cstring>
#include <deque>

namespace cpflex::test {

/// Owns what `bindings` points to.
class BoundArrays {
public:
  BoundArrays(mlir::ModuleOp module, const Evaluator &evaluator) : signature(signatureOf(module)) {
    for (const CaptureDeclaration &declaration : signature.captures) {
      CaptureView view;
      view.type = declaration.type;
      view.rank = declaration.dims.size();
      auto found = evaluator.captures.find(declaration.name);
      if (found != evaluator.captures.end()) {
        const Array &array = found->second;
        int64_t stride = 1;
        for (int axis = view.rank - 1; axis >= 0; --axis) {
          view.shape[axis] = array.shape[axis];
          view.strides[axis] = stride;
          stride *= array.shape[axis];
        }
        view.data = store(declaration.type, array.elements);
      }
      views.push_back(view);
    }
    for (const ParamDeclaration &declaration : signature.params) {
      auto found = evaluator.params.find(declaration.name);
      params.push_back(found == evaluator.params.end() ? declaration.defaultValue : found->second);
    }
    for (const std::string &name : signature.dims) {
      auto found = evaluator.dims.find(name);
      dims.push_back(found == evaluator.dims.end() ? 0 : found->second);
    }
    bindings = {views.data(), params.data(), dims.data()};
  }
  BoundArrays(const BoundArrays &) = delete;

  Signature signature;
  std::vector<CaptureView> views;
  Bindings bindings;

private:
  /// The elements in memory that ends where the array ends, so that a sanitizer sees a load beyond it.
  const void *store(ElementType type, const std::vector<ScalarSlot> &elements) {
    int64_t size = sizeInBytes(type);
    std::vector<unsigned char> &bytes = storage.emplace_back(elements.size() * size);
    for (size_t i = 0; i < elements.size(); ++i)
      std::memcpy(bytes.data() + i * size, &elements[i], size);
    bytes.shrink_to_fit();
    return bytes.data();
  }

  std::vector<ScalarSlot> params;
  std::vector<int64_t> dims;
  std::deque<std::vector<unsigned char>> storage;
};

} // namespace cpflex::test
