#include "model/chart/canvas.h"

#include <algorithm>
#include <cmath>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <stdexcept>

#include "model/checkpoint/durable_file.h"

namespace llava {
namespace {

constexpr int kScale = 3;  // drawn so many times larger, both ways
constexpr int kShift = 4;  // fractional bits of coordinates
constexpr int kFont = cv::FONT_HERSHEY_SIMPLEX;
constexpr double kCapitals = 21;  // height of the font's capitals at scale 1, pixels

cv::Scalar Bgr(Colour colour) { return {double(colour[2]), double(colour[1]), double(colour[0])}; }
cv::Point Fixed(CanvasPoint point) {
  // A pixel's centre, which is where OpenCV puts whole numbers, lies half a pixel inside.
  const auto fixed = [](double x) {
    return static_cast<int>(std::lround((x * kScale - 0.5) * (1 << kShift)));
  };
  return {fixed(point.x), fixed(point.y)};
}
int Thick(double thickness) {
  return std::max(1, static_cast<int>(std::lround(thickness * kScale)));
}
double FontScale(double size) { return size * kScale / kCapitals; }
int FontThickness(double size, bool bold) { return Thick(size * (bold ? 0.17 : 0.11)); }

std::string Printable(const std::string& text) {
  std::string shown;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 && byte < 0xC0) continue;  // the rest of a character
    shown += byte >= 0x20 && byte < 0x7F ? c : '?';
  }
  return shown;
}

}  // namespace

struct Canvas::Surface {
  cv::Mat whole;
  cv::Mat clipped;              // a view into it
  CanvasPoint origin = {0, 0};  // of the view

  CanvasPoint Inside(CanvasPoint point) const { return {point.x - origin.x, point.y - origin.y}; }
};

Canvas::Canvas(int width, int height) : surface_(std::make_unique<Surface>()) {
  surface_->whole = cv::Mat(height * kScale, width * kScale, CV_8UC3, cv::Scalar::all(255));
  surface_->clipped = surface_->whole;
}

Canvas::~Canvas() = default;

void Canvas::Line(CanvasPoint from, CanvasPoint to, Colour colour, double thickness) {
  cv::line(surface_->clipped, Fixed(surface_->Inside(from)), Fixed(surface_->Inside(to)),
           Bgr(colour), Thick(thickness), cv::LINE_AA, kShift);
}

void Canvas::Curve(std::span<const CanvasPoint> points, Colour colour, double thickness) {
  std::vector<cv::Point> fixed;
  fixed.reserve(points.size());
  for (const CanvasPoint& point : points) fixed.push_back(Fixed(surface_->Inside(point)));
  cv::polylines(surface_->clipped, fixed, /*isClosed=*/false, Bgr(colour), Thick(thickness),
                cv::LINE_AA, kShift);
}

void Canvas::Disc(CanvasPoint centre, double radius, Colour colour) {
  cv::circle(surface_->clipped, Fixed(surface_->Inside(centre)),
             static_cast<int>(std::lround(radius * kScale * (1 << kShift))), Bgr(colour),
             cv::FILLED, cv::LINE_AA, kShift);
}

void Canvas::Box(CanvasPoint corner, CanvasPoint opposite, Colour colour) {
  const CanvasPoint a = surface_->Inside(corner), b = surface_->Inside(opposite);
  const std::array<cv::Point, 4> corners = {Fixed({a.x, a.y}), Fixed({b.x, a.y}), Fixed({b.x, b.y}),
                                            Fixed({a.x, b.y})};
  cv::fillConvexPoly(surface_->clipped, corners, Bgr(colour), cv::LINE_AA, kShift);
}

void Canvas::Clip(CanvasPoint corner, CanvasPoint opposite) {
  const cv::Point a(static_cast<int>(corner.x * kScale), static_cast<int>(corner.y * kScale));
  const cv::Point b(static_cast<int>(opposite.x * kScale), static_cast<int>(opposite.y * kScale));
  const cv::Rect whole(0, 0, surface_->whole.cols, surface_->whole.rows);
  const cv::Rect part = cv::Rect(a, b) & whole;
  surface_->clipped = surface_->whole(part);
  surface_->origin = {static_cast<double>(part.x) / kScale, static_cast<double>(part.y) / kScale};
}

void Canvas::Unclip() {
  surface_->clipped = surface_->whole;
  surface_->origin = {0, 0};
}

double Canvas::TextWidth(const std::string& text, double size, bool bold) {
  int base_line = 0;
  return static_cast<double>(cv::getTextSize(Printable(text), kFont, FontScale(size),
                                             FontThickness(size, bold), &base_line)
                                 .width) /
         kScale;
}

void Canvas::Text(const std::string& text, CanvasPoint at, double anchor, double size,
                  Colour colour, bool bold) {
  const CanvasPoint inside = surface_->Inside(at);
  const double left = inside.x - anchor * TextWidth(text, size, bold);
  cv::putText(surface_->clipped, Printable(text),
              {static_cast<int>(std::lround(left * kScale)),
               static_cast<int>(std::lround(inside.y * kScale))},
              kFont, FontScale(size), Bgr(colour), FontThickness(size, bold), cv::LINE_AA);
}

void Canvas::SavePng(const std::filesystem::path& path) const {
  cv::Mat small;
  cv::resize(surface_->whole, small, {}, 1.0 / kScale, 1.0 / kScale, cv::INTER_AREA);
  std::vector<uint8_t> png;
  if (!cv::imencode(".png", small, png)) {
    throw std::runtime_error(path.string() + ": the picture could not be encoded as PNG");
  }
  WriteDurably(path, {reinterpret_cast<const char*>(png.data()), png.size()});
}

}  // namespace llava
