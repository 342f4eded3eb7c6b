// Runs a kernel on arguments that lie where a stray access is caught, in a process that may die of it.
//   driver <kernel.so> <calls> <results> heap|start|end|starved
// heap: each tensor is an allocation of its own, for AddressSanitizer. start, end: each fills the start or the end of pages
// between two that nobody may touch; inputs cannot be written either. starved: as heap, and the kernel runs with room for
// no allocation, for one, for two, until it has enough.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

std::atomic<bool> is_starved{false};
std::atomic<int> num_left{0};  // allocations that a starved kernel is granted

constexpr size_t PAGE = 4096;

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "driver: %s\n", what);
  std::exit(99);
}

char* guarded(const std::vector<char>& bytes, bool at_end, bool is_output) {
  const size_t size = (bytes.size() + PAGE - 1) / PAGE * PAGE;
  char* pages = static_cast<char*>(mmap(nullptr, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (pages == MAP_FAILED || mprotect(pages + PAGE, size, PROT_READ | PROT_WRITE)) give_up("no memory");
  char* data = pages + PAGE + (at_end ? size - bytes.size() : 0);
  std::copy(bytes.begin(), bytes.end(), data);
  if (!is_output && mprotect(pages + PAGE, size, PROT_READ)) give_up("no protection");
  return data;
}

struct File {
  std::FILE* file;
  File(const char* path, const char* mode) : file(std::fopen(path, mode)) {
    if (!file) give_up(path);
  }
  ~File() { std::fclose(file); }
  bool read(void* to, size_t size) { return std::fread(to, 1, size, file) == size; }
};

}  // namespace

// Kernels find this one before that of the system.
extern "C" void* aligned_alloc(size_t alignment, size_t size) {
  void* data = nullptr;
  if (is_starved && num_left-- <= 0) return nullptr;
  return posix_memalign(&data, alignment, size) ? nullptr : data;
}

// A call is the number of its arguments, then each: 0 and a number, or 1 (input) or 2 (output) and a size and the bytes.
// Results are the bytes of the outputs.
int main(int count, char** words) {
  if (count != 5) give_up("expected a kernel, calls, results and a place");
  const std::string place = words[4];
  void* library = dlopen(words[1], RTLD_NOW);
  if (!library) give_up(dlerror());
  auto run = reinterpret_cast<int (*)(const int64_t*)>(dlsym(library, "blast_run"));
  File calls(words[2], "rb"), results(words[3], "wb");
  for (int64_t num_arguments; calls.read(&num_arguments, sizeof(num_arguments));) {
    std::vector<int64_t> arguments;
    std::vector<char*> heap;
    std::vector<std::pair<const char*, size_t>> outputs;
    for (int64_t i = 0; i < num_arguments; ++i) {
      int64_t kind_and_value[2];
      if (!calls.read(kind_and_value, sizeof(kind_and_value))) give_up("a call is cut off");
      const auto [kind, value] = kind_and_value;
      if (kind == 0) {
        arguments.push_back(value);
        continue;
      }
      std::vector<char> bytes(static_cast<size_t>(value));
      if (!calls.read(bytes.data(), bytes.size())) give_up("a tensor is cut off");
      char* data;
      if (place == "heap" || place == "starved") {
        heap.push_back(data = static_cast<char*>(std::malloc(bytes.size())));
        std::copy(bytes.begin(), bytes.end(), data);
      } else {
        data = guarded(bytes, place == "end", kind == 2);
      }
      arguments.push_back(reinterpret_cast<int64_t>(data));
      if (kind == 2) outputs.emplace_back(data, bytes.size());
    }
    const std::vector<int64_t> exact(arguments);  // no room behind the last one
    int status = 2;
    is_starved = place == "starved";
    for (int tries = 0; status == 2 && tries < (is_starved ? 1000 : 1); ++tries) {
      num_left = tries;
      status = run(exact.data());
      if (tries == 0 && is_starved && status != 2) give_up("the kernel wants no memory");
    }
    is_starved = false;
    if (status) return status;
    for (auto [data, size] : outputs) std::fwrite(data, 1, size, results.file);
    for (char* data : heap) std::free(data);
  }
  return 0;
}
