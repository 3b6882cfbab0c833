#include "model/checkpoint/torch_archive.h"

#include <algorithm>
#include <stdexcept>
#include <string_view>

#include "model/checkpoint/pickle.h"
#include "model/checkpoint/stored_zip.h"

namespace llava {
namespace {

using Kind = PickleValue::Kind;
using Entries = std::map<std::string, std::span<const uint8_t>>;

constexpr std::string_view kPickleName = "data.pkl";
// Of a hundred thousand tensors; those of the largest published models take a tenth of a MiB.
constexpr size_t kLargestPickle = 16u << 20;
constexpr size_t kMostDimensions = 16;

constexpr std::pair<std::string_view, at::ScalarType> kStorages[] = {
    {"torch.FloatStorage", at::kFloat},       {"torch.HalfStorage", at::kHalf},
    {"torch.BFloat16Storage", at::kBFloat16}, {"torch.DoubleStorage", at::kDouble},
    {"torch.LongStorage", at::kLong},         {"torch.IntStorage", at::kInt},
    {"torch.ShortStorage", at::kShort},       {"torch.CharStorage", at::kChar},
    {"torch.ByteStorage", at::kByte},         {"torch.BoolStorage", at::kBool},
};

void Check(bool fits, const char* what) {
  if (!fits) throw std::runtime_error(what);
}

std::vector<int64_t> Sizes(const PickleValue& tuple) {
  Check(tuple.kind == Kind::kTuple, "its size or stride is not a tuple");
  // Tensors may share one long tuple, and each copy of it would take memory.
  Check(tuple.items.size() <= kMostDimensions, "it has more than 16 dimensions");
  std::vector<int64_t> sizes;
  for (const PickleValue* item : tuple.items) {
    Check(item->kind == Kind::kInt && item->number >= 0, "its size or stride is not a number");
    sizes.push_back(item->number);
  }
  return sizes;
}

bool RowMajor(const MappedTensor& tensor) {
  int64_t expected = 1;
  for (size_t i = tensor.shape.size(); i > 0; --i) {
    if (tensor.shape[i - 1] != 1 && tensor.strides[i - 1] != expected) return false;
    expected *= tensor.shape[i - 1];
  }
  return true;
}

// items: ("storage", class, key, device, elements) inside a persistent id; offset; size; stride.
MappedTensor Resolve(const PickleValue& value, const Entries& entries, const std::string& prefix,
                     std::span<const uint8_t> file) {
  Check(value.items.size() >= 4 && value.items[0]->kind == Kind::kPersistent &&
            value.items[1]->kind == Kind::kInt,
        "it was rebuilt in an unknown way");
  const auto& storage = value.items[0]->items;
  Check(storage.size() >= 5 && storage[1]->kind == Kind::kGlobal &&
            storage[2]->kind == Kind::kString && storage[4]->kind == Kind::kInt,
        "its storage is described in an unknown way");
  const auto* known =
      std::find_if(std::begin(kStorages), std::end(kStorages),
                   [&](const auto& pair) { return pair.first == storage[1]->text; });
  Check(known != std::end(kStorages), "its storage type is unknown");
  const auto entry = entries.find(prefix + "data/" + storage[2]->text);
  Check(entry != entries.end(), "its storage is missing from the archive");

  MappedTensor tensor{{known->second, Sizes(*value.items[2])}, Sizes(*value.items[3]), 0};
  Check(tensor.shape.size() == tensor.strides.size(), "its size and stride do not match");
  const size_t element = at::elementSize(tensor.dtype);
  const int64_t elements = storage[4]->number, offset = value.items[1]->number;
  Check(elements >= 0 && static_cast<uint64_t>(elements) <= entry->second.size() / element,
        "its storage is shorter than it says");
  const auto count = CountElements(tensor.shape, element);
  Check(count && offset >= 0 && offset <= elements && *count <= elements,
        "it does not fit into its storage");
  if (*count > 0) {
    int64_t last = offset;
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      int64_t reach = 0;
      Check(!__builtin_mul_overflow(tensor.shape[i] - 1, tensor.strides[i], &reach) &&
                !__builtin_add_overflow(last, reach, &last) && last < elements,
            "it does not fit into its storage");
    }
  }
  if (*count == 0 || RowMajor(tensor)) tensor.strides.clear();
  tensor.offset = static_cast<size_t>(entry->second.data() - file.data()) +
                  static_cast<size_t>(offset) * element;
  return tensor;
}

}  // namespace

bool IsTorchArchive(std::span<const uint8_t> bytes) {
  return bytes.size() >= 4 && bytes[0] == 'P' && bytes[1] == 'K' && bytes[2] == 3 && bytes[3] == 4;
}

MappedTensors ReadTorchArchive(std::span<const uint8_t> bytes, const std::string& path) {
  MappedTensors places;
  try {
    const Entries entries = ListStoredZip(bytes);
    const auto pickle_entry = std::find_if(entries.begin(), entries.end(), [](const auto& entry) {
      return entry.first == kPickleName || entry.first.ends_with("/data.pkl");
    });
    if (pickle_entry == entries.end()) throw std::runtime_error("zip archive without a data.pkl");
    const std::string prefix =
        pickle_entry->first.substr(0, pickle_entry->first.size() - kPickleName.size());
    const auto order = entries.find(prefix + "byteorder");
    if (order != entries.end() &&
        std::string(order->second.begin(), order->second.end()) != "little") {
      throw std::runtime_error("its tensors are not little-endian");
    }
    if (pickle_entry->second.size() > kLargestPickle) {
      throw std::runtime_error("its data.pkl has " + std::to_string(pickle_entry->second.size()) +
                               " bytes, at most " + std::to_string(kLargestPickle) +
                               " are expected of a file of tensors");
    }
    const Pickle pickle(pickle_entry->second);
    if (pickle.root().kind != Kind::kDict) {
      throw std::runtime_error("it holds no dictionary of tensors");
    }
    for (const auto& [key, value] : pickle.root().entries) {
      if (value->kind != Kind::kTensor || key->kind != Kind::kString) continue;
      try {
        places[key->text] = Resolve(*value, entries, prefix, bytes);
      } catch (const std::runtime_error& error) {
        throw std::runtime_error("tensor \"" + key->text + "\": " + error.what());
      }
    }
    if (places.empty()) throw std::runtime_error("it holds no tensors");
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
  return places;
}

}  // namespace llava
