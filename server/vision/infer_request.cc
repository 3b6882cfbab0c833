#include "server/vision/infer_request.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "server/vision/encode_job.h"
#include "server/wire/feature_key.h"

namespace llava {
namespace {

using Input = inference::ModelInferRequest::InferInputTensor;

constexpr char kPixelValues[] = "pixel_values";
constexpr char kImage[] = "image";
constexpr char kFeatures[] = "features";
constexpr char kFeaturesBFloat16[] = "features_bf16";
constexpr char kPlatform[] = "llava_vision";

template <typename... Words>
absl::Status Wrong(const Words&... words) {
  return absl::InvalidArgumentError(absl::StrCat(words...));
}

std::string Shape(const google::protobuf::RepeatedField<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

std::optional<int64_t> WholeNumber(const inference::InferParameter& value) {
  if (value.has_int64_param()) return value.int64_param();
  if (value.has_uint64_param() && value.uint64_param() <= INT64_MAX) {
    return static_cast<int64_t>(value.uint64_param());
  }
  return std::nullopt;
}

// "336x672,672x336", width first.
bool ParseGrid(const std::string& word, v1::VisionSpec& spec) {
  for (const absl::string_view canvas : absl::StrSplit(word, ',')) {
    const std::vector<absl::string_view> sides = absl::StrSplit(canvas, 'x');
    uint32_t width = 0, height = 0;
    if (sides.size() != 2 || !absl::SimpleAtoi(sides[0], &width) ||
        !absl::SimpleAtoi(sides[1], &height)) {
      return false;
    }
    v1::GridPoint& point = *spec.add_grid();
    point.set_width(width);
    point.set_height(height);
  }
  return true;
}

absl::Status ReadParameter(const std::string& name, const inference::InferParameter& value,
                           v1::VisionSpec& spec, InferPlan& plan) {
  const std::string& word = value.string_param();
  if (name == "select_layer") {
    const auto layer = WholeNumber(value);
    if (!layer || *layer != static_cast<int32_t>(*layer)) {
      return Wrong("parameter select_layer: the number of a layer is expected");
    }
    spec.set_select_layer(static_cast<int32_t>(*layer));
  } else if (name == "select_feature") {
    if (word != "patch" && word != "cls_patch") {
      return Wrong("parameter select_feature: \"patch\" or \"cls_patch\" is expected");
    }
    spec.set_select_feature(word == "patch" ? v1::SELECT_FEATURE_PATCH
                                            : v1::SELECT_FEATURE_CLS_PATCH);
  } else if (name == "image_mode") {
    if (word != "pad" && word != "crop" && word != "anyres") {
      return Wrong("parameter image_mode: \"pad\", \"crop\" or \"anyres\" is expected");
    }
    spec.set_image_mode(word == "pad"    ? v1::IMAGE_MODE_PAD
                        : word == "crop" ? v1::IMAGE_MODE_CROP
                                         : v1::IMAGE_MODE_ANYRES);
  } else if (name == "grid") {
    if (!ParseGrid(word, spec)) {
      return Wrong(
          "parameter grid: canvases of the anyres mode in pixels are expected, as in "
          "\"336x672,672x336\"");
    }
  } else if (name == "timeout") {
    const auto timeout = WholeNumber(value);
    if (!timeout || *timeout < 0) return Wrong("parameter timeout: microseconds are expected");
    // So far in the future that it is none; more would not fit into a time.
    constexpr int64_t kNone = int64_t{365} * 24 * 3600 * 1'000'000;
    if (*timeout > 0 && *timeout < kNone) plan.timeout = std::chrono::microseconds(*timeout);
  } else {
    return Wrong(
        "parameter \"", name,
        "\" is not known; there are select_layer, select_feature, image_mode, grid and timeout");
  }
  return absl::OkStatus();
}

// Parameters of a tensor ask for what is not here (shared memory, classification).
template <typename Tensor>
absl::Status RefuseParameters(const std::string& where, const Tensor& tensor) {
  if (tensor.parameters().empty()) return absl::OkStatus();
  return Wrong(where, ": parameter \"", tensor.parameters().begin()->first, "\" is not known here");
}

// The one input of a request and its bytes, if they came raw.
struct GivenInput {
  const Input* tensor = nullptr;
  const std::string* raw = nullptr;
  std::string where;  // "inputs[0] \"image\""
};

absl::StatusOr<GivenInput> FindInput(const inference::ModelInferRequest& request) {
  const int inputs = request.inputs_size();
  if (inputs != 1) {
    return Wrong(inputs, " inputs, exactly one is expected: \"", kPixelValues, "\" or \"", kImage,
                 "\"");
  }
  GivenInput given;
  given.tensor = &request.inputs(0);
  given.where = absl::StrCat("inputs[0] \"", given.tensor->name(), "\"");
  if (given.tensor->name() != kPixelValues && given.tensor->name() != kImage) {
    return Wrong(given.where, ": no such input; there are \"", kPixelValues, "\" and \"", kImage,
                 "\"");
  }
  if (auto status = RefuseParameters(given.where, *given.tensor); !status.ok()) return status;
  if (request.raw_input_contents_size() > 0) {
    if (request.raw_input_contents_size() != inputs) {
      return Wrong(request.raw_input_contents_size(), " raw_input_contents for ", inputs, " input");
    }
    if (given.tensor->has_contents()) {
      return Wrong(given.where, ": contents and raw_input_contents are both given");
    }
    given.raw = &request.raw_input_contents(0);
  }
  return given;
}

absl::Status CheckTensor(const GivenInput& given, const char* datatype,
                         std::span<const int64_t> picture_shape, int max_batch) {
  const Input& tensor = *given.tensor;
  if (tensor.datatype() != datatype) {
    return Wrong(given.where, ": datatype is \"", tensor.datatype(), "\", ", datatype,
                 " is expected");
  }
  const auto& shape = tensor.shape();
  const bool fits = shape.size() == static_cast<int>(picture_shape.size()) + 1 &&
                    std::equal(picture_shape.begin(), picture_shape.end(), shape.begin() + 1);
  if (!fits) {
    return Wrong(given.where, ": shape is ", Shape(shape), ", [B,",
                 absl::StrJoin(picture_shape, ","), "] is expected");
  }
  if (shape[0] < 1 || shape[0] > max_batch) {
    return Wrong(given.where, ": ", shape[0], " pictures, 1 to ", max_batch,
                 " are taken (--max-batch)");
  }
  return absl::OkStatus();
}

// Both make a job like `like` of each picture.
absl::Status ReadPixels(const GivenInput& given, const TowerInfo& tower, int max_batch,
                        const EncodeJob& like, std::vector<EncodeJob>& jobs) {
  const int64_t side = tower.preprocess.image_size;
  const int64_t picture_shape[] = {3, side, side};
  if (auto status = CheckTensor(given, "FP32", picture_shape, max_batch); !status.ok()) {
    return status;
  }
  const auto batch = static_cast<size_t>(given.tensor->shape(0));
  const auto floats = static_cast<size_t>(3 * side * side);
  const size_t expected = batch * floats * sizeof(float);
  const auto& typed = given.tensor->contents().fp32_contents();
  const char* data = given.raw ? given.raw->data() : reinterpret_cast<const char*>(typed.data());
  const size_t size =
      given.raw ? given.raw->size() : static_cast<size_t>(typed.size()) * sizeof(float);
  if (size != expected) {
    return Wrong(given.where, ": ", size, " bytes of FP32, ", expected, " are expected for shape ",
                 Shape(given.tensor->shape()));
  }
  for (size_t i = 0; i < batch; ++i) {
    EncodeJob& job = jobs.emplace_back(like);
    job.pixels.resize(floats);
    std::memcpy(job.pixels.data(), data + i * floats * sizeof(float), floats * sizeof(float));
    const auto bad = std::find_if(job.pixels.begin(), job.pixels.end(),
                                  [](float value) { return !std::isfinite(value); });
    if (bad != job.pixels.end()) {
      return Wrong(kPixelValues, "[", i, "]: value ", bad - job.pixels.begin(),
                   " of the picture is not finite");
    }
  }
  return absl::OkStatus();
}

// Elements of a raw BYTES tensor: each behind its length.
absl::Status SplitBytes(const GivenInput& given, std::vector<std::string_view>& elements,
                        size_t count) {
  std::string_view rest = *given.raw;
  while (!rest.empty()) {
    uint32_t length = 0;
    if (elements.size() == count || rest.size() < sizeof(length)) {
      return Wrong(given.where, ": ", rest.size(), " bytes behind element ", elements.size(),
                   " of ", count);
    }
    std::memcpy(&length, rest.data(), sizeof(length));
    rest.remove_prefix(sizeof(length));
    if (length > rest.size()) {
      return Wrong(kImage, "[", elements.size(), "]: says ", length, " bytes, ", rest.size(),
                   " are left");
    }
    elements.push_back(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  return absl::OkStatus();
}

absl::Status ReadImages(const GivenInput& given, const VisionEngine::Options& engine,
                        const EncodeJob& like, std::vector<EncodeJob>& jobs) {
  const int64_t picture_shape[] = {1};
  if (auto status = CheckTensor(given, "BYTES", picture_shape, engine.max_batch); !status.ok()) {
    return status;
  }
  const auto batch = static_cast<size_t>(given.tensor->shape(0));
  std::vector<std::string_view> files;
  if (given.raw) {
    if (auto status = SplitBytes(given, files, batch); !status.ok()) return status;
  } else {
    const auto& typed = given.tensor->contents().bytes_contents();
    files.assign(typed.begin(), typed.end());
  }
  if (files.size() != batch) {
    return Wrong(given.where, ": ", files.size(), " elements, ", batch, " are expected for shape ",
                 Shape(given.tensor->shape()));
  }
  for (size_t i = 0; i < batch; ++i) {
    if (files[i].empty()) return Wrong(kImage, "[", i, "]: the file is empty");
    if (files[i].size() > engine.limits.max_bytes) {
      return Wrong(kImage, "[", i, "]: the picture has ", files[i].size(), " bytes, at most ",
                   engine.limits.max_bytes, " are taken (--max-image-bytes)");
    }
    jobs.emplace_back(like).image = files[i];
  }
  return absl::OkStatus();
}

absl::Status ReadOutputs(const inference::ModelInferRequest& request, InferPlan& plan) {
  for (int i = 0; i < request.outputs_size(); ++i) {
    const auto& output = request.outputs(i);
    const std::string where = absl::StrCat("outputs[", i, "] \"", output.name(), "\"");
    if (output.name() != kFeatures && output.name() != kFeaturesBFloat16) {
      return Wrong(where, ": no such output; there are \"", kFeatures, "\" and \"",
                   kFeaturesBFloat16, "\"");
    }
    if (auto status = RefuseParameters(where, output); !status.ok()) return status;
    const auto kind =
        output.name() == kFeatures ? InferPlan::Output::kFloat32 : InferPlan::Output::kBFloat16;
    if (std::count(plan.outputs.begin(), plan.outputs.end(), kind) > 0) {
      return Wrong(where, " is asked for twice");
    }
    plan.outputs.push_back(kind);
  }
  if (plan.outputs.empty()) plan.outputs.push_back(InferPlan::Output::kFloat32);
  return absl::OkStatus();
}

// bfloat16 is the upper half of float32.
std::string Widen(std::string_view bfloat16) {
  std::string wide(2 * bfloat16.size(), '\0');
  for (size_t i = 0; i + 1 < bfloat16.size(); i += 2) {
    std::memcpy(wide.data() + 2 * i + 2, bfloat16.data() + i, 2);
  }
  return wide;
}

void AddInput(inference::ModelConfig& config, const char* name, inference::DataType type,
              inference::ModelInput::Format format, std::span<const int64_t> dims) {
  auto& input = *config.add_input();
  input.set_name(name);
  input.set_data_type(type);
  input.set_format(format);
  for (const int64_t dim : dims) input.add_dims(dim);
  input.set_optional(true);
}

}  // namespace

absl::StatusOr<InferPlan> PlanInference(const inference::ModelInferRequest& request,
                                        const TowerInfo& tower,
                                        const VisionEngine::Options& engine) {
  InferPlan plan;
  v1::VisionSpec spec;  // the same features as by llava.v1.VisionService, under the same name
  spec.set_tower_digest(ToBytes(tower.digest));
  spec.set_image_mode(v1::IMAGE_MODE_PAD);
  spec.set_select_layer(-2);
  spec.set_select_feature(v1::SELECT_FEATURE_PATCH);
  for (const auto& [name, value] : request.parameters()) {
    if (auto status = ReadParameter(name, value, spec, plan); !status.ok()) return status;
  }
  if (auto status = ReadOutputs(request, plan); !status.ok()) return status;
  const auto given = FindInput(request);
  if (!given.ok()) return given.status();
  plan.input = given->tensor->name();
  const bool files = plan.input == kImage;
  for (const char* name : {"image_mode", "grid"}) {
    if (!files && request.parameters().contains(name)) {
      return Wrong("parameter ", name, ": means nothing for ", kPixelValues);
    }
  }
  if (auto status = CheckVisionSpec(spec); !status.ok()) return status;
  const absl::StatusOr<EncodeJob> like = JobOf(spec, tower);
  if (!like.ok()) return Wrong("parameter ", like.status().message());
  const absl::Status read = files ? ReadImages(*given, engine, *like, plan.jobs)
                                  : ReadPixels(*given, tower, engine.max_batch, *like, plan.jobs);
  if (!read.ok()) return read;
  return plan;
}

void WriteOutputs(const InferPlan& plan, std::span<const std::shared_ptr<const Features>> features,
                  inference::ModelInferResponse* response) {
  for (const InferPlan::Output kind : plan.outputs) {
    const bool wide = kind == InferPlan::Output::kFloat32;
    auto& output = *response->add_outputs();
    output.set_name(wide ? kFeatures : kFeaturesBFloat16);
    output.set_datatype(wide ? "FP32" : "BF16");
    output.add_shape(static_cast<int64_t>(features.size()));
    output.add_shape(features.front()->rows);
    output.add_shape(features.front()->width);
    std::string& raw = *response->add_raw_output_contents();
    for (const auto& one : features) raw += wide ? Widen(one->bytes) : one->bytes;
  }
}

void DescribeTensors(const TowerInfo& tower, inference::ModelMetadataResponse* metadata) {
  const int64_t side = tower.preprocess.image_size;
  const auto add = [](auto& tensor, const char* name, const char* type,
                      std::initializer_list<int64_t> shape) {
    tensor.set_name(name);
    tensor.set_datatype(type);
    for (const int64_t dim : shape) tensor.add_shape(dim);
  };
  metadata->set_platform(kPlatform);
  add(*metadata->add_inputs(), kPixelValues, "FP32", {-1, 3, side, side});
  add(*metadata->add_inputs(), kImage, "BYTES", {-1, 1});
  add(*metadata->add_outputs(), kFeatures, "FP32", {-1, -1, tower.width});
  add(*metadata->add_outputs(), kFeaturesBFloat16, "BF16", {-1, -1, tower.width});
}

void DescribeConfig(const TowerInfo& tower, const VisionEngine::Options& engine, int workers,
                    inference::ModelConfig* config) {
  const int64_t side = tower.preprocess.image_size;
  config->set_platform(kPlatform);
  config->set_backend("llava");
  config->mutable_version_policy()->mutable_all();
  config->set_max_batch_size(engine.max_batch);
  const int64_t pixels[] = {3, side, side}, one[] = {1};
  AddInput(*config, kPixelValues, inference::TYPE_FP32, inference::ModelInput::FORMAT_NCHW, pixels);
  AddInput(*config, kImage, inference::TYPE_STRING, inference::ModelInput::FORMAT_NONE, one);
  for (const auto& [name, type] : {std::pair(kFeatures, inference::TYPE_FP32),
                                   std::pair(kFeaturesBFloat16, inference::TYPE_BF16)}) {
    auto& output = *config->add_output();
    output.set_name(name);
    output.set_data_type(type);
    output.add_dims(-1);
    output.add_dims(tower.width);
  }
  auto& group = *config->add_instance_group();
  group.set_name(tower.device);
  group.set_count(workers);
  group.set_kind(tower.device.starts_with("cuda") ? inference::ModelInstanceGroup::KIND_GPU
                                                  : inference::ModelInstanceGroup::KIND_CPU);
  auto& batching = *config->mutable_dynamic_batching();
  for (const int size : engine.preferred_batches) batching.add_preferred_batch_size(size);
  batching.set_max_queue_delay_microseconds(static_cast<uint64_t>(engine.batch_wait.count()));
  auto& parameters = *config->mutable_parameters();
  parameters["tower_digest"].set_string_value(ToHex(tower.digest));
  parameters["numerics"].set_string_value(tower.numerics);
  parameters["dtype"].set_string_value(tower.dtype);
}

}  // namespace llava
