#pragma once

#include "model/text/json_text.h"  // where it lives, for who may not see model/checkpoint
