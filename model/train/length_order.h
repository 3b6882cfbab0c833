#pragma once

// An order in which neighbours are about equally long and of one kind, so that batches waste
// little: LLaVA's group_by_modality_length.

#include <cstdint>
#include <span>
#include <vector>

#include "model/data/scenes/random.h"

namespace llava {

// `lengths`: positive for samples with a picture, negative for text alone, never 0 (throws
// std::invalid_argument). Cuts a permutation of each kind into megabatches of chunks * batch
// samples, sorts each by length, deals it out to `chunks` micro-batches of about equal sum, and
// shuffles the megabatches of both kinds together; the last megabatch of each kind comes at the
// end.
std::vector<int64_t> GroupByModalityAndLength(std::span<const int64_t> lengths, int64_t batch,
                                              int64_t chunks, Random& random);

}  // namespace llava
