#include "model/eval/chat_quality.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include <ATen/ops/zeros_like.h>
#include <c10/core/InferenceMode.h>

#include "model/data/scenes/render.h"
#include "model/progress/progress.h"

namespace llava {
namespace {

using enum QuestionType;

// Types from first to last, as they stand in the enumeration.
struct Group {
  const char* name;
  std::vector<std::pair<QuestionType, QuestionType>> types;
};
const Group kGroups[] = {
    {"naming", {{kWhat, kBrief}}},
    {"counting", {{kCount, kGroupCount}}},
    {"left_right", {{kSide, kSideOf}}},
    {"existence", {{kExist, kExist}}},
    {"place", {{kAbove, kWhere}}},
    {"reasoning", {{kKind, kSame}}},
    {"follow_up", {{kFollowSide, kFollowCount}}},
    {"chains", {}},
    {"detail", {{kDetail, kDetail}}},
    {"bigger", {{kBigger, kBigger}}},
    {"background", {{kBackground, kBackground}}},
};

// The seed of the exam on which the commonest answers are found.
constexpr uint64_t kPractice = 0x7072616374696365;

Share Sum(const Group& group, const Marks& marks) {
  if (group.types.empty()) return marks.chains;
  Share sum;
  for (const auto& [first, last] : group.types) {
    for (int i = static_cast<int>(first); i <= static_cast<int>(last); ++i) sum += marks.types[i];
  }
  return sum;
}

std::string Percent(const std::optional<double>& share) {
  char text[32] = "-";
  if (share) std::snprintf(text, sizeof(text), "%.1f", 100 * *share);
  return text;
}

}  // namespace

Eye TowerEye(const ClipTower& tower, const FeatureConfig& features) {
  return [&tower, features](const Scene& scene) {
    thread_local SceneRenderer renderer;
    return TowerFeatures(tower, features, renderer.Render(scene));
  };
}

Quality MeasureQuality(const Llava& model, const Eye& eye, const QualityOptions& options) {
  const Exam exam = MakeExam(options.exam);
  const int64_t turns = NumTurns(exam);
  const int conditions = 1 + options.blind + (options.oracle != nullptr);
  Progress progress(options.progress, "asking", static_cast<uint64_t>(turns * conditions));
  uint64_t done = 0;
  const auto measure = [&](const Llava& asked, ImageTokens tokens,
                           const MistakeListener& mistaken = {}) {
    return Examine(
        exam, [&] { return std::make_unique<ModelExaminee>(asked, tokens); }, options.threads,
        [&](int64_t answered) {
          done += static_cast<uint64_t>(answered);
          progress.Update(done);
        },
        mistaken);
  };
  const auto project = [&model](const PictureFeatures& picture) {
    return model.Project({&picture.rows, 1}, {&picture.size, 1})[0];
  };

  const Marks picture = measure(
      model, [&](const Scene& scene) { return project(eye(scene)); }, options.mistaken);
  std::optional<Marks> blind, majority, oracle;
  if (options.blind && !exam.empty()) {
    const c10::InferenceMode guard;
    PictureFeatures dark = eye(exam[0].scene);
    dark.rows = at::zeros_like(dark.rows);
    const at::Tensor nothing = project(dark);
    blind = measure(model, [&nothing](const Scene&) { return nothing; });
  }
  if (options.oracle) {
    oracle = measure(options.oracle_model ? *options.oracle_model : model, options.oracle);
  }
  if (options.majority) {
    ExamOptions practice = options.exam;
    practice.seed = Random(options.exam.seed, 0, kPractice).Bits();
    majority = MarkCommonestAnswers(exam, MakeExam(practice));
  }
  progress.Finish(done);

  // `share_of` finds a row in any of the marks.
  const auto row = [&](std::string name, const auto& share_of) {
    const auto value = [&](const std::optional<Marks>& marks) {
      return marks ? std::optional(share_of(*marks).value()) : std::nullopt;
    };
    return QualityRow{std::move(name), share_of(picture), value(blind), value(majority),
                      value(oracle)};
  };
  Quality quality;
  for (const Group& group : kGroups) {
    quality.groups.push_back(
        row(group.name, [&group](const Marks& marks) { return Sum(group, marks); }));
  }
  for (int i = 0; i < kNumQuestionTypes; ++i) {
    const auto type = static_cast<QuestionType>(i);
    quality.types.push_back(
        row(std::string(NameOf(type)), [type](const Marks& marks) { return marks.Of(type); }));
  }
  for (auto* rows : {&quality.groups, &quality.types}) {
    std::erase_if(*rows, [](const QualityRow& one) { return one.picture.asked == 0; });
  }
  return quality;
}

nlohmann::ordered_json QualityJson(const Quality& quality, nlohmann::ordered_json settings) {
  using Json = nlohmann::ordered_json;
  const auto add = [](const std::vector<QualityRow>& rows, Json& to) {
    const auto share = [](const std::optional<double>& value) {
      return value ? Json(*value) : Json();
    };
    for (const QualityRow& row : rows) {
      const Interval interval = WilsonInterval(row.picture);
      to[row.name] = {{"accuracy", row.picture.value()}, {"low", interval.low},
                      {"high", interval.high},           {"n", row.picture.asked},
                      {"blind", share(row.blind)},       {"majority", share(row.majority)},
                      {"oracle", share(row.oracle)}};
    }
  };
  Json json = Json::object();
  add(quality.groups, json);
  json["types"] = Json::object();
  add(quality.types, json["types"]);
  json["settings"] = std::move(settings);
  return json;
}

std::string QualityTable(const Quality& quality) {
  char line[128];
  const auto format = [&line](const char* name, const std::string& right, const char* interval,
                              const std::string& n, const std::string& blind,
                              const std::string& majority, const std::string& oracle) {
    std::snprintf(line, sizeof(line), "%-12s %6s  %-13s %6s  %6s %8s %6s\n", name, right.c_str(),
                  interval, n.c_str(), blind.c_str(), majority.c_str(), oracle.c_str());
    return std::string(line);
  };
  std::string table;
  for (const auto* rows : {&quality.groups, &quality.types}) {
    if (!table.empty()) table += '\n';
    table += format(rows == &quality.groups ? "group" : "type", "right", "95 % interval", "n",
                    "blind", "majority", "oracle");
    for (const QualityRow& row : *rows) {
      const Interval interval = WilsonInterval(row.picture);
      char text[40];
      std::snprintf(text, sizeof(text), "%5.1f - %5.1f", 100 * interval.low, 100 * interval.high);
      table += format(row.name.c_str(), Percent(row.picture.value()), text,
                      std::to_string(row.picture.asked), Percent(row.blind), Percent(row.majority),
                      Percent(row.oracle));
    }
  }
  return table;
}

}  // namespace llava
