# Imported targets torch::cpu and torch::cuda for a LibTorch taken from the PyPI wheel, without
# find_package(Torch), which wants nvcc and Python and links all of libtorch_cuda.
if(NOT EXISTS ${LLAVA_TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "LLAVA_TORCH_DIR=${LLAVA_TORCH_DIR} has no lib/libtorch_cpu.so: run deploy/setup.sh "
                      "and load the env.sh of its cache folder")
endif()

function(_llava_torch_library target file)
  add_library(${target} SHARED IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${LLAVA_TORCH_DIR}/lib/${file})
  target_include_directories(${target} SYSTEM INTERFACE
    ${LLAVA_TORCH_DIR}/include ${LLAVA_TORCH_DIR}/include/torch/csrc/api/include)
endfunction()

_llava_torch_library(torch::c10 libc10.so)
# ATen's big headers then name single operators: a fifth less to compile.
target_compile_definitions(torch::c10 INTERFACE AT_PER_OPERATOR_HEADERS)
_llava_torch_library(torch::cpu libtorch_cpu.so)
target_link_libraries(torch::cpu INTERFACE torch::c10)
if(LLAVA_CUDA)
  _llava_torch_library(torch::c10_cuda libc10_cuda.so)
  _llava_torch_library(torch::cuda libtorch_cuda.so)
  target_link_libraries(torch::cuda INTERFACE torch::cpu torch::c10_cuda)
  # Only static registration refers to libtorch_cuda: keep it although no symbol is used.
  target_link_options(torch::cuda INTERFACE -Wl,--no-as-needed)
endif()
