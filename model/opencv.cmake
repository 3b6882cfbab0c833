# Target llava_opencv: decodes, encodes and draws pictures; a library's own affair, which no header
# shows. Looked up by hand, because Debian ships OpenCVConfig.cmake only with the package of all
# its modules.
find_path(LLAVA_OPENCV_INCLUDE opencv2/imgcodecs.hpp PATH_SUFFIXES opencv4 REQUIRED)
find_library(LLAVA_OPENCV_IMGPROC opencv_imgproc REQUIRED)
find_library(LLAVA_OPENCV_IMGCODECS opencv_imgcodecs REQUIRED)
find_library(LLAVA_OPENCV_CORE opencv_core REQUIRED)
add_library(llava_opencv INTERFACE)
target_include_directories(llava_opencv SYSTEM INTERFACE ${LLAVA_OPENCV_INCLUDE})
target_link_libraries(llava_opencv INTERFACE
  ${LLAVA_OPENCV_IMGPROC} ${LLAVA_OPENCV_IMGCODECS} ${LLAVA_OPENCV_CORE})
