#include "model/checkpoint/low_rank.h"

#include <memory>
#include <stdexcept>
#include <utility>

#include <ATen/ops/addmm.h>

#include "model/checkpoint/mapped_tensor.h"

namespace llava {
namespace {

class SumFile : public TensorFile {
 public:
  SumFile(TensorSource whole, TensorSource source, std::map<std::string, LowRankFactors> factors,
          std::optional<at::ScalarType> dtype)
      : whole_(std::move(whole)), source_(std::move(source)), factors_(std::move(factors)) {
    for (const auto& [name, factor] : factors_) {
      infos_[name] = whole_.tensors().at(name);
      if (dtype) infos_[name].dtype = *dtype;
    }
  }
  const std::map<std::string, TensorInfo>& tensors() const override { return infos_; }
  at::Tensor Get(const std::string& name) const override {
    const LowRankFactors& factor = factors_.at(name);
    const auto read = [](const TensorSource& from, const std::string& tensor) {
      return from.Get(tensor).to(at::kFloat);
    };
    return at::addmm(read(whole_, name), read(source_, factor.b), read(source_, factor.a),
                     /*beta=*/1, /*alpha=*/factor.scale)
        .to(infos_.at(name).dtype);
  }
  void Release(const std::string& name) const override { whole_.Release(name); }
  void Finish() const override { whole_.Finish(); }

 private:
  const TensorSource whole_, source_;
  const std::map<std::string, LowRankFactors> factors_;
  std::map<std::string, TensorInfo> infos_;
};

// What is wrong with the factors of a matrix; empty: nothing.
std::string WhyNot(const TensorSource& tensors, const TensorSource& source, const std::string& name,
                   const LowRankFactors& factor) {
  const auto whole = tensors.tensors().find(name);
  if (whole == tensors.tensors().end()) return name + " is not there";
  const auto& shape = whole->second.shape;
  const auto& a = source.tensors().at(factor.a).shape;
  const auto& b = source.tensors().at(factor.b).shape;
  const bool fits = shape.size() == 2 && a.size() == 2 && b.size() == 2 && a[0] == b[1] &&
                    a[1] == shape[1] && b[0] == shape[0];
  if (fits) return "";
  return name + " is " + ShapeText(shape) + ", its factors are " + ShapeText(b) + " and " +
         ShapeText(a);
}

}  // namespace

void AddLowRank(TensorSource& tensors, const TensorSource& source,
                std::map<std::string, LowRankFactors> factors,
                std::optional<at::ScalarType> dtype) {
  std::string wrong;
  for (const auto& [name, factor] : factors) {
    const std::string why = WhyNot(tensors, source, name, factor);
    if (!why.empty()) wrong += (wrong.empty() ? "" : "; ") + why;
  }
  if (!wrong.empty()) {
    throw std::runtime_error("the factors of low rank do not fit the matrices: " + wrong);
  }
  tensors.Put(std::make_shared<const SumFile>(tensors, source, std::move(factors), dtype));
}

}  // namespace llava
