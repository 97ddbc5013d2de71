// The servo process: no Python in it. It shares memory with the process that commands it (descriptor given as its only
// argument), takes the end of its standard input for that process's death, and is deaf to the terminal's signals.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "servo_loop.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("vlar1-servo: started by the runtime, not by hand\n", stderr);
    return 2;
  }
  signal(SIGINT, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  const int fd = std::atoi(argv[1]);
  struct stat info{};
  if (fstat(fd, &info) < 0 || static_cast<size_t>(info.st_size) != sizeof(vlar1::Shared)) {
    std::fputs("vlar1-servo: the shared memory is not of this version; install vlar1-edge again\n", stderr);
    return 2;
  }
  void* memory = mmap(nullptr, sizeof(vlar1::Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return 2;
  auto* shared = static_cast<vlar1::Shared*>(memory);
  if (shared->magic != vlar1::kMagic || shared->size != sizeof(vlar1::Shared)) return 2;
  return vlar1::ServoLoop(shared, STDIN_FILENO).run();
}
