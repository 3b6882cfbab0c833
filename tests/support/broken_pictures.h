#pragma once

// Picture files of every format that is decoded, and ways to break them. OpenCV writes them.

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

namespace llava {

struct PictureFile {
  std::string name;
  std::vector<uint8_t> bytes;
};

// Small whole pictures: PNG (colour, grey, 16 bits, alpha), JPEG (baseline and progressive), WebP
// (lossy and lossless), BMP (24 and 32 bits); and the files of `folder`, unless that is empty.
std::vector<PictureFile> WholePictures(const std::filesystem::path& folder);

// One of them cut off, with flipped bits, overwritten, doubled or missing pieces, or numbers of its
// header changed; several of these now and then.
std::vector<uint8_t> Broken(const std::vector<PictureFile>& whole, std::mt19937& random);

// An empty one with compressed text of `count` times `bytes` zeros in it.
std::vector<uint8_t> PngWithTexts(int count, size_t bytes);

}  // namespace llava
