// The Python module edge.native._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>

#include "preprocess.hpp"
#include "servo_link.hpp"

namespace nb = nanobind;

using Image = nb::ndarray<const uint8_t, nb::shape<-1, -1, vlar1::kChannels>, nb::c_contig, nb::device::cpu>;
using Patches = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

static Patches preprocess(Image image, int height, int width, bool bgr) {
  constexpr int side = vlar1::kPatch * vlar1::kMerge;
  if (height <= 0 || width <= 0 || height % side || width % side)
    throw nb::value_error("height and width must be positive multiples of 28");
  if (image.shape(0) == 0 || image.shape(1) == 0) throw nb::value_error("the image is empty");
  if (image.shape(0) > 32768 || image.shape(1) > 32768 || height > 32768 || width > 32768)
    throw nb::value_error("images of more than 32768 pixels on a side are not supported");
  const size_t n = static_cast<size_t>(height / vlar1::kPatch) * (width / vlar1::kPatch);
  std::unique_ptr<float[]> values(new float[n * vlar1::kPatchValues]);
  {
    nb::gil_scoped_release release;
    vlar1::preprocess(image.data(), static_cast<int>(image.shape(0)), static_cast<int>(image.shape(1)), height, width,
                      bgr, values.get());
  }
  nb::capsule owner(values.get(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  float* data = values.release();
  return Patches(data, {n, static_cast<size_t>(vlar1::kPatchValues)}, owner);
}

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // threads that end with the interpreter may hold something; it is of no use to a user
  m.doc() = "C++ that earns its place by measurement.";
  m.def("preprocess", &preprocess, nb::arg("image").noconvert(), nb::arg("height"), nb::arg("width"), nb::arg("bgr"));
  vlar1::bind_servo(m);
}
