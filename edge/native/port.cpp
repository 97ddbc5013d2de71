#include "port.hpp"

#include <asm/termbits.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/serial.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <fstream>

namespace vlar1 {
namespace {

constexpr int kParents = 8;  // folders from a tty up to its USB device

int64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int set_raw(int fd, uint32_t baudrate) {
  termios2 t{};
  if (ioctl(fd, TCGETS2, &t) < 0) return errno;
  t.c_iflag = IGNPAR;
  t.c_oflag = 0;
  t.c_lflag = 0;
  t.c_cflag = CS8 | CREAD | CLOCAL | BOTHER | (BOTHER << IBSHIFT);
  t.c_ispeed = t.c_ospeed = baudrate;
  t.c_cc[VMIN] = 0;
  t.c_cc[VTIME] = 0;
  return ioctl(fd, TCSETS2, &t) < 0 ? errno : 0;
}

// FTDI adapters keep answers back for 16 ms unless asked not to; others know no such thing.
void ask_for_low_latency(int fd) {
  serial_struct settings{};
  if (ioctl(fd, TIOCGSERIAL, &settings) < 0) return;
  settings.flags |= ASYNC_LOW_LATENCY;
  ioctl(fd, TIOCSSERIAL, &settings);
}

}  // namespace

std::string usb_serial_of(const PortRoots& roots, const std::string& device) {
  char resolved[PATH_MAX];
  if (!realpath((roots.sys + "/" + device + "/device").c_str(), resolved)) return "";
  std::string folder = resolved;
  for (int i = 0; i < kParents && folder.size() > 1; ++i) {
    std::ifstream file(folder + "/serial");
    std::string serial;
    if (file && std::getline(file, serial) && !serial.empty()) return serial;
    folder = folder.substr(0, folder.rfind('/'));
  }
  return "";
}

std::string find_by_usb_serial(const PortRoots& roots, const std::string& serial) {
  std::string found;
  DIR* folder = serial.empty() ? nullptr : opendir(roots.sys.c_str());
  if (!folder) return found;
  while (const dirent* entry = readdir(folder)) {
    const std::string name = entry->d_name;
    // Virtual consoles are many, and no adapter is among them.
    if (name.rfind("ttyACM", 0) != 0 && name.rfind("ttyUSB", 0) != 0 && name.rfind("ttyTHS", 0) != 0) continue;
    if (usb_serial_of(roots, name) == serial) {
      found = roots.dev + "/" + name;
      break;
    }
  }
  closedir(folder);
  return found;
}

int Port::open(const std::string& path, uint32_t baudrate) {
  close();
  const int fd = ::open(path.c_str(), O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return errno;
  int error = set_raw(fd, baudrate);
  if (!error && ioctl(fd, TIOCEXCL) < 0) error = errno;
  if (!error && flock(fd, LOCK_EX | LOCK_NB) < 0) error = EBUSY;  // binds root, too, and is what pyserial heeds
  if (error) {
    ::close(fd);
    return error;
  }
  ask_for_low_latency(fd);
  fd_ = fd;
  discard_input();
  return 0;
}

void Port::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

bool Port::write(const uint8_t* data, size_t size) {
  if (fd_ < 0) return false;
  ssize_t n;
  do n = ::write(fd_, data, size);
  while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(size)) return true;
  if (n < 0 && errno != EAGAIN) close();
  return false;  // a packet cut short is skipped by the servos' own checksum
}

void Port::wait(int number, int64_t deadline_ns) {
  for (;;) {
    const int64_t left = deadline_ns - now_ns();
    if (left <= 0) return;
    pollfd p{number, POLLIN, 0};
    const timespec wait{left / 1000000000, left % 1000000000};
    if (ppoll(&p, 1, &wait, nullptr) >= 0 || errno != EINTR) return;
  }
}

ptrdiff_t Port::read(uint8_t* data, size_t size) {
  if (fd_ < 0) return -1;
  pollfd p{fd_, POLLIN, 0};
  if (poll(&p, 1, 0) <= 0) return 0;
  const ssize_t n = ::read(fd_, data, size);
  if (n > 0) return n;
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  close();  // hung up
  return -1;
}

void Port::discard_input() {
  if (fd_ >= 0) ioctl(fd_, TCFLSH, TCIFLUSH);
}

}  // namespace vlar1
