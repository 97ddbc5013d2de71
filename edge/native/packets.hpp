// Packets of the two servo buses: Feetech STS and Dynamixel 2.0; their checksums; a parser that finds them after noise.
//
// Feetech: FF FF id len code params... checksum; len counts code, params and checksum; checksum = ~(sum from id).
// Dynamixel: FF FF FD 00 id len_l len_h code params... crc_l crc_h; len counts code, params and crc; FD is stuffed in
// after FF FF FD from the code on; CRC-16, polynomial 0x8005, from the header on (Robotis e-Manual, protocol 2.0). A
// status packet's code is 55 and its first parameter the error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vlar1 {

enum class Protocol : uint32_t { kFeetech = 0, kDynamixel = 1 };

constexpr uint8_t kPing = 0x01, kRead = 0x02, kWrite = 0x03, kSyncRead = 0x82, kSyncWrite = 0x83;
constexpr uint8_t kBroadcast = 0xFE;
constexpr size_t kMaxParams = 250;

using Bytes = std::vector<uint8_t>;

uint16_t crc16(const uint8_t* data, size_t size);

// The bytes of one instruction.
Bytes build(Protocol protocol, uint8_t id, uint8_t instruction, const Bytes& params);

// A register read of many servos by one request, and a register write.
Bytes build_sync_read(Protocol protocol, const std::vector<uint8_t>& ids, uint16_t address, uint16_t size);
Bytes build_sync_write(Protocol protocol, uint16_t address, uint16_t size, const Bytes& blocks);
Bytes build_write(Protocol protocol, uint8_t id, uint16_t address, const Bytes& data);

struct Status {
  uint8_t id = 0, error = 0;
  Bytes params;
};

// Finds status packets in a stream of bytes that may hold noise, in whatever pieces it arrives. Anything that is none is
// skipped one byte at a time, so a packet that follows a damaged one is still found.
class Parser {
 public:
  explicit Parser(Protocol protocol) : protocol_(protocol) {}

  void feed(const uint8_t* data, size_t size) { buffer_.insert(buffer_.end(), data, data + size); }

  // The next packet. `params`: how many parameters it must have; naming it means that a damaged length cannot make
  // the parser wait for bytes that never come. -1 takes any number.
  bool next(Status* status, int params);

  void clear() { buffer_.clear(); }

  uint64_t damaged = 0;  // packets of a right header and length whose checksum was wrong
  uint64_t skipped = 0;  // bytes that belonged to no packet

 private:
  int packet_size(int params);  // 0 if none begins at the front, -1 if more bytes are needed
  Protocol protocol_;
  Bytes buffer_;
};

// A register's value to and from its bytes: little-endian; the sign in a bit of its own (`sign_bit`), or as two's
// complement (`sign_bit` -1 and `is_signed`), or none.
struct Register {
  uint16_t address = 0;
  uint16_t size = 0;
  int16_t sign_bit = -1;
  int16_t is_signed = 0;
};

void encode(const Register& reg, int64_t value, uint8_t* out);
int64_t decode(const Register& reg, const uint8_t* data);

}  // namespace vlar1
