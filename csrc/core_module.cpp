// Exposes the header core to Python without torch, for tests and benchmarks: known answers, the index maps.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/streaming_store.h"
#include "rotnet/augment.h"
#include "rotnet/geometry.h"
#include "rotnet/normalise.h"

namespace py = pybind11;

namespace {

std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  const rotnet::Philox4x32 drawn =
      rotnet::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {drawn.word[0], drawn.word[1], drawn.word[2], drawn.word[3]};
}

py::tuple augmentation(int64_t sample_id, int64_t seed, int64_t epoch, int pad, double flip_prob) {
  const rotnet::Augmentation draw =
      rotnet::draw_augmentation(sample_id, seed, epoch, pad, rotnet::flip_threshold(flip_prob));
  return py::make_tuple(draw.top, draw.left, draw.flip);
}

py::tuple unrotate(int turn, int row, int column, int height, int width) {
  const rotnet::Position position = rotnet::unrotate(turn, row, column, height, width);
  return py::make_tuple(position.row, position.column);
}

float normalise(uint8_t value, double mean, double std) {
  const rotnet::Normalisation normalisation = rotnet::make_normalisation(&mean, &std, 1);
  return rotnet::normalise(value, normalisation.scale[0], normalisation.shift[0]);
}

double streaming_store_rate(const py::buffer& buffer, int threads, int repeats) {
  const py::buffer_info info = buffer.request(/*writable=*/true);
  const int64_t bytes = info.size * info.itemsize;
  if (reinterpret_cast<uintptr_t>(info.ptr) % 16 != 0) throw py::value_error("buffer must be 16-byte aligned");
  if (info.ndim != 1 || info.strides[0] != info.itemsize) throw py::value_error("buffer must be contiguous");
  if (threads < 1 || repeats < 1) throw py::value_error("threads and repeats must be at least 1");
  const py::gil_scoped_release release;
  return rotnet::cpu::streaming_store_rate(static_cast<char*>(info.ptr), bytes, threads, repeats);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The host/device header core: random draws, index maps, normalisation.";
  module.def("philox4x32", &philox, py::arg("counter"), py::arg("key"), "Ten rounds of Philox4x32.");
  module.def("augmentation", &augmentation, py::arg("sample_id"), py::arg("seed"), py::arg("epoch"),
             py::arg("pad"), py::arg("flip_prob"), "(top, left, flip) of one image.");
  module.def("unrotate", &unrotate, py::arg("turn"), py::arg("row"), py::arg("column"), py::arg("height"),
             py::arg("width"), "(row, column) of the upright image that a view shows at (row, column).");
  module.def("normalise", &normalise, py::arg("value"), py::arg("mean"), py::arg("std"),
             "float32 of one uint8 value.");
  module.def("streaming_store_rate", &streaming_store_rate, py::arg("buffer"), py::arg("threads"),
             py::arg("repeats"), "Bytes per second of streaming stores into a buffer: a benchmark's ceiling.");
}
