#include "model/checkpoint/tensor_source.h"

#include <set>
#include <stdexcept>
#include <utility>

namespace llava {

void TensorSource::Add(const std::string& canonical, std::shared_ptr<const TensorFile> file,
                       std::string stored) {
  const auto info = file->tensors().find(stored);
  if (info == file->tensors().end()) throw std::out_of_range("no tensor \"" + stored + "\"");
  if (!infos_.emplace(canonical, info->second).second) {
    throw std::runtime_error("tensor \"" + stored + "\" is \"" + canonical + "\", as is \"" +
                             places_.at(canonical).stored + "\"");
  }
  places_[canonical] = {std::move(file), std::move(stored)};
}

void TensorSource::Adopt(const std::string& canonical, const TensorSource& from) {
  const Place& place = from.places_.at(canonical);
  Add(canonical, place.file, place.stored);
}

void TensorSource::Put(const std::shared_ptr<const TensorFile>& file) {
  for (const auto& [name, info] : file->tensors()) {
    Remove(name);
    Add(name, file, name);
  }
}

void TensorSource::Put(const TensorSource& from) {
  for (const auto& [name, info] : from.infos_) {
    Remove(name);
    Adopt(name, from);
  }
}

void TensorSource::Remove(const std::string& canonical) {
  infos_.erase(canonical);
  places_.erase(canonical);
}

void TensorSource::Rename(const std::string& from, const std::string& to) {
  const auto place = places_.find(from);
  if (place == places_.end()) return;
  const Place moved = place->second;
  Remove(from);
  Add(to, moved.file, moved.stored);
}

uint64_t TensorSource::numel() const {
  uint64_t sum = 0;
  for (const auto& [name, info] : infos_) sum += info.numel();
  return sum;
}

uint64_t TensorSource::bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, info] : infos_) sum += info.bytes();
  return sum;
}

at::Tensor TensorSource::Get(const std::string& canonical) const {
  const auto place = places_.find(canonical);
  if (place == places_.end()) throw std::out_of_range("no tensor \"" + canonical + "\"");
  return place->second.file->Get(place->second.stored);
}

void TensorSource::Release(const std::string& canonical) const {
  const auto place = places_.find(canonical);
  if (place != places_.end()) place->second.file->Release(place->second.stored);
}

void TensorSource::Finish() const {
  std::set<const TensorFile*> finished;
  for (const auto& [name, place] : places_) {
    if (finished.insert(place.file.get()).second) place.file->Finish();
  }
}

}  // namespace llava
