#pragma once

// The kernels of one instruction set, LLAVA_ISA: what the other sources define for each.

#include "model/ops/cpu/kernels.h"

#define LLAVA_DECLARE_KERNELS(isa)                                                              \
  namespace llava::ops::cpu::isa {                                                              \
  float RmsNorm(const float* x, const float* weight, float eps, int64_t width, Element element, \
                void* out);                                                                     \
  void RmsNormBackward(const float* x, const float* weight, float scale, int64_t width,         \
                       Element element, const void* gradient, float* of_x, float* of_weight);   \
  void SwiGlu(Element element, const void* gate, const void* up, int64_t size, void* out);      \
  void SwiGluBackward(Element element, const void* gate, const void* up, const void* gradient,  \
                      int64_t size, void* of_gate, void* of_up);                                \
  int64_t AttentionScratch(const AttentionBlock& block, bool backward);                         \
  void Attention(const AttentionBlock& block, int64_t kv_head, float* scratch);                 \
  void AttentionBackward(const AttentionBlock& block, int64_t kv_head,                          \
                         const AttentionGradients& gradients, float* scratch);                  \
  int64_t FullAttentionScratch(const FullAttention& task);                                      \
  void FullAttentionHead(const FullAttention& task, float* scratch);                            \
  void Pack(PackTask& task);                                                                    \
  void Prepare(const PrepareTask& task);                                                        \
  void MultiplyPanel(const PanelTask& task);                                                    \
  void Finish(const FinishTask& task);                                                          \
  void WriteKv(const WriteKvTask& task);                                                        \
  int64_t AttendScratch(const KvLayout& layout, int64_t rows);                                  \
  void Attend(const AttendTask& task);                                                          \
  void FinishAttend(const FinishAttendTask& task);                                              \
  }

#ifdef LLAVA_ISA
LLAVA_DECLARE_KERNELS(LLAVA_ISA)
#endif
