// Runs the package of a model on one input of float32, without Python.
//   run_package <folder> <rows> <features> <input> <output>
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

int main(int count, char** words) {
  if (count != 6) return 2;
  const std::string folder = words[1];
  if (!dlopen((folder + "/libblast_ops.so").c_str(), RTLD_NOW)) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 3;
  }
  at::Tensor x = at::empty({std::atol(words[2]), std::atol(words[3])}, at::kFloat);
  std::ifstream(words[4], std::ios::binary).read(static_cast<char*>(x.mutable_data_ptr()), x.nbytes());
  torch::inductor::AOTIModelPackageLoader model(folder + "/model.pt2");
  const at::Tensor y = model.run({x})[0].contiguous();
  std::ofstream(words[5], std::ios::binary).write(static_cast<const char*>(y.const_data_ptr()), y.nbytes());
  return 0;
}
