#pragma once

#include <string>

#include "client/bench/load.h"
#include "client/bench/samples.h"

namespace llava::bench {

// What a run showed, as a table for people: times in milliseconds.
std::string Table(const Samples& samples, const LoadOptions& options);

// The same as one JSON object: times in seconds, each distribution with count, mean, median, p90,
// p99 and max.
std::string Json(const Samples& samples, const LoadOptions& options);

}  // namespace llava::bench
