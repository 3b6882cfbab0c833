#include "model/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "model/checkpoint/durable_file.h"

namespace llava {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

uint64_t HeaderLength(std::span<const uint8_t> bytes) {
  uint64_t length = 0;
  if (bytes.size() >= kLengthBytes) std::memcpy(&length, bytes.data(), kLengthBytes);
  return length;
}

// Checks one entry of the header; `data` is where the tensor bytes begin, `data_bytes` how many.
MappedTensor ParseEntry(const json& entry, uint64_t data, uint64_t data_bytes) {
  if (!entry.is_object()) throw std::runtime_error("its entry is not an object");
  const std::string dtype_name = entry.at("dtype").get<std::string>();
  const auto dtype = DtypeOf(dtype_name);
  if (!dtype) throw std::runtime_error("its type " + dtype_name + " is not supported");
  const json& shape_json = entry.at("shape");
  const json& offsets = entry.at("data_offsets");
  const auto is_size = [](const json& value) { return value.is_number_unsigned(); };
  if (!shape_json.is_array() || !std::all_of(shape_json.begin(), shape_json.end(), is_size) ||
      !offsets.is_array() || offsets.size() != 2 || !is_size(offsets[0]) || !is_size(offsets[1])) {
    throw std::runtime_error("its shape or its data_offsets are not lists of sizes");
  }
  MappedTensor tensor{{*dtype, shape_json.get<std::vector<int64_t>>()}, {}, 0};
  const auto begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  const size_t element = at::elementSize(*dtype);
  const auto count = CountElements(tensor.shape, element);
  if (begin > end || end > data_bytes) {
    throw std::runtime_error("its bytes [" + std::to_string(begin) + ", " + std::to_string(end) +
                             ") are not within the " + std::to_string(data_bytes) +
                             " bytes of the file (cut off?)");
  }
  if (!count || static_cast<uint64_t>(*count) * element != end - begin) {
    throw std::runtime_error("its shape " + ShapeText(tensor.shape) + " of " + dtype_name +
                             " does not fill its " + std::to_string(end - begin) + " bytes");
  }
  tensor.offset = data + begin;
  return tensor;
}

}  // namespace

bool IsSafetensors(std::span<const uint8_t> bytes) {
  return bytes.size() > kLengthBytes && bytes[kLengthBytes] == '{' &&
         HeaderLength(bytes) <= kMaxHeaderBytes;
}

uint64_t SafetensorsHeaderBytes(std::span<const uint8_t> head) {
  const uint64_t length = HeaderLength(head);
  return kLengthBytes + (length <= kMaxHeaderBytes ? length : 0);
}

MappedTensors ParseSafetensorsHeader(std::span<const uint8_t> head, uint64_t file_bytes,
                                     const std::string& path) {
  const auto fail = [&](const std::string& what) { throw std::runtime_error(path + ": " + what); };
  const uint64_t length = HeaderLength(head);
  if (head.size() < kLengthBytes || length > head.size() - kLengthBytes) {
    fail("is cut off: its header of " + std::to_string(length) + " bytes does not fit into " +
         std::to_string(head.size()) + " bytes");
  }
  if (length > kMaxHeaderBytes) fail("its header has " + std::to_string(length) + " bytes");
  const uint64_t data = kLengthBytes + length;
  const uint64_t data_bytes = file_bytes - data;
  const char* text = reinterpret_cast<const char*>(head.data()) + kLengthBytes;
  const json header = json::parse(text, text + length, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) fail("its header is not a JSON object");

  MappedTensors places;
  std::vector<std::tuple<uint64_t, uint64_t, std::string>> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    try {
      const MappedTensor tensor = ParseEntry(entry, data, data_bytes);
      const uint64_t begin = tensor.offset - data;
      ranges.emplace_back(begin, entry["data_offsets"][1].get<uint64_t>(), name);
      places[name] = tensor;
    } catch (const json::exception&) {
      fail("tensor \"" + name + "\": its entry lacks dtype, shape or data_offsets");
    } catch (const std::runtime_error& error) {
      fail("tensor \"" + name + "\": " + error.what());
    }
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t end = 0;
  for (const auto& [begin, stop, name] : ranges) {
    if (begin != end) {
      fail("tensor \"" + name + "\": its bytes begin at " + std::to_string(begin) + ", " +
           std::to_string(end) + " is expected (overlap, gap or a name given twice)");
    }
    end = stop;
  }
  if (end != data_bytes) {
    fail("has " + std::to_string(data_bytes - end) + " bytes that belong to no tensor");
  }
  return places;
}

void SaveSafetensors(const std::filesystem::path& path,
                     const std::map<std::string, at::Tensor>& tensors,
                     const std::map<std::string, std::string>& metadata) {
  std::map<std::string, TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) {
    infos[name] = {tensor.scalar_type(), tensor.sizes().vec()};
  }
  StreamSafetensors(
      path, infos, [&](const std::string& name) { return tensors.at(name); }, metadata);
}

void StreamSafetensors(const std::filesystem::path& path,
                       const std::map<std::string, TensorInfo>& infos,
                       const std::function<at::Tensor(const std::string&)>& get,
                       const std::map<std::string, std::string>& metadata) {
  // Wide elements first: every tensor is aligned, as the format's own writer does it.
  std::vector<std::pair<std::string, TensorInfo>> ordered(infos.begin(), infos.end());
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
    return at::elementSize(a.second.dtype) > at::elementSize(b.second.dtype);
  });

  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& [name, info] : ordered) {
    if (!DtypeOf(DtypeName(info.dtype))) {
      throw std::runtime_error(path.string() + ": tensor \"" + name + "\" has the type " +
                               DtypeName(info.dtype) + ", which cannot be stored");
    }
    header[name] = {{"dtype", DtypeName(info.dtype)},
                    {"shape", info.shape},
                    {"data_offsets", {offset, offset + info.bytes()}}};
    offset += info.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  StagedFile file(path, path.string() + ".tmp-" + RandomName());
  file.Write({reinterpret_cast<const char*>(&length), kLengthBytes});
  file.Write(text);
  for (const auto& [name, info] : ordered) {  // one at a time: a GPU's may be more than the host
    const at::Tensor here = get(name).detach().to(at::kCPU).contiguous();
    if (here.scalar_type() != info.dtype || here.sizes() != at::IntArrayRef(info.shape)) {
      throw std::logic_error("tensor \"" + name + "\" is not what was announced");
    }
    file.Write({static_cast<const char*>(here.const_data_ptr()), here.nbytes()});
  }
  file.Commit();
}

}  // namespace llava
