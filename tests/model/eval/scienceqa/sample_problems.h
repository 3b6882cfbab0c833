#pragma once

// Five problems with everything that matters to score and prompts.

#include <string>

namespace llava {

inline const char* SampleProblems() {
  return R"({
 "1": {"question": "Which is a bird?", "choices": ["cod", "wren"], "answer": 1, "hint": "",
       "image": "image.png", "grade": "grade2", "subject": "natural science",
       "lecture": "Birds have  feathers.\nFish have none.", "solution": "A wren has feathers.",
       "split": "test"},
 "2": {"question": "Which word is a verb?", "choices": ["run", "red", "rock"], "answer": 0,
       "hint": "Read the list.", "image": null, "grade": "grade7", "subject": "language science",
       "lecture": "", "solution": "", "split": "test"},
 "3": {"question": "Where is Oslo?", "choices": ["Norway", "Peru"], "answer": 0,
       "hint": "Look at the map.", "image": "image.png", "grade": "grade12",
       "subject": "social science", "lecture": "Maps show places.", "solution": "", "split": "test"},
 "10": {"question": "What is 2 cm?", "choices": ["a length", "a mass", "a time", "a song"],
        "answer": 3, "hint": "", "image": null, "grade": "grade6", "subject": "natural science",
        "lecture": "", "solution": "So it is.", "split": "test"},
 "7": {"question": "Does ice float?", "choices": ["yes", "no"], "answer": 0, "hint": "",
       "image": null, "grade": "grade1", "subject": "natural science", "lecture": "",
       "solution": "It is light.", "split": "train"}
})";
}

inline const char* SampleSplits() { return R"({"train": ["7"], "test": ["10", "1", "2", "3"]})"; }

}  // namespace llava
