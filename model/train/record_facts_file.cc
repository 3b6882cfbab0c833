#include "model/train/record_facts_file.h"

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "model/checkpoint/tensor_file.h"

namespace llava {
namespace {

// The numbers that are kept of a record, by name.
template <typename Visit>
void VisitKept(const Visit& visit) {
  visit("tokens", &RecordFacts::tokens);
  visit("image_tokens", &RecordFacts::image_tokens);
  visit("words", &RecordFacts::words);
  visit("picture", &RecordFacts::picture);
}

}  // namespace

void SaveFacts(const std::filesystem::path& file, const std::vector<RecordFacts>& facts) {
  std::map<std::string, at::Tensor> kept;
  VisitKept([&](const char* name, auto member) {
    at::Tensor values = at::empty({static_cast<int64_t>(facts.size())}, at::kLong);
    auto* value = values.data_ptr<int64_t>();
    for (const RecordFacts& one : facts) *value++ = static_cast<int64_t>(one.*member);
    kept[name] = values;
  });
  SaveSafetensors(file, kept);
}

std::vector<RecordFacts> ReadFacts(const std::filesystem::path& file) {
  const auto stored = TensorFile::Open(file);
  std::vector<RecordFacts> facts;
  VisitKept([&](const char* name, auto member) {
    const auto found = stored->tensors().find(name);
    const bool is_list = found != stored->tensors().end() && found->second.dtype == at::kLong &&
                         found->second.shape.size() == 1;
    if (facts.empty() && is_list) facts.resize(found->second.numel());
    if (!is_list || found->second.numel() != facts.size()) {
      throw std::runtime_error(file.string() + ": has no list \"" + name + "\" of all records");
    }
    const at::Tensor values = stored->Get(name);
    const auto* value = values.data_ptr<int64_t>();
    using Number = std::remove_reference_t<decltype(facts.front().*member)>;
    for (RecordFacts& one : facts) one.*member = static_cast<Number>(*value++);
  });
  return facts;
}

}  // namespace llava
