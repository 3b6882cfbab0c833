#pragma once

// ScienceQA (Lu et al., 2022): multiple-choice questions, some with a picture, some with a text.

#include <filesystem>
#include <string>
#include <vector>

namespace llava {

struct ScienceProblem {
  std::string id;
  std::string question;
  std::vector<std::string> choices;  // at least 2
  int answer = 0;                    // which of them
  std::string hint;                  // what there is to read; may be empty
  std::string image;                 // name in the folder of the problem; empty: no picture
  std::string caption;               // of the picture, see AddCaptions
  std::string subject;               // "natural science", "social science", "language science"
  int grade = 0;                     // 1 .. 12; 0 if not told
  std::string lecture, solution;     // why; may be empty
};

// The problems of one split. `problems`: problems.json; `splits`: pid_splits.json, whose order they
// have; if empty, what their own "split" says, by id. Throws std::runtime_error naming file,
// problem and key, std::invalid_argument listing the splits if there is no such one.
std::vector<ScienceProblem> ReadScienceProblems(const std::filesystem::path& problems,
                                                const std::filesystem::path& splits,
                                                const std::string& split);

// Sets the captions that captions.json has ({"captions": {id: text}}). Throws std::runtime_error.
void AddCaptions(const std::filesystem::path& captions, std::vector<ScienceProblem>& problems);

// 'A' for choice 0.
inline char ChoiceLetter(int choice) { return static_cast<char>('A' + choice); }

}  // namespace llava
