#pragma once

// What tests of charts share: a folder of their own, and eyes for the picture that was drawn.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <opencv2/imgcodecs.hpp>
#include <string>

#include "model/chart/canvas.h"
#include "tests/support/temp_folder.h"

namespace llava {

class ChartCase : public testing::Test {
 protected:
  std::string png() const { return folder_.At("chart.png"); }
  cv::Mat Picture() const { return cv::imread(png(), cv::IMREAD_COLOR); }

  const TempFolder folder_;
};

// Largest difference in one of the colours at a place of the picture.
inline int Difference(const cv::Mat& picture, CanvasPoint at, Colour colour) {
  const cv::Vec3b bgr =
      picture.at<cv::Vec3b>(static_cast<int>(std::floor(at.y)), static_cast<int>(std::floor(at.x)));
  int most = 0;
  for (int i = 0; i < 3; ++i) most = std::max(most, std::abs(bgr[2 - i] - colour[i]));
  return most;
}

inline bool Shows(const cv::Mat& picture, CanvasPoint at, Colour colour) {
  return Difference(picture, at, colour) <= 12;
}

}  // namespace llava
