#pragma once

// What tests of charts share: a folder of their own, and eyes for the picture that was drawn.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <opencv2/imgcodecs.hpp>
#include <string>

#include "model/chart/canvas.h"

namespace llava {

inline std::string ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

class ChartCase : public testing::Test {
 protected:
  ChartCase() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ =
        std::filesystem::path(testing::TempDir()) / (std::string(info->test_suite_name()) + "_" +
                                                     info->name() + "_" + std::to_string(getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~ChartCase() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path png() const { return folder_ / "chart.png"; }
  cv::Mat Picture() const { return cv::imread(png().string(), cv::IMREAD_COLOR); }

  std::filesystem::path folder_;
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
