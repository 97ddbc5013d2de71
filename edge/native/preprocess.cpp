#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace vlar1 {
namespace {

// The arithmetic is that of Pillow's 8-bit resampling, so that the robot sees the bytes the model was trained on:
// weights in fixed point with 22 fractional bits, and each of the two passes rounded and clipped to a byte.
constexpr int kFractionBits = 22;
constexpr int32_t kHalf = 1 << (kFractionBits - 1);

// CLIP's channel mean and standard deviation (OpenAI CLIP; Qwen2.5-VL's preprocessor_config.json).
constexpr float kMean[kChannels] = {0.48145466f, 0.4578275f, 0.40821073f};
constexpr float kStd[kChannels] = {0.26862954f, 0.26130258f, 0.27577711f};

// For every output sample: the first input sample it takes, how many, and their weights.
struct Taps {
  int most = 0;                 // weights are laid out `most` to an output sample
  std::vector<int> first, count;
  std::vector<int32_t> weight;
};

// Keys' cubic convolution kernel with a = -1/2 (Keys 1981, eq. 15), the bicubic of Pillow.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// When shrinking, the kernel is stretched by the scale: that is the antialiasing.
Taps make_taps(int in_size, int out_size) {
  const double scale = static_cast<double>(in_size) / out_size;
  const double stretch = std::max(scale, 1.0);
  const double support = 2.0 * stretch;
  Taps taps;
  taps.most = static_cast<int>(std::ceil(support)) * 2 + 1;
  taps.first.resize(out_size);
  taps.count.resize(out_size);
  taps.weight.assign(static_cast<size_t>(out_size) * taps.most, 0);
  std::vector<double> weight(taps.most);
  for (int i = 0; i < out_size; ++i) {
    const double centre = (i + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int end = std::min(static_cast<int>(centre + support + 0.5), in_size);
    const int count = end - first;
    double sum = 0.0;
    for (int t = 0; t < count; ++t) {
      weight[t] = cubic((t + first - centre + 0.5) * (1.0 / stretch));
      sum += weight[t];
    }
    for (int t = 0; t < count; ++t) {
      const double share = weight[t] / sum * (1 << kFractionBits);
      taps.weight[static_cast<size_t>(i) * taps.most + t] = static_cast<int32_t>(share < 0 ? share - 0.5 : share + 0.5);
    }
    taps.first[i] = first;
    taps.count[i] = count;
  }
  return taps;
}

inline uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

void shrink_row(const uint8_t* in, const Taps& taps, int width, uint8_t* out) {
  for (int x = 0; x < width; ++x) {
    const int32_t* weight = &taps.weight[static_cast<size_t>(x) * taps.most];
    const uint8_t* pixel = in + static_cast<size_t>(taps.first[x]) * kChannels;
    int32_t sum[kChannels] = {kHalf, kHalf, kHalf};
    for (int t = 0; t < taps.count[x]; ++t, pixel += kChannels)
      for (int c = 0; c < kChannels; ++c) sum[c] += weight[t] * pixel[c];
    for (int c = 0; c < kChannels; ++c) out[x * kChannels + c] = to_byte(sum[c]);
  }
}

}  // namespace

void preprocess(const uint8_t* image, int in_height, int in_width, int height, int width, bool bgr, float* out) {
  // A byte's normalized value, computed as the Transformers image processor does (scale in double, then float).
  float normalized[kChannels][256];
  for (int c = 0; c < kChannels; ++c)
    for (int value = 0; value < 256; ++value)
      normalized[c][value] = (static_cast<float>(value * (1.0 / 255.0)) - kMean[c]) / kStd[c];

  const size_t row_bytes = static_cast<size_t>(width) * kChannels;
  std::vector<uint8_t> columns(row_bytes * in_height);
  const Taps across = make_taps(in_width, width);
  for (int y = 0; y < in_height; ++y)
    shrink_row(image + static_cast<size_t>(y) * in_width * kChannels, across, width, &columns[y * row_bytes]);

  const Taps down = make_taps(in_height, height);
  std::vector<int32_t> sum(row_bytes);
  const int blocks_across = width / (kPatch * kMerge);
  for (int y = 0; y < height; ++y) {
    std::fill(sum.begin(), sum.end(), kHalf);
    for (int t = 0; t < down.count[y]; ++t) {
      const int32_t weight = down.weight[static_cast<size_t>(y) * down.most + t];
      const uint8_t* row = &columns[(down.first[y] + t) * row_bytes];
      for (size_t i = 0; i < row_bytes; ++i) sum[i] += weight * row[i];
    }
    // Patches go merge block by merge block; inside a patch: channel, time, row, column.
    const int patch_y = y / kPatch;
    for (int x = 0; x < width; ++x) {
      const int patch_x = x / kPatch;
      const size_t block = static_cast<size_t>(patch_y / kMerge) * blocks_across + patch_x / kMerge;
      const size_t patch = (block * kMerge + patch_y % kMerge) * kMerge + patch_x % kMerge;
      float* value = out + patch * kPatchValues + (y % kPatch) * kPatch + x % kPatch;
      for (int c = 0; c < kChannels; ++c) {
        const float v = normalized[c][to_byte(sum[x * kChannels + (bgr ? kChannels - 1 - c : c)])];
        for (int t = 0; t < kTemporal; ++t) value[(c * kTemporal + t) * kPatch * kPatch] = v;
      }
    }
  }
}

}  // namespace vlar1
