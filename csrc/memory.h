// The memory of a tensor argument, and the checks to make before reading from or writing to it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

namespace rotnet {

struct Memory {
  const char* name;  // name of the argument
  const char* begin;
  int64_t bytes;

  const char* end() const { return begin + bytes; }
};

// Checks the elements of a contiguous tensor. Its shape does not guarantee that they exist, because a storage can
// be resized under a tensor; and compiled loops may rely on elements at multiples of their size.
inline Memory memory_of(const char* op, const char* name, const torch::stable::Tensor& tensor) {
  const auto element = static_cast<int64_t>(tensor.element_size());
  const Memory memory{name, static_cast<const char*>(tensor.data_ptr()), tensor.numel() * element};
  if (memory.bytes == 0) return memory;
  int64_t stored = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &stored));
  const int64_t needed = tensor.storage_offset() * element + memory.bytes;
  STD_TORCH_CHECK(needed <= stored, op, ": ", name, " needs ", needed, " bytes of its storage, which has ", stored,
                  ": pass a tensor whose storage was not resized");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(memory.begin) % element == 0, op, ": ", name,
                  " lies at an address that is no multiple of its ", element, "-byte elements: pass a copy");
  return memory;
}

// Checks that nothing that an op writes overlaps anything else that it writes or reads.
inline void check_apart(const char* op, const std::vector<Memory>& written, const std::vector<Memory>& read) {
  const auto check = [op](const Memory& a, const Memory& b) {
    STD_TORCH_CHECK(a.bytes == 0 || b.bytes == 0 || a.begin >= b.end() || b.begin >= a.end(), op, ": ", a.name,
                    " shares memory with ", b.name, ": pass a buffer of its own");
  };
  for (size_t i = 0; i < written.size(); ++i) {
    for (size_t j = 0; j < i; ++j) check(written[j], written[i]);
    for (const Memory& other : read) check(written[i], other);
  }
}

}  // namespace rotnet
