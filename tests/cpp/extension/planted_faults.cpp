// An op that commits a fault on purpose, in the library that tests/support/sanitize.py builds and in no other: a run that
// does not notice it would notice nothing.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace rotnet {
namespace {

using torch::stable::Tensor;

// 0: writes the byte after a tensor's memory, in a thread of the op. 1: shifts a number beyond its width.
void planted_fault(const Tensor& memory, int64_t kind) {
  auto* bytes = static_cast<volatile char*>(memory.data_ptr());
  const int64_t size = memory.numel() * static_cast<int64_t>(memory.element_size());
  if (kind == 0) {
    torch::stable::parallel_for(size, size + 1, 1, [&](int64_t begin, int64_t /*end*/) { bytes[begin] = 1; });
  } else {
    bytes[0] = static_cast<char>(1 << static_cast<int>(size));
  }
}

}  // namespace
}  // namespace rotnet

STABLE_TORCH_LIBRARY_FRAGMENT(rotnet_fast, library) {
  library.def("planted_fault(Tensor(a!) memory, int kind) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rotnet_fast, CPU, library) {
  library.impl("planted_fault", TORCH_BOX(&rotnet::planted_fault));
}
