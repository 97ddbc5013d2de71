// Camera frame -> the pixel patches of Qwen2.5-VL, in one go.
#pragma once

#include <cstdint>

namespace vlar1 {

constexpr int kPatch = 14;          // pixels on a patch's side
constexpr int kMerge = 2;           // patches on the side of a merge block
constexpr int kTemporal = 2;        // a still image stands for two frames
constexpr int kChannels = 3;
constexpr int kPatchValues = kChannels * kTemporal * kPatch * kPatch;

// image: in_height x in_width x 3 bytes, row-major. out: (height / 14) * (width / 14) rows of kPatchValues floats.
// height and width must be multiples of kPatch * kMerge.
void preprocess(const uint8_t* image, int in_height, int in_width, int height, int width, bool bgr, float* out);

}  // namespace vlar1
