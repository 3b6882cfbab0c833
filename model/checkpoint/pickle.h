#pragma once

// A pickle as plain values. Knows what torch.save writes for dictionaries of tensors and refuses
// everything else by name: no code of the file is ever looked up or run.

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llava {

// One value. Containers point at values of the same Pickle, so sharing and cycles cost nothing.
struct PickleValue {
  enum class Kind {
    kNone,
    kBool,        // number
    kInt,         // number
    kFloat,       // real
    kString,      // text
    kList,        // items
    kTuple,       // items
    kDict,        // entries
    kGlobal,      // text: "module.name", one of the few known ones
    kPersistent,  // items: (the tuple that stands for a storage)
    kTensor,      // items: (storage, offset, size, stride, ...) as torch wrote them
  };
  Kind kind = Kind::kNone;
  int64_t number = 0;
  double real = 0;
  std::string text;
  std::vector<const PickleValue*> items;
  std::vector<std::pair<const PickleValue*, const PickleValue*>> entries;
};

// Protocols 2 to 5 without out-of-band buffers. Owns its values. Const after construction.
class Pickle {
 public:
  // Throws std::runtime_error saying what is wrong and at which byte.
  explicit Pickle(std::span<const uint8_t> bytes);

  const PickleValue& root() const { return *root_; }

 private:
  friend class Unpickler;
  std::deque<PickleValue> values_;
  const PickleValue* root_ = nullptr;
};

}  // namespace llava
