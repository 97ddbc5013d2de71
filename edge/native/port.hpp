// A serial port that may be pulled out at any time and come back under another name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace vlar1 {

// Where the system shows its serial devices; other folders in tests.
struct PortRoots {
  std::string sys = "/sys/class/tty";
  std::string dev = "/dev";
};

// The serial number of the USB adapter behind `device` (a name such as ttyACM0), empty where it has none.
std::string usb_serial_of(const PortRoots& roots, const std::string& device);

// The device file of the adapter with that serial number, empty while there is none.
std::string find_by_usb_serial(const PortRoots& roots, const std::string& serial);

class Port {
 public:
  Port() = default;
  ~Port() { close(); }
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;

  // Raw, exclusive, without blocking. 0, or errno.
  int open(const std::string& path, uint32_t baudrate);
  void close();
  bool is_open() const { return fd_ >= 0; }

  // All of it or nothing: false when the port is gone or takes no more.
  bool write(const uint8_t* data, size_t size);

  // Waits until something has come, at most until `deadline_ns` (CLOCK_MONOTONIC); for a descriptor of `number`, so that
  // the port may be closed meanwhile.
  static void wait(int number, int64_t deadline_ns);
  int number() const { return fd_; }

  // What has come, up to `size` bytes; 0 if nothing, -1 when the port is gone.
  ptrdiff_t read(uint8_t* data, size_t size);

  // Forget what has come and was not read.
  void discard_input();

 private:
  int fd_ = -1;
};

}  // namespace vlar1
