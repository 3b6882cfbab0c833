#include "model/nn/gradient_checkpoint.h"

#include <memory>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace llava {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Step = std::function<at::Tensor(const at::Tensor&)>;

// How the step travels from forward to backward: autograd's context holds values of its own kinds.
struct StepHolder : torch::CustomClassHolder {
  Step step;
};

class CheckpointFunction : public torch::autograd::Function<CheckpointFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, Step step) {
    at::Tensor out = step(input);  // without gradients: apply has switched them off
    auto holder = c10::make_intrusive<StepHolder>();
    holder->step = std::move(step);
    context->saved_data["step"] = c10::IValue::make_capsule(std::move(holder));
    context->save_for_backward({input});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto holder =
        c10::static_intrusive_pointer_cast<StepHolder>(context->saved_data["step"].toCapsule());
    const at::Tensor input = context->get_saved_variables()[0].detach().requires_grad_();
    at::Tensor out;
    {
      const at::AutoGradMode guard(true);
      out = holder->step(input);
    }
    torch::autograd::backward({out}, {gradients[0]});
    return {input.grad(), at::Tensor()};
  }
};

}  // namespace

at::Tensor Checkpoint(Step step, const at::Tensor& input) {
  if (!input.requires_grad()) return step(input);
  return CheckpointFunction::apply(input, std::move(step));
}

}  // namespace llava
