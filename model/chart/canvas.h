#pragma once

// A drawing surface for charts, smooth through drawing larger than it is saved.

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace llava {

using Colour = std::array<uint8_t, 3>;  // RGB

struct CanvasPoint {
  double x = 0, y = 0;  // pixels from the top left corner
};

// One thread.
class Canvas {
 public:
  // All white.
  Canvas(int width, int height);
  ~Canvas();

  void Line(CanvasPoint from, CanvasPoint to, Colour colour, double thickness);
  void Curve(std::span<const CanvasPoint> points, Colour colour, double thickness);
  void Disc(CanvasPoint centre, double radius, Colour colour);
  void Box(CanvasPoint corner, CanvasPoint opposite, Colour colour);
  // What is drawn from now on shows only within this box.
  void Clip(CanvasPoint corner, CanvasPoint opposite);
  void Unclip();

  // `anchor`: 0 if `at` is the left end of the text, 0.5 its middle, 1 its right end; `at.y` is its
  // base line. `size`: height of capitals in pixels. ASCII; other characters show as "?".
  void Text(const std::string& text, CanvasPoint at, double anchor, double size, Colour colour,
            bool bold = false);
  static double TextWidth(const std::string& text, double size, bool bold = false);

  // Throws std::runtime_error naming the path if it cannot be written.
  void SavePng(const std::filesystem::path& path) const;

 private:
  struct Surface;
  std::unique_ptr<Surface> surface_;
};

}  // namespace llava
